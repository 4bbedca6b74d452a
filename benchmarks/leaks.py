"""How well copies of test images are found in a pile, and what looking for them costs.

    python benchmarks/leaks.py --cifar DATA [--rows 60000] [--pairs OUT] [--photos 1000]
        [--tables recall hashes speed]

Plants 500 copies of test images, 100 of each kind, among the training images of CIFAR-10 (Parquet
files in DATA with a column `image`: cifar10-train.parquet, cifar10-test.parquet) and of
Fashion-MNIST, packs that pile, and prints as Markdown how many of each kind were left out, and how
many training images. Whether these are copies is for people to judge: OUT gets pictures of the
pairs, the training image on the left. The second table says the same of a perceptual hash of 64
bits (imagehash's pHash, on the same thumbnails) by how many bits may differ. The third compares
seconds of CPU of packing with and without, of one process. Writes all as csv beside the docs.
"""

import argparse
import csv
import io
import math
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import photos
import pyarrow as pa
import pyarrow.parquet as pq
from machine import machine
from PIL import Image, ImageDraw, ImageEnhance
from scipy.fft import dctn

from ns_ray import store
from ns_ray.compute import tasks
from ns_ray.data import decode, list_source, pack
from ns_ray.data.leaks import thumbnail
from ns_ray.data.signatures import near
from ns_ray.store import Corpus

EACH = 100
"""Copies of each kind."""
BICUBIC = Image.Resampling.BICUBIC
DOCS = Path(__file__).parent.parent / "docs"


def encoded(image: Image.Image, quality: int = 90) -> bytes:
    """As a JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def copy_of(data: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """A copy of an image, of one of the kinds."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if kind == "re-encoded":
        return encoded(image, int(rng.integers(50, 91)))
    if kind == "resized":
        side = float(rng.choice([0.75, 1.5, 2.0]))
        return encoded(
            image.resize((round(side * image.width), round(side * image.height)), BICUBIC)
        )
    if kind == "cropped":
        width, height = 0.95 * image.width, 0.95 * image.height
        left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
        return encoded(image.resize(image.size, BICUBIC, (left, top, left + width, top + height)))
    if kind == "brightness":
        return encoded(
            ImageEnhance.Brightness(image).enhance(float(rng.choice([0.7, 0.8, 1.2, 1.3])))
        )
    return encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


KINDS = ("re-encoded", "resized", "cropped", "brightness", "flipped")


def planted(test: Sequence[bytes], seed: int) -> list[tuple[str, int, bytes]]:
    """(kind, index of the test image, copy), each of another image."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(test), EACH * len(KINDS), replace=False).tolist()
    return [
        (kind, index, copy_of(test[index], kind, rng))
        for n, kind in enumerate(KINDS)
        for index in chosen[n * EACH : (n + 1) * EACH]
    ]


def table_of(path: str, files: Iterable[bytes]) -> str:
    """A Parquet file of images, which is a source."""
    pq.write_table(pa.table({"image": pa.array(files, pa.binary())}), path, row_group_size=1000)
    return path


def corpus_of(path: str, files: Sequence[bytes]) -> Corpus:
    """A packed corpus of images."""
    return pack(table_of(f"{path}.parquet", files), out=path, classes=())


def packed(pile: str, out: str, test: Corpus | None) -> tuple[Corpus, float]:
    """A pile without copies of test images, and the seconds of CPU that took."""
    alike = None if test is None else near({"test": test}, f"{out}-signatures")
    if alike is not None:
        alike.signatures()
    start = time.process_time()
    corpus = pack(pile, out=out, classes=(), near=alike)
    return corpus, time.process_time() - start


def found_in(corpus: Corpus) -> dict[int, tuple[int, float]]:
    """Row of the pile -> test image and correlation, of each copy of one."""
    table = store.read_table(f"{corpus.path}/copies.parquet")
    return {
        int(row["key"].rpartition("/")[2]): (int(row["of"].rpartition("/")[2]), row["correlation"])
        for row in table.to_pylist()
        if row["correlation"] is not None
    }


def pictures(path: Path, pairs: Sequence[tuple[bytes, bytes, float]]) -> None:
    """Pairs beside each other, 12 in a row, with their correlation."""
    sheet = Image.new("RGB", (12 * 150, -(-len(pairs) // 12) * 90), "white")
    draw = ImageDraw.Draw(sheet)
    for n, (*pair, alike) in enumerate(pairs):
        x, y = n % 12 * 150, n // 12 * 90
        for side, data in enumerate(pair):
            image = Image.open(io.BytesIO(data)).convert("RGB").resize((70, 70))
            sheet.paste(image, (x + 72 * side, y))
        draw.text((x, y + 72), f"{n}: {alike:.4f}", fill="black")
    sheet.save(path)


def recall(
    name: str, train: Sequence[bytes], test: Sequence[bytes], work: str, sheets: Path | None
) -> dict[str, Any]:
    """A line of the first table."""
    held = corpus_of(f"{work}/{name}-test", test)
    copies = planted(test, seed=0)
    pile = table_of(f"{work}/{name}.parquet", [*train, *(data for _, _, data in copies)])
    corpus, _ = packed(pile, f"{work}/{name}", held)
    found = found_in(corpus)
    row: dict[str, Any] = {"set": name}
    for kind in KINDS:
        of = [(len(train) + n, at) for n, (k, at, _) in enumerate(copies) if k == kind]
        row[kind] = sum(r in found for r, _ in of) / len(of)
        row[f"{kind}, right one"] = sum(found.get(r, (-1,))[0] == at for r, at in of) / len(of)
    own = sorted((r for r in found if r < len(train)), key=lambda r: found[r][1])
    row |= {"training images": len(train), "of them left out": len(own)}
    if sheets is not None:
        sheets.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(own), 120):
            some = [(train[r], test[found[r][0]], found[r][1]) for r in own[start : start + 120]]
            pictures(sheets / f"{name}-{start:04d}.png", some)
    return row


def hashes(thumbnails: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """pHash of thumbnails, uint64 [n]: which of 64 low frequencies are above their median."""
    waves = dctn(thumbnails.astype(float), axes=(1, 2))[:, :8, :8].reshape(len(thumbnails), 64)
    above = waves > np.median(waves, axis=1, keepdims=True)
    found: np.ndarray[Any, Any] = np.packbits(above, axis=1).view(np.uint64)[:, 0]
    return found


def hash_recall(name: str, train: Sequence[bytes], test: Sequence[bytes]) -> list[dict[str, Any]]:
    """Lines of the second table."""
    copies = planted(test, seed=0)
    held, seen, made = (
        hashes(np.stack([thumbnail(decode(data)) for data in part]))
        for part in (test, train, [data for _, _, data in copies])
    )
    own = np.bitwise_count(made ^ held[[at for _, at, _ in copies]])
    least = np.array([np.bitwise_count(one ^ held).min() for one in seen])
    kinds = np.array([kind for kind, _, _ in copies])
    return [
        {"set": name, "bits": bits}
        | {kind: float((own[kinds == kind] <= bits).mean()) for kind in KINDS[:4]}
        | {"training images": len(train), "of them left out": int((least <= bits).sum())}
        for bits in (4, 8, 12)
    ]


def speeds(name: str, pile: str, rows: int, held: Corpus, work: str, rounds: int) -> dict[str, Any]:
    """A line of the second table: with and without in turn."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for n in range(rounds):
        for looking in seconds:
            out = f"{work}/speed-{name}-{n}-{looking}"
            seconds[looking].append(packed(pile, out, held if looking else None)[1])
    before, after = (rows / min(seconds[looking]) for looking in (False, True))
    more = 1000 * (1 / after - 1 / before)
    line = {"images": name, "rows": rows, "held out": held.rows}
    return line | {"without": round(before), "with": round(after), "ms an image": round(more, 2)}


def speed(
    sets: Mapping[str, tuple[list[bytes], list[bytes]]], work: str, count: int, rounds: int
) -> list[dict[str, Any]]:
    """The third table."""
    lines: list[Any] = []
    for name, (train, test) in sets.items():
        held = corpus_of(f"{work}/{name}-test", test)
        if not lines:
            pile = photos.write(f"{work}/photos", count)
            lines.append(speeds("500 x 375 photos", pile, count, held, work, rounds))
        pile = table_of(f"{work}/{name}-some.parquet", train[:4000])
        lines.append(speeds(name, pile, len(train[:4000]), held, work, rounds))
    return lines


def show(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """As Markdown, and as csv."""
    names = list(rows[0])
    print("| " + " | ".join(names) + " |")
    print("|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in names) + " |")
    print()
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def images_of(path: Path, rows: int) -> list[bytes]:
    """The first images of a Parquet file."""
    found: list[bytes] = pq.read_table(path, columns=["image"])["image"][:rows].to_pylist()
    return found


def main() -> None:
    """Plant, pack and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=60_000, help="training images of each set")
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--pairs", type=Path)
    tables = ("recall", "hashes", "speed")
    parser.add_argument("--tables", nargs="+", choices=tables, default=tables)
    args = parser.parse_args()
    tasks.RAY = math.inf  # all in this process
    sets: dict[str, tuple[list[bytes], list[bytes]]] = {
        "CIFAR-10": (
            images_of(args.cifar / "cifar10-train.parquet", args.rows),
            images_of(args.cifar / "cifar10-test.parquet", args.rows),
        ),
        "Fashion-MNIST": (
            [item.read() for item in list_source("fashion-mnist").items[: args.rows]],
            [item.read() for item in list_source("fashion-mnist:test").items[: args.rows]],
        ),
    }
    with tempfile.TemporaryDirectory(prefix="ns-ray-leaks-") as work:
        print(f"{machine()}\n")
        if "recall" in args.tables:
            rows = [recall(name, *both, work, args.pairs) for name, both in sets.items()]
            show(rows, DOCS / "leaks.csv")
        if "hashes" in args.tables:
            found = [hash_recall(name, train[:3000], test) for name, (train, test) in sets.items()]
            show([row for rows in found for row in rows], DOCS / "leaks-hashes.csv")
        if "speed" in args.tables:
            show(speed(sets, work, args.photos, args.rounds), DOCS / "leaks-speed.csv")


if __name__ == "__main__":
    main()
