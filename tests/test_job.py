"""A whole run, submitted to a running cluster as a job."""

import json
import subprocess
from pathlib import Path

import pytest
from tiny import flat_folder, folder_per_class, write_config


@pytest.mark.ray
@pytest.mark.slow
def test_a_submitted_run_leaves_its_result(head: dict[str, str], tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    changes = {
        "data.labeled": str(folder_per_class(tmp_path / "labeled", 20)),
        "data.unlabeled": [str(flat_folder(tmp_path / "pile", 60, start=500))],
    }
    write_config(work / "run.yaml", changes)
    command = ["python", "-m", "ns_ray.run", "--config", "run.yaml"]
    command += ["--set", f"storage={tmp_path / 'runs'}"]
    submit = ["ray", "job", "submit", "--working-dir", str(work), "--", *command]

    job = subprocess.run(submit, env=head, capture_output=True, text=True, check=False)

    assert job.returncode == 0, job.stdout + job.stderr
    assert "best: generation" in job.stdout
    result = json.loads((tmp_path / "runs" / "tiny" / "result.json").read_text())
    assert result["data"]["unlabeled"] == 60
    assert result["generations"][1]["pseudo_labels"]["rows"] == 60
    assert (tmp_path / "runs" / "tiny" / "model" / "model.safetensors").exists()
