"""Shares of machines and clusters: they fit, and what doesn't fit is refused by name."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ns_ray.compute.resources import Machine, Node, Pool, Workers, logical_cpus, pool, workers
from ns_ray.config.run import ResourcesConfig
from ns_ray.errors import ConfigError

LAPTOP = Machine(cpus=2, gpus=0, local=True)
BOX = Machine(cpus=16, gpus=1, local=True)
CLUSTER = Machine(cpus=64, gpus=8, local=False)


def nodes(count: int, each: tuple[int, int]) -> Machine:
    """So many of the same kind, with (CPUs, GPUs) each."""
    return Machine.of([Node(*each)] * count)


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
        ({"num_workers": 8, "loaders": 2}, CLUSTER, Workers(8, 6.0, 1.0, 2)),
        ({"num_workers": 9, "gpus_per_worker": 0}, CLUSTER, Workers(9, 6.0, 0.0, 1)),
        # By node, but for loaders beside GPUs: all of one, two that share one, none that needs
        # more than one has.
        ({}, nodes(8, (16, 1)), Workers(1, 8.0, 1.0, 8)),
        ({"num_workers": 2}, nodes(2, (8, 0)), Workers(2, 6.0, 0.0, 2)),
        ({"num_workers": 4}, nodes(2, (8, 0)), Workers(4, 3.0, 0.0, 1)),
        ({"num_workers": 3}, nodes(4, (2, 0)), Workers(3, 1.0, 0.0, 1)),
        ({"num_workers": 2}, Machine.of([Node(0), Node(32), Node(4, 2)]), Workers(2, 1.0, 1.0, 8)),
    ],
)
def test_workers(settings: dict[str, Any], machine: Machine, expected: Workers) -> None:
    assert workers(resources(**settings), machine) == expected


@pytest.mark.parametrize(
    ("settings", "machine", "expected"),
    [
        ({}, LAPTOP, Pool(1, 2.0, 0.0, True)),
        ({"label_actors": 4}, LAPTOP, Pool(4, 1.0, 0.0)),
        ({}, BOX, Pool(1, 4.0, 1.0, True, spare=12)),
        ({"gpus_per_actor": 0.5}, BOX, Pool(2, 4.0, 0.5, spare=4)),
        ({"gpus_per_actor": 0}, BOX, Pool(2, 8.0, 0.0)),
        ({}, CLUSTER, Pool(8, 4.0, 1.0, spare=4)),
        ({}, Machine(1, 0, False), Pool(1, 1.0, 0.0)),
        ({}, nodes(4, (2, 0)), Pool(3, 2.0, 0.0)),
        ({}, nodes(8, (16, 0)), Pool(15, 8.0, 0.0)),
        ({"cpus_per_actor": 3}, nodes(4, (4, 0)), Pool(4, 3.0, 0.0, spare=1)),
        ({}, nodes(8, (16, 1)), Pool(8, 4.0, 1.0, spare=12)),
        ({}, Machine.of([Node(0), Node(32), Node(4, 2)]), Pool(2, 2.0, 1.0, spare=16)),
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
        # GPUs that are not there are never replaced by CPUs.
        ({"num_workers": 9}, CLUSTER, "resources.gpus_per_worker (0 trains on CPUs)"),
        ({"num_workers": 4}, nodes(1, (16, 1)), "there are 1 GPUs"),
        ({"gpus_per_worker": 2}, nodes(4, (16, 1)), "resources.num_workers"),
        ({"cpus_per_worker": 6}, nodes(4, (4, 0)), "at most 4 CPUs and 0 GPUs on one node"),
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
        ({"cpus_per_actor": 7}, nodes(4, (2, 0)), "at most 2 CPUs and 0 GPUs on one node"),
        ({"gpus_per_actor": 2}, nodes(4, (8, 1)), "lower resources.label_actors"),
    ],
)
def test_actors_that_do_not_fit(settings: dict[str, Any], machine: Machine, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pool(resources(**settings), machine)
    assert says in str(caught.value)


@given(
    each=st.lists(st.tuples(st.integers(0, 64), st.integers(0, 8)), min_size=1, max_size=6),
    count=st.integers(1, 24),
    actors=st.none() | st.integers(1, 24),
    loaders=st.none() | st.integers(0, 16),
    local=st.booleans(),
)
def test_whatever_is_handed_out_is_there(
    each: list[tuple[int, int]],
    count: int,
    actors: int | None,
    loaders: int | None,
    local: bool,
) -> None:
    machine = Machine.of(Node(*one) for one in each)
    if local:
        machine = Machine(max(1, each[0][0]), each[0][1], local=True)
    config = resources(num_workers=count, label_actors=actors, loaders=loaders)
    try:
        team, crew = workers(config, machine), pool(config, machine)
    except ConfigError:
        return
    assert team.cpus >= 1
    assert crew.cpus >= 1
    if local:
        assert team.gpus * team.count <= machine.gpus
        assert crew.gpus * crew.actors <= machine.gpus
        logical = logical_cpus(team, crew, machine)
        assert logical >= team.count * (team.cpus + team.loaders) + 1
        assert logical >= crew.actors * crew.cpus + 1
    else:
        assert placed(machine, team.count, team.cpus, team.gpus)
        assert placed(machine, crew.actors, crew.cpus, crew.gpus)
        assert team.count * team.cpus <= machine.cpus - 1
        assert crew.actors * crew.cpus <= max(1, machine.cpus - 1)


def placed(machine: Machine, count: int, cpus: float, gpus: float) -> bool:
    """Whether so many processes find room, one after the other, each on one node."""
    free = [[float(node.cpus), float(node.gpus)] for node in machine.each]
    for _ in range(count):
        node = next((n for n in free if n[0] >= cpus and n[1] >= gpus), None)
        if node is None:
            return False
        node[0] -= cpus
        node[1] -= gpus
    return True


@given(parts=st.integers(1, 12), count=st.integers(1, 6), cpus=st.integers(1, 16))
def test_runs_at_a_time_share_what_there_is(parts: int, count: int, cpus: int) -> None:
    share = nodes(count, (cpus, 1)).share(parts)
    assert share.cpus >= 1
    assert share.cpus * parts <= max(count * cpus, parts)
    assert max(node.cpus for node in share.each) <= cpus


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


def test_workers_talk_over_the_interface_of_their_node_s_address() -> None:
    """Where a host's name means 127.0.1.1, gloo would be heard by no other node."""
    from ns_ray.training.network import interface_of

    assert str(interface_of("127.0.0.1")).startswith("lo")
    assert interface_of("203.0.113.9") is None


@pytest.mark.slow
@pytest.mark.parametrize("own", [None, "7"])
def test_threads_wait_less_for_each_other_unless_the_user_says_how_long(own: str | None) -> None:
    code = "from ns_ray.compute import prepare; prepare(models=False); import torch"
    environment = {n: v for n, v in os.environ.items() if n != "GOMP_SPINCOUNT"}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE"} | ({"GOMP_SPINCOUNT": own} if own else {})
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    found = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    assert found == ([own or "3000"] if sys.platform == "linux" else [])  # libgomp itself says it


@pytest.mark.parametrize(("first", "mode"), [("", "1 token"), ("import ray;", "0 None")])
def test_this_process_and_its_cluster_agree_on_tokens(first: str, mode: str) -> None:
    """Ray reads the mode when it is imported, which a notebook may have done before."""
    code = (
        f"import os; {first} from ns_ray.compute import prepare; prepare(models=False);"
        "from ray._raylet import get_authentication_mode as found;"
        "print(int(found()), os.environ.get('RAY_AUTH_MODE'))"
    )
    environment = {n: v for n, v in os.environ.items() if not n.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == mode
