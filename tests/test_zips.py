"""Zip archives of images: what of them is an image, its class and name, and what damages them."""

import io
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from broken_files import jpeg
from packed import rejected, rows, run
from test_web import site
from web_server import Site

from ns_ray import store
from ns_ray.data.packing import pack
from ns_ray.data.sources import list_source
from ns_ray.data.sources.listing import Listing
from ns_ray.errors import DataError, MissingSourceError

assert site  # a fixture

STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


def zipped(members: Mapping[str, bytes], method: int = DEFLATED, system: int = 3) -> bytes:
    """An archive; `system` 0 is that of Windows."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, data in members.items():
            about = zipfile.ZipInfo(name)
            about.create_system, about.compress_type = system, method
            archive.writestr(about, data)
    return made.getvalue()


def listed(path: Path, members: Mapping[str, bytes], folder: str = "") -> Listing:
    path.write_bytes(zipped(members))
    return list_source(f"{path}{folder}")


def labels(listing: Listing) -> dict[str, str | None]:
    return {item.key: item.label for item in listing.items}


@pytest.mark.parametrize("wrapped", ["", "flowers/", "./a/b/"])
@pytest.mark.parametrize("method", [STORED, DEFLATED])
def test_an_archive_is_as_its_folder(tmp_path: Path, wrapped: str, method: int) -> None:
    images = {"red/a.jpg": jpeg(0), "red/deep/er/b.JPG": jpeg(1), "blue/a.jpg": jpeg(2)}
    others = {
        "red/": b"",
        "red/.DS_Store": b"x",
        "red/._a.jpg": b"x",
        "notes.txt": b"x",
    }
    members = {f"{wrapped}{name}": data for name, data in {**images, **others}.items()}
    members |= {"__MACOSX/red/._a.jpg": b"x"}
    (tmp_path / "photos.ZIP").write_bytes(zipped(members, method))
    listing = list_source(str(tmp_path / "photos.ZIP"))
    inside = f"photos/{wrapped.removeprefix('./')}"
    assert labels(listing) == {
        f"{inside}red/a.jpg": "red",
        f"{inside}red/deep/er/b.JPG": "red",
        f"{inside}blue/a.jpg": "blue",
    }
    assert listing.classes == ("blue", "red")
    assert listing.notes == (
        "1 files are no images by their name (.txt: 1)",
        "3 hidden files left out",
    )
    assert [item.read() for item in listing.items] == list(images.values())
    there = list_source(f"file://{tmp_path}/photos.ZIP")
    assert [item.read() for item in there.items] == list(images.values())
    assert [item.size for item in listing.items] == [len(data) for data in images.values()]
    assert listing.items[0].uri == f"{tmp_path}/photos.ZIP#{inside[7:]}red/a.jpg"
    corpus = pack(listing, out=str(tmp_path / "out"))
    assert {row["key"]: row["image"] for row in rows(corpus)} == {
        f"{inside}{name}": data for name, data in images.items()
    }


def test_images_side_by_side_have_no_labels(tmp_path: Path) -> None:
    listing = listed(tmp_path / "a.zip", {"1.jpg": jpeg(1), "2.jpg": jpeg(2)})
    assert labels(listing) == {"a/1.jpg": None, "a/2.jpg": None}
    (tmp_path / "deep").mkdir()
    listed(tmp_path / "deep/a.zip", {"1.jpg": jpeg(1)})
    (tmp_path / "more.txt").write_text("x")
    both = list_source(str(tmp_path))
    assert set(labels(both)) == {"a/1.jpg", "a/2.jpg", "deep/a/1.jpg"}
    assert both.notes == ("1 files are no images by their name (.txt: 1)",)
    assert list_source(f"{tmp_path}/*.zip").fingerprint != both.fingerprint


@pytest.mark.parametrize("wrapped", ["", "flowers/"])
def test_a_folder_in_an_archive_is_a_source(tmp_path: Path, wrapped: str) -> None:
    names = [f"{part}/{name}/1.jpg" for part in ("test", "train") for name in ("cat", "dog")]
    members = {f"{wrapped}{name}": jpeg(i) for i, name in enumerate(names)}
    path = tmp_path / "set?.zip"  # no pattern, as there is such a file
    assert listed(path, members).classes == ("test", "train")
    with pytest.raises(
        DataError, match=r"name one of them, such as data.labeled=.*set\?.zip/train$"
    ):
        run(tmp_path, labeled=str(path))
    train, test = (list_source(f"{path}/{part}") for part in ("train", "test"))
    assert labels(train) == {f"set?/{wrapped}train/{c}/1.jpg": c for c in ("cat", "dog")}
    assert labels(test) == {f"set?/{wrapped}test/{c}/1.jpg": c for c in ("cat", "dog")}
    assert train.fingerprint != test.fingerprint
    assert labels(list_source(f"{path}/{wrapped}train/cat/")) == {
        f"set?/{wrapped}train/cat/1.jpg": None
    }
    with pytest.raises(DataError, match=f"no images in 'val'; those that it has are in {wrapped}t"):
        list_source(f"{path}/val")


@pytest.mark.parametrize("top", ["", "flowers/"])
def test_metadata_in_an_archive_tells_the_labels(tmp_path: Path, top: str) -> None:
    table = b"file_name,label\na.jpg,01\n./more/b.jpg,cat\ngone.jpg,cat\n"
    members = {"a.jpg": jpeg(0), "more/b.jpg": jpeg(1), "c.jpg": jpeg(2), "Metadata.csv": table}
    listing = listed(tmp_path / "p.zip", {f"{top}{name}": d for name, d in members.items()})
    assert labels(listing) == {
        f"p/{top}a.jpg": "01",
        f"p/{top}more/b.jpg": "cat",
        f"p/{top}gone.jpg": "cat",
    }
    assert [item.read() for item in listing.items[:2]] == [jpeg(0), jpeg(1)]
    assert listing.notes == (
        f"1 of 3 images are not in {top}Metadata.csv, left out",
        f"1 images of {top}Metadata.csv are not there, such as {top}gone.jpg",
    )
    corpus = pack(listing, out=str(tmp_path / "out"), max_rejected=0.5)
    assert rejected(corpus) == {f"p/{top}gone.jpg": "missing"}
    parts = {f"{part}/{name}": d for part in ("train", "test") for name, d in members.items()}
    whole = listed(tmp_path / "q.zip", parts)
    assert whole.classes == ("test", "train")
    assert whole.notes == ("2 files are no images by their name (.csv: 2)",)
    assert len(list_source(f"{tmp_path}/q.zip/test").items) == 3


@pytest.mark.parametrize("top", ["", "flowers/"])
def test_metadata_without_labels_leaves_those_of_the_folders(tmp_path: Path, top: str) -> None:
    table = b"file_name,author\ncat/a.jpg,me\n./dog/b.jpg,me\n"
    members = {"cat/a.jpg": jpeg(0), "dog/b.jpg": jpeg(1), "dog/c.jpg": jpeg(2)}
    some = {f"{top}{name}": d for name, d in (members | {"metadata.csv": table}).items()}
    listing = listed(tmp_path / "p.zip", some)
    assert labels(listing) == {f"p/{top}cat/a.jpg": "cat", f"p/{top}dog/b.jpg": "dog"}
    said, left_out = listing.notes
    assert said.endswith(
        "columns file_name, author, which say no labels: the folders of its images do"
    )
    assert left_out == f"1 of 3 images are not in {top}metadata.csv, left out"


def test_names_are_those_of_a_folder_whoever_wrote_them(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(zipped({"set\\caf\u00e9\\1.jpg": jpeg(1), "set\\a\\": b""}, system=0))
    assert labels(list_source(str(path))) == {"a/set/caf\u00e9/1.jpg": "caf\u00e9"}
    # As macOS writes it: UTF-8, and no flag that says so; and as DOS did, in its own code page.
    for name in ("caf\u00e9/1.jpg".encode(), "caf\u00e9/1.jpg".encode("cp437")):
        plain = zipped({"x" * len(name): jpeg(1)})
        path.write_bytes(plain.replace(b"x" * len(name), name))
        assert labels(list_source(str(path))) == {"a/caf\u00e9/1.jpg": "caf\u00e9"}
    strange = {"/root/1.jpg": jpeg(1), "../../b/2.jpg": jpeg(2), "c/../d//e/3.jpg": jpeg(3)}
    listing = listed(path, strange)
    assert labels(listing) == {"a/root/1.jpg": "root", "a/b/2.jpg": "b", "a/d/e/3.jpg": "d"}
    assert [item.read() for item in listing.items] == list(strange.values())


def test_only_the_list_of_an_archive_is_read(tmp_path: Path) -> None:
    whole = zipped({f"a/{i}.jpg": jpeg(i) for i in range(5)})
    listing = listed(tmp_path / "a.zip", {f"a/{i}.jpg": jpeg(i) for i in range(5)})
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        start = archive.start_dir
    (tmp_path / "a.zip").write_bytes(bytes(start) + whole[start:])
    assert list_source(str(tmp_path / "a.zip")).items == listing.items


def test_archives_on_the_web_are_read_where_they_are(site: Site, tmp_path: Path) -> None:
    members = {f"{'ab'[i % 2]}/{i}.jpg": jpeg(i) for i in range(12)}
    site.files = {"/set.zip": zipped({**members, "a/notes.txt": b"x" * 99})}
    corpus = pack(f"{site.url}/set.zip?download=1", out=str(tmp_path / "out"), rows_per_shard=5)
    assert {row["key"]: row["image"] for row in rows(corpus)} == {
        f"set/{name}": data for name, data in members.items()
    }
    assert not [name for name in store.list_files(corpus.path) if name.endswith(".bin")]
    asked = site.asked["/set.zip"]
    assert asked < 12, "all images of it are read in one go"
    assert set(labels(list_source(f"{site.url}/set.zip/a"))) == {
        f"set/{name}" for name in members if name.startswith("a")
    }


def test_damaged_files_of_an_archive_are_rejected_by_name(tmp_path: Path) -> None:
    members = {f"{i}.jpg": jpeg(i) for i in range(6)} | {
        "bomb.jpg": bytes(2**24 + 1),
        "empty.jpg": b"",
    }
    whole = bytearray(zipped(members))
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        starts = {one.filename: one.header_offset for one in archive.infolist()}
        lists = archive.start_dir
    whole[starts["1.jpg"] + 300] ^= 1  # in what is deflated
    whole[starts["2.jpg"]] ^= 1  # the header
    for name, at, value in (("3.jpg", 16, 7), ("4.jpg", 24, 2**24 + 9), ("5.jpg", 42, lists + 5)):
        entry = whole.index(name.encode(), lists) - 46
        struct.pack_into("<I", whole, entry + at, value)  # checksum, size, place
    (tmp_path / "a.zip").write_bytes(whole)
    corpus = pack(str(tmp_path / "a.zip"), out=str(tmp_path / "out"), max_rejected=0.9)
    assert [row["key"] for row in rows(corpus)] == ["a/0.jpg"]
    assert rejected(corpus) == {
        **{f"a/{i}.jpg": "broken" for i in (1, 2, 3, 5)},
        "a/4.jpg": "too_many_bytes",
        "a/bomb.jpg": "too_many_bytes",
        "a/empty.jpg": "empty",
    }


def test_an_archive_that_is_packed_again_is_known_by_its_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = {f"{'ab'[i % 2]}/{i}.jpg": jpeg(i) for i in range(12)}
    whole = bytearray(zipped({**members, "a/bad.jpg": jpeg(99)}, STORED))
    whole[whole.index(b"a/bad.jpg") + 500] ^= 1
    path = tmp_path / "a.zip"
    path.write_bytes(whole)
    settings = {"labeled": str(path), "labels": 8, "max_rejected": 0.5}
    corpora = run(tmp_path, **settings)
    os.utime(path, (1, 1))
    capsys.readouterr()
    assert run(tmp_path, **settings) == corpora
    said = capsys.readouterr().out
    assert "data.labeled: other files than when this run began, but the same images" in said


def test_what_is_no_archive_or_cannot_be_unpacked_is_named(tmp_path: Path) -> None:
    whole = zipped({"a/1.jpg": jpeg(1), "b/2.jpg": jpeg(2)})
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    mistakes = {
        "cut": (whole[:-100], "not a readable zip archive"),
        "empty": (b"", "not a readable zip archive"),
        "text": (b"nothing" * 100, "not a readable zip archive"),
        "lfs": (pointer, "git lfs pull"),
    }
    for name, (data, says) in mistakes.items():
        (tmp_path / f"{name}.zip").write_bytes(data)
        with pytest.raises(DataError, match=says):
            list_source(f"{tmp_path}/{name}.zip")
    locked = bytearray(whole)
    for sign, at in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        start = -1
        while (start := locked.find(sign, start + 1)) >= 0:
            locked[start + at] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(MissingSourceError, match="2 images that need a password"):
        list_source(f"{tmp_path}/locked.zip")
    (tmp_path / "bz2.zip").write_bytes(zipped({"a.jpg": jpeg(0)}, zipfile.ZIP_BZIP2))
    with pytest.raises(MissingSourceError, match="another method than deflate"):
        list_source(f"{tmp_path}/bz2.zip")
    twice = zipped({"a.jpg": jpeg(0), "b.jpg": jpeg(1)}).replace(b"b.jpg", b"a.jpg")
    (tmp_path / "twice.zip").write_bytes(twice)
    with pytest.raises(DataError, match=r"more than once, such as 'twice/a\.jpg'"):
        list_source(f"{tmp_path}/twice.zip")
    damaged = zipped({"a.jpg": jpeg(0), "metadata.csv": b"path\na.jpg\n"}, STORED)
    (tmp_path / "damaged.zip").write_bytes(damaged.replace(b"path\na.jpg", b"path\na.jpx"))
    with pytest.raises(DataError, match=r"metadata\.csv in .*damaged\.zip cannot be read: broken"):
        list_source(f"{tmp_path}/damaged.zip")
    (tmp_path / "tables.zip").write_bytes(zipped({"train.csv": b"x", "train.parquet": b"x"}))
    with pytest.raises(MissingSourceError, match=r"no images \(2 files are no images by"):
        list_source(f"{tmp_path}/tables.zip")


def test_archives_of_more_than_four_gigabytes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "big.zip"
    with (
        open(path, "wb") as file,
        zipfile.ZipFile(file, "w") as archive,
    ):
        archive.writestr("a/1.jpg", jpeg(1))
        file.seek(2**32 + 5)  # a hole: it takes no room on the disk
        archive.start_dir = file.tell()
        archive.writestr("b/2.jpg", jpeg(2))
    listing = list_source(str(path))
    assert labels(listing) == {"big/a/1.jpg": "a", "big/b/2.jpg": "b"}
    assert [item.read() for item in listing.items] == [jpeg(1), jpeg(2)]
