"""`ns-ray suspects`: the labeled images of a config -> those whose labels are probably wrong.

A model that was trained on a wrong label has learnt it. So the probabilities are out of fold: of
models that have not seen the image.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from ns_ray import report, store
from ns_ray.config import Images, RunConfig, settle
from ns_ray.data import folded, ingest, symmetric, together
from ns_ray.errors import DataError
from ns_ray.itinerary import steps
from ns_ray.log import say
from ns_ray.protocol import Stages
from ns_ray.review.confident import Array, Doubts, doubts
from ns_ray.review.images import each_image
from ns_ray.selftrain import train_model
from ns_ray.steps import Label
from ns_ray.store import Corpus, RunLayout

SUSPECTS = "suspects.csv"
FOLDS = 5
SHOWN = 300
"""Most images on the page, the most suspect ones."""
SIDE = 112
"""Longest side of an image on the page, in pixels."""


@dataclass(frozen=True)
class Found:
    """What was written.

    Attributes:
        table, page: the files.
        suspects: how many labels are suspect.
        images: of how many.
    """

    table: str
    page: str
    suspects: int
    images: int


def find_suspects(config: RunConfig, stages: Stages, *, device: str, out: str) -> Found:
    """Train the first teacher of a run on four fifths of its labeled images at a time, or fit
    logistic regression on its features where it starts from pretrained weights, and write what the
    models say of the labels of the others: `suspects.csv`, a page, and `labels.parquet` of all
    labels with all probabilities, in the order of the classes. Validation images that a run holds
    out of the labeled ones are among them.

    Args:
        config: a run, of which only the labeled images and the teacher are used, which is no
            bundle.
        stages: that train and label.
        device: where features are computed, cpu or cuda.
        out: a folder; run again, it continues.

    Raises:
        DataError: there are fewer than two images of every class.
    """
    layout = RunLayout(store.join(out, "work"))
    corpus, prefixes = _labeled(config, layout)
    if max(corpus.class_counts) < 2:
        raise DataError(f"data.labeled={config.data.labeled!r} has one image of each class only")
    probs = _on_features(config, corpus, device)
    if probs is None:
        probs = _of_models(config, stages, corpus, out)
    table = _table(corpus)
    labels = table["label"].to_numpy().astype(np.int64)
    every = np.stack([probs[key] for key in table["key"].to_pylist()])
    found = doubts(every, labels)
    written = _lines(table, found, corpus.classes, prefixes)
    whole = written.append_column("probabilities", pa.array(list(every), pa.list_(pa.float32())))
    store.write_bytes(store.join(out, "labels.parquet"), _parquet(whole))
    ranked = written.take(pa.array(found.ranked))
    page = store.join(out, "index.html")
    store.write_bytes(
        page, _page(config, corpus, table, ranked, found.ranked, len(labels)).encode()
    )
    store.write_bytes(store.join(out, SUSPECTS), _csv(ranked.drop_columns("suspect")))
    return Found(store.join(out, SUSPECTS), page, ranked.num_rows, len(labels))


def _labeled(config: RunConfig, layout: RunLayout) -> tuple[Corpus, str]:
    """The labeled images, those that a run would hold out of them included, and a pattern of what
    then is in front of their keys."""
    data = ingest(config.data, seed=config.seed, out=layout, pile=False)
    if config.data.validation is not None:
        return data.labeled, "^"
    whole = together(data.labeled, data.validation, layout.corpus("all-labeled"))
    return whole, "^(labeled|validation)/"


def _on_features(config: RunConfig, corpus: Corpus, device: str) -> dict[str, Array] | None:
    """Probabilities by key, of logistic regression; None where the teacher has no features yet."""
    if config.teacher.pretrained is None:
        return None
    from ns_ray.training import out_of_fold  # imports torch

    say(f"suspects: logistic regression on features of {config.teacher.model}, in folds")
    probs = out_of_fold(config.teacher, corpus, device)
    if probs is None:
        return None
    keys = (key for _, table in corpus.scan(["key"]) for key in table["key"].to_pylist())
    return dict(zip(keys, probs, strict=True))


def _of_models(config: RunConfig, stages: Stages, corpus: Corpus, out: str) -> dict[str, Array]:
    """Probabilities by key, of a teacher for each fold, trained on the others."""
    folds = min(FOLDS, max(corpus.class_counts))
    label = config.label.model_copy(
        update={"noised": False, "dense_classes": len(corpus.classes), "teachers": 1}
    )
    found: dict[str, Array] = {}
    for k in range(folds):
        place = RunLayout(store.join(out, "work", f"fold-{k + 1}"))
        others, fold = folded(corpus, k, folds, store.join(place.root, "corpora"))
        settled = settle(config, Images(others.rows, 0, symmetric(others)))[0]
        title = f"fold {k + 1}/{folds}"
        trainings = [replace(step, title=title) for step in steps(settled, place).teacher.trainings]
        model = train_model(
            config, stages, trainings, labeled=others, validation=None, seed=config.seed
        )
        step = Label(title, title, place.pseudo_labels(1), 1, config.teacher, 1)
        labels = stages.pseudo_label(step, label, [model], fold, noise=None)
        for shard in labels.files:
            table = labels.read(shard)
            probs = store.dense_probs(table, len(corpus.classes), labels.files[shard])
            found.update(zip(table["key"].to_pylist(), probs, strict=True))
    return found


def _table(corpus: Corpus) -> pa.Table:
    """key, label, uri and shard of every image."""
    parts = [
        table.append_column("shard", pa.array([shard.name] * table.num_rows))
        for shard, table in corpus.scan(["key", "label", "uri"])
    ]
    return pa.concat_tables(parts)


def _lines(table: pa.Table, found: Doubts, classes: Sequence[str], prefixes: str) -> pa.Table:
    """A line for each image, for people: classes by name, keys as they are in the source."""
    names = np.array(classes, object)
    keys = pc.replace_substring_regex(table["key"], prefixes, "")
    return pa.table(
        {
            "key": keys,
            "uri": table["uri"],
            "label": names[table["label"].to_numpy()],
            "likely": names[found.other],
            "label_probability": found.label.round(4),
            "likely_probability": found.likely.round(4),
            "margin": found.margin.round(4),
            "suspect": found.suspect,
        }
    )


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _csv(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(table, buffer, pyarrow.csv.WriteOptions(quoting_style="needed"))
    return buffer.getvalue()


def _page(
    config: RunConfig, corpus: Corpus, table: pa.Table, ranked: pa.Table, rows: Array, images: int
) -> str:
    """The suspects with their pictures, as HTML."""
    shown = rows[:SHOWN]
    keys = [str(table["key"][int(i)]) for i in shown]
    shards = [str(table["shard"][int(i)]) for i in shown]
    made = each_image(
        zip(keys, shards, strict=True), corpus, lambda data, _: report.picture(data, SIDE)
    )
    lines: list[dict[str, Any]] = ranked.slice(0, SHOWN).to_pylist()
    pictures = [{**line, "picture": made.get(key)} for line, key in zip(lines, keys, strict=True)]
    sources = config.data.labeled
    return report.render(
        "suspects.html",
        name=config.name,
        data=sources if isinstance(sources, str) else ", ".join(sources),
        images=images,
        suspects=ranked.num_rows,
        pictures=pictures,
        table=SUSPECTS,
    )
