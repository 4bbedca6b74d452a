"""What a run leaves open, chosen once: when its images are counted, and kept in its config.yaml.

What is chosen is said in config/defaults.py, and what a budget is enough for in planning/budget.py.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ns_ray import store
from ns_ray.config import BUDGET, Images, RunConfig, chosen_in, dump_chosen, in_words, settle
from ns_ray.log import say
from ns_ray.store import Corpora, Facts


def images_of(data: Corpora, *, symmetric: bool = True) -> Images:
    """What training settings are chosen by."""
    return Images(data.labeled.rows, data.unlabeled.rows if data.unlabeled else 0, symmetric)


def settle_once(
    config: RunConfig,
    data: Corpora,
    path: str,
    fit_budget: Callable[[RunConfig, Corpora], Facts],
    symmetric: Callable[[Corpora], bool],
) -> RunConfig:
    """The run with the training settings that it leaves open: as its config.yaml says, where it
    began earlier, and otherwise chosen for its images and its budget, said, and written there.

    Args:
        config: the run.
        data: its images.
        path: of its config.yaml.
        fit_budget: measures what fits into a budget; only asked where there is one.
        symmetric: looks whether mirrored images are like the others; only asked where flips are
            left open.
    """
    text = store.read_bytes(path) if store.exists(path) else None
    before = chosen_in(text) if text else {}
    fitted = before.get(BUDGET) or (dict(fit_budget(config, data)) if config.budget else {})
    known = {**before, BUDGET: fitted}
    settled, chosen = settle(config, images_of(data), known)
    if not before and any("flip" in values.get("noise", {}) for values in chosen.values()):
        settled, chosen = settle(config, images_of(data, symmetric=symmetric(data)), known)
    for place, values in chosen.items():
        if place == BUDGET:
            say(f"budget {config.budget}: {_fitted_in_words(values, config)}")
        else:
            say(f"{place}: chosen for these images: {in_words(values)}")
    if chosen and text and not before:
        store.write_bytes(path, text + dump_chosen(chosen).encode())
    return settled


def _fitted_in_words(values: Mapping[str, Any], config: RunConfig) -> str:
    """`steps x0.6, 1 of 2 students, about 27 min`."""
    fewer = values["students"] < len(config.students)
    students = f"{values['students']} of {len(config.students)} students, " if fewer else ""
    return f"steps x{values['steps']:g}, {students}about {values['time']}"
