"""Predictions for people and programs: a table for the screen, CSV, JSON, Parquet."""

import csv
import io
import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Literal, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.table import Table

from ns_ray import store
from ns_ray.log import as_json, plain, tabulate

Format = Literal["table", "csv", "json", "parquet"]

SCHEMA = pa.schema(
    [
        ("filename", pa.string()),
        ("rank", pa.int32()),
        ("index", pa.int32()),
        ("label", pa.string()),
        ("prob", pa.float32()),
        ("error", pa.string()),
    ]
)
"""One row per image and rank, from 1; an image that cannot be used has one row with its error.
The names are those of timm's inference.py."""


def write_rows(rows: Iterable[dict[str, Any]], format: Format, out: TextIO) -> None:
    """Rows of SCHEMA, of each image together, as a table, CSV or JSON."""
    if format == "csv":
        writer = csv.DictWriter(out, SCHEMA.names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    elif format == "json":
        _write_json(rows, out)
    else:
        _write_table(rows, out)


def _write_json(rows: Iterable[dict[str, Any]], out: TextIO) -> None:
    """A list with one object per image, in the words of the server."""
    separator = "[\n"
    for entries in of_each_image(rows):
        value: dict[str, Any] = {"filename": entries[0]["filename"]}
        if entries[0]["error"] is not None:
            value["error"] = entries[0]["error"]
        else:
            value["predictions"] = [{"label": e["label"], "score": e["prob"]} for e in entries]
        out.write(separator + as_json(value, out))
        separator = ",\n"
    out.write("\n]\n")


def of_each_image(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows of one image after the other. An image begins with rank 1, or has no rank: two of
    the same name are two."""
    entries: list[dict[str, Any]] = []
    for row in rows:
        if entries and row["rank"] in (None, 1):
            yield entries
            entries = []
        entries.append(row)
    if entries:
        yield entries


def _write_table(rows: Iterable[dict[str, Any]], out: TextIO) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("image", overflow="fold")
    table.add_column("class")
    table.add_column("probability", justify="right")
    for row in rows:
        first = row["rank"] in (None, 1)
        table.add_row(
            row["filename"] if first else "",
            row["label"] if row["error"] is None else row["error"],
            f"{row['prob']:.4f}" if row["error"] is None else "",
        )
    if out is sys.stdout:
        tabulate(table)
    else:
        out.write(plain(table))


def write_parquet(rows: Iterable[dict[str, Any]], out: str) -> None:
    """Rows of SCHEMA as a Parquet file, at a path or URI."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, SCHEMA) as writer:
        iterator = iter(rows)
        while part := list(itertools.islice(iterator, 50_000)):
            writer.write_table(pa.Table.from_pylist(part, SCHEMA))
    store.write_bytes(store.absolute(out), buffer.getvalue())
