"""A published corpus that has lost a shard: only that one is packed again."""

from pathlib import Path
from typing import Any

import pytest
from broken_files import jpeg
from packed import fill, rejected

from ns_ray import store
from ns_ray.data import chunks, packing
from ns_ray.data.packing import pack
from ns_ray.store.corpora import Corpus


@pytest.fixture
def packed_again(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The chunks that are packed from here on."""
    numbers: list[int] = []
    work = chunks.pack_chunk

    def counted(job: Any, index: int, items: Any) -> Any:
        numbers.append(index)
        return work(job, index, items)

    monkeypatch.setattr(packing, "pack_chunk", counted)
    return numbers


def packed(tmp_path: Path) -> Corpus:
    return pack(str(tmp_path / "set"), out=f"{tmp_path}/out", rows_per_shard=10, max_rejected=0.5)


def files(corpus: Corpus) -> dict[str, bytes]:
    """All but what says when it was packed."""
    names = store.list_files(corpus.path)
    return {n: store.read_bytes(f"{corpus.path}/{n}") for n in names if n != store.DONE}


def test_only_a_damaged_shard_is_packed_again(tmp_path: Path, packed_again: list[int]) -> None:
    fill(tmp_path / "set", {"a": 30})
    (tmp_path / "set" / "a" / "bad.jpg").write_bytes(b"text")
    corpus = packed(tmp_path)
    before = files(corpus)
    assert len(packed_again) == 4
    packed_again.clear()
    store.set_aside(f"{corpus.path}/{corpus.shards[2].file}")
    again = packed(tmp_path)
    assert packed_again == [2]
    assert again == corpus
    assert files(again) == before
    assert rejected(again) == {"a/bad.jpg": "not_an_image"}


def test_labels_are_counted_again(tmp_path: Path, packed_again: list[int]) -> None:
    fill(tmp_path / "set", {"a": 17, "b": 9})
    corpus = packed(tmp_path)
    packed_again.clear()
    store.set_aside(f"{corpus.path}/{corpus.shards[0].file}")
    again = packed(tmp_path)
    assert (again.class_counts, packed_again) == ((17, 9), [0])


@pytest.mark.parametrize("name", ["manifest.json", "rejected.parquet"])
def test_without_its_lists_all_is_packed_again(
    tmp_path: Path, packed_again: list[int], name: str
) -> None:
    fill(tmp_path / "set", {"a": 17, "b": 9})
    corpus = packed(tmp_path)
    Path(corpus.path, name).write_bytes(b"{")
    Path(corpus.path, store.DONE).unlink()
    packed_again.clear()
    assert packed(tmp_path) == corpus
    assert packed_again == [0, 1, 2]


def test_a_shard_that_holds_other_images_is_packed_again(
    tmp_path: Path, packed_again: list[int]
) -> None:
    fill(tmp_path / "set", {"a": 17, "b": 9})
    corpus = packed(tmp_path)
    first, second = (Path(corpus.path, shard.file) for shard in corpus.shards[:2])
    first.write_bytes(second.read_bytes())
    Path(corpus.path, store.DONE).unlink()
    packed_again.clear()
    assert packed(tmp_path) == corpus
    assert packed_again == [0]


def test_another_source_takes_nothing(tmp_path: Path, packed_again: list[int]) -> None:
    fill(tmp_path / "set", {"a": 17, "b": 9})
    corpus = packed(tmp_path)
    store.set_aside(f"{corpus.path}/{corpus.shards[0].file}")
    (tmp_path / "set" / "a" / "000.jpg").write_bytes(jpeg(99))
    packed_again.clear()
    assert packed(tmp_path).rows == 26
    assert packed_again == [0, 1, 2]
