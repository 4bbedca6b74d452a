"""Sources become corpora: whole, verified, and at once when they are there."""

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken_files import jpeg, write_pile
from packed import fill, keys, rejected, rows

from ns_ray import store
from ns_ray.compute import tasks
from ns_ray.data import chunks, images, packing
from ns_ray.data.sources.items import Item, Row
from ns_ray.data.sources.listing import Listing
from ns_ray.data.stage import pack
from ns_ray.errors import DataError, StageError, StorageError
from ns_ray.store import owner, schema
from ns_ray.store.corpora import open_corpus


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
    assert set(store.list_files(corpus.path)) == {*listed, "_DONE.json"}
    done = store.published(corpus.path)
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
    names = store.list_files(here.path)
    assert names == store.list_files(there.path)
    for name in set(names) - {"_DONE.json"}:
        assert store.read_bytes(f"{here.path}/{name}") == store.read_bytes(
            f"{there.path}/{name}"
        ), name


@pytest.mark.ray
def test_errors_of_a_task_reach_the_user_as_they_are(
    tmp_path: Path, ray_local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "TASK", 0.0)
    source = fill(tmp_path / "set", {"a": 4})
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"^cannot write"):
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
    first = {name: store.read_bytes(f"{out}/{name}") for name in store.list_files(out)}

    again: list[int] = []

    def counted(job: Any, index: int, items: list[Item]) -> Any:
        again.append(index)
        return work(job, index, items)

    monkeypatch.setattr(packing, "pack_chunk", counted)
    corpus = pack(str(tmp_path / "pile"), out=out, rows_per_shard=10, max_rejected=0.5)
    assert not set(done) & set(again)
    assert len(done) + len(again) == len(corpus.shards) == 8
    assert keys(corpus) == good
    assert rejected(corpus) == bad
    for name in (shard.file for shard in corpus.shards[:3]):
        assert store.read_bytes(f"{out}/{name}") == first[name]

    again.clear()
    pack(str(tmp_path / "pile"), out=out, rows_per_shard=10, max_rejected=0.5)
    assert again == []


def test_a_changed_source_replaces_the_corpus(tmp_path: Path) -> None:
    source = fill(tmp_path / "set", {"a": 3})
    old = pack(str(source), out=str(tmp_path / "out"))
    fill(source, {"b": 2}, start=50)
    new = pack(str(source), out=str(tmp_path / "out"))
    assert (old.rows, new.rows) == (3, 5)
    assert not {shard.file for shard in old.shards} & set(store.list_files(new.path))


def test_what_an_interrupted_packing_of_something_else_left_is_cleared(tmp_path: Path) -> None:
    source = fill(tmp_path / "set", {"a": 3})
    out = tmp_path / "out"
    out.mkdir()
    for name in ("shard-00007.abcdef.parquet", "part-00007.abcdef.json", "rows-1.abcdef.bin", "my"):
        (out / name).write_text("")
    corpus = pack(str(source), out=str(out))
    expected = [corpus.shards[0].file, "_DONE.json", "manifest.json", "my", "rejected.parquet"]
    assert sorted(store.list_files(corpus.path)) == sorted(expected)


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


def test_packing_stops_once_too_much_is_rejected(tmp_path: Path) -> None:
    source = fill(tmp_path / "set", {"a": 30})
    for i in range(30):
        (source / "a" / f"bad-{i}.jpg").write_bytes(b"text")
    out = str(tmp_path / "out")
    with pytest.raises(DataError, match=r"of 60, so the rest is not read") as caught:
        pack(str(source), out=out, rows_per_shard=6, max_rejected=0.1)
    assert "data.max_rejected=0.1 allows 6" in str(caught.value)
    packed = [name for name in store.list_files(out) if name.startswith("part-")]
    assert 2 <= len(packed) <= 5
    told = pq.read_table(tmp_path / "out" / "rejected.parquet").num_rows
    assert 7 <= told <= 12
    assert f" {told} of {6 * len(packed)} images" in str(caught.value)

    before = {name: os.stat(f"{out}/{name}").st_mtime_ns for name in packed}
    with pytest.raises(DataError, match=f" {told} of {6 * len(packed)} images"):
        pack(str(source), out=out, rows_per_shard=6, max_rejected=0.1)
    assert before == {name: os.stat(f"{out}/{name}").st_mtime_ns for name in packed}
    corpus = pack(str(source), out=out, rows_per_shard=6, max_rejected=0.5)
    assert (corpus.rows, corpus.rejected) == (30, {"not_an_image": 30})


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
    assert not [name for name in store.list_files(corpus.path) if name.endswith(".bin")]
    copy = pack(corpus.path, out=str(tmp_path / "copy"), seed=3, rows_per_shard=7)
    assert {row["key"]: row for row in rows(copy)} == {row["key"]: row for row in rows(corpus)}
    assert (copy.classes, copy.class_counts) == (corpus.classes, corpus.class_counts)


def test_rows_laid_out_for_one_packing_are_not_those_of_another(tmp_path: Path) -> None:
    data = [jpeg(i) for i in range(4)]
    pq.write_table(pa.table({"image": data}), tmp_path / "t.parquet")
    job = chunks.Job(str(tmp_path / "out"), "f" * 12, (), images.MAX_PIXELS, frozenset())
    every = [Row(str(tmp_path / "t.parquet"), "image", 0, row) for row in range(4)]
    whole = chunks.lay_out(job, [*every])
    rest = chunks.lay_out(job, [*every[2:]])
    for ranges, wanted in ((whole, data), (rest, data[2:])):
        assert [Item("k", "u", place=place).read() for place in ranges] == wanted


def test_a_refused_packing_leaves_the_published_corpus_as_it_was(tmp_path: Path) -> None:
    source = fill(tmp_path / "set", {"a": 4})
    (source / "a" / "x.jpg").write_bytes(b"")
    out = str(tmp_path / "out")
    published = pack(str(source), out=out, max_rejected=0.5)
    before = {name: store.read_bytes(f"{out}/{name}") for name in store.list_files(out)}
    (source / "a" / "y.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 6 images.*see .*/rejected\.\w{6}\.parquet"):
        pack(str(source), out=out)
    assert {name: store.read_bytes(f"{out}/{name}") for name in before} == before
    pack(str(source), out=out, max_rejected=0.5)
    assert not [
        name
        for name in store.list_files(out)
        if name.startswith("rejected.") and name != "rejected.parquet"
    ]
    assert published.rows == 4


def test_a_corpus_is_whole_until_another_is_published_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    before = pack(str(fill(tmp_path / "set", {"a": 3})), out=out)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "publish", killed)
    with pytest.raises(KeyboardInterrupt):
        pack(str(fill(tmp_path / "set", {"a": 5})), out=out)
    assert open_corpus(out) == before
    assert len(keys(before)) == 3


def test_uris_are_packed_from_and_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "SETTLE_SECONDS", 0.0)
    fill(tmp_path / "set", {"T-shirt top": 3, "b": 3})
    corpus = pack(f"file://{tmp_path}/set", out=f"file://{tmp_path}/out")
    assert corpus.rows == 6
    assert corpus.path == f"file://{tmp_path}/out"


def test_digits_are_packed_quickly_without_ray(tmp_path: Path) -> None:
    corpus = pack("digits", out=str(tmp_path / "out"))
    assert corpus.rows == 1297
    done = store.published(corpus.path)
    assert done is not None
    assert done.facts["rejected"] == {}
    assert sum(corpus.class_counts) == 1297


def test_shards_are_shuffled(tmp_path: Path) -> None:
    source = fill(tmp_path / "set", {"a": 30, "b": 30})
    corpus = pack(str(source), out=str(tmp_path / "out"), rows_per_shard=20)
    shares = [np.mean(corpus.read(shard).column("label").to_numpy()) for shard in corpus.shards]
    assert all(0.2 < share < 0.8 for share in shares)
