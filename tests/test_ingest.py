import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken_files import jpeg, write_pile
from hypothesis import given
from hypothesis import strategies as st

from ns_ray import chunks, packing, schema, spans, storage, tasks
from ns_ray.config import DataConfig
from ns_ray.errors import ConfigError, DataError, StageError
from ns_ray.ingest import adopt, ingest, pack, split
from ns_ray.layout import RunLayout
from ns_ray.sources import list_source
from ns_ray.sources.items import Item, Row
from ns_ray.sources.listing import Listing
from ns_ray.values import Corpora, Corpus, open_corpus


def fill(folder: Path, counts: dict[str, int], start: int = 0) -> Path:
    """A folder per class with so many different photographs; seeds from `start` on."""
    seed = start
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (folder / name / f"{i:03d}.jpg").write_bytes(jpeg(seed))
            seed += 1
    return folder


def rows(corpus: Corpus) -> list[dict[str, Any]]:
    return [row for shard in corpus.shards for row in corpus.read(shard).to_pylist()]


def keys(corpus: Corpus) -> set[str]:
    found = [row["key"] for row in rows(corpus)]
    assert len(found) == len(set(found)) == corpus.rows
    return set(found)


def rejected(corpus: Corpus) -> dict[str, str]:
    table = storage.read_table(f"{corpus.path}/rejected.parquet")
    assert table.schema.equals(schema.REJECTED)
    return {row["key"]: row["reason"] for row in table.to_pylist()}


def config(**settings: Any) -> DataConfig:
    return DataConfig.model_validate(settings)


def run(tmp_path: Path, **settings: Any) -> Corpora:
    return ingest(config(**settings), seed=0, out=RunLayout(str(tmp_path / "run")))


# ------------------------------------------------------------------------------------- packing


def test_a_corpus_holds_the_original_files(tmp_path: Path) -> None:
    source = fill(tmp_path / "set", {"cat": 5, "dog 10": 4, "dog 9": 3})
    corpus = pack(str(source), out=str(tmp_path / "out"), rows_per_shard=5)
    assert corpus.classes == ("cat", "dog 9", "dog 10")
    assert corpus.class_counts == (5, 3, 4)
    assert [shard.rows for shard in corpus.shards] == [4, 4, 4]
    assert [shard.name for shard in corpus.shards] == ["shard-00000", "shard-00001", "shard-00002"]
    for shard in corpus.shards:
        table = corpus.read(shard)
        assert table.schema.equals(schema.CORPUS)
        assert shard.file == schema.part_name(shard.name, corpus.fingerprint)
        assert shard.bytes == sum(len(data) for data in table.column("image").to_pylist())
    for row in rows(corpus):
        data = (source / row["key"]).read_bytes()
        assert row["image"] == data
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert (row["width"], row["height"]) == (48, 32)
        assert corpus.classes[row["label"]] == row["key"].split("/")[0]
        assert row["uri"] == f"{source}/{row['key']}"
    # Nothing but the corpus is left: no records of the work, no temporary files.
    listed = {*(shard.file for shard in corpus.shards), "manifest.json", "rejected.parquet"}
    assert set(storage.list_files(corpus.path)) == {*listed, "_DONE.json"}
    done = storage.published(corpus.path)
    assert done is not None
    assert set(done.files) == listed
    assert done.facts["rows"] == 12


@pytest.mark.ray
def test_a_pile_with_broken_files_is_packed_and_the_broken_are_listed(
    tmp_path: Path, ray_local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "TASK", 0.0)
    good, bad = write_pile(tmp_path / "pile", good=480)
    corpus = pack(str(tmp_path / "pile"), out=str(tmp_path / "out"), classes=(), rows_per_shard=100)
    assert len(bad) / (len(good) + len(bad)) == pytest.approx(0.02, abs=0.001)
    assert keys(corpus) == good
    assert rejected(corpus) == bad
    assert corpus.rejected == dict(Counter(bad.values()))
    assert len(corpus.shards) == 6
    sizes = {row["key"]: (row["width"], row["height"]) for row in rows(corpus)}
    assert sizes["odd/rotated.jpg"] == (32, 48)
    assert all(row["label"] is None for row in rows(corpus))


@pytest.mark.ray
def test_ray_and_one_process_write_the_same_files(
    tmp_path: Path, ray_local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fill(tmp_path / "set", {"a": 20, "b": 20})
    (source / "a" / "bad.jpg").write_bytes(b"no")
    here = pack(str(source), out=str(tmp_path / "here"), rows_per_shard=7)
    monkeypatch.setattr(tasks, "TASK", 0.0)
    there = pack(str(source), out=str(tmp_path / "there"), rows_per_shard=7)
    assert here.fingerprint == there.fingerprint
    names = storage.list_files(here.path)
    assert names == storage.list_files(there.path)
    for name in set(names) - {"_DONE.json"}:
        assert storage.read_bytes(f"{here.path}/{name}") == storage.read_bytes(
            f"{there.path}/{name}"
        ), name


@pytest.mark.ray
def test_errors_of_a_task_reach_the_user_as_they_are(
    tmp_path: Path, ray_local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "TASK", 0.0)
    source = fill(tmp_path / "set", {"a": 4})
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        pack(str(source), out=str(tmp_path / "file" / "out"))
    gone = Row(f"{tmp_path}/gone.parquet", "image", 0, 0)
    with pytest.raises(StageError, match=r"gone\.parquet.*the same command continues"):
        pack(Listing("x", [Item("k", "u", place=gone)], (), "f"), out=str(tmp_path / "out"))


def test_an_unfinished_packing_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = write_pile(tmp_path / "pile", good=40)
    out = str(tmp_path / "out")
    done: list[int] = []
    work = chunks.pack_chunk

    def interrupted(job: Any, index: int, items: list[Item]) -> Any:
        if len(done) == 3:
            raise OSError("the storage is gone")
        done.append(index)
        return work(job, index, items)

    monkeypatch.setattr(packing, "pack_chunk", interrupted)
    monkeypatch.setattr(tasks, "WAITS", ())
    with pytest.raises(StageError, match=r"storage is gone.*same command continues"):
        pack(str(tmp_path / "pile"), out=out, rows_per_shard=10, max_rejected=0.5)
    with pytest.raises(DataError, match="not a packed corpus"):
        open_corpus(out)
    first = {name: storage.read_bytes(f"{out}/{name}") for name in storage.list_files(out)}

    again: list[int] = []

    def counted(job: Any, index: int, items: list[Item]) -> Any:
        again.append(index)
        return work(job, index, items)

    monkeypatch.setattr(packing, "pack_chunk", counted)
    corpus = pack(str(tmp_path / "pile"), out=out, rows_per_shard=10, max_rejected=0.5)
    assert not set(done) & set(again)
    assert len(done) + len(again) == len(corpus.shards) == 7
    assert keys(corpus) == good
    assert rejected(corpus) == bad
    for name in (shard.file for shard in corpus.shards[:3]):
        assert storage.read_bytes(f"{out}/{name}") == first[name]

    again.clear()
    pack(str(tmp_path / "pile"), out=out, rows_per_shard=10, max_rejected=0.5)
    assert again == []


def test_a_changed_source_replaces_the_corpus(tmp_path: Path) -> None:
    source = fill(tmp_path / "set", {"a": 3})
    old = pack(str(source), out=str(tmp_path / "out"))
    fill(source, {"b": 2}, start=50)
    new = pack(str(source), out=str(tmp_path / "out"))
    assert (old.rows, new.rows) == (3, 5)
    assert not {shard.file for shard in old.shards} & set(storage.list_files(new.path))


def test_what_an_interrupted_packing_of_something_else_left_is_cleared(tmp_path: Path) -> None:
    source = fill(tmp_path / "set", {"a": 3})
    out = tmp_path / "out"
    out.mkdir()
    for name in ("shard-00007.abcdef.parquet", "part-00007.abcdef.json", "rows-1.abcdef.bin", "my"):
        (out / name).write_text("")
    corpus = pack(str(source), out=str(out))
    expected = [corpus.shards[0].file, "_DONE.json", "manifest.json", "my", "rejected.parquet"]
    assert sorted(storage.list_files(corpus.path)) == sorted(expected)


def test_a_label_outside_the_class_list_is_named(tmp_path: Path) -> None:
    source = fill(tmp_path / "set", {"a": 2, "b": 2})
    with pytest.raises(DataError, match="the label 'b', which is none of the 1 classes"):
        pack(str(source), out=str(tmp_path / "out"), classes=["a"])


def test_too_many_rejected_says_what_and_which_setting(tmp_path: Path) -> None:
    source = fill(tmp_path / "set", {"a": 6})
    (source / "a" / "x.jpg").write_bytes(b"")
    (source / "a" / "y.jpg").write_bytes(b"text")
    with pytest.raises(DataError) as caught:
        pack(str(source), out=str(tmp_path / "out"), setting="data.labeled")
    message = str(caught.value)
    assert "data.labeled=" in message
    assert "2 of 8 images (25.0%)" in message
    assert "empty: 1, not_an_image: 1" in message
    assert "data.max_rejected=0.1 allows 0" in message
    assert pq.read_table(tmp_path / "out" / "rejected.parquet").num_rows == 2
    with pytest.raises(DataError, match="not a packed corpus"):
        open_corpus(str(tmp_path / "out"))
    assert pack(str(source), out=str(tmp_path / "out"), max_rejected=0.25).rows == 6


def test_files_that_were_missing_are_looked_for_again(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path\n" + "".join(f"{i}.jpg\n" for i in range(4)))
    (tmp_path / "2.jpg").mkdir()
    for i in (0, 1):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    with pytest.raises(DataError, match="missing: 1, unreadable: 1"):
        pack(str(tmp_path / "t.csv"), out=str(tmp_path / "out"))
    (tmp_path / "2.jpg").rmdir()
    for i in (2, 3):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    assert pack(str(tmp_path / "t.csv"), out=str(tmp_path / "out")).rows == 4


def test_a_shard_of_large_images_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "SHARD_BYTES", 5000)
    source = fill(tmp_path / "set", {"a": 12})
    corpus = pack(str(source), out=str(tmp_path / "out"), rows_per_shard=6)
    names = [shard.name for shard in corpus.shards]
    assert names[:2] == ["shard-00000", "shard-00000-1"]
    assert len(keys(corpus)) == 12
    assert [schema.shard_of(shard.file) for shard in corpus.shards] == names


def test_parquet_rows_are_packed_whole_and_shuffled(tmp_path: Path) -> None:
    data = [jpeg(i) for i in range(30)]
    table = pa.table({"image": data, "label": [i // 15 for i in range(30)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=4)
    corpus = pack(str(tmp_path / "t.parquet"), out=str(tmp_path / "out"), rows_per_shard=10)
    assert {row["key"]: row["image"] for row in rows(corpus)} == {
        f"t.parquet/{i:08d}": data[i] for i in range(30)
    }
    assert all(len(set(corpus.read(s).column("label").to_pylist())) == 2 for s in corpus.shards)
    assert not [name for name in storage.list_files(corpus.path) if name.endswith(".bin")]
    copy = pack(corpus.path, out=str(tmp_path / "copy"), seed=3, rows_per_shard=7)
    assert {row["key"]: row for row in rows(copy)} == {row["key"]: row for row in rows(corpus)}
    assert (copy.classes, copy.class_counts) == (corpus.classes, corpus.class_counts)


def test_uris_are_packed_from_and_to(tmp_path: Path) -> None:
    fill(tmp_path / "set", {"T-shirt top": 3, "b": 3})
    corpus = pack(f"file://{tmp_path}/set", out=f"file://{tmp_path}/out")
    assert corpus.rows == 6
    assert corpus.path == f"file://{tmp_path}/out"


def test_digits_are_packed_quickly_without_ray(tmp_path: Path) -> None:
    corpus = pack("digits", out=str(tmp_path / "out"))
    assert corpus.rows == 1297
    done = storage.published(corpus.path)
    assert done is not None
    assert done.facts["rejected"] == {}
    assert sum(corpus.class_counts) == 1297


# --------------------------------------------------------------------------------- splitting


def listing_of(sizes: list[int]) -> Listing:
    items = [Item(f"{c}/{i}", "", f"{c:02d}") for c, n in enumerate(sizes) for i in range(n)]
    return Listing("set", items, tuple(f"{c:02d}" for c in range(len(sizes))), "f")


def per_class(listing: Listing) -> Counter[str | None]:
    return Counter(item.label for item in listing.items)


@given(st.lists(st.integers(2, 60), min_size=2, max_size=8), st.data(), st.integers(0, 5))
def test_a_split_is_exact_stratified_and_complete(
    sizes: list[int], data: st.DataObject, seed: int
) -> None:
    listing = listing_of(sizes)
    held = data.draw(st.integers(len(sizes), sum(sizes) - len(sizes)))
    labels = data.draw(st.integers(len(sizes), sum(sizes) - held))
    train, validation, rest = split(listing, labels=labels, validation_size=float(held), seed=seed)
    assert (train.rows, validation.rows) == (labels, held)
    everything = [item.key for part in (train, validation, rest) for item in part.items]
    assert sorted(everything) == sorted(item.key for item in listing.items)
    assert len(per_class(train)) == len(per_class(validation)) == len(sizes)


def test_validation_images_do_not_depend_on_the_number_of_labels() -> None:
    listing = listing_of([40, 20])
    few = split(listing, labels=6, validation_size=0.1, seed=0)
    many = split(listing, labels=None, validation_size=0.1, seed=0)
    assert few[1] == many[1]
    assert per_class(few[1]) == {"00": 4, "01": 2}
    assert per_class(few[0]) == {"00": 4, "01": 2}
    assert {item.key for item in few[0].items} <= {item.key for item in many[0].items}
    assert split(listing, labels=6, validation_size=0.1, seed=1)[1] != few[1]
    assert many[2].rows == 0


def test_a_class_with_one_image_keeps_it_for_training(capsys: pytest.CaptureFixture[str]) -> None:
    train, validation, _ = split(listing_of([1, 9]), labels=None, validation_size=0.2, seed=0)
    assert per_class(train) == {"00": 1, "01": 7}
    assert per_class(validation) == {"01": 2}
    assert "no validation image of the class '00'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("labels", "size", "message"),
    [
        (1, 0.1, r"data.labels=1 must be from 2 \(one per class\) to 18"),
        (19, 0.1, "data.labels=19 must be from 2"),
        (None, 19.0, "data.validation_size=19 asks for 19 of the 20 images .* at most 18"),
    ],
)
def test_asking_for_more_than_there_is(labels: int | None, size: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split(listing_of([10, 10]), labels=labels, validation_size=size, seed=0)


# ------------------------------------------------------------------------------ a run's corpora


def test_the_corpora_of_a_run(tmp_path: Path) -> None:
    settings = {"labeled": "digits", "test": "digits:test", "labels": 100, "validation_size": 97}
    corpora = run(tmp_path, **settings)
    assert corpora.unlabeled is not None
    assert corpora.test is not None
    parts = (corpora.labeled, corpora.unlabeled, corpora.validation, corpora.test)
    assert [part.rows for part in parts] == [100, 1100, 97, 500]
    assert corpora.labeled.class_counts == (10,) * 10
    assert corpora.unlabeled.classes == ()
    assert corpora.labeled.classes == corpora.validation.classes == corpora.test.classes
    assert len(set().union(*map(keys, parts))) == 1797
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert run(tmp_path, **settings) == corpora
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert ingest(config(**settings), seed=1, out=RunLayout(str(tmp_path / "b"))).labeled != (
        corpora.labeled
    )


def test_what_earlier_versions_packed_stays_valid(tmp_path: Path) -> None:
    settings = {"labeled": "digits", "test": "digits:test", "labels": 100, "validation_size": 97}
    corpora = run(tmp_path, **settings)
    assert corpora.test is not None
    found = (corpora.validation.fingerprint, corpora.test.fingerprint)
    assert found == ("04135c7464db", "2a7703940ac7"), "every run would pack and train again"


def test_leaks_are_left_out_of_training_and_pile(tmp_path: Path) -> None:
    train = fill(tmp_path / "train", {"a": 6, "b": 6})
    test = fill(tmp_path / "test", {"a": 2, "b": 2}, start=100)
    val = fill(tmp_path / "val", {"a": 2, "b": 2}, start=200)
    pile = fill(tmp_path / "pile", {"x": 5}, start=300)
    for source, name in ((test / "a/000.jpg", "t.jpg"), (val / "b/001.jpg", "v.jpg")):
        (train / "a" / name).write_bytes(source.read_bytes())
        (pile / name).write_bytes(source.read_bytes())
    (pile / "same_as_train.jpg").write_bytes((train / "a/000.jpg").read_bytes())
    corpora = run(
        tmp_path,
        labeled=str(train),
        unlabeled=str(pile),
        validation=str(val),
        test=str(test),
        max_rejected=0.0,
    )
    assert corpora.unlabeled is not None
    assert rejected(corpora.labeled) == {"a/t.jpg": "leak", "a/v.jpg": "leak"}
    assert rejected(corpora.unlabeled) == {"t.jpg": "leak", "v.jpg": "leak"}
    assert "same_as_train.jpg" in keys(corpora.unlabeled)
    assert corpora.labeled.rows == 12
    with pytest.raises(DataError, match=r"data.labeled=.* none of the 4 .*leak: 4"):
        run(tmp_path / "2", labeled=str(test), unlabeled=str(pile), validation=str(test))


def test_several_piles_keep_their_keys_apart(tmp_path: Path) -> None:
    train = fill(tmp_path / "train", {"a": 8, "b": 8})
    one = fill(tmp_path / "one", {"a": 3}, start=100)
    two = fill(tmp_path / "two", {"a": 2}, start=200)
    corpora = run(tmp_path, labeled=str(train), labels=6, unlabeled=["rest", str(one), str(two)])
    assert corpora.unlabeled is not None
    found = keys(corpora.unlabeled)
    assert {key for key in found if key[0] != "0"} == {
        *(f"1/a/{i:03d}.jpg" for i in range(3)),
        *(f"2/a/{i:03d}.jpg" for i in range(2)),
    }
    assert len(found) == 5 + 16 - 6 - corpora.validation.rows


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
    assert storage.list_files(f"{tmp_path}/run/corpora/labeled") == ["_DONE.json", "pointer.json"]
    assert run(tmp_path, **settings) == corpora

    # A leak, a draw or other class indices need a copy; it takes the pointer's place.
    (val / "a" / "leak.jpg").write_bytes((pile / "x/000.jpg").read_bytes())
    settings["validation"] = str(val)
    corpora = run(tmp_path, **settings, labels=4)
    assert corpora.unlabeled is not None
    assert rejected(corpora.unlabeled) == {"x/000.jpg": "leak"}
    assert corpora.unlabeled.path == f"{tmp_path}/run/corpora/unlabeled"
    assert not storage.exists(f"{corpora.unlabeled.path}/pointer.json")
    assert (corpora.labeled.rows, corpora.labeled.classes) == (4, ("a", "b"))
    only_b = pack(str(fill(tmp_path / "b", {"b": 2}, start=300)), out=str(tmp_path / "packed/b"))
    corpora = run(tmp_path, **settings | {"validation": only_b.path})
    assert corpora.validation.classes == ("a", "b")
    assert corpora.validation.class_counts == (0, 2)


def spoil(corpus: Corpus) -> None:
    """Leave nothing of the shards to read."""
    for shard in corpus.shards:
        storage.write_bytes(f"{corpus.path}/{shard.file}", b"not Parquet")


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
    with pytest.raises(DataError, match=r"shard-00000.*is no shard of a packed corpus"):
        run(tmp_path, labeled=packed.path, labels=4)
    pq.write_table(
        pa.Table.from_pylist([], schema.CORPUS), f"{packed.path}/{packed.shards[0].file}"
    )
    with pytest.raises(DataError, match=r"packed: the shards hold other labels than manifest"):
        run(tmp_path, labeled=packed.path, labels=4)


def test_class_lists_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = fill(tmp_path / "train", {"a": 6, "b": 6})
    other = fill(tmp_path / "other", {"a": 2, "z": 2}, start=100)
    with pytest.raises(DataError, match=r"data.test=.* has the class 'z', which data.labeled"):
        run(tmp_path, labeled=str(train), test=str(other), labels=4)
    with pytest.raises(DataError, match=r"data.validation=.* has the class 'z'"):
        run(tmp_path, labeled=str(train), validation=str(other), labels=4)
    capsys.readouterr()
    less = fill(tmp_path / "less", {"b": 2}, start=100)
    corpora = run(tmp_path, labeled=str(train), test=str(less), labels=4)
    assert "data.test: no image of the class 'a'" in capsys.readouterr().out
    assert corpora.test is not None
    assert {row["label"] for row in rows(corpora.test)} == {1}


def test_unusable_settings_are_named(tmp_path: Path) -> None:
    train = fill(tmp_path / "train", {"a": 6, "b": 6})
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"labeled": str(tmp_path / "gone")}, r"data.labeled=.*no such file or folder"),
        ({"labeled": str(fill(tmp_path / "one", {"a": 3}))}, "has one class only, 'a'"),
        ({"labeled": str(train / "a")}, "data.labeled=.* no labels; it needs a folder per class"),
        ({"labeled": str(train)}, r"data.unlabeled=\['rest'\] gives no unlabeled images.*labels"),
        ({"labeled": str(train), "unlabeled": []}, r"data.unlabeled=\[\]"),
        ({"labeled": str(train), "unlabeled": "nope"}, "data.unlabeled.0='nope'"),
        ({"labeled": str(fill(tmp_path / "all/train", {"a": 2}).parent)}, "all/train"),
    ]
    for settings, message in mistakes:
        with pytest.raises(DataError, match=message):
            run(tmp_path, **settings)
    corpora = ingest(
        config(labeled=str(train)), seed=0, out=RunLayout(str(tmp_path / "run")), pile=False
    )
    assert corpora.unlabeled is None


def test_a_class_without_a_readable_image_is_an_error(tmp_path: Path) -> None:
    train = fill(tmp_path / "train", {"a": 12, "b": 12})
    val = fill(tmp_path / "val", {"a": 1, "b": 1}, start=100)
    (train / "c").mkdir()
    (train / "c" / "only.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"no usable training image of the class 'c' \(empty: 1\)"):
        run(tmp_path, labeled=str(train), validation=str(val), unlabeled=str(val))


def test_images_without_labels_are_left_out_of_the_labeled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = fill(tmp_path / "train", {"a": 6, "b": 6})
    (train / "cover.jpg").write_bytes(jpeg(99))
    corpora = run(tmp_path, labeled=str(train), labels=4)
    assert "1 images of" in capsys.readouterr().out
    assert corpora.unlabeled is not None
    assert corpora.unlabeled.rows == 12 - 4 - corpora.validation.rows


def test_shards_are_shuffled(tmp_path: Path) -> None:
    source = fill(tmp_path / "set", {"a": 30, "b": 30})
    corpus = pack(str(source), out=str(tmp_path / "out"), rows_per_shard=20)
    shares = [np.mean(corpus.read(shard).column("label").to_numpy()) for shard in corpus.shards]
    assert all(0.2 < share < 0.8 for share in shares)
