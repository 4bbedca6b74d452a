"""What a shell offers when Tab is pressed: recipes, folders of runs and bundles, timm's models.

It is asked at every press: nothing here imports torch, timm or Ray.
"""

import importlib.util
import itertools
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ns_ray.config import recipe_names
from ns_ray.store import CONFIG, WEIGHTS

MOST_FOLDERS = 2000
"""Most folders that are looked at."""


def recipes(incomplete: str) -> list[str]:
    """Recipes of the package that begin so."""
    return [name for name in recipe_names() if name.startswith(incomplete)]


def bundles(incomplete: str) -> list[str]:
    """Folders of runs and bundles on this machine whose paths begin so, one or two levels below
    the folder that is typed already."""
    typed, slash, _ = incomplete.rpartition("/")
    folders = itertools.islice(_below(Path(typed or slash or "."), 2), MOST_FOLDERS)
    known = [str(folder) for folder in folders if _has_model(folder)]
    start = "./" if incomplete.startswith("./") else ""  # a Path leaves it out
    return sorted(f"{start}{path}" for path in known if f"{start}{path}".startswith(incomplete))


def _below(folder: Path, levels: int) -> Iterator[Path]:
    with suppress(OSError):  # whatever cannot be read offers nothing
        inside = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
        yield from inside
        if levels > 1:
            for path in inside:
                yield from _below(path, levels - 1)


def _has_model(folder: Path) -> bool:
    places = (folder, folder / "model")
    with suppress(OSError):
        return any((p / CONFIG).exists() and (p / WEIGHTS).exists() for p in places)
    return False


def models(incomplete: str) -> list[str]:
    """timm's models that begin so, by its sources: its import takes seconds."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        return []
    found: set[str] = set()
    for file in (Path(spec.origin).parent / "models").glob("*.py"):
        found |= set(re.findall(r"@register_model\ndef (\w+)", file.read_text(encoding="utf-8")))
    return sorted(name for name in found if name.startswith(incomplete))
