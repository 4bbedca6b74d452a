"""Packed corpora as sources: taken as they are, drawn from, searched for leaks; never listed."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken_files import jpeg
from packed import fill, keys, rejected, rows, run

from ns_ray import store
from ns_ray.compute import tasks
from ns_ray.data import spans
from ns_ray.data.sources import list_source
from ns_ray.data.stage import adopt, pack, split
from ns_ray.errors import DataError
from ns_ray.store import schema
from ns_ray.store.corpora import Corpora, Corpus


def test_a_packed_corpus_is_adopted_when_nothing_must_change(tmp_path: Path) -> None:
    train = fill(tmp_path / "train", {"a": 6, "b": 6})
    val = fill(tmp_path / "val", {"a": 2, "b": 2}, start=100)
    pile = fill(tmp_path / "pile", {"x": 5}, start=200)
    packed = {
        name: pack(str(path), out=str(tmp_path / "packed" / name))
        for name, path in (("train", train), ("val", val), ("pile", pile))
    }
    settings = {
        "labeled": packed["train"].path,
        "unlabeled": packed["pile"].path,
        "validation": packed["val"].path,
    }
    corpora = run(tmp_path, **settings)
    assert corpora == Corpora(packed["train"], packed["pile"], packed["val"], None)
    assert store.list_files(f"{tmp_path}/run/corpora/labeled") == ["_DONE.json", "pointer.json"]
    assert run(tmp_path, **settings) == corpora

    # A leak, a draw or other class indices need a copy; it takes the pointer's place.
    (val / "a" / "leak.jpg").write_bytes((pile / "x/000.jpg").read_bytes())
    settings["validation"] = str(val)
    corpora = run(tmp_path, **settings, labels=4)
    assert corpora.unlabeled is not None
    assert rejected(corpora.unlabeled) == {"x/000.jpg": "leak"}
    assert corpora.unlabeled.path == f"{tmp_path}/run/corpora/unlabeled"
    assert not store.exists(f"{corpora.unlabeled.path}/pointer.json")
    assert (corpora.labeled.rows, corpora.labeled.classes) == (4, ("a", "b"))
    only_b = pack(str(fill(tmp_path / "b", {"b": 2}, start=300)), out=str(tmp_path / "packed/b"))
    corpora = run(tmp_path, **settings | {"validation": only_b.path})
    assert corpora.validation.classes == ("a", "b")
    assert corpora.validation.class_counts == (0, 2)


def spoil(corpus: Corpus) -> None:
    """Leave nothing of the shards to read."""
    for shard in corpus.shards:
        store.write_bytes(f"{corpus.path}/{shard.file}", b"not Parquet")


def test_a_packed_corpus_is_listed_by_its_manifest(tmp_path: Path) -> None:
    source = fill(tmp_path / "set", {"a": 6, "b": 3})
    (source / "cover.jpg").write_bytes(jpeg(99))
    packed = pack(str(source), out=str(tmp_path / "packed"))
    spoil(packed)
    listing = list_source(packed.path)
    assert (listing.rows, listing.classes) == (10, ("a", "b"))
    assert listing.counts == {"a": 6, "b": 3}
    assert listing.corpus == packed
    parts = split(listing, labels=4, validation_size=3.0, seed=0)
    assert [part.rows for part in parts] == [4, 3, 2]
    assert [part.counts for part in parts] == [{"a": 3, "b": 1}, {"a": 2, "b": 1}, {"a": 1, "b": 1}]
    found = adopt(listing, out=str(tmp_path / "pointer"), classes=(), excluded=frozenset())
    assert found == packed


def test_a_part_of_a_packed_corpus_is_that_of_its_source(tmp_path: Path) -> None:
    source = fill(tmp_path / "set", {"a": 40, "b": 25})
    packed = pack(str(source), out=str(tmp_path / "packed"), rows_per_shard=7, seed=3)
    settings = {"labels": 20, "validation_size": 0.2, "rows_per_shard": 9}
    listed = run(tmp_path / "1", labeled=str(source), **settings)
    again = run(tmp_path / "2", labeled=packed.path, **settings)
    assert listed.unlabeled is not None
    assert again.unlabeled is not None
    for one, other in [
        (listed.labeled, again.labeled),
        (listed.validation, again.validation),
        (listed.unlabeled, again.unlabeled),
    ]:
        assert {row["key"]: row for row in rows(one)} == {row["key"]: row for row in rows(other)}
        assert (one.classes, one.class_counts) == (other.classes, other.class_counts)
        assert all(shard.rows <= 9 for shard in other.shards)
        assert len(other.shards) <= len(packed.shards)


def test_images_without_labels_are_left_out_of_a_labeled_corpus(tmp_path: Path) -> None:
    train = fill(tmp_path / "train", {"a": 6, "b": 6})
    (train / "cover.jpg").write_bytes(jpeg(99))
    val = fill(tmp_path / "val", {"a": 2, "b": 2}, start=100)
    packed = pack(str(train), out=str(tmp_path / "packed"))
    settings = {"labeled": packed.path, "validation": str(val), "unlabeled": packed.path}
    corpora = run(tmp_path, **settings)
    assert keys(corpora.labeled) == keys(packed) - {"cover.jpg"}
    assert corpora.unlabeled == packed


def test_a_run_goes_on_without_reading_the_packed_corpora_again(tmp_path: Path) -> None:
    train = pack(str(fill(tmp_path / "train", {"a": 9, "b": 6})), out=str(tmp_path / "p/train"))
    val = fill(tmp_path / "val", {"a": 2, "b": 2}, start=300)
    pile = pack(str(fill(tmp_path / "pile", {"x": 5}, 100)), out=str(tmp_path / "p/pile"))
    leaky = fill(tmp_path / "leaky", {"x": 5}, start=200)
    (leaky / "x/leak.jpg").write_bytes((val / "a/000.jpg").read_bytes())
    other = pack(str(leaky), out=str(tmp_path / "p/leaky"))
    everything: dict[str, dict[str, Any]] = {
        "adopted": {"labeled": train.path, "unlabeled": pile.path},
        "leaking": {"labeled": train.path, "unlabeled": other.path, "validation": str(val)},
        "drawn": {"labeled": train.path, "labels": 4},
        "several": {"labeled": train.path, "labels": 4, "unlabeled": ["rest", pile.path]},
    }
    first = {name: run(tmp_path / name, **kind) for name, kind in everything.items()}
    for corpus in (train, pile, other):
        spoil(corpus)
    for name, kind in everything.items():
        assert run(tmp_path / name, **kind) == first[name], name
    assert first["adopted"].unlabeled == pile
    leaking, several = first["leaking"].unlabeled, first["several"].unlabeled
    assert leaking is not None
    assert several is not None
    assert rejected(leaking) == {"x/leak.jpg": "leak"}
    assert {key for key in keys(several) if key[0] == "1"} == {f"1/x/{i:03d}.jpg" for i in range(5)}


@pytest.mark.ray
def test_a_leak_is_found_and_left_out_in_tasks(
    tmp_path: Path, ray_local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "TASK", 0.0)
    monkeypatch.setattr(spans, "SCAN_ROWS", 4)
    train = fill(tmp_path / "train", {"a": 9, "b": 6})
    source = fill(tmp_path / "pile", {"x": 20}, start=100)
    clean = pack(str(source), out=str(tmp_path / "clean"), rows_per_shard=3)
    (source / "x/leak.jpg").write_bytes((train / "a/003.jpg").read_bytes())
    leaky = pack(str(source), out=str(tmp_path / "leaky"), rows_per_shard=3)
    test = fill(tmp_path / "test", {"b": 1}, start=300)
    (test / "a").mkdir()
    (test / "a/1.jpg").write_bytes((train / "a/003.jpg").read_bytes())
    val = fill(tmp_path / "val", {"a": 1, "b": 1}, start=400)
    labeled = pack(str(train), out=str(tmp_path / "p")).path
    settings = {"labeled": labeled, "validation": str(val), "test": str(test)}
    found = run(tmp_path / "1", **settings, unlabeled=clean.path)
    assert found.unlabeled == clean
    assert rejected(found.labeled) == {"a/003.jpg": "leak"}
    found = run(tmp_path / "2", **settings, unlabeled=leaky.path)
    assert found.unlabeled is not None
    assert rejected(found.unlabeled) == {"x/leak.jpg": "leak"}
    assert keys(found.unlabeled) == keys(clean)


def test_a_corpus_that_lost_a_shard_says_so(tmp_path: Path) -> None:
    packed = pack(str(fill(tmp_path / "set", {"a": 9, "b": 6})), out=str(tmp_path / "packed"))
    spoil(packed)
    with pytest.raises(DataError, match=r"shard-00000.* is damaged: it is no Parquet file"):
        run(tmp_path, labeled=packed.path, labels=4)
    pq.write_table(
        pa.Table.from_pylist([], schema.CORPUS), f"{packed.path}/{packed.shards[0].file}"
    )
    with pytest.raises(DataError, match=r"packed: the shards hold other labels than manifest"):
        run(tmp_path, labeled=packed.path, labels=4)
