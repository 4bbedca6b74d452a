"""What a training worker does besides the steps themselves."""

import time

import pytest
import torch
from torch import nn

from ns_ray.config.training import TrainConfig
from ns_ray.training.loop import Compiling

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("setting", "device", "seconds", "compiled"),
    [
        ("auto", CUDA, 1.0, True),  # 9,970 s are left
        ("auto", CUDA, 0.1, False),
        ("auto", CPU, 1.0, False),
        ("never", CUDA, 1.0, False),
        ("always", CPU, 0.1, True),
    ],
)
def test_a_long_training_is_compiled(
    setting: str,
    device: torch.device,
    seconds: float,
    compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Model(nn.Module):
        calls = 0

        def compile(self) -> None:
            Model.calls += 1

    now = 0.0
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    train = TrainConfig.model_validate({"compile": setting})
    compiling = Compiling(Model(), train, 20_000, 10_000, 1, device)
    left = []
    for done in range(10_001, 10_101):
        now += 20 * seconds if done <= 10_005 else seconds  # the first steps are slow
        left.append(compiling.after(done))
    assert Model.calls == int(compiled)
    told = [value for value in left if value is not None]
    assert told == ([pytest.approx(9_970)] if compiled and setting == "auto" else [])
