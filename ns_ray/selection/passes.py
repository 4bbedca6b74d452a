"""What selection does to some label files: count rows, or write the selected ones.

Each function is one pass over its files, in this process or in a Ray task (stage.py); what
comes back is counts, never rows. Knows nothing about Ray.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ns_ray import store
from ns_ray.config import SelectConfig
from ns_ray.errors import DataError
from ns_ray.selection import policy
from ns_ray.selection.weighting import Gaussian
from ns_ray.store import SELECTION, WEIGHTED_SELECTION, Selection, hash_keys, part_name

ROW_GROUP = 65_536
HASH_SALT, SHARE_SALT = 0x53454C454354, 0x5348415245
"""Set these hashes, and those of the share of the pile, apart from other stages' hashes."""


@dataclass(frozen=True)
class LabelFile:
    """The pseudo-labels of one corpus shard."""

    shard: str
    path: str


LabelFiles = Sequence[LabelFile]
Write = Callable[[pa.Table, LabelFile], pa.Table]
"""Pseudo-labels of a corpus shard (key, label, confidence, and foreign where it is known) -> its
rows of the selection."""


@dataclass(frozen=True)
class Written:
    """What a pass wrote.

    Attributes:
        copies: corpus shard name -> rows, copies counted.
        files: names of the files.
        kept_per_class: int64 [classes].
        copies_per_class: int64 [classes], copies counted.
    """

    copies: dict[str, int]
    files: list[str]
    kept_per_class: policy.Ints
    copies_per_class: policy.Ints


def count(
    config: SelectConfig, least: policy.Floats, foreign: bool, seed: int, files: LabelFiles
) -> policy.Counted:
    """Statistics per predicted class, and of how foreign all rows are if that is known."""
    columns = ["key"] * (config.share < 1) + ["label", "confidence"] + ["foreign"] * foreign
    table = _read(files, columns)
    counted = policy.count(*_columns(_candidates(config, seed, table), len(least), files), least)
    if foreign:
        counted = replace(counted, foreign=policy.count_foreign(_foreign(table, files)))
    return counted


def count_cut(
    config: SelectConfig, cut: policy.Cut, classes: int, seed: int, files: LabelFiles
) -> policy.Tally:
    """A narrower histogram of the rows around the cuts."""
    columns = ["key"] * (cut.needs_hashes or config.share < 1) + ["label", "confidence"]
    table = _read(files, columns + ["foreign"] * (config.max_foreign is not None))
    table = _candidates(config, seed, table)
    labels, confidence = _columns(table, classes, files)
    rows = cut.rows(labels, confidence)
    hashes = _hashes(table, rows, seed)[rows] if cut.needs_hashes else None
    return cut.count(labels[rows], policy.rank(confidence[rows], hashes))


def write(
    write_file: Write, classes: int, foreign: bool, out: str, fingerprint: str, files: LabelFiles
) -> Written:
    """A file of the selection for each label file."""
    columns = ["key", "label", "confidence"] + ["foreign"] * foreign
    done = Written({}, [], np.zeros(classes, np.int64), np.zeros(classes, np.int64))
    for file in files:
        name = part_name(file.shard, fingerprint)
        path = store.join(out, name)
        if store.exists(path):  # by an earlier, interrupted run: a file is whole or not there
            table = store.read_table(path, ["label", "copies"])
        else:
            table = write_file(_read([file], columns), file)
            store.write_table(path, table, ROW_GROUP)
        labels, copies = _numpy(table, "label"), _numpy(table, "copies").astype(np.int64)
        done.files.append(name)
        done.copies[file.shard] = int(copies.sum())
        done.kept_per_class[:] += np.bincount(labels, minlength=classes)
        np.add.at(done.copies_per_class, labels, copies)
    return done


def selected(
    config: SelectConfig,
    quotas: policy.Quotas,
    gaussian: Gaussian | None,
    seed: int,
    table: pa.Table,
    file: LabelFile,
) -> pa.Table:
    """The rows within the quotas of their classes, their copies, and their weights if they have
    any. What is foreign is there once: copies would multiply what is of no class."""
    table = _candidates(config, seed, table)
    labels, confidence = _columns(table, len(quotas.lowest), [file])
    hashes = _hashes(table, quotas.needs_hash(labels, confidence), seed)
    copies = quotas.apply(labels, confidence, hashes)
    if "foreign" in table.column_names:
        copies = np.where(_foreign(table, [file]) > 1, np.minimum(copies, 1), copies)
    return _selection(table.filter(pa.array(copies > 0)), copies[copies > 0], gaussian, file)


def reassigned(
    previous: Selection, gaussian: Gaussian | None, table: pa.Table, file: LabelFile
) -> pa.Table:
    """The rows and copies of an earlier selection, with the labels, confidences and weights of now.

    Raises:
        DataError: a selected key has no pseudo-label any more.
    """
    if file.shard not in previous.files:
        return (WEIGHTED_SELECTION if gaussian else SELECTION).empty_table()
    kept = previous.read(file.shard, ["key", "copies"])
    rows = pc.index_in(kept["key"], value_set=table["key"].combine_chunks())
    if rows.null_count:
        key = kept["key"].filter(pc.is_null(rows))[0].as_py()
        raise DataError(
            f"select.reassign: key {key!r} of {previous.path} has no pseudo-label in {file.path}; "
            "label the same corpus, or set select.reassign=false"
        )
    return _selection(table.take(rows), _numpy(kept, "copies"), gaussian, file)


def _selection(
    table: pa.Table, copies: policy.Array, gaussian: Gaussian | None, file: LabelFile
) -> pa.Table:
    columns = [
        *(table["key"], table["label"], table["confidence"]),
        pa.array(copies.astype(np.int32)),
        pa.array([file.shard] * table.num_rows, pa.string()),
    ]
    if gaussian is None:
        return pa.Table.from_arrays(columns, schema=SELECTION)
    columns.append(pa.array(gaussian.weights(_numpy(table, "confidence"))))
    return pa.Table.from_arrays(columns, schema=WEIGHTED_SELECTION)


def _candidates(config: SelectConfig, seed: int, table: pa.Table) -> pa.Table:
    """Rows that are not too confident or too foreign, and in the drawn share of the pile."""
    if config.max_foreign is not None:
        table = table.filter(pc.less_equal(table["foreign"], np.float32(config.max_foreign)))
    if config.max_confidence < 1:
        table = table.filter(pc.less_equal(table["confidence"], np.float32(config.max_confidence)))
    if config.share < 1:
        drawn = hash_keys(table["key"], seed ^ SHARE_SALT) < np.uint64(config.share * 2.0**64)
        table = table.filter(pa.array(drawn))
    return table


def _read(files: LabelFiles, columns: list[str]) -> pa.Table:
    tables = []
    for file in files:
        try:
            tables.append(store.read_table(file.path, columns))
        except FileNotFoundError as error:
            raise DataError(
                f"pseudo-labels {file.path} cannot be read ({error}); label again"
            ) from None
    return pa.concat_tables(tables, promote_options="default")


def _columns(table: pa.Table, classes: int, files: LabelFiles) -> tuple[policy.Array, policy.Array]:
    """Labels int32 [n] and confidences float32 [n] of some files.

    Raises:
        DataError: a label is no class, or a confidence is not a number.
    """
    labels, confidence = _numpy(table, "label"), _numpy(table, "confidence")
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise DataError(
            f"pseudo-labels hold class {labels.max()} or {labels.min()}; there are {classes}, "
            f"from 0 to {classes - 1}; label again ({_where(files)})"
        )
    if not np.isfinite(confidence).all():
        raise DataError(
            "a pseudo-label has a confidence that is not a number; check the teacher "
            f"({_where(files)})"
        )
    return labels, confidence


def _foreign(table: pa.Table, files: LabelFiles) -> policy.Array:
    """How foreign the rows of some files are, float32 [n].

    Raises:
        DataError: of one it is not a number.
    """
    foreign = _numpy(table, "foreign")
    if not np.isfinite(foreign).all():
        raise DataError(
            "of a pseudo-label it is not known how foreign it is; check the teacher "
            f"({_where(files)})"
        )
    return foreign


def _where(files: LabelFiles) -> str:
    return files[0].path + (f" to {files[-1].path}" if len(files) > 1 else "")


def _numpy(table: pa.Table, column: str) -> policy.Array:
    return np.asarray(table[column].to_numpy())


def _hashes(table: pa.Table, rows: policy.Mask, seed: int) -> policy.Hashes:
    """Hashes uint64 [n] of some rows, 0 for the others: hashing is the only work done per row in
    Python."""
    hashes = np.zeros(table.num_rows, np.uint64)
    if rows.any():
        hashes[rows] = hash_keys(table["key"].filter(pa.array(rows)), seed ^ HASH_SALT)
    return hashes
