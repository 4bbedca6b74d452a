"""A run that is told to stop: by Ctrl-C, or by whoever runs the container."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import flat_folder, folder_per_class, user_environment, write_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.parametrize(
    ("how", "workers"),
    [
        (signal.SIGINT, 1),
        (signal.SIGTERM, 2),
        pytest.param(signal.SIGINT, 2, marks=pytest.mark.trial),
        pytest.param(signal.SIGTERM, 1, marks=pytest.mark.trial),
    ],
)
def test_a_stopped_run_says_how_to_go_on(how: signal.Signals, workers: int, tmp_path: Path) -> None:
    config = write_config(
        tmp_path / "run.yaml",
        {
            "data.labeled": str(folder_per_class(tmp_path / "labeled", 20)),
            "data.unlabeled": [str(flat_folder(tmp_path / "pile", 30, start=500))],
            "storage": str(tmp_path / "runs"),
            "train.epochs": 10_000,
            "resources.num_workers": workers,
            "resources.cpus_per_worker": 1 / workers,
            "resources.loaders": 0,
        },
    )
    with subprocess.Popen(
        [sys.executable, "-m", "ns_ray.run", "--config", str(config)],
        env=user_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as run:
        metrics = tmp_path / "runs" / "tiny" / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            assert run.poll() is None, run.communicate()[0]
            time.sleep(0.05)
        run.send_signal(how)
        text, _ = run.communicate(timeout=60)
    assert run.returncode == 130, text
    assert text.strip().endswith("interrupted; the same command continues")
