"""Shares of machines and clusters: they fit, and what doesn't fit is refused by name."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ns_ray.compute.resources import Machine, Pool, Workers, logical_cpus, pool, workers
from ns_ray.config.run import ResourcesConfig
from ns_ray.errors import ConfigError

LAPTOP = Machine(cpus=2, gpus=0, local=True)
BOX = Machine(cpus=16, gpus=1, local=True)
CLUSTER = Machine(cpus=64, gpus=8, local=False)


def resources(**settings: Any) -> ResourcesConfig:
    return ResourcesConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "machine", "expected"),
    [
        ({}, LAPTOP, Workers(1, 2.0, 0.0, 2, True, True)),
        ({"num_workers": 2}, LAPTOP, Workers(2, 1.0, 0.0, 1, False, True)),
        ({}, BOX, Workers(1, 16.0, 1.0, 8, True)),
        ({"gpus_per_worker": 0}, BOX, Workers(1, 16.0, 0.0, 8, True, True)),
        ({"loaders": 0, "cpus_per_worker": 3}, BOX, Workers(1, 3.0, 1.0, 0, True)),
        ({"num_workers": 8}, CLUSTER, Workers(8, 1.0, 1.0, 7)),
        ({"num_workers": 8, "loaders": 2}, CLUSTER, Workers(8, 5.0, 1.0, 2)),
        ({"num_workers": 9}, CLUSTER, Workers(9, 1.0, 0.0, 6)),
    ],
)
def test_workers(settings: dict[str, Any], machine: Machine, expected: Workers) -> None:
    assert workers(resources(**settings), machine) == expected


@pytest.mark.parametrize(
    ("settings", "machine", "expected"),
    [
        ({}, LAPTOP, Pool(1, 2.0, 0.0, True)),
        ({"label_actors": 4}, LAPTOP, Pool(4, 1.0, 0.0)),
        ({}, BOX, Pool(1, 16.0, 1.0, True)),
        ({"gpus_per_actor": 0.5}, BOX, Pool(2, 8.0, 0.5)),
        ({"gpus_per_actor": 0}, BOX, Pool(2, 8.0, 0.0)),
        ({}, CLUSTER, Pool(8, 7.0, 1.0)),
        ({}, Machine(1, 0, False), Pool(1, 1.0, 0.0)),
    ],
)
def test_pool(settings: dict[str, Any], machine: Machine, expected: Pool) -> None:
    assert pool(resources(**settings), machine) == expected


@pytest.mark.parametrize(
    ("settings", "machine", "says"),
    [
        ({"num_workers": 3}, LAPTOP, "set resources.num_workers to at most 2"),
        ({"gpus_per_worker": 1}, LAPTOP, "lower resources.gpus_per_worker"),
        ({"num_workers": 2, "gpus_per_worker": 1}, BOX, "there are 1 GPUs"),
        ({}, Machine(1, 0, False), "ray start --num-cpus"),
        ({"cpus_per_worker": 64}, CLUSTER, "lower resources.cpus_per_worker"),
    ],
)
def test_workers_that_do_not_fit(settings: dict[str, Any], machine: Machine, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        workers(resources(**settings), machine)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "machine", "says"),
    [
        ({"gpus_per_actor": 1}, LAPTOP, "there are 0 GPUs"),
        ({"gpus_per_actor": 2}, BOX, "lower resources.label_actors or resources.gpus_per_actor"),
        ({"label_actors": 9}, CLUSTER, "9 label actors with 1 GPUs each"),
        ({"label_actors": 70, "gpus_per_actor": 0}, CLUSTER, "lower resources.label_actors"),
        ({"cpus_per_actor": 8}, CLUSTER, "resources.cpus_per_actor"),
    ],
)
def test_actors_that_do_not_fit(settings: dict[str, Any], machine: Machine, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pool(resources(**settings), machine)
    assert says in str(caught.value)


@settings(deadline=None)
@given(
    cpus=st.integers(1, 300),
    gpus=st.integers(0, 16),
    count=st.integers(1, 64),
    actors=st.none() | st.integers(1, 64),
    loaders=st.none() | st.integers(0, 16),
    local=st.booleans(),
)
def test_whatever_is_handed_out_is_there(
    cpus: int, gpus: int, count: int, actors: int | None, loaders: int | None, local: bool
) -> None:
    machine = Machine(cpus, gpus, local)
    config = resources(num_workers=count, label_actors=actors, loaders=loaders)
    try:
        team, crew = workers(config, machine), pool(config, machine)
    except ConfigError:
        return
    assert team.cpus >= 1
    assert crew.cpus >= 1
    assert team.gpus * team.count <= gpus
    assert crew.gpus * crew.actors <= gpus
    if local:
        logical = logical_cpus(team, crew, machine)
        assert logical >= team.count * (team.cpus + team.loaders) + 1
        assert logical >= crew.actors * crew.cpus + 1
    else:
        assert team.count * team.cpus <= cpus - 1
        assert crew.actors * crew.cpus <= max(1, cpus - 1)


def test_a_user_s_fractions_are_kept() -> None:
    assert workers(resources(cpus_per_worker=0.5), LAPTOP).cpus == 0.5
    assert pool(resources(cpus_per_actor=0.5), LAPTOP).cpus == 0.5


COUNTED = """
import builtins, os, sys
folder, affinity = sys.argv[1], [int(cpu) for cpu in sys.argv[2].split(",") if cpu]
os.cpu_count = lambda: 64
os.sched_getaffinity = lambda _pid: set(affinity or range(64))
real_open, real_exists = builtins.open, os.path.exists
# What this container may see of its own quota must not be seen here.
elsewhere = lambda path: str(path).replace("/sys/fs/cgroup", folder)
builtins.open = lambda path, *args, **kwargs: real_open(elsewhere(path), *args, **kwargs)
os.path.exists = lambda path: real_exists(elsewhere(path))
from ns_ray.compute import local_machine
print(local_machine().cpus)
"""
"""A host with 64 CPUs, of which this process may use some."""


def counted(folder: Path, affinity: str = "") -> int:
    """CPUs of the machine that a run would find there."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, str(folder), affinity],
        env={**os.environ, "RAY_ADDRESS": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_all_cpus_count_where_nothing_limits_them(tmp_path: Path) -> None:
    assert counted(tmp_path) == 64
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert counted(tmp_path) == 64


def test_a_quota_of_the_container_counts(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    assert counted(tmp_path) == 2
    assert counted(tmp_path, affinity="5") == 1
    old = tmp_path / "v1"
    (old / "cpu").mkdir(parents=True)
    (old / "cpu" / "cpu.cfs_quota_us").write_text("300000\n")
    (old / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert counted(old) == 3


def test_only_the_cpus_a_process_may_run_on_count() -> None:
    one = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{one}}})\n"
        "from ns_ray.compute.runtime import local_machine; print(local_machine().cpus)"
    )
    env = {**os.environ, "RAY_ADDRESS": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert done.stdout.split() == [b"1"]


def test_nobody_counts_the_cpus_of_the_whole_host() -> None:
    root = Path(__file__).resolve().parent.parent
    files = [*(root / "ns_ray").rglob("*.py"), *(root / "benchmarks").rglob("*.py")]
    found = [str(path) for path in files if re.search(r"\bos\.cpu_count\b", path.read_text())]
    assert found == []
