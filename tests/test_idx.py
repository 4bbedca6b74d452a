"""IDX files that a user brings: MNIST's relatives."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from packed import run

from ns_ray.data import decode
from ns_ray.data.sources import list_source
from ns_ray.errors import DataError

RNG = np.random.default_rng(0)


def idx(values: np.ndarray) -> bytes:
    head = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape)
    return head + values.tobytes()


def pictures(count: int, *more: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, 9, 7, *more), dtype=np.uint8)


def numbers(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint8) % 4


@pytest.mark.parametrize("named", ["{}-images-idx3-ubyte", "{}-images.idx3-ubyte"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_of_the_four(tmp_path: Path, named: str, scheme: str) -> None:
    train, test = pictures(40), pictures(8)
    for part, pixels in (("train", train), ("t10k", test)):
        file = tmp_path / named.format(part)
        file.write_bytes(idx(pixels))
        name = file.name.replace("images", "labels").replace("idx3", "idx1")
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(numbers(len(pixels)))))
    (tmp_path / "readme.txt").write_text("x")
    whole = list_source(f"{scheme}{tmp_path}")
    assert (whole.rows, whole.parts) == (48, ("train", "test"))
    assert whole.notes == ("1 files are no images by their name (.txt: 1)",)
    with pytest.raises(DataError, match=r"parts of a set; name those of one, such as .*/train\*'"):
        run(tmp_path, labeled=f"{scheme}{tmp_path}")
    name = named.format("t10k")
    for source in ("t10k*", name):
        listing = list_source(f"{scheme}{tmp_path}/{source}")
        assert [item.key for item in listing.items] == [f"t10k/{i:05d}" for i in range(8)]
        assert [item.label for item in listing.items] == ["0", "1", "2", "3"] * 2
        assert listing.items[5].uri == f"{scheme}{tmp_path}/{name}#5"
        image = np.asarray(decode(listing.items[5].read()))
        assert np.array_equal(image[..., 1], test[5])
    corpora = run(tmp_path, labeled=f"{tmp_path}/train*", test=f"{tmp_path}/{name}", labels=20)
    assert corpora.test is not None
    assert corpora.unlabeled is not None
    rows = [c.rows for c in (corpora.labeled, corpora.validation, corpora.unlabeled, corpora.test)]
    assert rows == [20, 4, 16, 8]


def test_images_alone_are_unlabeled_and_colors_are_kept(tmp_path: Path) -> None:
    pixels = pictures(3, 3)
    (tmp_path / "pile-images-idx4-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
    listing = list_source(str(tmp_path))
    assert [item.label for item in listing.items] == [None] * 3
    assert listing.classes == ()
    assert np.array_equal(np.asarray(decode(listing.items[2].read())), pixels[2])


def test_emnist_is_upright_and_has_letters(tmp_path: Path) -> None:
    pixels = pictures(4)
    for what, values in (("images-idx3", pixels), ("labels-idx1", numbers(4))):
        (tmp_path / f"emnist-letters-train-{what}-ubyte").write_bytes(idx(values))
    (tmp_path / "emnist-letters-mapping.txt").write_text("0 65 97\n1 66 98\n2 67 99\n")
    listing = list_source(str(tmp_path / "emnist-letters-train-images-idx3-ubyte"))
    assert [item.label for item in listing.items] == ["A", "B", "C", "3"]
    assert "turned upright" in listing.notes[0]
    image = np.asarray(decode(listing.items[1].read()))
    assert np.array_equal(image[..., 0], pixels[1].T)


def test_a_wrong_idx_file_is_named(tmp_path: Path) -> None:
    images, labels = tmp_path / "a-images-idx3-ubyte", tmp_path / "a-labels-idx1-ubyte"
    whole = idx(pictures(5))
    good = idx(numbers(5))
    mistakes = [
        (whole[:-1], good, r"a-images-idx3-ubyte holds 314 values, its header says \[5, 9, 7\]"),
        (whole[:9], good, "a-images-idx3-ubyte is not an IDX file"),
        (b"\0\0\x0d" + whole[3:], good, "is not an IDX file of bytes: it begins with 00000d03"),
        (good, good, r"a-images-idx3-ubyte holds values \(5,\), expected images"),
        (whole, whole, r"a-labels-idx1-ubyte holds values \(5, 9, 7\), expected labels"),
        (whole, idx(numbers(4)), "a-images-idx3-ubyte holds 5 images, but .*labels.* 4 labels"),
    ]
    for left, right, message in mistakes:
        images.write_bytes(left)
        labels.write_bytes(right)
        with pytest.raises(DataError, match=message):
            list_source(str(images))
    with pytest.raises(DataError, match="holds labels without their images"):
        list_source(str(labels))
