"""Compressed tars: read from their beginning, once, and unpacked where they are packed."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

import pyarrow as pa
import pytest
from broken_files import jpeg
from packed import fill, rejected, rows, run

from ns_ray import store
from ns_ray.data.chunks import Job, lay_out
from ns_ray.data.packing import pack
from ns_ray.data.sources import list_source, streams
from ns_ray.data.sources.items import Item, Row
from ns_ray.data.sources.streams import Stream, Streamed
from ns_ray.errors import DataError


def tar(members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as written:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            written.addfile(about, io.BytesIO(data))
    return made.getvalue()


def samples(start: int, count: int) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for i in range(start, start + count):
        found |= {f"{i:03d}.jpg": jpeg(i), f"{i:03d}.cls": b"cat" if i % 2 else b"dog"}
    return found


def zstd(data: bytes) -> bytes:
    made = pa.BufferOutputStream()
    with pa.CompressedOutputStream(made, "zstd") as stream:
        stream.write(data)
    return bytes(made.getvalue())


CODECS: dict[str, Callable[[bytes], bytes]] = {
    "tar.gz": gzip.compress,
    "tgz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tbz": bz2.compress,
    "tbz2": bz2.compress,
    "tar.xz": lzma.compress,
    "txz": lzma.compress,
    "tar.zst": zstd,
    "tzst": zstd,
}


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_compressed_tars_are_those_they_were_made_of(tmp_path: Path, scheme: str) -> None:
    for folder in ("plain", "compressed"):
        (tmp_path / folder).mkdir()
    for n, (ending, packed) in enumerate(CODECS.items()):
        data = tar(samples(10 * n, 6))
        (tmp_path / f"plain/{n}.tar").write_bytes(data)
        two = packed(data[:3000]) + packed(data[3000:])  # as pigz, pzstd and cat make it
        (tmp_path / f"compressed/{n}.{ending}").write_bytes(two)
    (tmp_path / "compressed/notes.txt").write_text("x")
    plain = list_source(f"{scheme}{tmp_path}/plain")
    listing = list_source(f"{scheme}{tmp_path}/compressed")
    assert [(i.key, i.label, i.size) for i in listing.items] == [
        (i.key, i.label, i.size) for i in plain.items
    ]
    assert listing.classes == ("cat", "dog")
    unpacked, left_out = listing.notes
    assert "unpacked beside the shards before they are packed, which takes 1 MiB" in unpacked
    assert left_out == "1 files are no images by their name (.txt: 1)"
    assert [i.read() for i in listing.items[::-1]] == [i.read() for i in plain.items[::-1]]
    made = [
        pack(f"{scheme}{tmp_path}/{n}", out=f"{tmp_path}/{n}-packed", rows_per_shard=5)
        for n in ("plain", "compressed")
    ]
    expected, found = ([{**row, "uri": ""} for row in rows(corpus)] for corpus in made)
    assert found == expected
    assert not [name for name in store.list_files(made[1].path) if name.endswith(".bin")]


def test_a_compressed_tar_is_read_once_for_all_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.tgz").write_bytes(gzip.compress(tar(samples(0, 9))))
    opened: list[str] = []
    was = streams.open_stream

    def counted(path: str) -> AbstractContextManager[IO[bytes]]:
        opened.append(path)
        return was(path)

    monkeypatch.setattr(streams, "open_stream", counted)
    monkeypatch.setattr("ns_ray.data.chunks.SHARD_BYTES", 3000)
    listing = list_source(str(tmp_path / "a.tgz"))
    stream = Stream()
    assert [item.read(stream) for item in listing.items] == [jpeg(i) for i in range(9)]
    assert len(opened) == 1
    places: list[Row | Streamed] = [
        item.place for item in listing.items[::-1] if isinstance(item.place, Streamed)
    ]
    job = Job(str(tmp_path / "out"), "f" * 12, (), 10**9, frozenset())
    ranges = lay_out(job, places)
    assert len(opened) == 2
    assert len(store.list_files(job.out)) > 2, "what is held in memory is bounded"
    again = [Item("k", "u", place=place).read() for place in ranges]
    assert again == [jpeg(i) for i in range(8, -1, -1)]


def test_a_compressed_tar_that_is_cut_or_damaged_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(tar(samples(0, 3)))
    damaged = bytearray(whole)
    damaged[-6] ^= 1  # the checksum
    mistakes = {
        "cut.tgz": whole[:-2000],
        "end.tgz": whole[:-4],
        "damaged.tar.gz": bytes(damaged),
        "plain.tar.gz": tar(samples(0, 1)),
        "text.tgz": gzip.compress(b"nothing" * 100),
        **{f"some.{ending}": packed(tar(samples(0, 3)))[:-99] for ending, packed in CODECS.items()},
        **{f"none.{ending}": b"nothing" * 100 for ending in CODECS},
    }
    for name, data in mistakes.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=f"{name} is not a readable tar"):
            list_source(str(tmp_path / name))
    (tmp_path / "a.tgz").write_bytes(whole)
    listing = list_source(str(tmp_path / "a.tgz"))
    (tmp_path / "a.tgz").write_bytes(whole[:-2000])
    stream = Stream()
    with pytest.raises(OSError, match=r"a\.tgz: Compressed file ended"):
        [item.read(stream) for item in listing.items]
    (tmp_path / "a.tgz").write_bytes(whole)
    assert listing.items[0].read(stream) == jpeg(0)


def test_a_tar_that_is_compressed_again_is_known_by_its_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = fill(tmp_path / "train", {"a": 6, "b": 6}, start=100)
    pile = tmp_path / "pile.tgz"
    data = samples(0, 8) | {"bad.jpg": b"no image"}
    pile.write_bytes(gzip.compress(tar(data)))
    settings = {"labeled": str(train), "unlabeled": str(pile), "max_rejected": 0.5}
    corpora = run(tmp_path, **settings)
    assert corpora.unlabeled is not None
    assert corpora.unlabeled.rows == 8
    assert rejected(corpora.unlabeled) == {"pile/bad": "not_an_image"}
    pile.write_bytes(gzip.compress(tar(data), compresslevel=1))
    os.utime(pile, (1, 1))
    capsys.readouterr()
    assert run(tmp_path, **settings) == corpora
    said = capsys.readouterr().out
    assert "data.unlabeled: other files than when this run began, but the same images" in said
