"""Ten faults in two runs, drawn from fixed seeds (trials.py makes more): nothing is lost."""

from pathlib import Path

import pytest
from trials import disturbed

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.trial]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_disturbed_run_loses_nothing(seed: int, tmp_path: Path) -> None:
    trials, ended = disturbed(tmp_path, run=0, seed=seed, faults=5)
    assert len(trials) == 5
    assert any(trial.hit for trial in trials)
    assert ended.well, (trials, ended, (tmp_path / "said.txt").read_text())
    assert ended.accuracy > 0.8
