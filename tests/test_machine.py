"""What benchmarks say about the machine, and what they keep of a release."""

import csv
from pathlib import Path

import torch
from machine import machine, record


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
