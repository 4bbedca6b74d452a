"""The head of a cluster dies, with all that it knows: storage outside has what a run needs."""

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from raylets import QUICK, STORE, Driver, driver_of
from starting import in_time
from tiny import flat_folder, folder_per_class, write_config

from ns_ray.store.labels import open_labels

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.trial]

PILE = 90
ON_A_NODE = """
from functools import partial
from ns_ray.compute import prepare
prepare()
import ray
ray.init = partial(ray.init, _node_ip_address="127.0.0.2")
from ns_ray.commands import run_app
run_app()
"""
"""`ns_ray.run` on a node that is not the head."""


@contextmanager
def headed() -> Iterator[Any]:
    """A head without CPUs and two nodes with addresses of their own; Ray's handle."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK, **STORE}
    cluster = in_time(Cluster, initialize_head=True, head_node_args=head)
    try:
        for last in (2, 3):
            in_time(cluster.add_node, num_cpus=2, node_ip_address=f"127.0.0.{last}", **STORE)
        yield cluster
    finally:
        cluster.shutdown()


def behead(cluster: Any) -> None:
    """SIGKILL of what makes a node the head."""
    for kind in ("gcs_server", "raylet"):
        os.kill(cluster.head_node.all_processes[kind][0].process.pid, signal.SIGKILL)


def beheaded(config: Path, stage: str) -> Driver:
    """A driver on a node of a cluster whose head dies in a stage; it has ended."""
    with (
        headed() as cluster,
        driver_of(
            ["-c", ON_A_NODE, "--config", str(config)],
            cluster.address,
            RAY_gcs_rpc_server_reconnect_timeout_s="18",
        ) as driver,
    ):
        driver.until(lambda line: line.startswith(stage))
        behead(cluster)
        assert driver.ended(60) == 4, driver.text
        return driver


def done(root: Path) -> dict[str, str]:
    """What the stages that have ended say of themselves, by their place."""
    return {
        str(path.relative_to(root)): path.read_text()
        for path in root.rglob("*")
        if path.name in ("_DONE.json", "evaluation.json")
    }


def test_a_run_goes_on_where_there_is_a_head_again(tmp_path: Path) -> None:
    """The head dies in a training and in a labeling, and each time another cluster comes."""
    root = tmp_path / "runs" / "tiny"
    config = write_config(
        tmp_path / "run.yaml",
        {
            "storage": str(tmp_path / "runs"),
            "data.labeled": str(folder_per_class(tmp_path / "labeled", 20)),
            "data.unlabeled": [str(flat_folder(tmp_path / "pile", PILE, start=500))],
            "data.validation_size": 12,
            "data.rows_per_shard": 10,
            "train.epochs": 10,
            "resources.num_workers": 2,
            "resources.cpus_per_worker": 1,
            "resources.label_actors": 2,
        },
    )
    ended: dict[str, str] = {}
    for stage in ("gen-00 train", "gen-01 label"):
        driver = beheaded(config, stage)
        silent, error = driver.lines[-2:]
        assert silent.startswith("the head of the cluster (")
        assert silent.endswith("waiting 12 s for it")
        assert error.startswith("error: the head of the cluster (")
        assert error.endswith("the same command continues when there is one")
        assert ended.items() <= done(root).items()
        ended = done(root)
    with (
        headed() as cluster,
        driver_of(["-m", "ns_ray.run", "--config", str(config)], cluster.address) as driver,
    ):
        assert driver.ended() in (0, 5), driver.text
    assert ended.items() <= done(root).items()
    labels = open_labels(f"{root}/gen-01/pseudo_labels")
    counts = Counter(row["key"] for shard in labels.files for row in labels.read(shard).to_pylist())
    assert len(counts) == PILE
    assert set(counts.values()) == {1}
    result = json.loads((root / "result.json").read_text())
    assert result["generations"][-1]["val_top1"] > 0.9
    assert not [path for path in root.rglob("*") if _is_left(path)]


def _is_left(path: Path) -> bool:
    return path.name == "owner.json" or path.suffix in (".tmp", ".damaged")
