"""Pages from templates, which share their look."""

from typing import Any

import jinja2

from ns_ray import __version__
from ns_ray.report import words


def render(template: str, **values: Any) -> str:
    """A page from its template; everything is escaped but what is marked as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ns_ray.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("percent", "points", "count", "number", "seconds", "p_value")
    environment.filters |= {name: getattr(words, name) for name in names}
    return environment.get_template(template).render(version=__version__, **values)
