"""A run as a job of somebody's cluster, with token authentication on."""

import json
import subprocess
from pathlib import Path

import pytest
from tiny import flat_folder, folder_per_class, given_teacher, write_config

from ns_ray.store.labels import open_labels


@pytest.mark.ray
@pytest.mark.slow
def test_a_submitted_job_leaves_a_run(head: dict[str, str], tmp_path: Path) -> None:
    working = tmp_path / "working"
    working.mkdir()
    pile = flat_folder(tmp_path / "pile", 60, start=500)
    write_config(
        working / "tiny.yaml",
        {
            "data.labeled": str(folder_per_class(tmp_path / "labeled", 20)),
            "data.unlabeled": [str(pile)],
            "data.rows_per_shard": 10,
            "teacher": {"bundle": given_teacher(tmp_path / "teacher")},
            "select.threshold": 0.0,
            "train.epochs": 2,
            "resources": {"loaders": 1, "label_actors": 1},  # the rest is what the cluster has
        },
    )
    program = ["python", "-m", "ns_ray.run", "--config", "tiny.yaml"]
    storage = ["--set", f"storage={tmp_path}/runs"]
    job = subprocess.run(
        ["ray", "job", "submit", "--working-dir", str(working), "--", *program, *storage],
        env=head,
        capture_output=True,
        text=True,
        check=False,
    )
    assert job.returncode == 0, job.stdout + job.stderr
    root = tmp_path / "runs" / "tiny"
    found = json.loads((root / "result.json").read_text())
    assert found["status"] == "done"
    assert f"best: generation {found['best_generation']}" in job.stdout
    labels = open_labels(f"{root}/gen-01/pseudo_labels")
    assert labels.rows == len(list(pile.iterdir()))
    assert (root / "model" / "model.safetensors").exists()
    assert (root / "ray.log").exists()
