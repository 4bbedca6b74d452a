"""What of a run is done, in progress and missing, from the files in its folder.

Works while the run does, and after it was killed; reads a few small files.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow.fs as pafs
import yaml
from rich import box
from rich.table import Table
from rich.text import Text

from ns_ray import storage
from ns_ray.config import (
    ModelConfig,
    RunConfig,
    finetuning,
    fixres_config,
    pretraining,
    train_config,
)
from ns_ray.errors import DataError
from ns_ray.job import total_steps
from ns_ray.layout import CONTROL, RunLayout
from ns_ray.schema import REJECTED_PREFIX
from ns_ray.settings import config_hash
from ns_ray.values import Corpus, open_corpus

State = Literal["done", "in progress", "missing"]
COLORS: dict[State, str] = {"done": "green", "in progress": "yellow", "missing": "dim"}


@dataclass(frozen=True)
class Row:
    """One thing that a run makes.

    Attributes:
        name: as the run's progress lines have it.
        state: whether it is there.
        detail: counts, or how far it is.
        seconds: that it took; None where nothing says.
        finished: when, in UTC; empty where nothing says.
    """

    name: str
    state: State
    detail: str = ""
    seconds: float | None = None
    finished: str = ""


@dataclass(frozen=True)
class Status:
    """All of a run.

    Attributes:
        root: its folder.
        rows: what it makes, in order.
        verdict: one line about the whole.
    """

    root: str
    rows: tuple[Row, ...]
    verdict: str


def status(config: RunConfig) -> Status:
    """Look at what a run has left so far.

    Args:
        config: the run.

    Raises:
        DataError: a file in its folder cannot be read.
    """
    layout = RunLayout.of(config)
    rows = tuple(_Look(config, layout).rows())
    return Status(layout.root, rows, _verdict(config, layout, rows))


def _verdict(config: RunConfig, layout: RunLayout, rows: tuple[Row, ...]) -> str:
    if not storage.exists(layout.config):
        return f"{layout.root}: not started"
    found = yaml.safe_load(storage.read_bytes(layout.config)).get("config_hash")
    if found != config_hash(config):
        return (
            f"{layout.root} was made with other settings (hash {found}, these are "
            f"{config_hash(config)}); a run with these would be refused without --overwrite"
        )
    if storage.exists(layout.result):
        result = storage.read_json(layout.result)
        if result.get("config_hash") == found:
            return (
                f"finished: {result['status']}, best generation {result['best_generation']}, "
                f"model in {result['model']}"
            )
    done = sum(row.state == "done" for row in rows)
    written = _last_written(layout)
    ago = f", last written {time.time() - written:,.0f} s ago" if written else ""
    return f"{done} of {len(rows)} done{ago}; the command that started the run continues it"


def _last_written(layout: RunLayout) -> float | None:
    """When anything in the run's folder changed, in seconds since the epoch."""
    fs, inner = storage.filesystem(layout.root)
    infos = fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True, recursive=True))
    times = [info.mtime_ns / 1e9 for info in infos if info.mtime_ns]
    return max(times, default=None)


class _Look:
    def __init__(self, config: RunConfig, layout: RunLayout) -> None:
        self._config, self._layout = config, layout
        self._steps = _steps_told(layout.metrics)

    def rows(self) -> Iterator[Row]:
        config, layout = self._config, self._layout
        corpora = ["validation", *(["test"] if config.data.test else []), "labeled", "unlabeled"]
        for name in corpora:
            yield self._corpus(name)
        models: list[tuple[int | str, ModelConfig]] = [(0, config.teacher)]
        models += list(enumerate(config.students, start=1))
        if config.control:
            models.append((CONTROL, config.students[-1]))
        for g, model in models:
            label = g if isinstance(g, str) else f"gen-{g:02d}"
            if isinstance(g, int) and g > 0:
                yield self._labels(g, f"{label} label")
                yield self._selection(g, f"{label} select")
            if model.finetune is not None:
                first = self._layout.pretrained(g)
                yield self._training(g, first, pretraining(model), f"{label} pretrain")
                model = finetuning(model)
            if model.bundle is None:
                yield self._training(g, layout.bundle(g), model, f"{label} train")
            yield self._scored(g, label, "validation")
        if config.data.test:
            for g, _ in models:
                yield self._scored(g, g if isinstance(g, str) else f"gen-{g:02d}", "test")
        yield _published("model", layout.model, "")

    def _open(self, name: str) -> Corpus | None:
        try:
            return open_corpus(self._layout.corpus(name))
        except DataError:
            return None

    def _corpus(self, name: str) -> Row:
        corpus = self._open(name)
        title, place = f"{name} corpus", self._layout.corpus(name)
        if corpus is None:
            files = len(storage.list_files(place, recursive=True))
            return Row(title, "in progress", f"{files:,} files") if files else Row(title, "missing")
        rejected = sum(corpus.rejected.values())
        detail = f"{corpus.rows:,} images" + (f", {rejected:,} rejected" if rejected else "")
        return _published(title, corpus.path, detail)

    def _labels(self, g: int, title: str) -> Row:
        place = self._layout.pseudo_labels(g)
        chosen = storage.published(self._layout.selection(g))
        # By the generation's name: a run's folder may have been moved.
        taken = str(chosen.facts["labels"]).split("/")[-2] if chosen else f"gen-{g:02d}"
        if taken != f"gen-{g:02d}":
            return Row(title, "done", f"those of {taken}")
        return self._shards(title, place, self._open("unlabeled"))

    def _selection(self, g: int, title: str) -> Row:
        place = self._layout.selection(g)
        done = storage.published(place)
        if done is None:
            return _unfinished(title, place, "")
        return _published(title, place, f"{done.facts['kept']:,} images kept")

    def _scored(self, g: int | str, label: str, split: str) -> Row:
        place = storage.join(self._layout.evaluation(g), split)
        return self._shards(f"{label} {split}", place, self._open(split))

    def _shards(self, title: str, place: str, corpus: Corpus | None) -> Row:
        """A job that writes a file per shard."""
        if storage.published(place) is not None:
            return _published(title, place, f"{corpus.rows:,} images" if corpus else "")
        names = [n for n in storage.list_files(place) if n.endswith(".parquet")]
        done = len([n for n in names if not n.startswith(REJECTED_PREFIX)])
        of = f" of {len(corpus.shards):,}" if corpus else ""
        return _unfinished(title, place, f"{done:,}{of} shards")

    def _training(self, g: int | str, place: str, model: ModelConfig, title: str) -> Row:
        done = storage.published(place)
        if done is not None:
            return _published(title, place, f"{done.facts['parameters']:,} parameters")
        told = self._steps.get(title.replace(" ", "/"), 0)
        corpus, of = self._open("labeled"), ""
        if corpus is not None:
            train = train_config(self._config.train, model)
            finer = fixres_config(model, train)
            parts = [train, *([finer[1]] if finer else [])]
            of = f" of {sum(total_steps(part, corpus.rows) for part in parts):,}"
        folder = self._layout.checkpoints(g)
        saved = [n for n in storage.list_files(folder, recursive=True) if n.endswith(".pt")]
        words = f"step {told:,}{of}" + (", checkpoint saved" if saved else "")
        return Row(title, "in progress", words) if told or saved else Row(title, "missing")


def _published(title: str, place: str, detail: str) -> Row:
    """A folder that has its `_DONE.json`, or hasn't."""
    path = storage.join(place, storage.DONE)
    if not storage.exists(path):
        return _unfinished(title, place, "")
    done: dict[str, Any] = storage.read_json(path)
    return Row(title, "done", detail, float(done.get("seconds", 0)), str(done.get("finished", "")))


def _unfinished(title: str, place: str, detail: str) -> Row:
    begun = bool(storage.list_files(place, recursive=True))
    return Row(title, "in progress", detail) if begun else Row(title, "missing")


def _steps_told(path: str) -> dict[str, int]:
    """Last step of each stage in `metrics.jsonl`; a line that is being written is left out."""
    steps: dict[str, int] = {}
    if storage.exists(path):
        for line in storage.read_bytes(path).splitlines():
            try:
                row = json.loads(line)
                steps[str(row["stage"])] = int(row["step"])
            except (ValueError, KeyError, TypeError):
                continue
    return steps


def table(found: Status) -> Table:
    """The status on one screen."""
    made = Table(box=box.SIMPLE_HEAD)
    for name in ("stage", "state", "detail"):
        made.add_column(name, no_wrap=name != "detail")
    made.add_column("seconds", justify="right")
    made.add_column("finished (UTC)", no_wrap=True)
    for row in found.rows:
        seconds = "" if row.seconds is None else f"{row.seconds:,.1f}"
        finished = row.finished.replace("T", " ").removesuffix("Z")
        state = Text(row.state, COLORS[row.state])
        made.add_row(row.name, state, row.detail, seconds, finished)
    return made
