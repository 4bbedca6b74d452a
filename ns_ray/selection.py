"""The selection stage: pseudo-labels in, the rows that train the student out.

    pass 1      statistics per predicted class
    pass 2..    a narrower histogram, as long as policy.py cannot tell where a class is cut
    last pass   one file of kept rows and their copies per corpus shard

Each pass runs over batches of label files in Ray tasks; what comes back is counts, never rows, so
the driver needs the same memory for a thousand rows as for a billion. Few labels are selected in
this process by the same functions; for more, the caller has started Ray (runtime.py). Knows
nothing about images or models.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table

from ns_ray import log, policy, storage
from ns_ray.config import SelectConfig
from ns_ray.errors import DataError, NsRayError, StageError
from ns_ray.schema import FORMAT, SELECTION, hash_keys, part_name
from ns_ray.values import PseudoLabels, Selection, open_selection

SMALL_FILES, SMALL_ROWS = 64, 100_000
"""Up to this many label files, or rows, are selected without Ray: starting it costs more."""
BATCH_FILES, BATCH_ROWS = 64, 1_000_000
"""Most label files, and about the most rows, that one task handles."""
SHOWN_CLASSES = 30
"""Most classes that are printed one by one."""
ROW_GROUP = 65_536
HASH_SALT, SHARE_SALT = 0x53454C454354, 0x5348415245
"""Set these hashes, and those of the share of the pile, apart from other stages' hashes."""

T = TypeVar("T")


@dataclass(frozen=True)
class LabelFile:
    """The pseudo-labels of one corpus shard."""

    shard: str
    path: str


Batch = list[LabelFile]


@dataclass(frozen=True)
class Written:
    """What a task wrote.

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


def select(
    config: SelectConfig,
    labels: PseudoLabels,
    *,
    seed: int,
    labeled_counts: Sequence[int] | None = None,
    previous: Selection | None = None,
    out: str,
) -> Selection:
    """Decide which pseudo-labeled rows train the student, and how many copies of each.

    Args:
        config: threshold, balance and copies.
        labels: the teacher's pseudo-labels.
        seed: with the key it decides ties and copies.
        labeled_counts: labeled images per class, for the printed table only.
        previous: the last generation's selection; with `config.reassign` its keys and copies stay,
            and get the labels and confidences of `labels`.
        out: folder or URI of the selection. Run again with the same inputs, it is returned as is.

    Raises:
        DataError: no row is selected, or the labels cannot be used.
        StageError: a task failed; running again continues.
    """
    start = time.monotonic()
    out = storage.absolute(out)
    kept_from = previous if config.reassign else None
    fingerprint = storage.fingerprint(
        *("select", FORMAT, config.model_dump(mode="json"), seed, labels.fingerprint),
        kept_from.fingerprint if kept_from else None,
    )
    if storage.already(out, fingerprint):
        return open_selection(out)

    statistics = _statistics(config, labels, seed)
    if kept_from is None:
        plan = _plan(config, labels, statistics, seed)
        write = partial(_select_file, config, plan, seed)
    else:
        plan = None
        write = partial(_reassign_file, _same_corpus(kept_from, labels))
    written = _write(labels, write, out, fingerprint)
    facts = _facts(config, labels, statistics, plan, written, labeled_counts)
    facts |= {"seed": seed, "reassigned": kept_from.path if kept_from else None}
    storage.publish(
        out,
        stage="select",
        fingerprint=fingerprint,
        files=written.files,
        facts=facts,
        inputs={
            "labels": labels.fingerprint,
            "previous": kept_from.fingerprint if kept_from else None,
            "config": config.model_dump(mode="json"),
        },
        seconds=time.monotonic() - start,
    )
    selection = open_selection(out)
    _show(selection)
    return selection


def selection_table(selection: Selection) -> Table:
    """What was selected per class, for people; many classes are cut to the rarest and the most
    common ones."""
    classes: list[dict[str, Any]] = selection.facts["table"]
    table = Table("Class", header_style="bold")
    for title in ("Labeled", "Pseudo-labeled", "Kept", "Copies", "Threshold"):
        table.add_column(title, justify="right")
    if len(classes) <= SHOWN_CLASSES:
        for row in classes:
            table.add_row(*_cells(row))
        return table
    by_rows = sorted(classes, key=lambda row: int(row["rows"]))
    for row in by_rows[:10]:
        table.add_row(*_cells(row))
    table.add_row(f"... {len(classes) - 20:,} more ...", end_section=True)
    for row in by_rows[-10:]:
        table.add_row(*_cells(row))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    counts = [row["labeled"], row["rows"], row["kept"], row["copies"]]
    threshold = "-" if row["threshold"] is None else f"{row['threshold']:.4f}"
    return [str(row["class"]), *["-" if n is None else f"{n:,}" for n in counts], threshold]


def _show(selection: Selection) -> None:
    facts = selection.facts
    log.console.print(selection_table(selection))
    balance = f"{facts['per_class']:,} per class" if facts["per_class"] else "not balanced"
    how = "those of the last selection" if facts["reassigned"] else balance
    empty = sum(row["kept"] == 0 for row in facts["table"])
    log.say(
        f"select: kept {selection.kept:,} of {facts['rows']:,} rows "
        f"({facts['eligible']:,} above {facts['threshold']}), {how}; "
        f"{selection.copies:,} with copies" + (f"; {empty:,} classes got none" if empty else "")
    )


# ----------------------------------------------------------------------------------- passes


def _statistics(config: SelectConfig, labels: PseudoLabels, seed: int) -> policy.Statistics:
    """Pass 1."""
    classes = len(labels.classes)
    statistics = policy.Statistics(classes)
    for part in _each(partial(_count, config, classes, seed), labels, "select: count"):
        statistics.add(part)
    return statistics


def _plan(
    config: SelectConfig, labels: PseudoLabels, statistics: policy.Statistics, seed: int
) -> policy.Plan:
    """What to do with each class, after as many further passes as the cuts need.

    Raises:
        DataError: no row is above the threshold.
    """
    counts = statistics.eligible
    if not counts.any():
        raise DataError(
            f"no pseudo-label is above select.threshold={config.threshold}: of {labels.rows:,} "
            f"rows in {labels.path} the highest confidence is {statistics.highest:.4f} (with "
            f"max_confidence={config.max_confidence} and share={config.share}); lower "
            "select.threshold, or label with a better teacher"
        )
    target = policy.class_target(config.per_class, counts.sum(axis=1))
    cut = policy.first_cut(counts, target)
    while cut.open:
        narrower = np.zeros_like(counts)
        work = partial(_count_cut, config, cut, len(labels.classes), seed)
        for tally in _each(work, labels, f"select: cut {cut.level}"):
            tally.add_to(narrower)
        cut = policy.narrow(cut, narrower)
    return policy.make_plan(config, counts, cut, target)


def _write(
    labels: PseudoLabels,
    write: Callable[[pa.Table, LabelFile], pa.Table],
    out: str,
    fingerprint: str,
) -> Written:
    """The last pass: a file per corpus shard."""
    classes = len(labels.classes)
    work = partial(_write_batch, write, classes, out, fingerprint)
    total = Written({}, [], np.zeros(classes, np.int64), np.zeros(classes, np.int64))
    for part in _each(work, labels, "select: write"):
        total.copies.update(part.copies)
        total.files.extend(part.files)
        total.kept_per_class[:] += part.kept_per_class
        total.copies_per_class[:] += part.copies_per_class
    total.files.sort()
    return total


def _same_corpus(previous: Selection, labels: PseudoLabels) -> Selection:
    missing = sorted(set(previous.files) - set(labels.files))
    if previous.corpus != labels.corpus or missing:
        raise DataError(
            f"select.reassign: the selection {previous.path} is of {previous.corpus}, the "
            f"pseudo-labels {labels.path} are of {labels.corpus}"
            + (f" and lack shard {missing[0]!r}" if missing else "")
            + "; label the same corpus, or set select.reassign=false"
        )
    return previous


def _facts(
    config: SelectConfig,
    labels: PseudoLabels,
    statistics: policy.Statistics,
    plan: policy.Plan | None,
    written: Written,
    labeled_counts: Sequence[int] | None,
) -> dict[str, Any]:
    rows, eligible = statistics.coarse.sum(axis=1), statistics.eligible.sum(axis=1)
    unknown = [None] * len(labels.classes)
    columns = {
        "class": labels.classes,
        "labeled": unknown if labeled_counts is None else [int(n) for n in labeled_counts],
        "rows": rows.tolist(),
        "eligible": eligible.tolist(),
        "kept": written.kept_per_class.tolist(),
        "copies": written.copies_per_class.tolist(),
        "threshold": plan.thresholds.tolist() if plan else unknown,
    }
    return {
        "labels": labels.path,
        "corpus": labels.corpus,
        "targets": config.targets,
        "temperature": config.temperature,
        "threshold": config.threshold,
        "per_class": plan.target if plan else None,
        "rows": int(rows.sum()),
        "eligible": int(eligible.sum()),
        "kept": int(written.kept_per_class.sum()),
        "copies": int(written.copies_per_class.sum()),
        "highest": statistics.highest,
        "table": [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ],
        "histogram": statistics.coarse.tolist(),
        "counts": dict(sorted(written.copies.items())),
    }


# ------------------------------------------------------------- what tasks do to their batch


def _count(config: SelectConfig, classes: int, seed: int, batch: Batch) -> policy.Counted:
    table = _read(batch, ["key"] * (config.share < 1) + ["label", "confidence"])
    return policy.count(*_columns(_candidates(config, seed, table), classes), config.threshold)


def _count_cut(
    config: SelectConfig, cut: policy.Cut, classes: int, seed: int, batch: Batch
) -> policy.Tally:
    table = _read(batch, ["key"] * (cut.needs_hashes or config.share < 1) + ["label", "confidence"])
    table = _candidates(config, seed, table)
    labels, confidence = _columns(table, classes)
    rows = cut.rows(labels, confidence)
    hashes = _hashes(table, rows, seed)[rows] if cut.needs_hashes else None
    return cut.count(labels[rows], policy.rank(confidence[rows], hashes))


def _write_batch(
    write: Callable[[pa.Table, LabelFile], pa.Table],
    classes: int,
    out: str,
    fingerprint: str,
    batch: Batch,
) -> Written:
    done = Written({}, [], np.zeros(classes, np.int64), np.zeros(classes, np.int64))
    for file in batch:
        name = part_name(file.shard, fingerprint)
        path = storage.join(out, name)
        if storage.exists(path):  # by an earlier, interrupted run: a file is whole or not there
            table = storage.read_table(path, ["label", "copies"])
        else:
            table = write(_read([file], ["key", "label", "confidence"]), file)
            storage.write_table(path, table, ROW_GROUP)
        labels, copies = _numpy(table, "label"), _numpy(table, "copies").astype(np.int64)
        done.files.append(name)
        done.copies[file.shard] = int(copies.sum())
        done.kept_per_class[:] += np.bincount(labels, minlength=classes)
        np.add.at(done.copies_per_class, labels, copies)
    return done


def _candidates(config: SelectConfig, seed: int, table: pa.Table) -> pa.Table:
    """Rows that are not too confident, and in the drawn share of the pile."""
    if config.max_confidence < 1:
        table = table.filter(pc.less_equal(table["confidence"], np.float32(config.max_confidence)))
    if config.share < 1:
        drawn = hash_keys(table["key"], seed ^ SHARE_SALT) < np.uint64(config.share * 2.0**64)
        table = table.filter(pa.array(drawn))
    return table


def _select_file(
    config: SelectConfig, plan: policy.Plan, seed: int, table: pa.Table, file: LabelFile
) -> pa.Table:
    table = _candidates(config, seed, table)
    labels, confidence = _columns(table, len(plan.lowest))
    hashes = _hashes(table, plan.needs_hash(labels, confidence), seed)
    copies = plan.apply(labels, confidence, hashes)
    return _selected(table.filter(pa.array(copies > 0)), copies[copies > 0], file)


def _reassign_file(previous: Selection, table: pa.Table, file: LabelFile) -> pa.Table:
    if file.shard not in previous.files:
        return SELECTION.empty_table()
    kept = previous.read(file.shard, ["key", "copies"])
    rows = pc.index_in(kept["key"], value_set=table["key"].combine_chunks())
    if rows.null_count:
        key = kept["key"].filter(pc.is_null(rows))[0].as_py()
        raise DataError(
            f"select.reassign: key {key!r} of {previous.path} has no pseudo-label in {file.path}; "
            "label the same corpus, or set select.reassign=false"
        )
    return _selected(table.take(rows), _numpy(kept, "copies"), file)


def _selected(table: pa.Table, copies: policy.Array, file: LabelFile) -> pa.Table:
    columns = [
        *(table["key"], table["label"], table["confidence"]),
        pa.array(copies.astype(np.int32)),
        pa.array([file.shard] * table.num_rows, pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=SELECTION)


def _read(batch: Batch, columns: list[str]) -> pa.Table:
    tables = []
    for file in batch:
        try:
            tables.append(storage.read_table(file.path, columns))
        except (pa.ArrowInvalid, FileNotFoundError) as error:
            raise DataError(
                f"pseudo-labels {file.path} cannot be read ({error}); label again"
            ) from None
    return pa.concat_tables(tables)


def _columns(table: pa.Table, classes: int) -> tuple[policy.Array, policy.Array]:
    """Labels int32 [n] and confidences float32 [n].

    Raises:
        DataError: a label is no class, or a confidence is not a number.
    """
    labels, confidence = _numpy(table, "label"), _numpy(table, "confidence")
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise DataError(
            f"pseudo-labels hold class {labels.max()} or {labels.min()}; there are {classes}, "
            f"from 0 to {classes - 1}; label again"
        )
    if not np.isfinite(confidence).all():
        raise DataError("a pseudo-label has a confidence that is not a number; check the teacher")
    return labels, confidence


def _numpy(table: pa.Table, column: str) -> policy.Array:
    return np.asarray(table[column].to_numpy())


def _hashes(table: pa.Table, rows: policy.Mask, seed: int) -> policy.Hashes:
    """Hashes uint64 [n] of some rows, 0 for the others: hashing is the only work done per row in
    Python."""
    hashes = np.zeros(table.num_rows, np.uint64)
    if rows.any():
        hashes[rows] = hash_keys(table["key"].filter(pa.array(rows)), seed ^ HASH_SALT)
    return hashes


# ---------------------------------------------------------------------- here, or in Ray tasks


def _each(work: Callable[[Batch], T], labels: PseudoLabels, title: str) -> Iterator[T]:
    """`work` on every batch of label files, in any order."""
    batches = _batches(labels)
    if in_process(labels):
        yield from map(work, batches)
    else:
        with log.progress(title, len(labels.files), "label files") as meter:
            for size, result in _in_tasks(work, batches):
                meter.add(size)
                yield result


def in_process(labels: PseudoLabels) -> bool:
    """Whether there are so few labels that Ray isn't needed."""
    return len(labels.files) <= SMALL_FILES or labels.rows <= SMALL_ROWS


def _batches(labels: PseudoLabels) -> list[Batch]:
    files = [
        LabelFile(shard, storage.join(labels.path, name))
        for shard, name in sorted(labels.files.items())
    ]
    rows_per_file = max(labels.rows // max(len(files), 1), 1)
    size = min(BATCH_FILES, max(BATCH_ROWS // rows_per_file, 1))
    return [files[i : i + size] for i in range(0, len(files), size)]


def _in_tasks(work: Callable[[Batch], T], batches: list[Batch]) -> Iterator[tuple[int, T]]:
    """Number of files and result of every batch, as the tasks finish; a bounded number of tasks
    waits or runs, and a task whose node is lost runs again."""
    import ray  # `in_process` does without

    task = ray.remote(num_cpus=1)(_call)
    shared = ray.put(work)
    in_flight = 8 + 2 * int(ray.cluster_resources().get("CPU", 1))
    waiting = iter(batches)
    running: dict[Any, int] = {}
    try:
        while True:
            while len(running) < in_flight and (batch := next(waiting, None)) is not None:
                running[task.remote(shared, batch)] = len(batch)
            if not running:
                return
            ready, _ = ray.wait(list(running))
            for done in ready:
                yield running.pop(done), ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, NsRayError):
            raise error.cause from None
        raise StageError(f"select: a task failed: {error.cause!r}") from None
    except ray.exceptions.RayError as error:
        raise StageError(f"select: a task failed: {error}") from None
    finally:
        for task_left in running:
            ray.cancel(task_left)


def _call(work: Callable[[Batch], T], batch: Batch) -> T:
    return work(batch)
