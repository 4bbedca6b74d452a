"""Named sets: digits, fashion-mnist, cifar10, svhn; `:test` for their test images, and `svhn:extra`
for the 531,131 easier images beside its training images."""

import gzip
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ns_ray import store
from ns_ray.data.sources.items import Item, Pixels, allocate, ordered
from ns_ray.data.sources.listing import Listing
from ns_ray.errors import DataError

NAMED_SETS = ("digits", "fashion-mnist", "cifar10", "svhn")

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DIGITS_TEST = 500
"""Images of scikit-learn's 1,797 digits that are the fixed test split."""


def named(source: str, where: str) -> Listing:
    """Training (`digits`) or test (`digits:test`) images of a named set.

    Raises:
        DataError: there is no such part, or its files are neither here nor to be downloaded.
    """
    name, _, part = source.partition(":")
    parts = ("train", "test", "extra") if name == "svhn" else ("train", "test")
    if part not in ("", *parts):
        others = " and ".join(f"{name}:{other}" for other in parts[1:])
        raise DataError(f"{where}: {name} has the parts {name} (training) and {others}")
    test = part == "test"
    if name == "digits":
        return _digits(source, test)
    if name == "fashion-mnist":
        pixels, labels = _fashion_mnist("t10k" if test else "train", where)
        classes: tuple[str, ...] = FASHION_CLASSES
    elif name == "svhn":
        pixels, labels = _svhn(part or "train", where)
        classes = tuple(str(i) for i in range(10))
    else:
        pixels, labels, classes = _cifar10(test, where)
    prefix = f"{name}/{part or 'train'}"
    return _arrays(source, prefix, pixels, labels, classes, range(len(labels)))


def _arrays(
    source: str,
    prefix: str,
    pixels: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
    classes: tuple[str, ...],
    indices: Iterable[int],
) -> Listing:
    """Some images of uint8 pixels [n, height, width(, 3)] with int labels [n]."""
    items = []
    for i in indices:
        key = f"{prefix}/{i:05d}"
        place = Pixels(pixels[i].tobytes(), pixels[i].shape)
        items.append(Item(key, key, classes[int(labels[i])], len(place.data), place))
    digest = xxhash.xxh3_128_hexdigest(np.ascontiguousarray(pixels).data)
    return Listing(source, items, classes, store.fingerprint(source, digest, len(items)))


def _digits(source: str, test: bool) -> Listing:
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = np.asarray(digits.target)
    pixels = np.rint(np.asarray(digits.images) * (255 / 16)).astype(np.uint8)
    classes = tuple(str(i) for i in range(10))
    everything = _arrays(source, "digits", pixels, labels, classes, range(len(labels)))
    counts = [int((labels == c).sum()) for c in range(10)]
    shares = allocate(counts, DIGITS_TEST, 1, counts)
    chosen: set[str] = set()
    for name, share in zip(classes, shares, strict=True):
        members = [item for item in everything.items if item.label == name]
        chosen |= {item.key for item in ordered(members, seed=0)[:share]}
    indices = [i for i, item in enumerate(everything.items) if (item.key in chosen) == test]
    return _arrays(source, "digits", pixels, labels, classes, indices)


def _cache() -> Path:
    return Path("~/.cache/ns_ray").expanduser()


def _data_folders() -> list[Path]:
    """Where files of named sets may lie, best first."""
    own = os.environ.get("NS_RAY_DATA")
    bases = [Path(own).expanduser()] if own else []
    bases += [_cache(), Path("/usr/share/datasets")]
    inner = ("", "fashion-mnist", "FashionMNIST/raw")
    return [base / name for base in bases for name in inner]


def _fashion_mnist(part: str, where: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Pixels [n, 28, 28] and labels [n]."""
    names = [f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"]
    folder = next((f for f in _data_folders() if all((f / n).is_file() for n in names)), None)
    if folder is None:
        from torchvision.datasets import FashionMNIST

        try:
            FashionMNIST(str(_cache()), download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{where}: cannot download Fashion-MNIST ({error}); put {' and '.join(names)} "
                f"into a folder and set NS_RAY_DATA to it"
            ) from None
        folder = _cache() / "FashionMNIST" / "raw"
    pixels, labels = (_idx(folder / name) for name in names)
    if len(pixels) != len(labels):
        raise DataError(f"{folder}: {len(pixels):,} images but {len(labels):,} labels in {names}")
    return pixels, labels


def _idx(path: Path) -> np.ndarray[Any, Any]:
    """A gzipped IDX file of bytes: a magic number that ends in the number of dimensions, the
    dimensions as big-endian int32, the values."""
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(f"{path} is not a readable gzip file: {error}") from None
    if data[:3] != b"\0\0\x08" or not data[3:4]:
        raise DataError(f"{path} is not an IDX file of bytes: it begins with {data[:4].hex()}")
    shape = np.frombuffer(data, dtype=">i4", count=data[3], offset=4)
    values = np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * data[3])
    if values.size != int(np.prod(shape)):
        raise DataError(f"{path} holds {values.size:,} values, its header says {shape.tolist()}")
    return values.reshape(shape)


def _cifar10(
    test: bool, where: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], tuple[str, ...]]:
    """Pixels [n, 32, 32, 3], labels [n], class names. torchvision checks the files' digests."""
    from torchvision.datasets import CIFAR10

    root = next((f for f in _data_folders() if (f / "cifar-10-batches-py").is_dir()), _cache())
    try:
        data = CIFAR10(str(root), train=not test, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{where}: cannot download CIFAR-10 ({error}); put cifar-10-python.tar.gz into a "
            f"folder and set NS_RAY_DATA to it"
        ) from None
    return np.asarray(data.data), np.asarray(data.targets), tuple(data.classes)


def _svhn(part: str, where: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Pixels [n, 32, 32, 3] and labels [n]. In the files the images are last, and 0 is 10."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    name = f"{part}_32x32.mat"
    folder = next((f for f in _data_folders() if (f / name).is_file()), None)
    if folder is None:
        from torchvision.datasets import SVHN

        try:
            SVHN(str(_cache()), split=part, download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{where}: cannot download SVHN ({error}); put {name} into a folder and set "
                f"NS_RAY_DATA to it"
            ) from None
        folder = _cache()
    try:
        values = loadmat(folder / name, variable_names=["X", "y"])
        pixels, labels = values["X"], values["y"].reshape(-1) % 10
    except (KeyError, ValueError, OSError, NotImplementedError, MatReadError) as error:
        raise DataError(f"{folder / name} is not a file of SVHN: {error}") from None
    if pixels.dtype != np.uint8 or pixels.shape != (32, 32, 3, len(labels)):
        raise DataError(
            f"{folder / name} holds {pixels.dtype} images {pixels.shape} and {len(labels):,} "
            f"labels; expected uint8 (32, 32, 3, {len(labels)})"
        )
    return np.ascontiguousarray(pixels.transpose(3, 0, 1, 2)), labels
