"""Files gone wrong, drawn from a seed: damaged ones, and whole ones that a wrong program wrote.

A mutation takes a random generator and the bytes of a file and gives other bytes. What damage does
is found by checksums; a wrong program writes right ones, so `sealed` puts those in again.
"""

import contextlib
import copy
import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash

Mutation = Callable[[random.Random, bytes], bytes]

MARK = b"ns_ray:\x01"
"""As in ns_ray/store/tables.py."""

DEEP = "[" * 100_000 + "]" * 100_000


# --------------------------------------------------------------------------------------- any bytes


def flipped(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 30)) if data else 0):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def emptied(rng: random.Random, data: bytes) -> bytes:
    return b"" if rng.random() < 0.5 else bytes(len(data))


def inserted(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 8, 300))) + data[at:]


def block_lost(rng: random.Random, data: bytes) -> bytes:
    """A block of the disk is zeros, or what lies elsewhere in the file."""
    at, size = rng.randrange(len(data) + 1), rng.choice((8, 64, 512))
    start = rng.randrange(len(data) + 1)
    block = rng.choice((bytes(size), data[start : start + size]))
    return (data[:at] + block + data[at + len(block) :])[: len(data)]


DAMAGE: list[Mutation] = [flipped, cut, emptied, inserted, block_lost]


# ------------------------------------------------------------------------------------- JSON, YAML

WORDS = ("", "x", "../../../etc/passwd", "x" * 300, "\ud800", "\x00", "1", "none", "/", "é")
NUMBERS = (0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 10**5000, 1e308, 1e-320, 0.5)
NOT_NUMBERS = (float("nan"), float("inf"), float("-inf"))


def odd_value(rng: random.Random) -> Any:
    kinds: list[Any] = [WORDS, NUMBERS, NOT_NUMBERS, (None, True, False)]
    kinds += [([], {}, [[]], [None], {"": None}, [1, "x"], {"x": {"y": 1}})]
    return copy.deepcopy(rng.choice(rng.choice(kinds)))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of all values inside a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, one in inner:
        found.append((value, key))
        if isinstance(one, dict | list):
            found += _places(one)
    return found


def plain_changed(rng: random.Random, value: Any) -> Any:
    """JSON's values with one of them replaced, removed, renamed, doubled or moved."""
    value = copy.deepcopy(value)
    places = _places(value) if isinstance(value, dict | list) else []
    if not places or rng.random() < 0.03:
        return odd_value(rng)
    for _ in range(rng.choice((1, 1, 2))):
        holder, key = rng.choice(places)
        if isinstance(holder, list) and key >= len(holder):
            continue
        if isinstance(holder, dict) and key not in holder:
            continue
        what = rng.randrange(6)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[rng.choice(WORDS)] = holder.pop(key)
        elif what == 2:
            other, there = rng.choice(places)
            with contextlib.suppress(KeyError, IndexError):
                holder[key] = copy.deepcopy(other[there])
        elif what == 3 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[key] = odd_value(rng)
    return value


def json_changed(rng: random.Random, data: bytes) -> bytes:
    text = "<deep>" if rng.random() < 0.02 else ""
    value = plain_changed(rng, json.loads(data))
    if text and isinstance(value, dict) and value:
        value[rng.choice(list(value))] = text
    # Python's digits have a limit that files don't have.
    return _dumped(value).replace('"<deep>"', DEEP).encode("utf-8", "surrogatepass")


def _dumped(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(str(key))}: {_dumped(one)}" for key, one in value.items())
        return "{" + inner + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_dumped, value)) + "]"
    return "1" + "0" * 5000 if value == 10**5000 else json.dumps(value, ensure_ascii=False)


YAML_PARTS = (
    "*recursive",
    "&r [*r, *r]",
    "&r {a: *r}",
    "!!timestamp x",
    "2001-99-99",
    "!!int x",
    "!!float x",
    "!!bool x",
    "!!binary x",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!python/object/apply:os.system [true]",
    "0x",
    "1_0",
    "190:20:30",
    ".nan",
    ".inf",
    "1" + "0" * 5000,
    "? [a, b]\n  : 1",
    "{? {a: 1} : 2}",
    "{1: 2, a: 3, null: 4, 2001-01-01: 5}",
    DEEP,
    "{a: " * 5000 + "}" * 5000,
    "<<: *x",
    "!<tag:yaml.org,2002:merge> x",
    "'",
    "|",
    "\t- x",
    "%YAML 9.9",
    "--- a\n--- b",
)


def bomb(width: int, depth: int, kind: str = "list") -> str:
    """YAML of some lines that stands for width ** depth values."""
    lines = ["a0: &a0 x"]
    for i in range(1, depth):
        names = [f"*a{i - 1}"] * width
        if kind == "list":
            lines.append(f"a{i}: &a{i} [{', '.join(names)}]")
        else:
            inner = ", ".join(f"k{n}: {name}" for n, name in enumerate(names))
            lines.append(f"a{i}: &a{i} {{{inner}}}")
    return "\n".join(lines) + "\n"


def yaml_changed(rng: random.Random, data: bytes) -> bytes:
    lines = data.decode().splitlines()
    at = rng.randrange(len(lines))
    what = rng.randrange(8)
    if what == 0:
        return (bomb(10, 12, rng.choice(("list", "dict"))) + data.decode()).encode()
    if what == 1:
        lines[at] = lines[at] * rng.choice((1, 2, 50))
    elif what == 2:
        lines.insert(at, " " * rng.randrange(6) + lines[rng.randrange(len(lines))])
    elif what == 3:
        lines.insert(at, rng.choice(YAML_PARTS))
    elif ":" in lines[at]:
        odd = _dumped(odd_value(rng)) if what < 6 else rng.choice(YAML_PARTS)
        lines[at] = f"{lines[at].partition(':')[0]}: {odd}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


# ----------------------------------------------------------------------------------------- Parquet


def sealed_table(table: pa.Table, rng: random.Random) -> bytes:
    """A table as ns_ray writes it, by somebody else's code."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=rng.choice((1, 8, 256)),
        compression="zstd",
        write_page_checksum=True,
    )
    return sealed_footer(sink.getvalue().to_pybytes())


def sealed_footer(data: bytes) -> bytes:
    """Parquet bytes with the right checksum before their footer."""
    start = len(data) - int.from_bytes(data[-8:-4], "little") - 8
    body = data[:start]
    if body[-16:-8] == MARK:
        body = body[:-16]
    return body + MARK + xxhash.xxh3_64_digest(data[start:]) + data[start:]


def footer_changed(rng: random.Random, data: bytes) -> bytes:
    """The footer is nonsense, and its checksum right."""
    start = len(data) - int.from_bytes(data[-8:-4], "little") - 8
    footer = rng.choice((flipped, block_lost))(rng, data[start:-8])
    if rng.random() < 0.1:
        return sealed_footer(data[:-8] + struct.pack("<I", rng.randrange(2**32)) + b"PAR1")
    return sealed_footer(data[:start] + footer + data[-8:])


def _column(rng: random.Random, column: pa.ChunkedArray) -> pa.Array:
    """Another column of as many rows."""
    rows, kind = len(column), column.type
    values = column.to_pylist()
    what = rng.randrange(6)
    if what == 0:
        return pa.array([None if rng.random() < 0.3 else v for v in values], kind)
    if what == 1:
        return pa.array([f"{v}"[:20] for v in values], rng.choice((pa.string(), pa.large_string())))
    if what == 2:
        return pa.array([rng.choice((0, 1)) for _ in range(rows)], pa.int64())
    if what == 3:
        return pa.array([[1.0, 2.0]] * rows, pa.list_(pa.float32(), 2))
    if what == 4 and pa.types.is_integer(kind):
        return pa.array([rng.choice((-5, 7, 2**30, v)) for v in values], kind)
    if what == 4 and pa.types.is_floating(kind):
        return pa.array([rng.choice((np.nan, np.inf, -1.0, 5.0, v)) for v in values], kind)
    if pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type):
        odd = [rng.choice((np.nan, 0.0, -1.0, 100.0)) for _ in range(kind.list_size)]
        return pa.array([odd if rng.random() < 0.3 else v for v in values], kind)
    return pa.array([rng.choice(values) if values else None for _ in range(rows)], kind)


def table_changed(rng: random.Random, data: bytes) -> bytes:
    """A whole Parquet file of something else than it should hold."""
    table = pq.read_table(io.BytesIO(data))
    name = rng.choice(table.column_names)
    at = table.column_names.index(name)
    what = rng.randrange(8)
    if what == 0:
        table = table.drop_columns([name])
    elif what == 1:
        table = table.rename_columns([*table.column_names[:at], "x", *table.column_names[at + 1 :]])
    elif what == 2:
        table = table.take([rng.randrange(table.num_rows) for _ in range(table.num_rows)])
    elif what == 3:
        table = table.slice(0, rng.randrange(table.num_rows + 1))
    elif what == 4:
        table = pa.concat_tables([table, table.slice(0, rng.randrange(1, table.num_rows + 1))])
    else:
        table = table.set_column(at, name, _column(rng, table.column(at)))
    return sealed_table(table, rng)


# ---------------------------------------------------------------------- safetensors, checkpoints


def tensors_changed(rng: random.Random, data: bytes) -> bytes:
    """Weights whose header promises what is not there."""
    size = struct.unpack("<Q", data[:8])[0]
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    names = [name for name in header if name != "__metadata__"]
    one, what = header[rng.choice(names)], rng.randrange(9)
    huge = rng.choice((2**31, 2**40, 2**63, 2**64, -1))
    if what == 0:
        return struct.pack("<Q", rng.choice((0, 1, 2**32, 2**63 - 1, size + 7))) + data[8:]
    if what == 1:
        one["data_offsets"] = [0, huge]
    elif what == 2:
        one["data_offsets"] = header[rng.choice(names)]["data_offsets"]
    elif what == 3:
        one["shape"] = [huge, *one["shape"]]
    elif what == 4:
        one["dtype"] = rng.choice(("F64", "I8", "BOOL", "F16", "x", None, "BF16"))
    elif what == 5:
        header[rng.choice(WORDS[:4])] = header.pop(rng.choice(names))
    elif what == 6:
        one["shape"] = one["shape"][::-1]
    elif what == 7:
        del header[rng.choice(names)]
    else:
        header = plain_changed(rng, header)
    text = _dumped(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + rest


def state_changed(rng: random.Random, data: bytes) -> bytes:
    """A whole checkpoint of something else than it should hold."""
    what = rng.randrange(4)
    if what == 0:  # right checksums around wrong bytes
        return _zip_changed(rng, data)
    state = torch.load(io.BytesIO(data), weights_only=True)
    if what == 1:
        state = rng.choice((None, [], 5, {}, {"step": 1}, [state], torch.zeros(3)))
    elif what == 2:
        key = rng.choice(list(state["model"]))
        for part in ("model", "ema"):
            state[part][key] = rng.choice((torch.zeros(2, 3), "x", None, state[part][key].half()))
    else:
        for _ in range(rng.choice((1, 2))):
            places = [(h, k) for h, k in _places(state) if isinstance(h, dict)]
            holder, key = rng.choice(places)
            if rng.random() < 0.3:
                holder.pop(key, None)
            else:
                holder[key] = odd_value(rng)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _zip_changed(rng: random.Random, data: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        names = old.namelist()
        wrong = rng.choice(
            [name for name in names if name.endswith(("data.pkl", "version"))] * 3 + names
        )
        for name in names:
            content = old.read(name)
            new.writestr(name, rng.choice(DAMAGE)(rng, content) if name == wrong else content)
    return made.getvalue()


def pickled(rng: random.Random, data: bytes) -> bytes:
    """What runs a command where it is unpickled."""

    class Runs:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            import os

            return os.system, ("false",)

    buffer = io.BytesIO()
    torch.save({"step": 1, "model": Runs()}, buffer)
    return rng.choice((pickle.dumps(Runs()), buffer.getvalue()))
