"""Runs that earlier versions left stay valid: nothing is done again that a user has paid for."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ns_ray.config.loading import load_config
from ns_ray.planning.status import run_status

EARLIER = sorted((Path(__file__).parent / "earlier").glob("*.zip"))
STORAGE = b"@STORAGE@"
"""Stands in the JSON and YAML files for the folder that the run was made in."""


def unpacked(archive: Path, folder: Path) -> Path:
    """The folder of a run."""
    with zipfile.ZipFile(archive) as files:
        files.extractall(folder)
    for path in folder.rglob("*"):
        if path.suffix in {".json", ".yaml"}:
            path.write_bytes(path.read_bytes().replace(STORAGE, str(folder).encode()))
    return folder / archive.stem


def published(run: Path) -> dict[str, int]:
    """Time of change of what each step publishes last, and of its tables."""
    return {
        str(path.relative_to(run)): path.stat().st_mtime_ns
        for path in run.rglob("*")
        if (path.name == "_DONE.json" or path.suffix == ".parquet") and "model" not in path.parts
    }


@pytest.mark.slow
@pytest.mark.parametrize("archive", EARLIER, ids=lambda path: path.stem)
def test_nothing_is_done_again(archive: Path, tmp_path: Path) -> None:
    run = unpacked(archive, tmp_path)
    before, result = published(run), json.loads((run / "result.json").read_text())
    assert len(before) > 20
    (run / "result.json").unlink()  # so that every step is asked for again
    command = [sys.executable, "-m", "ns_ray.run", "--config", str(run / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert published(run) == before
    again = json.loads((run / "result.json").read_text())
    for one, other in zip(again["generations"], result["generations"], strict=True):
        assert {**one, "seconds": None} == {**other, "seconds": None}
    assert again["control"]["scores"] == result["control"]["scores"]
    assert (run / "report.html").exists()


@pytest.mark.parametrize("archive", EARLIER, ids=lambda path: path.stem)
def test_its_status_is_known(archive: Path, tmp_path: Path) -> None:
    run = unpacked(archive, tmp_path)
    status = run_status(load_config(run / "config.yaml"))
    assert {row.state for row in status.lines} == {"done"}
