"""Five faults in a run, drawn from a fixed seed (trials.py makes more): nothing is lost."""

from pathlib import Path

import pytest
from trials import disturbed

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.parametrize("seed", [4, pytest.param(9, marks=pytest.mark.trial)])
def test_a_disturbed_run_loses_nothing(seed: int, tmp_path: Path) -> None:
    trials, ended = disturbed(tmp_path, run=0, seed=seed, faults=5)
    assert len(trials) == 5
    assert sum(bool(trial.hit) for trial in trials) > 2  # a stage may be over before its fault
    assert ended.well, (trials, ended, (tmp_path / "said.txt").read_text())
    assert ended.accuracy > 0.8
