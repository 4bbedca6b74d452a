"""Arrow files and streams: Feather, and what Hugging Face's `save_to_disk` leaves."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from broken_files import jpeg
from packed import rows, run
from test_web import site
from web_server import Site

from ns_ray.data.packing import pack
from ns_ray.data.sources import list_source
from ns_ray.errors import DataError

assert site  # a fixture

IMAGES = [jpeg(i) for i in range(5)]
NAMES = ["zebra", "ant"]
NOTE = {
    "huggingface": json.dumps(
        {"info": {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}}
    )
}


def write(path: Path, table: pa.Table, stream: bool = True) -> Path:
    """A stream, as `datasets` writes it, or a file; batches of two rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def encoded(images: list[bytes] = IMAGES) -> pa.Table:
    return pa.table({"image": images, "label": (["cat", "dog"] * len(images))[: len(images)]})


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_images_in_an_arrow_file(tmp_path: Path, stream: bool, inside: bool, scheme: str) -> None:
    image: Any = [{"bytes": d, "path": "x.jpg"} for d in IMAGES] if inside else IMAGES
    table = pa.table({"image": image, "label": [0, 1, 1, 0, -1]}).replace_schema_metadata(NOTE)
    path = write(tmp_path / "t.arrow", table, stream)
    listing = list_source(f"{scheme}{path}")
    assert listing.classes == ("zebra", "ant")
    assert [item.label for item in listing.items] == ["zebra", "ant", "ant", "zebra", None]
    assert [item.key for item in listing.items] == [f"t.arrow/{i:08d}" for i in range(5)]
    assert [item.read() for item in listing.items] == IMAGES
    assert [item.size for item in listing.items] == [len(data) for data in IMAGES]
    corpus = pack(listing, out=str(tmp_path / "out"), rows_per_shard=2)
    assert {row["key"]: row["image"] for row in rows(corpus)} == {
        f"t.arrow/{i:08d}": data for i, data in enumerate(IMAGES)
    }


def test_what_save_to_disk_leaves_is_a_source(tmp_path: Path) -> None:
    image = [{"bytes": d, "path": None} for d in IMAGES]
    table = pa.table({"image": image, "label": [0, 1, 1, 0, 1]}).replace_schema_metadata(NOTE)
    saved = tmp_path / "saved"
    for part in ("train", "test"):
        for n in range(2):
            write(saved / part / f"data-0000{n}-of-00002.arrow", table)
        write(saved / part / "cache-0123456789abcdef.arrow", table)
        (saved / part / "dataset_info.json").write_text("{}")
        (saved / part / "state.json").write_text("{}")
    (saved / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    listing = list_source(str(saved / "train"))
    assert (listing.rows, listing.classes) == (10, ("zebra", "ant"))
    assert [item.read() for item in listing.items] == IMAGES * 2
    assert listing.notes == ("3 files are no images by their name (.json: 2, .arrow: 1)",)
    with pytest.raises(DataError, match=f"name those of one, such as data.labeled='{saved}/train'"):
        run(tmp_path, labeled=str(saved))


def of_classes(table: pa.Table, *columns: str) -> pa.Table:
    """With Hugging Face's metadata of columns of class names."""
    features = {column: {"names": NAMES, "_type": "ClassLabel"} for column in columns}
    return table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )


@pytest.mark.parametrize("ending", [".arrow", ".parquet"])
def test_images_and_class_labels_are_found_whatever_their_columns_are_called(
    tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"t{ending}"

    def save(table: pa.Table) -> None:
        write(path, table) if ending == ".arrow" else pq.write_table(table, path)

    images: Any = [{"bytes": d, "path": None} for d in IMAGES]
    table = pa.table({"img": images, "fine_label": [0, 1, 1, 0, -1], "size": [1] * 5})
    save(of_classes(table, "fine_label"))
    listing = list_source(str(path))
    assert [item.label for item in listing.items] == ["zebra", "ant", "ant", "zebra", None]
    assert [item.read() for item in listing.items] == IMAGES
    assert listing.columns == ()

    two = table.append_column("coarse_label", table["fine_label"])
    save(of_classes(two, "fine_label", "coarse_label"))  # either may be meant
    with pytest.raises(
        DataError, match=r"no labels.* its columns are img, fine_label, size, coarse_label"
    ):
        run(tmp_path, labeled=str(path))
    named = of_classes(two.rename_columns({"coarse_label": "label"}), "fine_label", "label")
    save(named.set_column(3, "label", pa.array([1, 1, 1, 0, 0])))
    assert [item.label for item in list_source(str(path)).items[:2]] == ["ant", "ant"]


def test_of_several_columns_of_images_one_must_be_called_so(tmp_path: Path) -> None:
    table = pa.table({"photo": IMAGES, "mask": IMAGES[::-1]})
    with pytest.raises(DataError, match=r"the columns photo, mask; one of .* must name the image"):
        list_source(str(write(tmp_path / "t.arrow", table)))
    path = write(tmp_path / "t.arrow", table.rename_columns(["image", "mask"]))
    assert [item.read() for item in list_source(str(path)).items] == IMAGES
    path = write(tmp_path / "t.arrow", table.rename_columns(["photo", "path"]))
    assert list_source(str(path)).items[0].read() == IMAGES[-1]


def test_arrow_and_feather_files_of_paths(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    table = pa.table({"file_name": ["1.jpg", "2.jpg"], "label": [3, 12]})
    write(tmp_path / "a.arrow", table)
    feather.write_feather(table, str(tmp_path / "b.feather"))  # compressed
    for name in ("a.arrow", "b.feather"):
        listing = list_source(str(tmp_path / name))
        assert {item.key: item.label for item in listing.items} == {"1.jpg": "3", "2.jpg": "12"}
        assert listing.items[0].read() == jpeg(1)


def test_rows_with_a_path_alone_are_read_from_it(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(9))
    image = [{"bytes": None, "path": "a.jpg"}, {"bytes": jpeg(1), "path": None}, None]
    path = write(tmp_path / "t.arrow", pa.table({"image": image}))
    listing = list_source(str(path))
    assert [item.key for item in listing.items] == ["a.jpg", *(f"t.arrow/{i:08d}" for i in (1, 2))]
    assert [item.read() for item in listing.items] == [jpeg(9), jpeg(1), b""]
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(DataError, match="the images are not embedded"):
        list_source(str(path))


def test_large_columns_and_slices_are_read(tmp_path: Path) -> None:
    array = pa.array([b"more", *IMAGES, None], pa.large_binary())[1:]
    path = write(tmp_path / "t.arrow", pa.table({"image": array}))
    assert [item.read() for item in list_source(str(path)).items] == [*IMAGES, b""]


def test_what_is_no_arrow_file_or_is_compressed_is_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.arrow", encoded()).read_bytes()
    mistakes = {
        "cut": (whole[:-2000], "not an Arrow file"),
        "empty": (b"", "not an Arrow file"),
        "text": (b"nothing" * 100, "not an Arrow file"),
        "name": (whole.replace(b"image", b"im\xffge"), "not an Arrow file"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    }
    for name, (data, says) in mistakes.items():
        (tmp_path / f"{name}.arrow").write_bytes(data)
        with pytest.raises(DataError, match=says):
            list_source(f"{tmp_path}/{name}.arrow")
    feather.write_feather(encoded(), str(tmp_path / "b.feather"), compression="zstd")
    write(tmp_path / "c.arrow", pa.table({"image": pa.array(IMAGES).dictionary_encode()}))
    write(tmp_path / "e.arrow", pa.table({"image": pa.array(IMAGES, pa.binary_view())}))
    for name, says in (
        ("b.feather", "is compressed; write its images as plain binary"),
        ("c.arrow", "is dictionary<.*; write its images as plain binary"),
        ("e.arrow", "is binary_view; write its images as plain binary"),
    ):
        with pytest.raises(DataError, match=says):
            list_source(str(tmp_path / name))
    write(tmp_path / "d.arrow", pa.table({"image": [1, 2]}))
    with pytest.raises(DataError, match="is int64; it must hold paths"):
        list_source(str(tmp_path / "d.arrow"))


def test_offsets_that_lead_outside_are_refused(tmp_path: Path) -> None:
    array = pa.array(IMAGES)
    offsets = bytearray(array.buffers()[1].to_pybytes())
    offsets[4:8] = (2**30).to_bytes(4, "little")
    wrong = pa.Array.from_buffers(
        pa.binary(), 5, [None, pa.py_buffer(bytes(offsets)), array.buffers()[2]]
    )
    path = write(tmp_path / "t.arrow", pa.table({"image": wrong}))
    with pytest.raises(DataError, match=r"t\.arrow is damaged"):
        list_source(str(path))


def test_an_arrow_file_on_the_web_is_read_where_it_is(site: Site, tmp_path: Path) -> None:
    site.files = {"/t.arrow": write(tmp_path / "t.arrow", encoded()).read_bytes()}
    corpus = pack(f"{site.url}/t.arrow", out=str(tmp_path / "out"), rows_per_shard=2)
    assert sorted(row["image"] for row in rows(corpus)) == sorted(IMAGES)
