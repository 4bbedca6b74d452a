"""What Prometheus reads of a run on a cluster."""

import re
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import pytest
import ray
from ray.util import metrics

from ns_ray import log
from ns_ray.compute import Machine, capacity, gauges, runtime
from ns_ray.config import ResourcesConfig

Series = dict[tuple[str, str], float]


class FakeGauge:
    """Keeps what Ray's would be told."""

    values: ClassVar[Series] = {}

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name, self.tag_keys = name, tag_keys

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.tag_keys)
        assert tags["run"] == "my-run"
        FakeGauge.values[self.name, tags["stage"]] = value


def shown(stage: str, values: Series) -> dict[str, float]:
    return {name: value for (name, of), value in values.items() if of == stage}


def test_stages_are_told_while_they_run_and_once_when_they_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(metrics, "Gauge", FakeGauge)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    FakeGauge.values.clear()
    told = gauges.Gauges("my-run")
    with log.progress("label gen-01", 1000) as meter:
        now += 10
        meter.skip(200)
        meter.add(300, waited=2.5)
        told.show(log.running)
        assert shown("label gen-01", FakeGauge.values) == {
            "ns_ray_stage_running": 1,
            "ns_ray_stage_total": 1000,
            "ns_ray_stage_left": 500,
            "ns_ray_images_per_second": 30,
            "ns_ray_waiting_ratio": 0.25,
            "ns_ray_restarts": 0,
        }
        meter.add(500)
    with log.progress("train gen-01", 50, "steps") as meter:
        meter.restarts += 1
        told.show(log.running)
        assert "ns_ray_images_per_second" not in shown("train gen-01", FakeGauge.values)
        meter.images_rate = 77.0
        told.show(log.running)
    ended = shown("label gen-01", FakeGauge.values)
    assert (ended["ns_ray_stage_running"], ended["ns_ray_stage_left"]) == (0, 0)
    assert ended["ns_ray_images_per_second"] == 0
    trained = shown("train gen-01", FakeGauge.values)
    assert (trained["ns_ray_images_per_second"], trained["ns_ray_restarts"]) == (77, 1)
    assert set(trained) == set(gauges.GAUGES)


def test_a_stage_that_fails_runs_no_longer() -> None:
    def fail() -> None:
        with log.progress("pack", 10):
            assert [meter.name for meter in log.running] == ["pack"]
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert log.running == []


def test_a_cluster_that_is_joined_is_told_and_a_local_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs: list[str] = []
    for name, result in {"is_initialized": False, "init": None, "shutdown": None}.items():
        monkeypatch.setattr(ray, name, lambda result=result, **_: result)
    monkeypatch.setattr(runtime, "stop_like_ctrl_c", lambda: None)
    monkeypatch.setattr(runtime, "joined", nullcontext)
    monkeypatch.setattr(runtime, "check_address", lambda address: None)
    monkeypatch.setattr(capacity, "enough", lambda config: Machine(4, 0, local=False))

    @contextmanager
    def gauged(run: str) -> Iterator[None]:
        runs.append(run)
        yield

    monkeypatch.setattr(runtime, "gauged", gauged)
    with runtime.cluster(ResourcesConfig(), run="at home"):
        pass
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with runtime.cluster(ResourcesConfig(), run="away"):
        pass
    assert runs == ["away"]


@pytest.mark.ray
@pytest.mark.slow
def test_prometheus_reads_them_from_ray(ray_local: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "SECONDS", 0.2)
    port = ray_local.nodes()[0]["MetricsExportPort"]
    address = f"http://{ray_local.nodes()[0]['NodeManagerAddress']}:{port}/metrics"
    found: set[str] = set()
    with gauges.gauged("my-run"), log.progress("label gen-01", 1000) as meter:
        meter.add(400)
        for _ in range(120):
            text = urllib.request.urlopen(address, timeout=10).read().decode()
            rows = re.findall(r'^ray_(ns_ray_\w+)\{.*run="my-run".*\} \S+$', text, flags=re.M)
            found = set(rows)
            if found == set(gauges.GAUGES):
                break
            time.sleep(0.5)
    assert found == set(gauges.GAUGES)
    assert re.search(r'^ray_ns_ray_stage_left\{.*unit="images".*\} 600\.0$', text, flags=re.M)
