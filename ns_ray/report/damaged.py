"""Corrupted images that the first teacher has wrong and a student right, made again as they were
scored."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, NamedTuple

from ns_ray import store
from ns_ray.config import RobustnessConfig, validate
from ns_ray.errors import NsRayError
from ns_ray.report.facts import Model, Run
from ns_ray.report.pictures import SHOWN, Gallery, Thumbnail, Wanted, thumbnail
from ns_ray.store import Corpus

CORPUS = "corruptions"
"""What `Wanted` names these pictures' corpus."""


class Case(NamedTuple):
    """A corrupted image: number of its unit of work, its place there, and what was done to it."""

    unit: int
    at: int
    name: str
    severity: int


@dataclass
class Told:
    """What a model's scoring has left: its units of work, and its answers where it was wrong."""

    units: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[Case, int] = field(default_factory=dict)

    def key(self, case: Case) -> str:
        """The image's."""
        return str(self.units[case.unit]["keys"][case.at])


def damaged(run: Run) -> tuple[Gallery | None, dict[tuple[str, str], Thumbnail]]:
    """The gallery and its thumbnails; None where a model's answers or the images are
    gone."""
    old, new = (_told(run, model) for model in (run.teacher, run.student))
    corpus = run.corpus(run.split)
    if old is None or new is None or corpus is None:
        return None, {}
    cases = [
        case
        for case in old.answers
        if case not in new.answers and case._replace(name="clean", severity=0) not in old.answers
    ]
    pictures, thumbs = [], {}
    for case in _varied(cases, old, _corruptions(run.student)):
        picture, thumb = _shown(run, corpus, case, old)
        pictures.append(picture)
        if thumb is not None:
            thumbs[picture.corpus, picture.key] = thumb
    note = (
        "Wrong for the first teacher now, though not before they were corrupted. One of each "
        "corruption in turn, as strong as it was scored."
    )
    return Gallery(f"Set right by {run.student.name}", note, tuple(pictures), len(cases)), thumbs


def _told(run: Run, model: Model) -> Told | None:
    """None where it wasn't kept."""
    place = run.layout.robustness(model.folder)
    done, told = store.published(place), Told()
    for file in done.files if done else []:
        part = store.read_json(store.join(place, file))
        if "told" not in part:
            return None
        if part["suite"] != "corruptions":
            continue
        for what, text in part["told"].items():
            name, _, severity = what.rpartition(" ")
            for one in text.split():
                at, _, answer = one.partition(":")
                told.answers[Case(len(told.units), int(at), name, int(severity))] = int(answer)
        told.units.append(part["unit"])
    return told if told.units else None


def _corruptions(model: Model) -> list[str]:
    """Names of the corruptions, one of each family in turn."""
    families: dict[str, list[str]] = {}
    for name, row in model.robustness["corruptions"].items():
        families.setdefault(str(row["family"]), []).append(name)
    return [name for names in zip_longest(*families.values()) for name in names if name]


def _varied(cases: Sequence[Case], old: Told, names: Sequence[str]) -> list[Case]:
    """Some of the cases: one of each corruption in turn, the strongest first, no image twice."""
    ordered = sorted(cases, key=lambda case: (case.unit, case.at, -case.severity))
    chosen: dict[str, Case] = {}
    for name in [*names] * SHOWN:
        of = [(old.key(case), case) for case in ordered if case.name == name]
        new = [pair for pair in of if pair[0] not in chosen]
        chosen.update(new[:1] if len(chosen) < SHOWN else [])
    return list(chosen.values())


def _shown(run: Run, corpus: Corpus, case: Case, old: Told) -> tuple[Wanted, Thumbnail | None]:
    """What is said of a corrupted image, and its picture where it can be made again."""
    unit, key = old.units[case.unit], old.key(case)
    released = unit["name"] is not None
    truth = key.split("/")[0] if released else corpus.classes[unit["labels"][case.at]]
    answer, kind = run.classes[old.answers[case]], case.name.replace("_", " ")
    caption = (f"{answer} → {truth}", f"{kind} {case.severity}")
    words = f"a {truth}, {kind} of severity {case.severity}: the first teacher says {answer}"
    wanted = Wanted(CORPUS, str(unit["place"]), key, caption, words)
    try:
        return wanted, _picture(run, case, unit, corpus.path)
    except (ImportError, NsRayError):
        return wanted, None  # the extra `robustness` isn't here, or an image has gone


def _picture(run: Run, case: Case, plain: dict[str, Any], corpus: str) -> Thumbnail:
    from ns_ray.data import encode_png
    from ns_ray.robustness import Unit, corrupted_again

    unit = Unit(**plain)
    one = replace(unit, keys=(unit.keys[case.at],), labels=(unit.labels[case.at],))
    config = validate(RobustnessConfig, run.config["evaluate"]["robustness"])
    constants = str(run.student.robustness["constants"])
    pixels = corrupted_again(
        one, corpus, case.name, case.severity, constants=constants, seed=config.seed
    )
    return thumbnail(encode_png(pixels))
