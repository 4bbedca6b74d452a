"""A whole run from the command line, and what it leaves."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from tiny import COLORS, LONELY, MODEL, Whole, start, user_environment
from typer.testing import CliRunner

from ns_ray import store
from ns_ray.commands import run_app
from ns_ray.store.corpora import open_corpus
from ns_ray.store.labels import open_labels, open_selection

pytestmark = pytest.mark.slow

needs_run = pytest.mark.ray
PROGRAM = ["-m", "ns_ray.run"]


def result(root: Path) -> dict[str, Any]:
    return dict(json.loads((root / "result.json").read_text()))


def times(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def table(output: str) -> str:
    return output[output.index("run tiny") :]


@needs_run
def test_a_run_ends_with_a_table_and_leaves_what_it_promises(whole: Whole) -> None:
    assert whole.process.returncode in (0, 5), whole.process.stdout + whole.process.stderr
    found = result(whole.root)
    accepted = found["generations"][1]["accepted"]
    assert whole.process.returncode == (0 if accepted else 5)
    assert found["status"] == ("done" if accepted else "no_student_accepted")
    assert found["name"] == "tiny"
    assert found["model"] == "model"
    assert found["control"] is None
    assert [g["role"] for g in found["generations"]] == ["teacher", "student"]
    shown = table(whole.process.stdout)
    for row in found["generations"]:
        assert row["model"] == MODEL["model"]
        assert row["parameters"] > 300_000
        assert 0 <= row["val_top1"] <= 1
        assert 0 <= row["test_top1"] <= 1
        assert f"{row['val_top1']:.4f}" in shown
        assert f"{row['test_top1']:.4f}" in shown
        assert {"train", "validation", "test"} <= row["seconds"].keys()
    pseudo = found["generations"][1]["pseudo_labels"]
    assert pseudo["rows"] == len(whole.good)
    assert 0 < pseudo["kept"] <= pseudo["rows"]
    assert found["data"]["labeled"] + found["data"]["validation"] == 61
    assert found["data"]["test"] == 30
    assert sum(found["data"]["rejected"]["unlabeled"].values()) == len(whole.bad)
    assert found["versions"]["ray"]
    assert re.fullmatch("[0-9a-f]{12}", found["config_hash"])
    assert str(whole.root / "model") in shown
    for name in ("config.yaml", "metrics.jsonl", "tensorboard", "gen-00/evaluation.json"):
        assert (whole.root / name).exists()


@needs_run
def test_nothing_of_ray_is_on_the_screen(whole: Whole) -> None:
    assert whole.process.stderr == ""
    assert not re.search(r"\bray\b|raylet|WARNING|Traceback|\d{4}-\d\d-\d\d", whole.process.stdout)
    assert (whole.root / "ray.log").exists()


def test_what_ray_says_goes_to_a_file(tmp_path: Path) -> None:
    script = """
import logging, os, sys
from ns_ray.compute.quiet import quiet
with quiet(sys.argv[1]):
    logging.getLogger("ray.data").warning("an operator is slow")
    os.write(2, b"a worker died")
    print("ours")
"""
    log = tmp_path / "ray.log"
    process = subprocess.run([sys.executable, "-c", script, log], capture_output=True, text=True)
    assert (process.stdout, process.stderr) == ("ours\n", "")
    assert "an operator is slow" in log.read_text()
    assert "a worker died" in log.read_text()


@needs_run
def test_the_good_images_are_labeled_and_the_bad_ones_listed(whole: Whole) -> None:
    corpus = open_corpus(str(whole.root / "corpora" / "unlabeled"))
    rejected = store.read_table(f"{corpus.path}/rejected.parquet").to_pylist()
    assert {row["key"]: row["reason"] for row in rejected} == whole.bad
    assert len(whole.bad) / (len(whole.bad) + len(whole.good)) == 0.02
    labels = open_labels(str(whole.root / "gen-01" / "pseudo_labels"))
    keys = [key for shard in labels.files for key in labels.read(shard)["key"].to_pylist()]
    assert sorted(keys) == sorted(whole.good)


@needs_run
def test_a_class_with_one_image_and_a_class_missing_in_test_are_handled(whole: Whole) -> None:
    assert f"no validation image of the class '{LONELY}'" in whole.process.stdout
    assert f"data.test: no image of the class '{LONELY}'" in whole.process.stdout
    assert result(whole.root)["data"]["classes"] == sorted([*COLORS, LONELY])


@needs_run
def test_the_metrics_are_rows_of_numbers(whole: Whole) -> None:
    rows = [json.loads(line) for line in (whole.root / "metrics.jsonl").read_text().splitlines()]
    for stage in ("gen-00/train", "gen-01/train"):
        mine = [row for row in rows if row["stage"] == stage]
        assert [row["step"] for row in mine] == list(range(1, len(mine) + 1))
        assert mine[-1]["step"] >= 12
        assert all(row["train_loss"] > 0 and row["lr"] >= 0 for row in mine)


@needs_run
def test_timm_loads_the_model(whole: Whole) -> None:
    model = timm.create_model(f"local-dir:{whole.root}/model", pretrained=True).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, len(COLORS) + 1)
    best = result(whole.root)["best_generation"]
    bundle = whole.root / f"gen-{best:02d}" / "bundle"
    for name in ("model.safetensors", "config.json", "ns_ray.json", "_DONE.json"):
        assert (whole.root / "model" / name).read_bytes() == (bundle / name).read_bytes()


@needs_run
def test_the_model_card_and_the_report_have_the_numbers_of_the_result(whole: Whole) -> None:
    found = result(whole.root)
    best = found["generations"][found["best_generation"]]
    for split, name in (("validation", "val_top1"), ("test", "test_top1")):
        assert best["scores"][split]["top1"] == best[name]
    card = (whole.root / "model" / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    for measured in head["model-index"][0]["results"]:
        scores = best["scores"][measured["dataset"]["name"]]
        values = {metric["type"]: metric["value"] for metric in measured["metrics"]}
        assert values["accuracy"] == scores["top1"]
        assert values["ece"] == scores["ece"]
        assert f"{scores['top1']:.4f}" in card
        assert f"{scores['nll']:.4f}" in card
    report = (whole.root / "report.html").read_text()
    assert f"report: {whole.root}/report.html" in table(whole.process.stdout)
    for row in found["generations"]:
        assert f"{row['val_top1']:.1%}" in report
        assert f"{row['test_top1']:.1%}" in report
    assert all(f">{reason.replace('_', ' ')}<" in report for reason in set(whole.bad.values()))


@needs_run
def test_a_finished_run_answers_without_touching_anything(whole: Whole) -> None:
    before = times(whole.root)
    again = start([*PROGRAM], whole.config)
    assert again.returncode == whole.process.returncode
    assert again.stdout == table(whole.process.stdout)
    assert again.stderr == ""
    assert times(whole.root) == before


@needs_run
def test_a_driver_killed_at_its_very_end_leaves_nothing(whole: Whole) -> None:
    """It had written the result, and not yet removed its owner's file."""
    owns = f"from ns_ray import store; owning = store.owned({str(whole.root)!r})"
    left = f"{owns}; owning.__enter__(); import os; os._exit(1)"
    subprocess.run([sys.executable, "-c", left], env=user_environment(), check=False)
    assert (whole.root / "owner.json").exists()
    assert start([*PROGRAM], whole.config).returncode == whole.process.returncode
    assert not (whole.root / "owner.json").exists()


@needs_run
def test_other_settings_under_the_same_name_are_refused(whole: Whole) -> None:
    before = times(whole.root)
    refused = start([*PROGRAM], whole.config, "--set", "train.lr=0.01")
    assert refused.returncode == 2
    assert "train.lr: 0.05 -> 0.01" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert times(whole.root) == before


@needs_run
def test_overwrite_redoes_what_a_setting_changes_and_only_that(
    whole: Whole, tmp_path: Path, without_ray: None
) -> None:
    root = tmp_path / "tiny"
    shutil.copytree(whole.root, root)
    before = times(root)
    changes = (f"storage={tmp_path}", "select.threshold=0.4", "resources.loaders=0")
    asked = ["--config", str(whole.config), "--overwrite"]
    asked += [word for change in changes for word in ("--set", change)]
    again = CliRunner().invoke(run_app, asked)
    assert again.exit_code in (0, 5), again.output
    changed = {path.relative_to(root) for path, at in times(root).items() if before.get(path) != at}
    stages = {str(path.parent) for path in changed}
    assert {"gen-01/selection", "gen-01/bundle", "gen-01/evaluation/test", "model"} <= stages
    assert not {s for s in stages if s.startswith(("corpora", "gen-00/b", "gen-01/pseudo"))}
    assert result(root)["config_hash"] != result(whole.root)["config_hash"]
    chosen = open_selection(f"{root}/gen-01/selection")
    assert chosen.facts["threshold"] == 0.4
    # What the old settings left is gone, and what the new ones need is there.
    listed = {*chosen.files.values(), store.DONE}
    assert {path.name for path in (root / "gen-01" / "selection").iterdir()} == listed


QUIET = """
import sys, threading
from ns_ray.compute.quiet import quiet
with quiet(sys.argv[1]):
    noise = threading.Thread(target=print, args=("a worker died",), name="ray_listen")
    noise.start()
    noise.join()
    print("ours")
    print("our error", file=sys.stderr)
print("the end")
print("the last error", file=sys.stderr)
"""


def test_what_ray_prints_goes_to_a_file(tmp_path: Path) -> None:
    log = tmp_path / "ray.log"
    done = subprocess.run(
        [sys.executable, "-c", QUIET, str(log)], capture_output=True, text=True, check=True
    )
    assert log.read_text() == "a worker died\n"
    assert done.stdout == "ours\nthe end\n"
    assert done.stderr == "our error\nthe last error\n"
