"""Images of a labeling that are decoded apart from the model: the same labels, whatever dies."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray import cloudpickle
from tiny import COLORS, MODEL, flat_folder

from ns_ray import store
from ns_ray.compute import Pool, tasks
from ns_ray.config import Decode, LabelConfig, ModelConfig
from ns_ray.data import Decoded, decode_batch, pack
from ns_ray.labeling import decoding, pseudo_label
from ns_ray.labeling.decoding import Apart, Decoder
from ns_ray.model import build, save
from ns_ray.store import Bundle, Corpus, PseudoLabels

ROWS = 60
ACTORS = Pool(actors=2, cpus=1.0, gpus=0.0, spare=1)
HERE = Pool(actors=1, cpus=1.0, gpus=0.0, in_process=True, spare=2)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = build(ModelConfig.model_validate(MODEL), len(COLORS))
        out = str(tmp_path_factory.mktemp("teacher") / "bundle")
        made = save(model, out, classes=list(COLORS), fingerprint=f"t{seed}", provenance={})
        found.append(made)
    return found


@pytest.fixture(scope="module")
def pile(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """60 images in 3 shards, some of them broken since they were packed."""
    folder = tmp_path_factory.mktemp("pile")
    images = flat_folder(folder / "images", ROWS)
    corpus = pack(str(images), out=str(folder / "corpus"), classes=(), rows_per_shard=20)
    path = f"{corpus.path}/{corpus.shards[1].file}"
    table = store.read_table(path)
    rows = table.to_pylist()
    for at in (0, 7, 8):
        rows[at]["image"] = rows[at]["image"][:-30]
    store.write_table(path, type(table).from_pylist(rows, table.schema))
    return corpus


def labeled(
    teachers: Sequence[Bundle], pile: Corpus, out: Path, pool: Pool, decode: Decode
) -> dict[str, dict[str, Any]]:
    """Every row by its key, and the reasons of those that are rejected."""
    config = LabelConfig(batch_size=4, decode=decode)
    labels: PseudoLabels = pseudo_label(
        config, teachers[0], pile, pool=pool, out=str(out), title="label", others=teachers[1:]
    )
    found = [row for shard in labels.files for row in labels.read(shard).to_pylist()]
    bad = [name for name in store.list_files(labels.path) if name.startswith("rejected-")]
    tables = [store.read_table(f"{labels.path}/{name}") for name in bad]
    found += [row for table in tables for row in table.to_pylist()]
    assert len(found) == ROWS
    return {row["key"]: row for row in found}


@pytest.fixture(scope="module")
def beside(
    teachers: list[Bundle], pile: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    return labeled(teachers, pile, tmp_path_factory.mktemp("beside") / "l", HERE, "with_model")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("pool", [ACTORS, HERE], ids=["actors", "here"])
def test_where_images_are_decoded_changes_no_label(
    pool: Pool,
    beside: dict[str, dict[str, Any]],
    teachers: list[Bundle],
    pile: Corpus,
    ray_local: Any,
    tmp_path: Path,
) -> None:
    apart = labeled(teachers, pile, tmp_path / "labels", pool, "apart")
    assert apart == beside
    assert sum("reason" in row for row in apart.values()) == 3


def test_a_labeling_is_the_same_one_wherever_its_images_are_decoded(
    teachers: list[Bundle], pile: Corpus, tmp_path: Path
) -> None:
    first = labeled(teachers, pile, tmp_path / "labels", HERE, "with_model")
    done = (tmp_path / "labels" / store.DONE).stat().st_mtime_ns
    assert labeled(teachers, pile, tmp_path / "labels", HERE, "apart") == first
    assert (tmp_path / "labels" / store.DONE).stat().st_mtime_ns == done


@pytest.fixture
def in_tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """What a test puts in the place of `decode_batch` works in the tasks too."""
    here = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(here)
    decoding._task.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    decoding._task.cache_clear()
    cloudpickle.unregister_pickle_by_value(here)


@pytest.mark.ray
def test_a_process_that_dies_while_it_decodes_loses_nothing(
    in_tasks: pytest.MonkeyPatch,
    beside: dict[str, dict[str, Any]],
    teachers: list[Bundle],
    pile: Corpus,
    ray_local: Any,
    tmp_path: Path,
) -> None:
    grave, driver = tmp_path / "grave", os.getpid()

    def mortal(images: Sequence[bytes], *how: Any) -> Decoded:
        if os.getpid() != driver and not grave.exists():
            grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return decode_batch(images, *how)

    in_tasks.setattr(decoding, "decode_batch", mortal)
    assert labeled(teachers, pile, tmp_path / "labels", HERE, "apart") == beside
    assert grave.exists()


@pytest.mark.ray
def test_the_model_decodes_for_itself_where_no_cpu_does(
    in_tasks: pytest.MonkeyPatch,
    beside: dict[str, dict[str, Any]],
    teachers: list[Bundle],
    pile: Corpus,
    ray_local: Any,
    tmp_path: Path,
) -> None:
    nowhere = decoding._task().options(resources={"a node that never comes": 1.0})
    in_tasks.setattr(decoding, "_task", lambda: nowhere)
    in_tasks.setattr(decoding, "PATIENCE", 0.01)
    assert labeled(teachers, pile, tmp_path / "labels", HERE, "apart") == beside


class Model:
    """A predictor's side of decoding, on a clock of its own: so many seconds for a batch."""

    batch_size = 10

    def __init__(self, clock: "Clock", seconds: float) -> None:
        self._clock, self._seconds = clock, seconds

    def decoded(self, images: Sequence[bytes]) -> Iterator[Decoded]:
        for _ in range(0, len(images), self.batch_size):
            self._clock.now += self._seconds
            yield Decoded(None, {}, self.batch_size)


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("waits", "apart_waits", "spare", "chosen", "said"),
    [
        (0.4, 0.0, 4, True, "decoding apart from the model: 20 images/s beside it, 100 apart"),
        (0.4, 0.39, 4, False, "decoding beside the model: 20 images/s beside it, 20 apart"),
        (0.001, 0.0, 4, False, "decoding beside the model, which waits 1% of its time for it"),
        (0.4, 0.0, 0, False, ""),
    ],
    ids=["apart is faster", "apart is no faster", "the model hardly waits", "no CPU is left over"],
)
def test_the_faster_way_is_taken(
    waits: float,
    apart_waits: float,
    spare: int,
    chosen: bool,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()

    class Elsewhere(Apart):
        def __init__(self, predictor: Any, images: Sequence[bytes], cpus: int) -> None:
            self._batches = Model(clock, apart_waits).decoded(images)

        def __iter__(self) -> Iterator[Decoded]:
            return self._batches

    monkeypatch.setattr(decoding, "time", clock)
    monkeypatch.setattr(decoding, "Apart", Elsewhere)
    monkeypatch.setattr(tasks, "ray_runs", lambda: True)
    model: Any = Model(clock, waits)
    decoder = Decoder(model, "auto", spare)
    for _ in range(5):
        for batch in decoder.batches(decoder.begin([b""] * 1000)):
            clock.now += 0.1  # the model works
            assert batch.images == 10
    assert decoder.apart is chosen
    assert decoder.said.startswith(said)
    assert bool(decoder.said) == bool(said)


def test_few_batches_are_decoded_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Task:
        def remote(self, images: Sequence[bytes], *how: Any) -> int:
            asked.append(len(images))
            return len(asked)

    monkeypatch.setattr(decoding, "_task", Task)
    done = Decoded(np.zeros((10, 8, 8, 3), np.uint8), {}, 10)
    monkeypatch.setattr(Apart, "_result", lambda self, task, images: done)
    model: Any = Model(Clock(), 0.0)
    model.preprocess = type("Small", (), {"size": 8})()
    model.config = type("Config", (), {"fast_decode": True})()
    batches = iter(Apart(model, [b""] * 995, cpus=3))
    assert asked == [10] * 6
    next(batches)
    assert len(asked) == 6 + decoding.FETCHED
    assert len(list(batches)) == 99
    assert sum(asked) == 995
    model.preprocess.size = 4000  # 480 MB a batch: two are asked for all the same
    asked.clear()
    Apart(model, [b""] * 995, cpus=300)
    assert len(asked) == 2
