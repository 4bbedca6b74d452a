"""What benchmarks say about the machine, and what they keep of a release."""

import csv
import subprocess
import sys
import time
from pathlib import Path

import torch
from machine import machine, record
from memory import cells, watched


def test_a_benchmark_names_processor_and_versions() -> None:
    said = machine()
    assert f"torch {torch.__version__.partition('+')[0]}" in said
    assert "CPUs; Python 3." in said


def test_ratios_are_added_to_those_before(tmp_path: Path) -> None:
    history = tmp_path / "history.csv"
    record("label_speed", {"of a timm loop": 2.814, "of the limit": 0.98}, history)
    record("train_speed", {"of timm's loop, whole": 1.2}, history)
    with history.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["benchmark"], row["ratio"], row["value"]) for row in rows] == [
        ("label_speed", "of a timm loop", "2.81"),
        ("label_speed", "of the limit", "0.98"),
        ("train_speed", "of timm's loop, whole", "1.20"),
    ]
    assert all(row["machine"] == machine() and row["date"] for row in rows)


SIDE = """
import mmap, os
shared = mmap.mmap(-1, 80 << 20)
shared.write(bytes(80 << 20))
child = os.fork()
own = bytearray(b"1") * (60 << 20)
sum(shared[::4096])
print("there", flush=True)
os.read(0, 1)
if child:
    os.wait()
"""


def test_the_memory_of_a_side_counts_all_its_processes_and_what_they_share_once() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", SIDE], stdin=pipe, stdout=pipe) as side:
        assert side.stdin is not None
        assert side.stdout is not None
        assert [side.stdout.readline() for _ in "12"] == [b"there\n"] * 2
        with watched(side.pid, every=0.01) as peaks:
            while not peaks["all"]:
                time.sleep(0.01)
        side.stdin.write(b"..")
    assert 200 <= peaks["all"] < 270
    assert cells(peaks) == f"{peaks['all']:.0f}"
