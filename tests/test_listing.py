"""Folders of many files: in columns, the same whatever their names, and listed while Ray starts."""

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import xxhash
from packed import fill
from tiny import user_environment
from typer.testing import CliRunner

from ns_ray.commands import app
from ns_ray.compute import Machine
from ns_ray.data.sources import files, list_source
from ns_ray.data.sources.files import File, Files, stamp
from ns_ray.data.sources.items import Items, order
from ns_ray.errors import DataError
from ns_ray.store import schema

NAMES = [
    "a/b.png",
    "a-b/1.png",
    "a/tab\there.PNG",
    "a/new\nline.jpg",
    "z.png",
    "中/é.JPEG",
    "x.txt",
]
ODD = os.fsdecode(b"a/caf\xe9.png")


def some(names: list[str]) -> list[File]:
    return [File(f"/data/{name}", n, 1_700_000_000_000_000_000 + n) for n, name in enumerate(names)]


@pytest.mark.parametrize("names", [NAMES, [*NAMES, ODD]], ids=["text", "bytes"])
def test_a_stamp_is_that_of_the_sorted_lines_in_any_order(names: list[str]) -> None:
    listed = some(names)
    lines = sorted(f"{f.path[6:]}\t{f.size}\t{f.changed}" for f in listed)
    digest = xxhash.xxh3_128("\n".join(lines).encode("utf-8", "surrogateescape"))
    shuffled = random.Random(0).sample(listed, len(listed))
    assert stamp(Files.of(shuffled), "/data/") == digest.hexdigest()
    assert stamp(iter(shuffled), "/data/") == digest.hexdigest()


def test_files_come_out_of_their_columns_as_they_went_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BATCH", 3)
    listed = some([*NAMES, ODD])
    assert {*Files.of(listed)} == {*listed}
    pictures = {f for f in listed if not f.path.endswith(".txt")}
    assert {*Files.of(listed).ending(files.IMAGE_ENDINGS)} == pictures
    assert {*Files.of(listed).ending(files.IMAGE_ENDINGS, False)} == {*listed} - pictures


def test_an_address_ends_where_its_query_begins() -> None:
    listed = [
        File("https://x.org/1.png?size=2#3", 1, 0),
        File("https://x.org/1.txt?of=1.png", 1, 0),
    ]
    assert [*Files.of(listed).ending(".png")] == listed[:1]


def test_hashes_that_are_the_same_leave_the_order_to_the_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = ["c", "a", "b"]
    items = Items.columns([keys, keys, [None] * 3, [1] * 3])
    real = schema.hash_keys
    monkeypatch.setattr(schema, "hash_keys", lambda keys, seed: real(keys, seed) * 0)
    assert order(items, 0).tolist() == [1, 2, 0]


def test_a_source_is_listed_while_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_ray: None
) -> None:
    listed = threading.Event()

    def listing(*arguments: Any, **named: Any) -> Any:
        listed.set()
        return list_source(*arguments, **named)

    @contextmanager
    def starting(*_: Any) -> Iterator[Machine]:
        assert listed.wait(60)
        yield Machine(cpus=2, gpus=0, local=True)

    monkeypatch.setattr("ns_ray.data.list_sources", listing)
    monkeypatch.setattr("ns_ray.compute.cluster", starting)
    source = fill(tmp_path / "set", {"cat": 3, "dog": 2})
    (source / "cat" / "raw.cr2").write_bytes(b"x")
    out = ["--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["pack", "--data", str(source), *out])
    assert done.exit_code == 0, done.output
    assert "5 images, 0 rejected" in done.output
    assert "--data: 1 files are no images by their name (.cr2: 1)" in done.output
    listed.clear()
    done = CliRunner().invoke(app, ["pack", "--data", f"{source}s", *out])
    assert done.exit_code == DataError.exit_code
    assert "(did you mean 'set'?)" in done.output


def test_packing_alone_imports_neither_torch_nor_timm(tmp_path: Path) -> None:
    """They take seconds, and half a GiB."""
    program = """
import sys
from contextlib import nullcontext
import ns_ray.compute
from ns_ray.commands import app
ns_ray.compute.cluster = lambda *_: nullcontext(ns_ray.compute.Machine(2, 0, local=True))
try:
    app(["pack", "--data", sys.argv[1], "--out", sys.argv[2]])
except SystemExit as ended:
    print(ended.code, {"torch", "timm"} & sys.modules.keys())
"""
    source = fill(tmp_path / "set", {"cat": 3, "dog": 2})
    done = subprocess.run(
        [sys.executable, "-c", program, str(source), str(tmp_path / "out")],
        env=user_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith("0 set()\n"), done.stdout + done.stderr
