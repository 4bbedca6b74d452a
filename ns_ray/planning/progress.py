"""How far each step of a run is, from the files that it leaves."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ns_ray import store
from ns_ray.config import Images, RunConfig, chosen_in, config_hash, settle
from ns_ray.errors import DataError
from ns_ray.itinerary import steps
from ns_ray.steps import Label, Pack, Score, Select, Split, Step, Train
from ns_ray.store import REJECTED_PREFIX, Corpus, RunLayout, open_corpus
from ns_ray.training import total_steps

State = Literal["done", "in progress", "missing"]


@dataclass(frozen=True)
class Line:
    """One thing that a run makes.

    Attributes:
        name: as the run's progress lines have it.
        state: whether it is there.
        detail: counts, or how far it is, in words.
        seconds: that it took; None where nothing says.
        finished: when, in UTC; empty where nothing says.
        id: of the step that makes it; see steps.py.
        counts: those in the words: images, rejected, kept, parameters, shards or step, and
            shards_of or steps, which are how many there will be.
    """

    name: str
    state: State
    detail: str = ""
    seconds: float | None = None
    finished: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    id: str = ""


def result_of(config: RunConfig, layout: RunLayout) -> dict[str, Any] | None:
    """What a run with just these settings has ended with."""
    found = store.read_intact(layout.result, store.read_result)
    return found if found is not None and found.get("config_hash") == config_hash(config) else None


class Look:
    """A look at the folder of a run, which may be under way."""

    def __init__(self, config: RunConfig, layout: RunLayout) -> None:
        # A run may have ended before its last student.
        result = result_of(config, layout)
        students = len(result["generations"]) - 1 if result else None
        again = result["refit"]["generations"][1:] if result and result.get("refit") else None
        if result and not again:  # the first teacher stayed the best
            config = config.model_copy(update={"refit": False})
        self._layout = layout
        labeled, pile = self._open("labeled"), self._open("unlabeled")
        if labeled is not None:  # before that, nothing is under way that has a length
            before = (
                chosen_in(store.read_bytes(layout.config)) if store.exists(layout.config) else {}
            )
            config, _ = settle(config, Images(labeled.rows, pile.rows if pile else 0), before)
        self._plan = steps(config, layout, students=students, again=again)
        self._told = store.last_steps(layout.metrics)

    def lines(self) -> Iterator[Line]:
        """One for each step of the run's itinerary."""
        for step in self._plan:
            yield replace(self._line(step), id=step.id)

    def _line(self, step: Step) -> Line:
        match step:
            case Pack():
                return self._corpus(step)
            case Train():
                return self._training(step)
            case Label():
                return self._labels(step)
            case Select():
                done = store.published(step.out)
                kept = {} if done is None else _count(done, "kept")
                return _published(step.title, step.out, _words(kept, "images kept"), kept)
            case Score():
                return self._shards(step.title, step.out, self._open(step.split))
            case _:
                return _published(step.title, step.out)

    def _open(self, split: Split) -> Corpus | None:
        try:
            return open_corpus(self._layout.corpus(split))
        except DataError:
            return None

    def _corpus(self, step: Pack) -> Line:
        corpus = self._open(step.split)
        if corpus is None:
            files = len(store.list_files(step.out, recursive=True))
            state: State = "in progress" if files else "missing"
            words = f"{files:,} files" if files else ""
            return Line(step.title, state, words, counts={"files": files})
        rejected = sum(corpus.rejected.values())
        detail = f"{corpus.rows:,} images" + (f", {rejected:,} rejected" if rejected else "")
        counts = {"images": corpus.rows, "rejected": rejected}
        return _published(step.title, corpus.path, detail, counts)

    def _labels(self, step: Label) -> Line:
        """The labels that the student has been taught: those of an earlier step where its teacher
        had labeled already. They are found by their fingerprint, as a run's folder may be moved."""
        students = self._plan.students[: step.generation]
        if step not in [student.label for student in students]:  # a refit's
            return self._shards(step.title, step.out, self._open("unlabeled"))
        chosen = students[-1].select
        done = store.published(chosen.out)
        if done is not None:
            taken = str(done.inputs.get("labels"))
            for student in students:
                if student.label != step and store.already(student.label.out, taken):
                    return Line(step.title, "done", f"those of {student.name}")
        return self._shards(step.title, step.out, self._open("unlabeled"))

    def _shards(self, title: str, place: str, corpus: Corpus | None) -> Line:
        """A job that writes a file per shard."""
        if store.published(place) is not None:
            images = {"images": corpus.rows} if corpus else {}
            return _published(title, place, _words(images, "images"), images)
        names = [n for n in store.list_files(place) if n.endswith(".parquet")]
        done = len([n for n in names if not n.startswith(REJECTED_PREFIX)])
        of = f" of {len(corpus.shards):,}" if corpus else ""
        counts = {"shards": done, **({"shards_of": len(corpus.shards)} if corpus else {})}
        return _unfinished(title, place, f"{done:,}{of} shards", counts)

    def _training(self, step: Train) -> Line:
        done = store.published(step.out)
        if done is not None:
            size = _count(done, "parameters")
            return _published(step.title, step.out, _words(size, "parameters"), size)
        told = self._told.get(step.id, 0)
        corpus, of, counts = self._open("labeled"), "", {"step": told}
        if corpus is not None and not step.all_labels:
            counts["steps"] = sum(total_steps(part.train, corpus.rows) for part in step.parts)
            of = f" of {counts['steps']:,}"
        saved = [
            name
            for name in store.list_files(step.checkpoints, recursive=True)
            if name.endswith(".pt")
        ]
        words = f"step {told:,}{of}" + (", checkpoint saved" if saved else "")
        if told or saved:
            return Line(step.title, "in progress", words, counts=counts)
        return Line(step.title, "missing")


def _published(
    title: str, place: str, detail: str = "", counts: Mapping[str, int] | None = None
) -> Line:
    """A folder that has its `_DONE.json`, or hasn't."""
    done = store.published(place)
    if done is None:
        return _unfinished(title, place)
    return Line(title, "done", detail, done.seconds, done.finished, counts or {})


def _count(done: store.Done, name: str) -> dict[str, int]:
    """A count among the facts of a stage; empty where it isn't there."""
    count = done.facts.get(name)
    return {name: count} if isinstance(count, int) else {}


def _words(counts: Mapping[str, int], of: str) -> str:
    """A count for people."""
    return "".join(f"{count:,} {of}" for count in counts.values())


def _unfinished(
    title: str, place: str, detail: str = "", counts: Mapping[str, int] | None = None
) -> Line:
    if not store.list_files(place, recursive=True):
        return Line(title, "missing")
    return Line(title, "in progress", detail, counts=counts or {})
