"""The driver is killed in each stage and started again, until a run is whole: it must be the run
that nobody has disturbed."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from kill_driver import MOMENTS, SHARDS, STEP
from tiny import Whole, start

from ns_ray.store.labels import open_labels, open_selection

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCRIPT = str(Path(__file__).with_name("kill_driver.py"))


def parts(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("shard-*")}


@pytest.fixture(scope="module")
def disturbed(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run, killed four times."""
    storage = tmp_path_factory.mktemp("disturbed")
    root = storage / "tiny"
    gen = root / "gen-01"
    setting = ["--set", f"storage={storage}"]

    for moment in MOMENTS:
        killed = start([SCRIPT, moment], whole.config, *setting)
        assert killed.returncode == -signal.SIGKILL, (moment, killed.stdout, killed.stderr)
        assert not (root / "result.json").exists()
        reached = {
            "label": len(parts(gen / "pseudo_labels")) >= SHARDS,
            "select": len(parts(gen / "selection")) == 1,
            "train": any((gen / "checkpoints").glob("*/last.pt")),
            "evaluate": bool(parts(gen / "evaluation" / "validation")),
        }
        assert reached[moment]
        # What was being written isn't published, what came before is.
        folders = ("pseudo_labels", "selection", "bundle", "evaluation/validation")
        published = [(gen / folder / "_DONE.json").exists() for folder in folders]
        at = MOMENTS.index(moment)
        assert published == [True] * at + [False] * (len(folders) - at), moment

    finished = start(["-m", "ns_ray.run"], whole.config, *setting)
    assert finished.returncode == whole.process.returncode, finished.stdout + finished.stderr
    return root


def result(root: Path) -> dict[str, Any]:
    """What `result.json` says, but for where the run is and how long it took."""
    found = json.loads((root / "result.json").read_text())
    del found["model"]
    for row in found["generations"]:
        del row["seconds"], row["images_per_second"]
    return dict(found)


def test_the_table_is_the_same(whole: Whole, disturbed: Path) -> None:
    assert result(disturbed) == result(whole.root)


def test_no_pseudo_label_is_lost_or_there_twice(whole: Whole, disturbed: Path) -> None:
    tables = []
    for root in (whole.root, disturbed):
        labels = open_labels(f"{root}/gen-01/pseudo_labels")
        rows = [row for shard in labels.files for row in labels.read(shard).to_pylist()]
        tables.append({row["key"]: row for row in rows})
        assert len(tables[-1]) == len(rows) == labels.rows
        assert parts(root / "gen-01" / "pseudo_labels") == set(labels.files.values())
    assert tables[0] == tables[1]
    assert tables[0].keys() == whole.good


def test_the_selection_is_the_same(whole: Whole, disturbed: Path) -> None:
    ours, theirs = (open_selection(f"{root}/gen-01/selection") for root in (disturbed, whole.root))
    assert (ours.kept, ours.copies, ours.counts) == (theirs.kept, theirs.copies, theirs.counts)
    for shard in theirs.files:
        assert ours.read(shard).equals(theirs.read(shard))


def test_the_weights_are_the_same(whole: Whole, disturbed: Path) -> None:
    for folder in ("gen-00/bundle", "gen-01/bundle", "model"):
        weights = [(root / folder / "model.safetensors") for root in (whole.root, disturbed)]
        assert weights[0].read_bytes() == weights[1].read_bytes(), folder


def test_the_student_went_on_from_a_checkpoint(disturbed: Path) -> None:
    rows = [json.loads(line) for line in (disturbed / "metrics.jsonl").read_text().splitlines()]
    student = [row for row in rows if row["stage"] == "gen-01/train"]
    assert [row["step"] for row in student][:STEP] == list(range(1, STEP + 1))
    assert student[-1]["resumed_at"] >= STEP - 1
