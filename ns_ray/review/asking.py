"""`ns-ray label-next`: a run's pile -> the images that a person should label, on a page.

Knows no torch and no Ray: what it reads is there when a teacher has labeled the pile.
"""

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from ns_ray import report, store
from ns_ray.config import recorded
from ns_ray.data import decode, file_ending
from ns_ray.errors import ConfigError, DamagedFileError, DataError
from ns_ray.log import progress
from ns_ray.review.choosing import (
    SPARE,
    Array,
    Candidates,
    closest,
    likeliest,
    pool,
    spread,
)
from ns_ray.review.images import each_image
from ns_ray.store import Corpus, PseudoLabels, RunLayout, open_corpus, open_labels

TABLE = "label-next.csv"
COLUMNS = ("path", "label", "guess", "confidence", "key", "uri")
SIDE = 384
"""Longest side of an image on the page, in pixels."""
LOOK = 16
"""Side of the thumbnails that say whether two images look alike."""
FEW = 10
"""Most classes that all have a button; of more, the likeliest have one and the others are typed."""


@dataclass(frozen=True)
class Asked:
    """What was written.

    Attributes:
        table, page: the files.
        images: how many are asked about.
        pile: how many they are from.
    """

    table: str
    page: str
    images: int
    pile: int


def label_next(run: str, *, count: int, out: str) -> Asked:
    """Choose the images of a run's pile whose labels would tell most, and write a table to fill in,
    the images, and a page that fills it in.

    The probabilities are those of the last teacher that labeled the pile. Images that are labeled
    or validation images of the run byte for byte are left out.

    Args:
        run: folder or URI of a run that has labeled its pile; it need not have finished.
        count: how many images.
        out: a folder without a table.

    Raises:
        ConfigError: there is no run, or `out` has a table.
        DataError: the run has no pseudo-labels, or none of the pile is left to label.
    """
    table = store.join(out, TABLE)
    if store.exists(table):
        raise ConfigError(
            f"--out {out} has a {TABLE} already, perhaps with labels of yours; choose another "
            "folder, or remove it"
        )
    layout = RunLayout(store.absolute(run))
    labels, corpus = _labels(layout), open_corpus(layout.corpus("unlabeled"))
    found = candidates(labels, corpus, _labeled(layout), SPARE * count)
    if not len(found):
        raise DataError(f"{layout.root}: every image of the pile is a labeled one; none is left")
    chosen = spread_out(pool(found, count), corpus, count)
    images = _written(chosen, corpus, labels.classes, out)
    mark = store.fingerprint(labels.fingerprint, [image["path"] for image in images])
    page = store.join(out, "index.html")
    name = layout.root.rstrip("/").rpartition("/")[2]
    store.write_bytes(page, page_of(name, labels.classes, images, mark).encode())
    store.write_bytes(table, _csv(images).encode())
    return Asked(table, page, len(images), labels.rows)


def _labels(layout: RunLayout) -> PseudoLabels:
    """The run's last pseudo-labels."""
    if not store.exists(layout.config):
        raise ConfigError(f"{layout.root} is no run: it has no config.yaml; give a run's folder")
    config = recorded(store.read_bytes(layout.config))
    if config is None:
        raise DamagedFileError(layout.config, "it is not what a run writes; start the run again")
    for g in range(len(config["students"]), 0, -1):
        if store.published(layout.pseudo_labels(g)):
            return open_labels(layout.pseudo_labels(g))
    raise DataError(
        f"{layout.root} has no pseudo-labels yet: no teacher has labeled its pile; start the run "
        "again"
    )


def _labeled(layout: RunLayout) -> set[str]:
    """Digests of the images whose labels the run knows."""
    known: set[str] = set()
    for name in ("labeled", "validation"):
        if store.published(layout.corpus(name)):
            for _, table in open_corpus(layout.corpus(name)).scan(["sha256"]):
                known.update(table["sha256"].to_pylist())
    return known


def candidates(labels: PseudoLabels, corpus: Corpus, known: set[str], each: int) -> Candidates:
    """The images of the least margins, `each` of every predicted class, shard by shard."""
    found: Candidates | None = None
    with progress("label-next", labels.rows) as meter:
        for shard in corpus.shards:
            if shard.name not in labels.files:
                continue
            table = labels.read(shard.name)
            probs, classes = likeliest(
                store.dense_probs(table, len(labels.classes), labels.files[shard.name])
            )
            rows = corpus.read(shard, ["key", "sha256"])
            at = pc.index_in(table["key"], value_set=rows["key"].combine_chunks())
            digests = rows["sha256"].take(at).to_numpy()
            shards = np.full(table.num_rows, shard.name)
            more = Candidates(table["key"].to_numpy(), shards, digests, probs, classes)
            more = more.take(np.flatnonzero([digest not in known for digest in digests]))
            found = closest(more if found is None else found.joined(more), each)
            meter.add(table.num_rows)
    if found is None:
        raise DamagedFileError(labels.path, "it has labels of no shard of the pile")
    return found


def spread_out(found: Candidates, corpus: Corpus, count: int) -> Candidates:
    """Those of a pool that look least alike."""
    looks = each_image(zip(found.keys, found.shards, strict=True), corpus, _look)
    found = found.take(np.array([i for i, key in enumerate(found.keys) if key in looks], int))
    features = np.stack([looks[key] for key in found.keys])
    return found.take(np.array(spread(found.classes[:, 0], features, count), int))


def _look(data: bytes, _: str) -> Array:
    """float32 [LOOK * LOOK * 3]: a thumbnail, which says what an image looks like from afar."""
    image = decode(data, shrink_to=LOOK).resize((LOOK, LOOK))
    return np.asarray(image, np.float32).ravel()


def _written(
    chosen: Candidates, corpus: Corpus, classes: Sequence[str], out: str
) -> list[dict[str, Any]]:
    """Write the encoded images as they are, named by their content.

    Returns:
        What the table and the page say of each.
    """

    def write(data: bytes, uri: str) -> dict[str, Any]:
        name = f"images/{hashlib.sha256(data).hexdigest()[:16]}{file_ending(data)}"
        store.write_bytes(store.join(out, name), data)
        return {"path": name, "uri": uri, **vars(report.picture(data, SIDE))}

    made = each_image(zip(chosen.keys, chosen.shards, strict=True), corpus, write)
    return [
        {
            **made[str(key)],
            "key": str(key),
            "label": "",
            "guess": classes[int(likely[0])],
            "confidence": round(float(probs[0]), 4),
            "likely": likely.tolist(),
        }
        for key, likely, probs in zip(chosen.keys, chosen.classes, chosen.probs, strict=True)
    ]


def _csv(lines: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def page_of(run: str, classes: Sequence[str], images: Sequence[dict[str, Any]], mark: str) -> str:
    """The page, as HTML. Labels are kept under `mark` in the browser."""
    letters = all(len(name) == 1 for name in classes)
    content = {
        "mark": f"ns-ray {mark}",
        "table": TABLE,
        "columns": COLUMNS,
        "classes": list(classes),
        "few": len(classes) <= FEW,
        "letters": letters,
        "images": list(images),
    }
    return report.render(
        "label-next.html", run=run, count=len(images), classes=classes, table=TABLE, content=content
    )
