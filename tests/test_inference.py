"""Labeling on a real, small cluster: interrupted, killed, and with images that cannot be read."""

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from ray import cloudpickle
from tiny import COLORS, MODEL, flat_folder

from ns_ray import log, store
from ns_ray.compute.resources import Pool
from ns_ray.config.labeling import LabelConfig
from ns_ray.config.training import ModelConfig
from ns_ray.data.packing import pack
from ns_ray.errors import DataError, StageError
from ns_ray.labeling import actor, inside
from ns_ray.labeling.stage import pseudo_label
from ns_ray.model import bundle
from ns_ray.model.networks import build
from ns_ray.store.bundles import Bundle, open_bundle
from ns_ray.store.corpora import Corpus, open_corpus
from ns_ray.store.labels import PseudoLabels
from ns_ray.store.schema import dense_probs, labels_schema

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SHARDS, ROWS = 6, 60
BROKEN = 4
POOL = Pool(actors=2, cpus=1.0, gpus=0.0)
HERE = Pool(actors=1, cpus=1.0, gpus=0.0, in_process=True)

Label = Callable[..., PseudoLabels]


class Mortal(actor.ShardPredictor):
    """Dies once, at the worst moment: its shard is written, and nobody has been told."""

    def _label(self, name: str, read: actor.Read) -> tuple[int, int]:
        counts = super()._label(name, read)
        grave = Path(self._job.out).parent / "grave"
        if not grave.exists():
            grave.write_text(name)
            os.kill(os.getpid(), signal.SIGKILL)
        return counts


class Slow(actor.ShardPredictor):
    """Takes longer for a batch than it is until the driver looks."""

    def __init__(self, *, tell: Any, **others: Any) -> None:
        def told(shard: str, images: int) -> None:
            tell(shard, images)
            time.sleep(0.4)

        super().__init__(tell=told, **others)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(1)
    model = build(ModelConfig.model_validate(MODEL), len(COLORS))
    out = tmp_path_factory.mktemp("teacher") / "bundle"
    return bundle.save(model, str(out), classes=list(COLORS), fingerprint="t", provenance={})


@pytest.fixture(scope="module")
def pile(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """60 images in 6 shards; 3 in the second and 1 in the last have broken since packing."""
    folder = tmp_path_factory.mktemp("pile")
    corpus = pack(
        str(flat_folder(folder / "images", ROWS)),
        out=str(folder / "corpus"),
        classes=(),
        rows_per_shard=ROWS // SHARDS,
    )
    for index, rows in {1: (0, 4, 9), SHARDS - 1: (5,)}.items():
        path = f"{corpus.path}/{corpus.shards[index].file}"
        table = store.read_table(path)
        images = table["image"].to_pylist()
        for row in rows:
            images[row] = images[row][: len(images[row]) // 2]
        column = table.schema.get_field_index("image")
        table = table.set_column(column, table.schema.field("image"), pa.array(images, pa.binary()))
        store.write_table(path, table)
    assert len(corpus.shards) == SHARDS
    return corpus


def label(
    teacher: Bundle, pile: Corpus, out: Path, pool: Pool = POOL, **settings: Any
) -> PseudoLabels:
    config = LabelConfig(batch_size=4, **settings)
    return pseudo_label(config, teacher, pile, pool=pool, out=str(out), title="label")


@pytest.fixture(scope="module")
def streamed(
    teacher: Bundle, pile: Corpus, ray_local: Any, tmp_path_factory: pytest.TempPathFactory
) -> PseudoLabels:
    return label(teacher, pile, tmp_path_factory.mktemp("streamed") / "labels")


def rows(labels: PseudoLabels) -> dict[str, dict[str, Any]]:
    found = [row for shard in labels.files for row in labels.read(shard).to_pylist()]
    by_key = {row["key"]: row for row in found}
    assert len(found) == len(by_key), "a key is there twice"
    return by_key


def rejected(labels: PseudoLabels) -> dict[str, str]:
    files = [n for n in store.list_files(labels.path) if n.startswith("rejected-")]
    tables = [store.read_table(f"{labels.path}/{name}") for name in files]
    return {row["key"]: row["reason"] for table in tables for row in table.to_pylist()}


def test_every_image_is_labeled_or_listed_with_a_reason(
    streamed: PseudoLabels, teacher: Bundle, pile: Corpus
) -> None:
    keys = [key for _, table in pile.scan(["key"]) for key in table["key"].to_pylist()]
    labeled, bad = rows(streamed), rejected(streamed)
    assert bad.keys() | labeled.keys() == set(keys)
    assert (len(bad), len(labeled)) == (BROKEN, ROWS - BROKEN)
    assert set(bad.values()) == {"truncated"}
    assert (streamed.rows, streamed.facts["rejected"]) == (ROWS - BROKEN, BROKEN)
    assert streamed.classes == teacher.classes
    for shard in pile.shards:
        table = streamed.read(shard.name)
        assert table.schema.equals(labels_schema(len(COLORS), None))
        assert set(table["shard"].to_pylist()) == {shard.name}
        probs = dense_probs(table, len(COLORS))
        assert (probs.argmax(axis=1) == table["label"].to_numpy()).all()
        np.testing.assert_allclose(probs.max(axis=1), table["confidence"].to_numpy(), atol=1e-3)


def test_this_process_labels_like_a_pool_of_actors(
    streamed: PseudoLabels, teacher: Bundle, pile: Corpus, tmp_path: Path
) -> None:
    alone = label(teacher, pile, tmp_path / "labels", HERE)
    assert alone.files == streamed.files
    assert rows(alone) == rows(streamed)
    assert rejected(alone) == rejected(streamed)


def shown(capsys: pytest.CaptureFixture[str]) -> list[int]:
    """Images on the lines of a labeling, in turn."""
    lines = re.findall(rf"^label: (\d+)/{ROWS} ", capsys.readouterr().out, re.MULTILINE)
    return [int(images) for images in lines]


def test_the_line_moves_inside_a_shard(
    teacher: Bundle,
    pile: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(log, "PLAIN_SECONDS", 0.0)
    label(teacher, pile, tmp_path / "labels", HERE)
    batches = [shard + images for shard in range(0, ROWS, 10) for images in (4, 8, 10, 10)]
    assert shown(capsys) == [
        0,
        *batches,
    ]  # the last of each shard twice: it is done, and then finished


def test_the_line_moves_inside_the_shards_of_actors(
    teacher: Bundle,
    pile: Corpus,
    ray_local: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(log, "PLAIN_SECONDS", 0.0)
    monkeypatch.setattr(inside, "SECONDS", 0.1)
    monkeypatch.setattr(actor, "ShardPredictor", Slow)
    here = sys.modules[__name__]  # workers cannot import it
    cloudpickle.register_pickle_by_value(here)
    try:
        labels = label(teacher, pile, tmp_path / "labels")
    finally:
        cloudpickle.unregister_pickle_by_value(here)
    images = shown(capsys)
    assert any(number % 10 for number in images), images
    assert images[-1] == ROWS
    assert max(images) == ROWS
    assert labels.rows == ROWS - BROKEN
    assert not inside._store().internal_kv_keys(b"ns-ray inside ")  # nothing is left there


def test_only_what_is_missing_is_labeled(
    streamed: PseudoLabels, teacher: Bundle, pile: Corpus
) -> None:
    folder = Path(streamed.path)
    before = rows(streamed)
    gone = [streamed.files[shard.name] for shard in pile.shards[:2]]
    for name in [*gone, store.DONE]:
        (folder / name).unlink()
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    assert len(times) == SHARDS - 2
    again = label(teacher, pile, folder)
    assert {n: (folder / n).stat().st_mtime_ns for n in times} == times
    assert set(times) | set(gone) == set(again.files.values())
    assert rows(again) == before
    assert again.fingerprint == streamed.fingerprint
    assert (again.rows, again.facts["rejected"]) == (ROWS - BROKEN, BROKEN)

    done = (folder / store.DONE).stat().st_mtime_ns
    label(teacher, pile, folder)
    assert (folder / store.DONE).stat().st_mtime_ns == done


def test_nothing_is_lost_or_doubled_when_an_actor_is_killed(
    streamed: PseudoLabels,
    teacher: Bundle,
    pile: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(actor, "ShardPredictor", Mortal)
    here = sys.modules[__name__]  # workers cannot import it
    cloudpickle.register_pickle_by_value(here)
    try:
        again = label(teacher, pile, tmp_path / "labels")
    finally:
        cloudpickle.unregister_pickle_by_value(here)
    assert (tmp_path / "grave").read_text() in again.files
    assert rows(again) == rows(streamed)
    assert rejected(again) == rejected(streamed)
    assert (again.rows, again.facts["rejected"]) == (ROWS - BROKEN, BROKEN)


def test_many_classes_are_stored_sparsely(
    streamed: PseudoLabels, teacher: Bundle, pile: Corpus, tmp_path: Path
) -> None:
    sparse = label(teacher, pile, tmp_path / "labels", HERE, dense_classes=2, top_k=2)
    assert sparse.fingerprint != streamed.fingerprint
    assert sparse.facts["top_k"] == 2
    for shard in pile.shards:
        few, all_ = sparse.read(shard.name), streamed.read(shard.name)
        assert few.schema.equals(labels_schema(len(COLORS), 2))
        for column in ("key", "label", "confidence"):
            assert few[column].equals(all_[column])
        # With three classes, what the two best leave over is the third one's.
        np.testing.assert_allclose(
            dense_probs(few, len(COLORS)), dense_probs(all_, len(COLORS)), atol=2e-3
        )


@pytest.mark.parametrize("pool", [POOL, HERE], ids=["actors", "here"])
def test_a_damaged_teacher_is_named(
    pool: Pool, teacher: Bundle, pile: Corpus, ray_local: Any, tmp_path: Path
) -> None:
    for name in store.list_files(teacher.path):
        store.write_bytes(f"{tmp_path}/bad/{name}", store.read_bytes(f"{teacher.path}/{name}"))
    with (tmp_path / "bad" / "model.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match=r"model.safetensors is not the file ns_ray.json names"):
        label(open_bundle(f"{tmp_path}/bad"), pile, tmp_path / "labels", pool)
    assert not (tmp_path / "labels" / store.DONE).exists()


@pytest.mark.parametrize("pool", [POOL, HERE], ids=["actors", "here"])
def test_a_shard_that_has_gone_is_named(
    pool: Pool, teacher: Bundle, pile: Corpus, ray_local: Any, tmp_path: Path
) -> None:
    shutil.copytree(pile.path, tmp_path / "corpus")
    corpus = open_corpus(f"{tmp_path}/corpus")
    gone = corpus.shards[3].file
    (tmp_path / "corpus" / gone).unlink()
    with pytest.raises(StageError, match=rf"cannot read .*{gone}: No such file") as caught:
        label(teacher, corpus, tmp_path / "labels", pool)
    assert "\n" not in str(caught.value)
