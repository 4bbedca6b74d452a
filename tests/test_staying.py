"""A user's Parquet table whose images stay where they are."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken_files import jpeg
from packed import fill, rejected, rows, run
from tiny import MODEL

from ns_ray import store
from ns_ray.compute.resources import Pool
from ns_ray.config.labeling import LabelConfig
from ns_ray.config.training import ModelConfig
from ns_ray.data.adopting import adopt
from ns_ray.data.packing import pack
from ns_ray.data.sources import list_source
from ns_ray.data.sources.listing import rows_of
from ns_ray.data.sources.staying import staying
from ns_ray.errors import DataError
from ns_ray.labeling.actor import Read, ShardPredictor
from ns_ray.labeling.stage import pseudo_label
from ns_ray.model import bundle
from ns_ray.model.networks import build
from ns_ray.store import Corpus, open_corpus

BAD = {7: b"no image", 30: b""}


def table(path: Path, start: int, count: int, struct: bool = False, **more: Any) -> Path:
    """Images in row groups of 9, with ids from `start` on; two of all cannot be read."""
    data: list[Any] = [BAD.get(i, jpeg(i)) for i in range(start, start + count)]
    if struct:
        data = [{"bytes": one, "path": "x.jpg"} for one in data]
    ids = list(range(start, start + count))
    columns = {"id": ids, "label": ["a", "b", None] * (count // 3), "image": data, **more}
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=9)
    return path


def expected(count: int) -> dict[str, bytes]:
    return {str(i): jpeg(i) for i in range(count) if i not in BAD}


def adopted(tmp_path: Path, **settings: Any) -> Corpus:
    table(tmp_path / "t/a.parquet", 0, 24)
    table(tmp_path / "t/b.parquet", 24, 15, struct=True)
    listing = staying(list_source(str(tmp_path / "t")), "id")
    return pack(listing, out=str(tmp_path / "out"), rows_per_shard=20, **settings)


def test_images_stay_in_their_table_and_are_read_from_it(tmp_path: Path) -> None:
    corpus = adopted(tmp_path)
    assert {row["key"]: row["image"] for row in rows(corpus)} == expected(39)
    assert rejected(corpus) == {"7": "not_an_image", "30": "empty"}
    assert [shard.rows for shard in corpus.shards] == [17, 6, 14]
    assert corpus.class_counts == (12, 12)
    for shard in corpus.shards:
        file = f"{corpus.path}/{shard.file}"
        assert "image" not in pq.read_schema(file).names
        table = corpus.read(shard, ["image", "key"])
        assert table.column_names == ["image", "key"]
        keys = [str(key) for key in table["key"]]
        two = store.read_rows(file, "key", [keys[5], keys[1]], ["key", "image"])
        assert {str(r["key"]): r["image"] for r in two.to_pylist()} == {
            k: expected(39)[k] for k in (keys[1], keys[5])
        }
        first = store.read_first(file, 3, ["image"])
        assert [one.as_py() for one in first["image"]] == [expected(39)[k] for k in keys[:3]]
        assert {item.key: item.read() for item in rows_of(corpus, shard)} == {
            key: expected(39)[key] for key in keys
        }
    copy = pack(corpus.path, out=str(tmp_path / "copy"))
    assert {row["key"]: row["image"] for row in rows(copy)} == expected(39)
    again = staying(list_source(str(tmp_path / "t")), "id")
    assert pack(again, out=str(tmp_path / "out"), rows_per_shard=20) == corpus


def test_a_pile_in_place_has_no_leaks_and_each_image_once(tmp_path: Path) -> None:
    train = fill(tmp_path / "train", {"a": 6, "b": 6}, start=100)
    val = fill(tmp_path / "val", {"a": 1, "b": 1}, start=200)
    (val / "a/leak.jpg").write_bytes(jpeg(5))
    table(tmp_path / "t/a.parquet", 0, 24)
    corpora = run(
        tmp_path,
        labeled=str(train),
        validation=str(val),
        unlabeled=str(tmp_path / "t"),
        id_column="id",
    )
    assert corpora.unlabeled is not None
    wanted = set(expected(24)) - {"5"}
    assert Counter(row["key"] for row in rows(corpora.unlabeled)) == Counter(wanted)
    assert rejected(corpora.unlabeled) == {"5": "leak", "7": "not_an_image"}
    size = sum(p.stat().st_size for p in Path(corpora.unlabeled.path).glob("shard-*"))
    assert "image" in pq.read_schema(next(Path(corpora.labeled.path).glob("shard-*"))).names
    assert size < sum(map(len, expected(24).values()))


def test_of_an_image_that_is_there_twice_one_stays_and_both_stay_in_place(tmp_path: Path) -> None:
    train = fill(tmp_path / "train", {"a": 6, "b": 6}, start=100)
    data = [jpeg(i % 10) for i in range(12)]
    pq.write_table(pa.table({"id": range(12), "image": data}), tmp_path / "t.parquet")
    pile = run(
        tmp_path, labeled=str(train), unlabeled=str(tmp_path / "t.parquet"), id_column="id"
    ).unlabeled
    assert pile is not None
    assert {row["key"]: row["image"] for row in rows(pile)} == {str(i): jpeg(i) for i in range(10)}
    assert rejected(pile) == {"10": "duplicate", "11": "duplicate"}
    for shard in pile.shards:
        assert "image" not in pq.read_schema(f"{pile.path}/{shard.file}").names


def test_a_table_that_has_changed_or_gone_is_named(tmp_path: Path) -> None:
    corpus = adopted(tmp_path)
    file = tmp_path / "t/a.parquet"
    corpus.read(corpus.shards[0], ["image"])
    os.utime(file, (1, 1))
    with pytest.raises(DataError, match=r"a\.parquet has changed since its images were packed in"):
        corpus.read(corpus.shards[0], ["image"])
    file.unlink()
    with pytest.raises(DataError, match=r"a\.parquet is gone, where images were packed in place"):
        corpus.read(corpus.shards[0])
    assert corpus.read(corpus.shards[0], ["key"]).num_rows == 17
    assert open_corpus(corpus.path) == corpus
    table(file, 0, 24, more=["x"] * 24)
    again = staying(list_source(str(tmp_path / "t")), "id")
    made = pack(again, out=corpus.path, rows_per_shard=20)
    assert {row["key"]: row["image"] for row in rows(made)} == expected(39)


def test_what_cannot_stay_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd: dict[str, Any] = {
        "lists": [[1]] * 24,
        "bytes": [b"1"] * 24,
        "halves": [0.5] * 24,
        "yes": [True] * 24,
    }
    source = str(table(tmp_path / "t/a.parquet", 0, 24, twice=[1, 2] * 12, some=[None] * 24, **odd))
    columns = pq.read_table(source)
    same = str(tmp_path / "t/same.parquet")
    pq.write_table(columns.append_column("id", columns["id"]), same)
    folder = str(fill(tmp_path / "train", {"a": 4, "b": 4}))
    mistakes = [
        (
            source,
            "idd",
            r"data.id_column='idd': .*a\.parquet has no such column .did you mean 'id'",
        ),
        (source, "twice", "2 ids are not unique, such as '1'"),
        (source, "some", r"an id is missing in .*a\.parquet"),
        *((source, name, "holds .*; ids are text or whole numbers") for name in odd),
        (same, "id", r"same\.parquet has that column 2 times"),
        (folder, "id", "is no Parquet table that holds the images themselves"),
    ]
    for path, column, message in mistakes:
        with pytest.raises(DataError, match=message):
            staying(list_source(path), column)
    with pytest.raises(DataError, match=r"data.id_column='id' is of Parquet tables of the pile"):
        run(tmp_path, labeled=folder, labels=2, id_column="id")
    monkeypatch.setattr("ns_ray.data.sources.staying.MOST_BYTES", 1000)
    with pytest.raises(DataError, match=r"row group \d of .* is read whole for each of its images"):
        staying(list_source(source), "id")
    (tmp_path / "l.lance/data").mkdir(parents=True)
    (tmp_path / "l.lance/data/0.lance").write_bytes(b"x")
    with pytest.raises(DataError, match=r"is a Lance table, .*batch_size=1000, blob_handling="):
        list_source(str(tmp_path / "l.lance"))


def test_a_pointer_to_images_in_place_is_labeled_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(ModelConfig.model_validate(MODEL), 2)
    teacher = bundle.save(
        model, str(tmp_path / "bundle"), classes=["a", "b"], fingerprint="t", provenance={}
    )
    corpus = adopted(tmp_path, classes=())
    listing = list_source(corpus.path)
    pointed = adopt(listing, out=str(tmp_path / "run"), classes=(), excluded=frozenset())
    assert pointed == corpus
    assert store.list_files(str(tmp_path / "run")) == ["_DONE.json", "pointer.json"]
    here = Pool(actors=1, cpus=1.0, gpus=0.0, in_process=True)

    def labeled() -> list[str]:
        out = str(tmp_path / "labels")
        found = pseudo_label(LabelConfig(), teacher, pointed, pool=here, out=out, title="label")
        tables = [found.read(shard.name) for shard in corpus.shards]
        return [row["key"] for table in tables for row in table.to_pylist()]

    was = ShardPredictor._label

    def dies(self: ShardPredictor, name: str, rows: Read) -> tuple[int, int]:
        if name == corpus.shards[1].name:
            raise KeyboardInterrupt
        return was(self, name, rows)

    monkeypatch.setattr(ShardPredictor, "_label", dies)
    with pytest.raises(KeyboardInterrupt):
        labeled()
    monkeypatch.setattr(ShardPredictor, "_label", was)
    assert Counter(labeled()) == Counter(list(expected(39)))
    moved = tmp_path / "t/a.parquet"
    moved.rename(tmp_path / "elsewhere.parquet")
    assert Counter(labeled()) == Counter(list(expected(39))), "what is labeled needs no images"
