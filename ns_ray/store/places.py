"""Places of a run as its own files name them: from where they lie, so that a copied or moved run
reads its own files and no others. What lies outside of the run keeps its path."""

from collections.abc import Mapping
from typing import Any

from ns_ray.store.files import exists
from ns_ray.store.paths import join

NAMED = ("corpus", "teacher", "others", "labels", "reassigned")
"""Facts of stages that name folders."""
UP = "../"
DEEPEST = 4
"""Folders between a run's and the deepest that a stage writes to."""


def from_here(folder: str, place: str) -> str:
    """How a file in `folder` names a place: `../../corpora/unlabeled` where both are in a run."""
    root, up = folder.rstrip("/"), ""
    for _ in range(DEEPEST):
        root, up = root.rpartition("/")[0], up + UP
        if place.startswith(f"{root}/") and exists(join(root, "config.yaml")):
            return up + place[len(root) + 1 :]
    return place


def seen_from(folder: str, named: str) -> str:
    """The place that a file in `folder` names."""
    while named.startswith(UP):
        folder, named = folder.rstrip("/").rpartition("/")[0], named[len(UP) :]
        if not named.startswith(UP):
            return join(folder, named)
    return named


def facts_from_here(folder: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts with the places of a run named from a folder of it."""
    return {k: _each(from_here, folder, v) if k in NAMED else v for k, v in facts.items()}


def facts_seen_from(folder: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same facts, with places that any process can read."""
    return {k: _each(seen_from, folder, v) if k in NAMED else v for k, v in facts.items()}


def _each(name: Any, folder: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_each(name, folder, one) for one in value]
    return name(folder, value) if isinstance(value, str) else value
