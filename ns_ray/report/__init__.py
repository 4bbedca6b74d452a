"""The report: `report.html` of a run, a page that compares two runs, and one of several models.

In go the files of runs, or scores; out come pages that open offline and need nothing else, no
scripts and no outside resources. They can be made again at any time, that of a run before its end,
too:

    ns-ray report runs/my-run
    ns-ray report runs/my-run runs/other-run

Knows nothing about torch, Ray or the driver.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ns_ray import store

if TYPE_CHECKING:
    from ns_ray.report.pictures import Thumbnail


def write(root: str) -> str:
    """Write the report of a run: of one that has not finished, what is known and what comes.

    Args:
        root: the run's folder or URI.

    Returns:
        The report's path.

    Raises:
        ConfigError: there is no run, or its folder cannot be written.
        DataError: its files are damaged.
    """
    from ns_ray.report.facts import open_any

    run = open_any(root)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # no remarks about its font cache
    if run.result:
        from ns_ray.report.page import run_page

        page = run_page(run)
    else:
        from ns_ray.report.unfinished import begun_page

        page = begun_page(run)
    store.write_bytes(run.layout.report, page.encode())
    return run.layout.report


def tell(root: str, found: Mapping[str, Any]) -> None:
    """Write what is known of a run before its end, and its report. What a run that was interrupted
    has told before is not written again.

    Args:
        root: the run's folder or URI.
        found: what its result.json would say now, with another status.
    """
    from ns_ray.report.facts import open_any

    if not _told(open_any(root).result, json.loads(json.dumps(found))):
        store.write_json(store.RunLayout(root).so_far, found)
        write(root)


def _told(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the models of a result are those of an earlier one, or the first of them."""
    count = len(now["generations"])
    same = before.get("generations", [])[:count] == now["generations"]
    return same and now["control"] in (None, before["control"])


def up_to_date(root: str) -> str:
    """The report of a finished run, written where it is missing or belongs to another result. What
    was told before the end goes.

    Returns:
        The report's path.
    """
    from ns_ray.report.facts import open_run

    run = open_run(root)
    store.remove_files(run.layout.root, ["so_far.json"])
    mark = f'<meta name="run" content="{run.mark}">'.encode()
    page = store.read_bytes(run.layout.report) if store.exists(run.layout.report) else b""
    whole = page.rstrip().endswith(b"</html>")
    return run.layout.report if mark in page and whole else write(root)


def brief(root: str) -> str:
    """What came out of a finished run, as HTML for a notebook: the report's first sentences, and
    the table of models.

    Raises:
        ConfigError: there is no run.
        DataError: the run has not finished, or its files are damaged.
    """
    from ns_ray.report.facts import open_run
    from ns_ray.report.page import brief_part

    return brief_part(open_run(root))


def beside(
    names: Sequence[str],
    models: Sequence[store.Bundle],
    scores: Sequence[Mapping[str, Any]],
    *,
    data: str,
    out: str,
) -> str:
    """Write a page that shows several models, scored on the same images.

    Args:
        names: of the models.
        models: their bundles.
        scores: what `evaluation.json` of each says; those after the first are compared with it.
        data: the images, as the user named them.
        out: the page.

    Returns:
        The page's path.

    Raises:
        ConfigError: the page cannot be written.
    """
    from ns_ray.report.scored import models_page

    store.write_bytes(out, models_page(names, models, scores, data).encode())
    return out


def compare(first: str, second: str, out: str | None = None) -> str:
    """Write a page that compares two finished runs.

    Args:
        first: a run's folder or URI.
        second: that of the run that is compared with it.
        out: the page; None: `compare-NAME.html` in the second run's folder.

    Returns:
        The page's path.

    Raises:
        ConfigError: there is no run, or the page cannot be written.
        DataError: a run has not finished, or the two know different classes.
    """
    from ns_ray.report.facts import open_run

    a, b = open_run(first), open_run(second)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from ns_ray.report.comparison import comparison_page

    path = store.absolute(out) if out else store.join(b.layout.root, f"compare-{a.name}.html")
    store.write_bytes(path, comparison_page(a, b).encode())
    return path


def render(template: str, **values: Any) -> str:
    """A page in the look of the report, for rooms that have their own: from one of `templates/`, in
    which everything is escaped but what is marked as HTML."""
    from ns_ray.report.rendering import render as rendered

    return rendered(template, **values)


def picture(data: bytes, side: int) -> "Thumbnail":
    """A picture for a page.

    Args:
        data: an encoded image.
        side: its longest side is at most so many pixels.

    Raises:
        ImageError: it cannot be decoded.
    """
    from ns_ray.report.pictures import thumbnail

    return thumbnail(data, side)
