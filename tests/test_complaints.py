"""What people complain about in the trackers of other data sets, tried on ours."""

import base64
import datetime
import gzip
import io
import json
import os
import re
import sys
import tarfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from broken_files import jpeg, odd_but_good, picture
from PIL import Image, PngImagePlugin

from ns_ray.config import DataConfig
from ns_ray.data import images
from ns_ray.data.images import Preprocess, decode, eval_pixels
from ns_ray.data.packing import pack
from ns_ray.data.sources import list_source
from ns_ray.data.sources.files import IMAGE_ENDINGS
from ns_ray.data.stage import ingest, list_all
from ns_ray.errors import ConfigError, DataError, ImageError, MissingSourceError
from ns_ray.store import RunLayout

PATHS = [f"{i}.jpg" for i in range(4)]
FILES = [jpeg(i) for i in range(4)]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path, data in zip(PATHS, FILES, strict=True):
        (tmp_path / path).write_bytes(data)
    return tmp_path


def table(folder: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), folder / "table.parquet")
    return str(folder / "table.parquet")


# ---------------------------------------------------------------------------------- column types


@pytest.mark.parametrize(
    "paths",
    [
        pa.array(PATHS, pa.large_string()),
        pa.array(PATHS, pa.string_view()),
        pa.array(PATHS).dictionary_encode(),
    ],
    ids=lambda array: str(array.type),
)
def test_paths_in_any_encoding_of_text(folder: Path, paths: pa.Array) -> None:
    labels = pa.array(["b", "a", "b", "a"]).dictionary_encode()
    listing = list_source(table(folder, path=paths, label=labels))
    assert [(i.key, i.label) for i in listing.items] == list(zip(PATHS, "baba", strict=True))
    assert [item.read() for item in listing.items] == FILES


@pytest.mark.parametrize(
    "stored",
    [
        pa.array(FILES, pa.large_binary()),
        pa.array(FILES, pa.binary_view()),
        pa.array(FILES).dictionary_encode(),
        pa.array([FILES[0]] * 4, pa.binary(len(FILES[0]))),
        pa.array([{"bytes": data, "path": None} for data in FILES]),
    ],
    ids=lambda array: str(array.type)[:20],
)
def test_images_in_any_encoding_of_bytes(folder: Path, stored: pa.Array) -> None:
    listing = list_source(table(folder, image=stored, label=["a", "b", "a", "b"]))
    expected = [row["bytes"] if isinstance(row, dict) else row for row in stored.to_pylist()]
    assert [item.read() for item in listing.items] == expected
    assert [item.label for item in listing.items] == ["a", "b", "a", "b"]


class Photo(pa.ExtensionType):  # type: ignore[misc]
    """What a library may register for its images."""

    def __init__(self) -> None:
        super().__init__(pa.struct([("bytes", pa.binary()), ("path", pa.string())]), "test.photo")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> "Photo":
        return cls()


def test_images_in_an_extension_type(folder: Path) -> None:
    rows = [{"bytes": data, "path": None} for data in FILES[:3]] + [
        {"bytes": None, "path": "3.jpg"}
    ]
    path = table(
        folder, image=pa.ExtensionArray.from_storage(Photo(), pa.array(rows, Photo().storage_type))
    )
    pa.register_extension_type(Photo())
    try:
        assert [item.read() for item in list_source(path).items] == FILES
    finally:
        pa.unregister_extension_type("test.photo")
    assert [item.read() for item in list_source(path).items] == FILES


@pytest.mark.parametrize("stored", ["text", [1, 2]])
def test_bytes_that_are_none_are_refused(folder: Path, stored: Any) -> None:
    path = table(folder, image=[{"bytes": stored, "path": "0.jpg"}])
    with pytest.raises(DataError, match=r"column 'image' of .* is struct<.*>; it must hold paths"):
        list_source(path)


def test_a_column_that_is_there_twice_is_named(folder: Path) -> None:
    columns = [pa.array(PATHS), pa.array(["a"] * 4), pa.array(["b"] * 4)]
    for names in (["path", "label", "label"], ["path", "Label", "LABEL"]):
        pq.write_table(pa.Table.from_arrays(columns, names), folder / "t.parquet")
        (folder / "t.csv").write_text(",".join(names) + "\n0.jpg,a,b\n")
        for name in ("t.parquet", "t.csv"):
            said = rf"{name} has the columns {names[1]!r} and {names[2]!r}; leave one of them"
            with pytest.raises(DataError, match=said):
                list_source(str(folder / name))
    (folder / "t.csv").write_text("path,Label,label,,\n0.jpg,x,a,,\n1.jpg,x,b,,\n")
    assert list_source(str(folder / "t.csv")).classes == ("a", "b")  # the one that is spelled so


def test_images_come_before_names_of_files_that_may_be_nowhere(folder: Path) -> None:
    named = table(folder, file_name=["gone.jpg"] * 4, image=FILES, label=["a", "b", "a", "b"])
    assert [item.read() for item in list_source(named).items] == FILES


def test_a_folder_of_a_partition_says_the_label(tmp_path: Path) -> None:
    for name in ("label=cat", "label=a%20dog", "label=__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"image": FILES[:2]}), tmp_path / name / "0.parquet")
    assert list_source(str(tmp_path)).counts == {"cat": 2, "a dog": 2}
    assert list_source(f"{tmp_path}/label=cat/*").counts == {"cat": 2}
    (tmp_path / "class=bird").mkdir()
    (tmp_path / "class=bird" / "t.csv").write_text("path\n0.jpg\n1.jpg\n")
    assert list_source(f"{tmp_path}/class=bird/t.csv").counts == {"bird": 2}


def test_a_table_without_rows_is_named(folder: Path) -> None:
    for path in (table(folder, path=pa.array([], pa.string())), str(folder / "t.csv")):
        (folder / "t.csv").write_text("path,label\n")
        with pytest.raises(MissingSourceError, match=rf"holds no images: {path} has no rows$"):
            list_source(path)


def test_the_columns_of_a_table_without_labels_are_named(folder: Path) -> None:
    hot = table(folder, path=PATHS, cat=[1, 0, 1, 0], dog=[0, 1, 0, 1])
    with pytest.raises(DataError, match=r"no labels; .*; its columns are path, cat, dog$"):
        list_all(DataConfig(labeled=hot), seed=0)
    listing = list_source(table(folder, path=PATHS, label=pa.nulls(4)))
    assert listing.columns == ()


# ---------------------------------------------------------------------------------------- labels


def test_whole_numbers_in_a_column_called_labels_are_labels(folder: Path) -> None:
    csv, lines = folder / "t.csv", folder / "t.jsonl"
    csv.write_text("path,labels\n0.jpg,3\n1.jpg,\n2.jpg,12\n")
    rows = [{"path": "0.jpg", "labels": 3}, {"path": "1.jpg"}, {"path": "2.jpg", "labels": 12}]
    lines.write_text("\n".join(map(json.dumps, rows)))
    parquet = table(folder, path=PATHS[:3], labels=[3, None, 12], size=[1, 1, 1])
    arrow = folder / "t.arrow"
    feather.write_feather(pq.read_table(parquet), str(arrow), compression="uncompressed")
    for path in (csv, lines, parquet, arrow):
        listing = list_source(str(path))
        assert [item.label for item in listing.items] == ["3", None, "12"], path
        assert not listing.notes
    both = list_source(table(folder, path=PATHS[:2], labels=[3, 4], label=["a", "b"]))
    assert both.classes == ("a", "b")
    (folder / "label=cat").mkdir()
    pq.write_table(pa.table({"image": FILES[:2], "labels": [3, 4]}), folder / "label=cat/t.parquet")
    assert list_source(f"{folder}/label=cat/t.parquet").counts == {"cat": 2}


def test_a_column_called_labels_that_may_hold_several_is_named(folder: Path) -> None:
    lines = folder / "t.jsonl"
    lines.write_text('{"path": "0.jpg", "Labels": ["cat", "red"]}')
    several: Any
    for several in (["scab rust", "scab"], [[1], [1, 2]], [0.5, 1.0]):
        for path in (lines, table(folder, path=PATHS[:2], Labels=several)):
            listing = list_source(str(path))
            assert not listing.classes
            (note,) = listing.notes
            assert note.startswith("column 'Labels' is not read, as it may hold several classes")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["a", "  ", "b", ""], ["a", None, "b", None]),
        ([0.0, 1.0, float("nan"), None], ["0", "1", None, None]),
        ([b"a", b"b", b"\xff", None], ["a", "b", "\\xff", None]),
        ([" a", "b ", "NA", "nan"], ["a", "b", "NA", "nan"]),
        ([7, -1, 10, None], ["7", "-1", "10", None]),
        ([Decimal("1.00"), Decimal(2), Decimal(-7), None], ["1", "2", "-7", None]),
        ([b"a\0\0", b"bb\0", b"\0\0\0", None], ["a", "bb", None, None]),
        (["\ufeffcat", "cat\u200b", "\u200b", None], ["cat", "cat", None, None]),
        (["[unk]", "(x)", "a, b", "a{1}"], ["[unk]", "(x)", "a, b", "a{1}"]),
    ],
)
def test_what_is_a_label(folder: Path, labels: list[Any], expected: list[Any]) -> None:
    listing = list_source(table(folder, path=PATHS, label=labels))
    assert [item.label for item in listing.items] == expected


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (["cat", "shiny"], "holds ['cat', 'shiny'] in row 2: an image has one class"),
        ({"x": 1}, "holds {'x': 1} in row 2: an image has one class"),
        (0.5, "holds 0.5 in row 2: a class is a name or a whole number"),
        ("['cat', 'dog']", "holds \"['cat', 'dog']\" in row 2: an image has one class"),
        ("[0. 1.]", "holds '[0. 1.]' in row 2: an image has one class"),
        ('{"x": 1}', "holds '{\"x\": 1}' in row 2: an image has one class"),
        ("red\nfox", "holds 'red\\nfox' in row 2: a class is a name on one line"),
    ],
)
def test_what_is_no_single_class_is_refused_by_name(folder: Path, label: Any, said: str) -> None:
    rows = [{"file_name": "0.jpg", "label": None}, {"file_name": "1.jpg", "label": label}]
    lines = folder / "rows.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)))
    parquet = table(folder, path=PATHS[:2], label=[None, label])
    for path in (str(lines), parquet):
        with pytest.raises(DataError) as caught:
            list_source(path)
        assert f"column 'label' of {path} {said}" in str(caught.value)


@pytest.mark.parametrize(
    "label", [Decimal("1.5"), datetime.date(2020, 1, 2), datetime.datetime(2020, 1, 2)], ids=str
)
def test_numbers_and_dates_that_are_no_class_are_refused(folder: Path, label: Any) -> None:
    with pytest.raises(DataError) as caught:
        list_source(table(folder, path=PATHS, label=[None, label, None, None]))
    assert f"holds {label!r} in row 2: a class is a name or a whole number" in str(caught.value)


@pytest.mark.parametrize("joined", ["cat|dog", "dog; cat", "cat,dog"])
def test_several_classes_in_one_label_are_refused(folder: Path, joined: str) -> None:
    with pytest.raises(DataError, match=rf"the label {re.escape(repr(joined))}, whose parts are"):
        list_source(table(folder, path=PATHS, label=["cat", "dog", joined, "cat"]))
    names = ["maillot", "maillot, tank suit", joined, "cat"]  # ImageNet has the first two
    assert len(list_source(table(folder, path=PATHS, label=names)).classes) == 4


def test_lists_of_class_labels_are_refused_with_their_metadata(folder: Path) -> None:
    feature = [{"names": ["cat", "dog"], "_type": "ClassLabel"}]
    told = json.dumps({"info": {"features": {"label": feature}}})
    rows = pa.table({"path": PATHS, "label": [[0], [1], [0, 1], []]})
    pq.write_table(rows.replace_schema_metadata({"huggingface": told}), folder / "t.parquet")
    with pytest.raises(DataError, match=r"holds \[0\] in row 1: an image has one class"):
        list_source(str(folder / "t.parquet"))


def test_an_index_beyond_the_class_names_is_refused(folder: Path) -> None:
    told = json.dumps({"info": {"features": {"label": {"names": ["cat", "dog"]}}}})
    for labels in ([0, 1, -1, None], [0, 1, 2, 0]):
        rows = pa.table({"path": PATHS, "label": labels})
        pq.write_table(rows.replace_schema_metadata({"huggingface": told}), folder / "t.parquet")
        if 2 not in labels:
            found = list_source(str(folder / "t.parquet")).items
            assert [item.label for item in found] == ["cat", "dog", None, None]
            continue
        with pytest.raises(DataError, match="holds 2 in row 3: there are 2 class names"):
            list_source(str(folder / "t.parquet"))


@pytest.mark.parametrize("names", [["cat", "cat"], ["cat", " "]])
def test_class_names_that_are_no_names_are_refused(folder: Path, names: list[str]) -> None:
    told = json.dumps({"info": {"features": {"label": {"names": names}}}})
    rows = pa.table({"path": PATHS, "label": [0, 1, 0, 1]})
    pq.write_table(rows.replace_schema_metadata({"huggingface": told}), folder / "t.parquet")
    with pytest.raises(DataError, match=rf"t\.parquet calls several of its classes {names[1]!r}"):
        list_source(str(folder / "t.parquet"))


@pytest.mark.parametrize("name", ["-1", "_unlabeled", "None"])
def test_a_class_whose_name_says_none_is_pointed_out(folder: Path, name: str) -> None:
    listing = list_source(table(folder, path=PATHS, label=["a", "b", name, "a"]))
    assert listing.counts[name] == 1
    assert listing.notes == (f"{name!r} is a class here; an empty label stands for none",)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("Cat", "cat"), "'Cat' and 'cat' are two classes"),
        (("caf\u00e9", "cafe\u0301"), r"'caf\xe9' and 'cafe\u0301' are two classes"),
        (("007", "7"), "'007' and '7' are two classes"),
        (("1", "1.0"), "'1' and '1.0' are two classes"),
        (("red_fox", "red  fox"), "'red_fox' and 'red  fox' are two classes"),
        (("cat.", "cat"), "'cat.' and 'cat' are two classes"),
    ],
)
def test_classes_that_are_written_alike_are_pointed_out(
    folder: Path, names: tuple[str, str], said: str
) -> None:
    for pair in (names, names[::-1]):
        (note,) = list_source(table(folder, path=PATHS, label=[*pair, "dog", "-7"])).notes
        one, _, other = said.removesuffix(" are two classes").partition(" and ")
        assert note in (said, f"{other} and {one} are two classes")


def test_classes_that_only_look_alike_are_not_pointed_out(folder: Path) -> None:
    for names in (["1", "10", "100", "0.1"], ["C", "C++", "C#", "-C"]):
        assert list_source(table(folder, path=PATHS, label=names)).notes == ()


# ----------------------------------------------------------------------- nothing is dropped quietly


def test_a_link_to_a_folder_above_does_not_multiply_images(folder: Path) -> None:
    (folder / "red" / "deep").mkdir(parents=True)
    for path in PATHS:
        (folder / path).rename(folder / "red" / path)
    os.symlink("..", folder / "red" / "up")
    os.symlink("red", folder / "again")
    os.symlink("nowhere", folder / "gone.jpg")
    listing = list_source(str(folder))
    assert [item.key for item in listing.items] == [f"red/{path}" for path in PATHS]
    gone, again = listing.notes
    assert gone.startswith("1 links that lead nowhere")
    assert again == f"{folder}/again, {folder}/red/up lead to folders that are read already"


def test_a_link_to_images_elsewhere_is_followed(folder: Path, tmp_path_factory: Any) -> None:
    outside = tmp_path_factory.mktemp("outside")
    os.symlink(folder, outside / "blue")
    assert [i.key for i in list_source(str(outside)).items] == [f"blue/{path}" for path in PATHS]


def test_files_that_are_not_taken_are_counted(folder: Path) -> None:
    (folder / ".cache").mkdir()
    (folder / "notes.txt").write_text("x")
    assert list_source(str(folder)).notes == (
        "1 files are no images by their name (.txt: 1)",
        "1 hidden files or folders left out",
    )
    (folder / "metadata.csv").write_text("file_name,label\n0.jpg,a\n1.jpg,b\n")
    listing = list_source(str(folder))
    assert listing.rows == 2
    assert listing.notes[0] == "2 of 4 images are not in metadata.csv, left out"


def test_a_link_to_itself_is_no_reason_to_stop(folder: Path) -> None:
    os.symlink("self.jpg", folder / "self.jpg")
    os.symlink("b", folder / "a")
    os.symlink("a", folder / "b")
    listing = list_source(str(folder))
    assert listing.rows == 4
    assert listing.notes == ("3 links that lead nowhere, or other things that are no files",)


@pytest.mark.parametrize("name", ["@eaDir", "$RECYCLE.BIN", "lost+found", "__MACOSX"])
def test_what_systems_keep_beside_images_is_none_of_them(folder: Path, name: str) -> None:
    for place in (folder / name, folder / "cat" / name):
        place.mkdir(parents=True)
        (place / "0.jpg").write_bytes(FILES[0])
    listing = list_source(str(folder))
    assert [item.key for item in listing.items] == PATHS
    assert listing.notes == ("2 hidden files or folders left out",)


def test_a_class_whose_folder_has_no_images_is_named(folder: Path) -> None:
    for name in ("bird", "cat", "raw10", "raw9", ".git"):
        (folder / name).mkdir()
    (folder / "cat" / "1.jpg").write_bytes(FILES[0])
    (folder / "raw9" / "1.cr2").write_bytes(b"x")
    assert "no images in bird, raw9, raw10" in list_source(str(folder)).notes
    (folder / "cat" / "1.jpg").unlink()
    assert not any("no images in" in note for note in list_source(str(folder)).notes)


def test_a_table_beside_images_tells_what_is_not_there(folder: Path) -> None:
    (folder / "Metadata.CSV").write_text("file_name,label\n./0.jpg,a\n1.jpg,b\n9.jpg,b\n")
    (folder / "metadata.jsonl").write_text('{"file_name": "0.jpg"}')
    listing = list_source(str(folder))
    assert listing.classes == ("a", "b")
    assert listing.notes == (
        "metadata.jsonl is not read, Metadata.CSV is",
        "2 of 4 images are not in Metadata.CSV, left out",
        f"1 images of Metadata.CSV are not there, such as {folder}/9.jpg",
    )


def test_archives_beside_images_are_to_be_unpacked(folder: Path) -> None:
    (folder / "more.zip").write_bytes(b"PK")
    (note,) = list_source(str(folder)).notes
    assert note == "1 files are no images by their name (.zip: 1); unpack the archives"


def test_stars_brackets_and_braces_find_all_that_is_called_so(tmp_path: Path) -> None:
    names = ["0.jpg", "a[1]/1.jpg", "a[1]/deep/er/2.jpg", "x{1..2}/3.jpg", "x1/4.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(FILES[0])

    def found(pattern: str) -> list[str]:
        items = list_source(f"{tmp_path}/{pattern}").items
        return sorted(item.uri.removeprefix(f"{tmp_path}/") for item in items)

    assert found("**/*.jpg") == found("**") == sorted(names)
    assert found("a[1]/*.jpg") == ["a[1]/1.jpg"]
    assert found("a[1]/**/[0-9].jpg") == names[1:3]
    assert found("x{1..2}/*.jpg") == ["x1/4.jpg", "x{1..2}/3.jpg"]
    assert found("{x1,x*}/*.jpg") == ["x1/4.jpg", "x{1..2}/3.jpg"]
    for pattern in ("a[2]/*.jpg", "nowhere/*.jpg", "a*"):
        with pytest.raises(
            MissingSourceError, match=r"no file matches this pattern; `\*\*` stands"
        ):
            found(pattern)


@pytest.mark.parametrize("blank", ["", "  "])
def test_a_blank_source_is_not_the_folder_one_is_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch, blank: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match=rf"data='{blank}' names nothing; give a folder"):
        list_source(blank)


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "testing"), ("labeled", "pile")])
def test_folders_of_parts_are_no_classes_in_any_spelling(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    for name in names:
        (tmp_path / name / "cat").mkdir(parents=True)
        (tmp_path / name / "cat" / "0.jpg").write_bytes(FILES[0])
    with pytest.raises(DataError, match=rf"parts of a set.* such as .*={tmp_path}/{names[0]}$"):
        list_all(DataConfig(labeled=str(tmp_path)), seed=0)


def test_classes_one_level_deeper_are_pointed_out(tmp_path: Path) -> None:
    for name in ("images/cat", "images/dog"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0.jpg").write_bytes(FILES[0])
    with pytest.raises(DataError, match=rf"the 2 folders in it may be .*: name {tmp_path}/images$"):
        list_all(DataConfig(labeled=str(tmp_path)), seed=0)
    (tmp_path / "images" / "dog" / "0.jpg").unlink()
    with pytest.raises(
        DataError, match=r"one class only, 'images'; a classifier needs two or more$"
    ):
        list_all(DataConfig(labeled=str(tmp_path)), seed=0)


def tar_of(path: Path, *members: tuple[str, bytes | str], links: bytes = tarfile.SYMTYPE) -> str:
    """A tar of files and links: a text is where one leads to."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = links, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return str(path)


@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz"])
def test_links_in_a_tar_are_the_files_that_they_lead_to(tmp_path: Path, name: str) -> None:
    files = [("a/1.jpg", FILES[0]), (".blobs/x", FILES[1]), ("a/1.cls", b"cat")]
    links = [("b/2.jpg", "../a/1.jpg"), ("b/2.cls", "../a/1.cls"), ("b/3.jpg", "2.jpg")]
    links += [("b/4.jpg", "../.blobs/x"), ("b/5.jpg", "6.jpg"), ("b/6.jpg", "5.jpg")]
    listing = list_source(tar_of(tmp_path / name, *links, *files))
    found = {item.key: (item.label, item.read()) for item in listing.items}
    own, other = ("cat", FILES[0]), (None, FILES[0])
    assert found == {"t/a/1": own, "t/b/2": own, "t/b/3": other, "t/b/4": (None, FILES[1])}
    assert "1 hidden files left out" in listing.notes
    assert "2 links that lead to no file of their tar" in listing.notes
    hard = tar_of(tmp_path / name, files[0], ("b/2.jpg", "a/1.jpg"), links=tarfile.LNKTYPE)
    assert [item.read() for item in list_source(hard).items] == [FILES[0]] * 2


def test_no_image_of_a_tar_is_lost_to_another(tmp_path: Path) -> None:
    for again in ("1.jpg", "./1.jpg"):
        twice = tar_of(tmp_path / "t.tar", ("1.jpg", FILES[0]), (again, FILES[1]))
        with pytest.raises(DataError, match=r"t\.tar has '1\.jpg' twice"):
            list_source(twice)
    one = Path(tar_of(tmp_path / "t.tar", ("1.jpg", FILES[0]), ("../2.jpg", FILES[1])))
    assert [item.key for item in list_source(str(one)).items] == ["t/1", "t/2"]
    whole = one.read_bytes()
    for name, data in (("t.tar", whole * 2), ("t.tar.gz", gzip.compress(whole * 2))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=rf"{name} is not a readable tar: there is more behind"):
            list_source(str(tmp_path / name))


def test_labels_in_tars_are_names_like_others(tmp_path: Path) -> None:
    name = "caf\udce9"
    files = [(f"{name}.jpg", FILES[0]), (f"{name}.cls", b"\xef\xbb\xbfcat\r\n")]
    (item,) = list_source(tar_of(tmp_path / "t.tar", *files)).items
    assert (item.key, item.label) == ("t/caf\\xe9", "cat")
    for label in (b"[0, 1]", b"a caption\nof two lines", "cat".encode("utf-16"), b"\7\0\0\0"):
        bad = tar_of(tmp_path / "t.tar", ("1.jpg", FILES[0]), ("1.cls", label))
        with pytest.raises(DataError, match=r"the label of 1\.jpg in .* holds .*: (an|a) "):
            list_source(bad)


def test_parts_of_a_set_in_one_folder_do_not_mix(tmp_path: Path) -> None:
    rows = pa.table({"image": FILES, "label": ["a", "b", "a", "b"]})
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        pq.write_table(rows, tmp_path / f"{name}.parquet")
    config = DataConfig(labeled=str(tmp_path), unlabeled=(str(tmp_path),))
    with pytest.raises(DataError, match=r"holds files of train and test, .*='.*/train\*'"):
        ingest(config, seed=0, out=RunLayout(str(tmp_path / "run")))


def test_too_many_broken_images_are_named_by_one(folder: Path) -> None:
    (folder / "t.csv").write_text("path\n0.jpg\nb.jpg\na.jpg\n")
    with pytest.raises(DataError, match=rf"missing: 2, such as {folder}/a\.jpg: there is no such"):
        pack(str(folder / "t.csv"), out=str(folder / "out"))


# ---------------------------------------------------------------------------------- text and names


def test_a_name_that_is_no_text_stays_usable(tmp_path: Path) -> None:
    place = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(place)
    with open(place + b"/\xff.jpg", "wb") as file:
        file.write(FILES[0])
    listing = list_source(str(tmp_path))
    (item,) = listing.items
    assert (item.key, item.label) == ("caf\\xe9/\\xff.jpg", "caf\\xe9")
    assert item.uri == f"{tmp_path}/{item.key}"
    assert item.read() == FILES[0]
    with pytest.raises(MissingSourceError, match=r"no such file .* holds caf\\xe9"):
        list_source(str(tmp_path / "other"))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "cp1252"])
def test_tables_as_excel_and_windows_write_them(
    tmp_path: Path, encoding: str, delimiter: str
) -> None:
    (tmp_path / "bilder").mkdir()
    (tmp_path / "bilder" / "größe.jpg").write_bytes(FILES[0])
    text = delimiter.join(["path", "label"]) + "\r\n" + delimiter.join(["bilder\\größe.jpg", "é"])
    bom = b"\xfe\xff" if encoding == "utf-16-be" else b""
    (tmp_path / "t.csv").write_bytes(bom + text.encode(encoding))
    (item,) = list_source(str(tmp_path / "t.csv")).items
    assert (item.key, item.label) == ("bilder/größe.jpg", "é")
    assert item.read() == FILES[0]


def test_excel_says_its_delimiter_in_a_first_line(folder: Path) -> None:
    (folder / "t.csv").write_text("\ufeffsep=;\r\npath;label\r\n0.jpg;a,b\r\n", newline="")
    assert [(i.key, i.label) for i in list_source(str(folder / "t.csv")).items] == [
        ("0.jpg", "a,b")
    ]


def test_blanks_around_cells_are_no_part_of_a_path(folder: Path) -> None:
    (folder / "t.csv").write_text("label, path\na, 0.jpg\nb, 1.jpg\n")
    assert [i.key for i in list_source(str(folder / "t.csv")).items] == ["0.jpg", "1.jpg"]
    (folder / "t.csv").write_text("path,label\n 0.jpg,a\n")  # a file may be called so
    assert [i.key for i in list_source(str(folder / "t.csv")).items] == [" 0.jpg"]


@pytest.mark.parametrize("opened", ['"a', 'a,"x', 'a,"x""'])
@pytest.mark.parametrize("closed", ["", '"'])
def test_a_quote_that_is_not_closed_swallows_no_rows(
    folder: Path, opened: str, closed: str
) -> None:
    more = ",x" if "," not in opened else ""
    text = f"path,label,note\n0.jpg,a,x\n1.jpg,{opened}{more}\n2.jpg,b,y\n3.jpg,c,{closed}z\n"
    (folder / "t.csv").write_text(text)
    with pytest.raises(DataError, match=r"t\.csv, line 3 opens a cell with a quote|Expected 3 col"):
        list_source(str(folder / "t.csv"))
    (folder / "t.csv").write_text('path,label,note\n0.jpg,5" disk,"x\ny"\n1.jpg,b,"say ""a"""\n')
    assert list_source(str(folder / "t.csv")).classes == ('5" disk', "b")


def test_a_cell_may_be_long(folder: Path) -> None:
    (folder / "t.csv").write_text(f'path,mask,label\n0.jpg,{"1 2 " * 2**19},a\n1.jpg,"x\ny",b\n')
    assert list_source(str(folder / "t.csv")).classes == ("a", "b")


def test_a_decimal_comma_is_no_delimiter(folder: Path) -> None:
    (folder / "t.csv").write_text("id;image;label;score\n1;0.jpg;a;0,5\n2;1.jpg;b;0,7\n")
    assert [i.label for i in list_source(str(folder / "t.csv")).items] == ["a", "b"]
    (folder / "t.csv").write_text("path,label\n0.jpg,a\n1.jpg\n")
    with pytest.raises(DataError, match="Expected 2 columns, got 1"):
        list_source(str(folder / "t.csv"))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("C:\\photos\\0.jpg", "it begins at a drive of Windows"),
        ("d:/photos/0.jpg", "it begins at a drive of Windows"),
        ("\\\\nas\\0.jpg", "it begins at a drive of Windows"),
        (base64.b64encode(FILES[0]).decode(), "it is no path; images as text are not read"),
        ("data:image/jpeg;base64,/9j/", "it is no path; images as text are not read"),
        ("0\0.jpg", "a path is text"),
        (["0.jpg"], "a path is text"),
        (7, "a path is text"),
        ("  ", "has no path in row 1"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_path_is_refused_by_name(folder: Path, path: Any, said: str) -> None:
    (folder / "t.jsonl").write_text(json.dumps({"path": path, "label": "a"}))
    with pytest.raises(DataError, match=said) as caught:
        list_source(str(folder / "t.jsonl"))
    assert "row 1" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_paths_of_windows_below_folders_are_read(folder: Path) -> None:
    (folder / "a").mkdir()
    for name in ("0.jpg", "b\\c.jpg"):
        (folder / "a" / name).write_bytes(FILES[0])
    (folder / "t.csv").write_text("path\n./a\\0.jpg\na/b\\c.jpg\n")
    assert [item.read() for item in list_source(str(folder / "t.csv")).items] == [FILES[0]] * 2


@pytest.mark.parametrize("again", ["./0.jpg", "a/../0.jpg", ".//0.jpg", "{}/0.jpg", ".\\0.jpg"])
def test_a_file_that_is_named_in_two_ways_is_not_two_images(folder: Path, again: str) -> None:
    (folder / "t.csv").write_text(f"path,label\n0.jpg,a\n{again.format(folder)},b\n")
    with pytest.raises(DataError, match=r"lists 1 images more than once, such as '0\.jpg'"):
        list_source(str(folder / "t.csv"))


def test_images_that_nothing_can_fetch_are_refused_at_once(
    tmp_path: Path,
) -> None:
    (tmp_path / "t.csv").write_text("path,label\nftp://example.com/a.jpg,a\n")
    with pytest.raises(ConfigError, match=r"'ftp://example\.com/a\.jpg': .*use a folder, or an s3"):
        list_source(str(tmp_path / "t.csv"))


def test_a_table_in_no_known_encoding_is_named(tmp_path: Path) -> None:
    text = "path,label\na.jpg,a\n"
    for data in (b"path,label\n\x81.jpg,a\n", text.encode("utf-16-le"), text.encode("utf-32")):
        (tmp_path / "t.csv").write_bytes(data)
        with pytest.raises(DataError, match=r"t\.csv is no text in UTF-8, UTF-16 or cp1252; save"):
            list_source(str(tmp_path / "t.csv"))


def test_a_line_that_is_no_json_object_is_named(tmp_path: Path) -> None:
    for line in ("{", "[1]", '"x"', "[" * sys.getrecursionlimit()):
        (tmp_path / "t.jsonl").write_text('{"path": "a.jpg"}\n\n' + line + "\n")
        with pytest.raises(DataError, match=r"t\.jsonl, line 3 is no JSON object"):
            list_source(str(tmp_path / "t.jsonl"))


# ------------------------------------------------------------------------- Hugging Face and Git LFS


@pytest.mark.parametrize("statistics", [True, False])
def test_rows_with_a_path_alone_are_read_from_it(folder: Path, statistics: bool) -> None:
    rows = [{"bytes": None, "path": "0.jpg"}, {"bytes": FILES[3], "path": "inner.jpg"}]
    place = folder / "t.parquet"
    pq.write_table(pa.table({"image": rows, "label": [0, 1]}), place, write_statistics=statistics)
    named, inside = list_source(str(place)).items
    assert (named.key, named.read(), inside.read()) == ("0.jpg", FILES[0], FILES[3])
    rows[0] = {"bytes": None, "path": "elsewhere/0.jpg"}
    pq.write_table(pa.table({"image": rows, "label": [0, 1]}), place, write_statistics=statistics)
    with pytest.raises(DataError, match=r"no .*/elsewhere/0\.jpg; the images are not embedded"):
        list_source(str(place))


def test_pointers_of_git_lfs_are_named(tmp_path: Path) -> None:
    for name in ("t.parquet", "t.csv", "t.tar"):
        (tmp_path / name).write_bytes(LFS)
        with pytest.raises(DataError, match=rf"{name} is a pointer of Git LFS; `git lfs pull`"):
            list_source(str(tmp_path / name))
    with pytest.raises(ImageError, match="a pointer of Git LFS"):
        decode(LFS)


def test_a_folder_without_images_says_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.HEIC").write_bytes(b"x")
    (tmp_path / "b.raw").write_bytes(b"x")
    endings = tuple(e for e in IMAGE_ENDINGS if e != ".heic")
    monkeypatch.setattr("ns_ray.data.sources.IMAGE_ENDINGS", endings)
    with pytest.raises(MissingSourceError) as caught:
        list_source(str(tmp_path))
    assert "(.heic: 1, .raw: 1); pip install 'ns_ray[heic]' reads HEIC" in str(caught.value)


@pytest.mark.parametrize("name", ["photo.avif", "photo.ppm", "gray.pgm", "phone.heic"])
def test_pictures_of_other_kinds_are_read(tmp_path: Path, name: str) -> None:
    data = odd_but_good()[name]
    (tmp_path / name).write_bytes(data)
    (item,) = list_source(str(tmp_path)).items
    expected = np.asarray(picture(2).convert("L" if name == "gray.pgm" else "RGB").convert("RGB"))
    assert np.abs(np.asarray(decode(item.read())).astype(int) - expected).mean() < 12
    for cut in (len(data) // 2, len(data) - 3):
        with pytest.raises(ImageError, match="truncated"):
            decode(data[:cut])
    with pytest.raises(ImageError, match="too_many_pixels"):
        decode(data, max_pixels=10)


def test_heic_without_its_reader_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "HEIC", False)
    monkeypatch.setattr(images, "FORMATS", tuple(f for f in images.FORMATS if f != "HEIF"))
    with pytest.raises(ImageError, match=r"HEIC; `pip install 'ns_ray\[heic\]'` reads it"):
        decode(odd_but_good()["phone.heic"])


# ---------------------------------------------------------------------------------------- pixels


def png(pixels: np.ndarray[Any, Any], **more: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **more)
    return buffer.getvalue()


@pytest.mark.parametrize("fast", [True, False])
def test_a_very_long_image_takes_no_memory(fast: bool) -> None:
    """Resized whole, it would have 11 and 3,000 million pixels."""
    spec = Preprocess(224, 0.875, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    for long in (60_000, 1_000_000):
        column = np.full((long, 1, 3), 7, np.uint8)
        assert (eval_pixels(png(column), spec, fast) == 7).all()
        assert (eval_pixels(png(column.transpose(1, 0, 2)), spec, fast) == 7).all()


def test_a_crop_alone_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Preprocess(64, 0.875, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    (picture,) = images.smooth_pixels(1, 300)
    for image in (picture[:40], picture[:, :50], picture[:200]):
        whole = eval_pixels(Image.fromarray(image), spec, fast=False)
        with monkeypatch.context() as patched:
            patched.setattr(images, "LARGE", 0)
            alone = eval_pixels(Image.fromarray(image), spec, fast=False)
        assert np.abs(whole.astype(int) - alone).max() <= 1


def test_metadata_does_not_make_pixels_broken() -> None:
    pixels = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    text = PngImagePlugin.PngInfo()
    text.add_text("notes", "a" * 2**21, zip=True)
    for data in (png(pixels, pnginfo=text), png(pixels, icc_profile=b"\0" * 3 * 2**20)):
        assert np.array_equal(np.asarray(decode(data)), pixels)
        assert images.image_size(data) == (10, 10)
        with pytest.raises(ImageError, match=r"truncated|early"):
            decode(data[:-60])
