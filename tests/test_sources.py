import bz2
import errno
import gzip
import io
import json
import os
import struct
import sys
import tarfile
import threading
import time
import types
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken_files import jpeg
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from ns_ray.data.images import decode
from ns_ray.data.sources import list_source
from ns_ray.data.sources.files import walk
from ns_ray.data.sources.items import (
    Item,
    Items,
    Pixels,
    Range,
    Row,
    allocate,
    classes_of,
    natural,
    ordered,
)
from ns_ray.data.sources.listing import Listing
from ns_ray.data.sources.named import FASHION_CLASSES
from ns_ray.errors import DataError, StorageError


def fill(folder: Path, *names: str) -> Path:
    """Write a different JPEG under each name."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(i))
    return folder


def labels(listing: Listing) -> dict[str, str | None]:
    return {item.key: item.label for item in listing.items}


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


# -------------------------------------------------------------------------------------- folders


def test_a_folder_per_class(tmp_path: Path) -> None:
    fill(tmp_path, "class10/a.jpg", "class9/a.JPEG", "class9/deep/er/b.png", "Class2/c.webp")
    (tmp_path / "empty").mkdir()
    listing = list_source(str(tmp_path))
    assert listing.classes == ("Class2", "class9", "class10")
    assert labels(listing) == {
        "class10/a.jpg": "class10",
        "class9/a.JPEG": "class9",
        "class9/deep/er/b.png": "class9",
        "Class2/c.webp": "Class2",
    }
    item = listing.items[0]
    assert item.uri == f"{tmp_path}/{item.key}"
    assert item.read() == (tmp_path / item.key).read_bytes()
    assert item.size == len(item.read())


def test_hidden_files_and_other_files_are_no_images(tmp_path: Path) -> None:
    fill(
        tmp_path,
        "cat/1.jpg",
        "cat/.2.jpg",
        ".ipynb_checkpoints/3.jpg",
        "cat/.ipynb_checkpoints/4.jpg",
        "__MACOSX/cat/5.jpg",
        "cat/6.raw",
        "notes.txt",
    )
    listing = list_source(str(tmp_path))
    assert labels(listing) == {"cat/1.jpg": "cat"}
    assert ".raw: 1" in listing.notes[0]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    listing = list_source(str(fill(tmp_path, "b.jpg", "a.jpg")))
    assert labels(listing) == {"a.jpg": None, "b.jpg": None}
    assert listing.classes == ()


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    fill(tmp_path / "store", "x.jpg")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "store")
    assert labels(list_source(str(tmp_path / "set"))) == {"cat/x.jpg": "cat"}


def test_a_uri_reads_like_a_folder(tmp_path: Path) -> None:
    strange = "a b/{x} #1 50%25 \u00e9?.jpg"
    fill(tmp_path, "cat/1.jpg", strange)
    listing = list_source(f"file://{tmp_path}")
    assert labels(listing) == {strange: "a b", "cat/1.jpg": "cat"}
    for item in listing.items:
        assert item.uri == f"file://{tmp_path}/{item.key}"
        assert item.read() == (tmp_path / item.key).read_bytes()


def test_a_glob_of_images(tmp_path: Path) -> None:
    fill(tmp_path, "a1.jpg", "a2.jpg", "b.jpg", "deep/a3.jpg")
    assert set(labels(list_source(f"{tmp_path}/a*.jpg"))) == {"a1.jpg", "a2.jpg"}


def test_the_fingerprint_follows_names_sizes_and_times(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg", "b/2.jpg")
    first = list_source(str(tmp_path)).fingerprint
    assert list_source(str(tmp_path)).fingerprint == first
    os.utime(tmp_path / "a/1.jpg", ns=(1, 1))
    touched = list_source(str(tmp_path)).fingerprint
    fill(tmp_path, "a/3.jpg")
    assert len({first, touched, list_source(str(tmp_path)).fingerprint}) == 3


# --------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("column", ["image_path", "file_name", "Filename", "image", "path", "uri"])
def test_a_csv_of_paths(tmp_path: Path, column: str) -> None:
    fill(tmp_path, "images/1.jpg", "other.jpg")
    table = tmp_path / "set.csv"
    rows = f"images/1.jpg,NA\n{tmp_path}/other.jpg,01\nimages/gone.jpg,\n"
    table.write_text(f"\ufeff{column}, Label\n" + rows)
    listing = list_source(str(table))
    assert labels(listing) == {
        "images/1.jpg": "NA",
        f"{tmp_path}/other.jpg": "01",
        "images/gone.jpg": None,
    }
    assert listing.classes == ("01", "NA")
    assert listing.items[0].read() == (tmp_path / "images/1.jpg").read_bytes()
    assert listing.items[1].read() == (tmp_path / "other.jpg").read_bytes()
    with pytest.raises(FileNotFoundError):
        listing.items[2].read()


def test_paths_are_read_however_they_are_written(tmp_path: Path) -> None:
    keys = {
        "a/0.png": "sets/a/0.png",
        "./a/1.png": "sets/a/1.png",
        "a//./2.png": "sets/a/2.png",
        "a\\3.png": "sets/a/3.png",
        " 4.png ": "sets/ 4.png ",
        "é/中": "sets/é/中",
        f"{'5' * 300}.png": f"sets/{'5' * 300}.png",
        "/data/6.png": "/data/6.png",
        "/data//7.png": "/data/7.png",
        "https://x.org/8.png": "https://x.org/8.png",
        "a/9.png/": "sets/a/9.png",
    }
    (tmp_path / "sets").mkdir()
    text = "path,label\n" + "".join(f"{path},{i}\n" for i, path in enumerate(keys))
    (tmp_path / "sets" / "t.csv").write_text(text)
    fill(tmp_path, "10.png")
    (tmp_path / "u.csv").write_text("path,label\n10.png,10\n")
    listing = list_source(f"{tmp_path}/**/*.csv")
    assert [(item.key, item.label) for item in listing.items] == [
        *((key, str(i)) for i, key in enumerate(keys.values())),
        ("10.png", "10"),
    ]
    for item in listing.items[:7]:
        assert item.uri == f"{tmp_path}/{item.key}"


def test_tsv_json_lines_and_parquet_of_paths(tmp_path: Path) -> None:
    fill(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "a.tsv").write_text("path\tclass\n1.jpg\t3\n2.jpg\t12\n")
    rows = [{"file_name": "1.jpg", "label": 3}, {"file_name": "2.jpg", "label": 12}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    for name in ("a.tsv", "b.jsonl", "c.parquet"):
        listing = list_source(str(tmp_path / name))
        assert labels(listing) == {"1.jpg": "3", "2.jpg": "12"}, name
        assert listing.classes == ("3", "12"), name


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "zst": lambda data: pa.compress(data, "zstd", asbytes=True),
    "lz4": lambda data: lz4(data),
}


def lz4(data: bytes) -> bytes:
    made = pa.BufferOutputStream()
    with pa.CompressedOutputStream(made, "lz4") as stream:
        stream.write(data)
    return bytes(made.getvalue())


@pytest.mark.parametrize("ending", PACKED)
def test_compressed_tables_are_those_they_were_made_of(tmp_path: Path, ending: str) -> None:
    fill(tmp_path, "1.jpg", "2.jpg")
    texts = {
        "csv": "path,label\n1.jpg,03\n2.jpg,12\n",
        "tsv": "path\tlabel\n1.jpg\t03\n2.jpg\t12\n",
        "jsonl": '{"path": "1.jpg", "label": "03"}\n{"path": "2.jpg", "label": "12"}\n',
    }
    for kind, text in texts.items():
        (tmp_path / f"t.{kind}").write_text(text)
        whole = PACKED[ending](text.encode())
        (tmp_path / f"t.{kind.upper()}.{ending}").write_bytes(whole)
        plain, packed = (
            list_source(f"{tmp_path}/t.{k}") for k in (kind, f"{kind.upper()}.{ending}")
        )
        assert labels(packed) == {"1.jpg": "03", "2.jpg": "12"}
        assert (packed.fingerprint, packed.items) == (plain.fingerprint, plain.items)
        for data in (whole[:-3], b"nothing" * 9):
            (tmp_path / f"cut.{kind}.{ending}").write_bytes(data)
            with pytest.raises(DataError, match=rf"cut\.{kind}\.{ending} cannot be unpacked"):
                list_source(f"{tmp_path}/cut.{kind}.{ending}")
    assert len(list_source(f"file://{tmp_path}/t.CSV.{ending}").items) == 2
    (tmp_path / f"metadata.jsonl.{ending}").write_bytes(PACKED[ending](texts["jsonl"].encode()))
    assert labels(list_source(str(tmp_path))) == {"1.jpg": "03", "2.jpg": "12"}


@pytest.mark.parametrize(
    "text",
    [
        '[{"file_name": "1.jpg", "label": "cat"}, {"file_name": "2.jpg"}]',
        '{"1.jpg": "cat", "2.jpg": null}',
        '{"file_name": "1.jpg", "label": "cat"}\n{"file_name": "2.jpg"}\n',
    ],
)
def test_json_of_paths(tmp_path: Path, text: str) -> None:
    fill(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "labels.json").write_text(f"\ufeff {text}\n")
    (tmp_path / "more.json.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("labels.json", "more.json.gz"):
        listing = list_source(str(tmp_path / name))
        assert labels(listing) == {"1.jpg": "cat", "2.jpg": None}
        assert listing.items[1].read() == (tmp_path / "2.jpg").read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [], "annotations": [], "categories": []}', "is a COCO file"),
        ('[{"file_name": "1.jpg"}, "2.jpg"]', "entry 2 is no JSON object: '2.jpg'"),
        ('[{"file_name": "1.jpg"}', "is no valid JSON: Expecting ',' delimiter: line 1 column"),
        ('{"0": "cat", "1": "dog"}', "it must be a list of objects, such as"),
        ('{"file_name": {"0": "1.jpg"}}', r"to_json\(PATH, orient=\"records\"\)"),
        ('{"a.jpg": {"label": "cat"}}', "in row 1: an image has one class here"),
        ('{"path": "1.jpg"}\n{"path"', "line 2 is no JSON object"),
        ("3", "holds 3; it must be a list"),
        ("[]", "one of image_path,.* must name the image"),
    ],
)
def test_json_of_another_kind_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(DataError, match=message):
        list_source(str(tmp_path / "t.json"))


def test_what_a_json_file_says_of_a_folder_is_no_table(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.jpg")
    (tmp_path / "metadata.json").write_text('{"license": "CC0"}')
    (tmp_path / "metadata.json.gz").write_bytes(gzip.compress(b'{"license": "CC0"}'))
    assert labels(list_source(str(tmp_path))) == {"cat/1.jpg": "cat"}


def test_metadata_beside_the_images_wins(tmp_path: Path) -> None:
    fill(tmp_path, "x/1.jpg", "x/2.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,label\nx/1.jpg,cat\n")
    assert labels(list_source(str(tmp_path))) == {"x/1.jpg": "cat"}


def test_metadata_without_labels_leaves_those_of_the_folders(tmp_path: Path) -> None:
    fill(tmp_path, "x/1.jpg", "y/deep/2.jpg", "y/3.jpg")
    table = tmp_path / "metadata.csv"
    table.write_text("file_name,author\nx/1.jpg,me\n./y/deep/2.jpg,you\n")
    listing = list_source(str(tmp_path))
    assert labels(listing) == {"x/1.jpg": "x", "y/deep/2.jpg": "y"}
    assert listing.classes == ("x", "y")
    assert listing.notes == (
        "metadata.csv has the columns file_name, author, which say no labels: the folders of its "
        "images do",
        "1 of 3 images are not in metadata.csv, left out",
    )
    fill(tmp_path, "4.jpg", "train/5.jpg", "test/6.jpg")
    unclear = ["x/1.jpg", "y/3.jpg", "4.jpg"], ["x/1.jpg"], ["train/5.jpg", "test/6.jpg"]
    for names in (*unclear, ["x/1.jpg", f"{tmp_path}/y/3.jpg"], ["x/1.jpg", "https://a/y/3.jpg"]):
        table.write_text("\n".join(["file_name", *names]))
        assert not list_source(str(tmp_path)).classes, names
    part = tmp_path / "class=bird"
    fill(part, "x/1.jpg", "y/2.jpg")
    (part / "metadata.csv").write_text("file_name\nx/1.jpg\ny/2.jpg\n")
    assert list_source(str(part)).counts == {"bird": 2}


@pytest.mark.parametrize("inside", [False, True])
def test_parquet_with_the_images_inside(tmp_path: Path, inside: bool) -> None:
    data = [jpeg(i) for i in range(5)]
    image = [{"bytes": d, "path": "x.jpg"} for d in data] if inside else data
    table = pa.table({"image": image, "label": [0, 1, 1, 0, -1]})
    features = {"label": {"names": ["zebra", "ant"], "_type": "ClassLabel"}}
    note = {"huggingface": json.dumps({"info": {"features": features}})}
    for part in ("train-0", "train-1"):
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        pq.write_table(
            table.replace_schema_metadata(note), folder / f"{part}.parquet", row_group_size=2
        )
    for source in (tmp_path, tmp_path / "data" / "*.parquet"):
        listing = list_source(str(source))
        assert len(listing.items) == 10
        assert listing.classes == ("zebra", "ant")  # the file's own order
        assert [item.label for item in listing.items[:5]] == ["zebra", "ant", "ant", "zebra", None]
        assert [item.read() for item in listing.items] == data * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("picture,label\na.jpg,b\n", "has the columns picture, label; one of image_path,"),
        ("path,label\n,b\n", "no path in row 1"),
        ("path,label\na.jpg\n", "cannot be read as a table"),
        ("", "cannot be read as a table"),
        ("path,label\na.jpg,x\na.jpg,y\n", "more than once, such as 'a.jpg'"),
        ("path,label\n", "holds no images"),
    ],
)
def test_a_bad_table_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        list_source(str(tmp_path / "t.csv"), setting="data.labeled")
    assert "data.labeled=" in str(caught.value)


def test_a_parquet_column_of_numbers_is_no_image(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [1, 2]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="is int64; it must hold paths"):
        list_source(str(tmp_path / "t.parquet"))
    (tmp_path / "u.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a Parquet file"):
        list_source(str(tmp_path / "u.parquet"))


# ----------------------------------------------------------------------------------------- tars


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_webdataset_tars(tmp_path: Path, scheme: str) -> None:
    members = {
        "./000.jpg": jpeg(0),
        "./000.cls": b"7\n",
        "d/001.png": jpeg(1),
        "d/001.json": b'{"label": 12, "x": 1}',
        "002.txt": b" cat ",
        "002.jpg": jpeg(2),
        "003.jpeg": jpeg(3),
        "003.seg.png": jpeg(4),
        "004.left.png": jpeg(4),
        "004.right.png": jpeg(5),
        "004.cls": b"7",
        "x.1.5.jpg": jpeg(6),
        "x.1.5.cls": b"cat",
        "x.jpg": jpeg(7),
        "y.jpg": jpeg(8),
        "y.png": jpeg(8),
        "005.cls": b"9",
        ".hidden.jpg": jpeg(6),
    }
    write_tar(tmp_path / "shard-000.tar", members)
    write_tar(tmp_path / "shard-001.tar", {"000.jpg": jpeg(9), "000.cls": b"7"})
    expected = {
        "shard-000/000": "7",
        "shard-000/d/001": "12",
        "shard-000/002": "cat",
        "shard-000/003": None,
        "shard-000/004.left": "7",
        "shard-000/004.right": "7",
        "shard-000/x.1.5": "cat",
        "shard-000/x": None,
        "shard-000/y.jpg": None,
        "shard-000/y.png": None,
        "shard-001/000": "7",
    }
    for source in ("", "/shard-{000..001}.tar", "/shard-*.tar", "/shard-{000,001}.tar"):
        listing = list_source(f"{scheme}{tmp_path}{source}")
        assert labels(listing) == expected, source
        assert listing.classes == ("7", "12", "cat")
        note, hidden = listing.notes
        assert hidden == "1 hidden files left out"
        assert note == "1 images beside the one of their sample left out, such as ['003.seg.png']"
        by_key = {item.key: item for item in listing.items}
        assert by_key["shard-000/d/001"].read() == jpeg(1)
        assert by_key["shard-001/000"].read() == jpeg(9)
        assert by_key["shard-000/d/001"].uri.endswith("shard-000.tar#d/001.png")


def test_a_tar_that_is_cut_or_compressed_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"1.jpg": jpeg(1), "2.jpg": jpeg(2)})
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:1500])
    (tmp_path / "junk.tar").write_bytes(b"nothing" * 100)
    (tmp_path / "b.tar.lz4").write_bytes(lz4(whole))
    for name in ("cut.tar", "junk.tar"):
        with pytest.raises(DataError, match=f"{name} is not a readable tar"):
            list_source(str(tmp_path / name))
    with pytest.raises(DataError, match=r"\.lz4 are not read; unpack them"):
        list_source(str(tmp_path / "b.tar.lz4"))


# ----------------------------------------------------------------------------------- named sets


def test_digits_have_a_fixed_stratified_split() -> None:
    train, test = list_source("digits"), list_source("digits:test")
    assert (len(train.items), len(test.items)) == (1297, 500)
    assert train.classes == test.classes == tuple("0123456789")
    assert not set(labels(train)) & set(labels(test))
    for name in test.classes:
        assert 47 <= sum(item.label == name for item in test.items) <= 52
    assert {item.key for item in train.items[:2]} == {"digits/00000", "digits/00001"}
    image = decode(train.items[0].read())
    assert image.size == (8, 8)
    assert np.asarray(image).max() > 200
    # The split is part of every published number: it must not move.
    start = ["00005", "00006", "00007", "00008", "00011"]
    assert [item.key[-5:] for item in test.items[:5]] == start


def idx(values: np.ndarray) -> bytes:
    head = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape)
    return gzip.compress(head + values.tobytes())


def test_fashion_mnist_is_read_from_idx_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NS_RAY_DATA", str(tmp_path))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(pixels))
        names = np.arange(20, dtype=np.uint8) % 10
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(names))
    listing = list_source("fashion-mnist")
    assert listing.classes == FASHION_CLASSES
    assert listing.items[19].key == "fashion-mnist/train/00019"
    assert listing.items[19].label == "Ankle boot"
    assert np.array_equal(np.asarray(decode(listing.items[19].read()))[..., 0], pixels[19])
    assert list_source("fashion-mnist:test").items[3].key == "fashion-mnist/test/00003"

    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(idx(names[:5]))
    with pytest.raises(DataError, match="20 images but 5 labels"):
        list_source("fashion-mnist")
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x09x"))
    with pytest.raises(DataError, match="holds 1 values"):
        list_source("fashion-mnist")
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a readable gzip file"):
        list_source("fashion-mnist")


def test_cifar10_goes_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Downloaded:
        classes = ("airplane", "automobile")

        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert download
            if not train:
                raise refused
            self.data = np.zeros((3, 32, 32, 3), np.uint8)
            self.targets = [0, 1, 1]

    module = types.ModuleType("torchvision.datasets")
    module.CIFAR10 = Downloaded  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    refused: Exception = RuntimeError("no network")
    listing = list_source("cifar10")
    assert labels(listing)["cifar10/train/00002"] == "automobile"
    assert decode(listing.items[0].read()).size == (32, 32)
    with pytest.raises(DataError, match=r"no network.*NS_RAY_DATA"):
        list_source("cifar10:test")
    refused = OSError(errno.ENOSPC, "No space left on device", "cifar-10-python.tar.gz")
    with pytest.raises(StorageError, match=r"cifar-10-python\.tar\.gz.*free some space"):
        list_source("cifar10:test")


def test_svhn_is_read_from_matlab_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NS_RAY_DATA", str(tmp_path))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 12), dtype=np.uint8)
    digits = np.array([[1], [2], [10], *[[9]] * 9], np.uint8)  # 10 stands for 0
    for part in ("train", "test", "extra"):
        savemat(tmp_path / f"{part}_32x32.mat", {"X": pixels, "y": digits})
    listing = list_source("svhn")
    assert listing.classes == tuple("0123456789")
    assert [item.label for item in listing.items[:4]] == ["1", "2", "0", "9"]
    assert listing.items[11].key == "svhn/train/00011"
    assert np.array_equal(np.asarray(decode(listing.items[11].read())), pixels[..., 11])
    assert list_source("svhn:test").items[3].key == "svhn/test/00003"
    assert list_source("svhn:extra").items[3].key == "svhn/extra/00003"

    with pytest.raises(DataError, match=r"svhn \(training\) and svhn:test and svhn:extra"):
        list_source("svhn:val")
    savemat(tmp_path / "train_32x32.mat", {"X": pixels, "y": digits[:5]})
    with pytest.raises(DataError, match="12\\) and 5 labels; expected"):
        list_source("svhn")
    savemat(tmp_path / "train_32x32.mat", {"X": pixels})
    with pytest.raises(DataError, match=r"train_32x32\.mat is not a file of SVHN: 'y'"):
        list_source("svhn")
    (tmp_path / "train_32x32.mat").write_bytes(b"nothing")
    with pytest.raises(DataError, match="is not a file of SVHN"):
        list_source("svhn")


def test_a_part_that_does_not_exist_is_named() -> None:
    with pytest.raises(DataError, match=r"digits \(training\) and digits:test"):
        list_source("digits:val")


# --------------------------------------------------------------------------------------- errors


def test_a_missing_source_says_what_is_there(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.jpg", "pile/2.jpg")
    with pytest.raises(DataError) as caught:
        list_source(f"{tmp_path}/trian", setting="data.labeled")
    message = str(caught.value)
    assert "data.labeled=" in message
    assert "did you mean 'train'" in message
    assert "pile, train" in message
    with pytest.raises(DataError, match=r"did you mean 'digits'"):
        list_source("digit")
    with pytest.raises(DataError, match="no file matches"):
        list_source(f"{tmp_path}/*.tar")
    with pytest.raises(DataError, match="there is no such file or folder"):
        list_source(f"file://{tmp_path}/gone")


def test_an_empty_folder_and_a_strange_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no images; files ending in \.jpg"):
        list_source(str(tmp_path), setting="data.test")
    (tmp_path / "set.xlsx").write_text("")
    with pytest.raises(DataError, match=r"has files ending in \.xlsx; a source is a folder"):
        list_source(str(tmp_path / "set.xlsx"))


# ------------------------------------------------------------------------------ order and shares


def test_natural_order() -> None:
    names = ["b", "a10", "a9", "A1", "10", "9", "a"]
    assert sorted(names, key=natural) == ["9", "10", "a", "A1", "a9", "a10", "b"]


def test_the_order_depends_on_keys_and_seed_only(tmp_path: Path) -> None:
    listing = list_source(str(fill(tmp_path, *(f"{i}.jpg" for i in range(50)))))
    keys = [item.key for item in ordered(listing.items, 0)]
    assert keys == [item.key for item in ordered(listing.items[::-1], 0)]
    assert keys != [item.key for item in ordered(listing.items, 1)]
    assert sorted(keys) == sorted(item.key for item in listing.items)
    assert len(ordered([], 0)) == 0


@given(st.lists(st.integers(1, 500), min_size=1, max_size=30), st.floats(0, 1), st.integers(0, 1))
def test_shares_are_exact_bounded_and_proportional(
    counts: list[int], part: float, least: int
) -> None:
    total = max(round(part * sum(counts)), least * len(counts))
    shares = allocate(counts, total, least, counts)
    assert sum(shares) == total
    assert all(least <= share <= count for share, count in zip(shares, counts, strict=True))
    if least == 0:
        exact = [count * total / sum(counts) for count in counts]
        assert all(abs(s - e) < 1 for s, e in zip(shares, exact, strict=True))


def test_columns_hold_what_was_put_in() -> None:
    places = [None, Range("t.tar", 5, 7), Row("t.parquet", "image", 1, 2), Pixels(b"ab", (1, 2))]
    labels = [None, "b", "", "a"]
    items = [Item(f"k{i}", f"u{i}", labels[i % 4], i, places[i % 4]) for i in range(12)]
    columns = Items.of(iter(items))
    assert (list(columns), columns[-2], columns[3:1]) == (items, items[-2], Items.of([]))
    assert list(columns[2:5]) == items[2:5]
    assert list(columns[::-3]) == items[::-3]
    assert columns != columns[1:]
    with pytest.raises(IndexError):
        columns[len(items)]
    assert list(columns.prefixed("0/"))[4] == replace(items[4], key="0/k4")
    whole = [replace(item, place=None) for item in items]
    assert list(Items.joined([Items.of(whole), columns])) == whole + items
    assert list(columns.labeled(["a", "b"])[:4]) == [-1, 1, -1, 0]
    assert classes_of(columns) == ("", "a", "b")


def test_a_long_listing_is_put_into_columns_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ns_ray.data.sources.items.BATCH", 3)
    items = [Item(f"k{i}", "u", None, i, Range("t", i, 1) if i == 7 else None) for i in range(10)]
    assert list(Items.of(items)) == items


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"path": "/a/\\ud800.jpg"}\n')
    with pytest.raises(DataError, match=r"no Unicode text: '/a/\\ud800.jpg'"):
        list_source(str(tmp_path / "t.jsonl"))


def a_thread_that_works() -> None:
    def work() -> None:
        while time.thread_time() < 0.005:
            pass

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@pytest.mark.parametrize(
    ("waits_for", "threads"),
    [(partial(time.sleep, 0.02), 2), (lambda: None, 1), (a_thread_that_works, 1)],
    ids=["disk", "nothing", "thread"],
)
def test_folders_of_a_slow_disk_are_read_several_at_a_time(
    waits_for: Callable[[], None], threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(40):
        folder = tmp_path / "images" / f"class{i:02d}"
        folder.mkdir(parents=True)
        (folder / "a.png").touch()
    seen: set[int] = set()
    scan = os.scandir
    if threads == 1:  # nor for a processor that others have, too
        monkeypatch.setattr(time, "perf_counter", time.process_time)

    def slow(path: str) -> Any:
        waits_for()
        seen.add(threading.get_ident())
        return scan(path)

    monkeypatch.setattr(os, "scandir", slow)
    found = walk(str(tmp_path / "images"))
    assert [Path(file.path).parent.name for file in found.files] == [
        f"class{i:02d}" for i in range(40)
    ]
    assert min(len(seen), 2) == threads
