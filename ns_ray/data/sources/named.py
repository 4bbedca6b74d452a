"""Named sets: digits, fashion-mnist, cifar10, svhn; `:test` for their test images, and `svhn:extra`
for the 531,131 easier images beside its training images."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ns_ray import store
from ns_ray.data.sources.idx import read_idx
from ns_ray.data.sources.items import Item, Pixels, allocate, ordered
from ns_ray.data.sources.listing import Listing
from ns_ray.errors import DataError, MissingSourceError

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
        MissingSourceError: its files are neither here nor to be downloaded.
        DataError: there is no such part, or a file is damaged.
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


@contextmanager
def _downloading(name: str, files: str, where: str) -> Iterator[None]:
    """What keeps torchvision from downloading a set into the cache, in words of ours.

    Raises:
        MissingSourceError: names the files that it needs.
        OSError: there is no room for them.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if store.full_disk(error):
            raise
        raise MissingSourceError(
            where,
            f"{where}: cannot download {name} ({error}); put {files} into a folder and set "
            "NS_RAY_DATA to it",
        ) from None


def _fashion_mnist(part: str, where: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Pixels [n, 28, 28] and labels [n]."""
    names = [f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"]
    folder = next((f for f in _data_folders() if all((f / n).is_file() for n in names)), None)
    if folder is None:
        from torchvision.datasets import FashionMNIST

        with _downloading("Fashion-MNIST", " and ".join(names), where):
            FashionMNIST(str(_cache()), download=True)
        folder = _cache() / "FashionMNIST" / "raw"
    pixels, labels = (read_idx(str(folder / name)) for name in names)
    if len(pixels) != len(labels):
        raise DataError(f"{folder}: {len(pixels):,} images but {len(labels):,} labels in {names}")
    return pixels, labels


def _cifar10(
    test: bool, where: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], tuple[str, ...]]:
    """Pixels [n, 32, 32, 3], labels [n], class names. torchvision checks the files' digests."""
    from torchvision.datasets import CIFAR10

    root = next((f for f in _data_folders() if (f / "cifar-10-batches-py").is_dir()), _cache())
    with _downloading("CIFAR-10", "cifar-10-python.tar.gz", where):
        data = CIFAR10(str(root), train=not test, download=True)
    return np.asarray(data.data), np.asarray(data.targets), tuple(data.classes)


def _svhn(part: str, where: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Pixels [n, 32, 32, 3] and labels [n]. In the files the images are last, and 0 is 10."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    name = f"{part}_32x32.mat"
    folder = next((f for f in _data_folders() if (f / name).is_file()), None)
    if folder is None:
        from torchvision.datasets import SVHN

        with _downloading("SVHN", name, where):
            SVHN(str(_cache()), split=part, download=True)
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
