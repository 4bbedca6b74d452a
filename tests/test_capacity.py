"""Nodes that are not there yet, that go, and that come back: real raylets and autoscaler."""

import json
from pathlib import Path
from typing import Any

import pytest
from raylets import autoscaling_head, cluster_of, driver_of
from starting import in_time
from tiny import flat_folder, folder_per_class, write_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]

IMPATIENT = str(Path(__file__).with_name("impatient_driver.py"))


def a_run(folder: Path, **changes: Any) -> Path:
    """The config of a run with two workers, long enough to be disturbed."""
    return write_config(
        folder / "run.yaml",
        {
            "storage": str(folder / "runs"),
            "data.labeled": str(folder_per_class(folder / "labeled", 20)),
            "data.unlabeled": [str(flat_folder(folder / "pile", 40, start=500))],
            "data.validation_size": 12,
            "train.epochs": 10,
            "resources.num_workers": 2,
            "resources.cpus_per_worker": 2,
            **changes,
        },
    )


@pytest.mark.trial
def test_a_training_goes_on_with_fewer_workers_and_then_with_all_again(tmp_path: Path) -> None:
    """The node of a worker dies and none takes its place; later one comes."""
    config = a_run(tmp_path, **{"train.epochs": 60})
    with (
        cluster_of(2, 2, 1) as (cluster, nodes),
        driver_of([IMPATIENT, "--config", str(config)], cluster.address) as driver,
    ):
        driver.until(lambda line: "gen-00 train: 1/" in line)
        driver.until_there(tmp_path, "runs/tiny/gen-00/checkpoints/*/last*.pt")
        cluster.remove_node(nodes[0], allow_graceful=False)
        driver.until(lambda line: "gen-00 train: going on with 1 of 2 workers" in line)
        in_time(cluster.add_node, num_cpus=2)
        driver.until(lambda line: "going on with 2 of 2 workers" in line)
        driver.until(lambda line: "gen-00 train: 288 steps in" in line, 300)
    facts = json.loads((tmp_path / "runs/tiny/gen-00/bundle/ns_ray.json").read_text())
    assert [made["workers"] for made in facts["made_on"]] == [2, 1, 2]


ASKS = """
import sys
from ns_ray.compute import cluster, prepare
prepare()
from ns_ray.config import ResourcesConfig, validate
from ns_ray.errors import NsRayError
import json
for asked in json.loads(sys.argv[1]):
    try:
        with cluster(validate(ResourcesConfig, asked)) as machine:
            print("room:", machine.cpus, "CPUs on", len([n for n in machine.nodes if n.cpus]))
    except NsRayError as error:
        print("error:", error)
"""


def asking(address: str, *resources: dict[str, Any]) -> Any:
    """A driver that waits for room for each of these."""
    return driver_of(["-c", ASKS, json.dumps(resources)], address)


def test_a_cluster_without_an_autoscaler_is_waited_for_within_bounds() -> None:
    """What no node can hold is refused at once; a node may still come for the rest."""
    two = {"num_workers": 2, "cpus_per_worker": 1}
    with cluster_of(2) as (cluster, _):
        with asking(
            cluster.address,
            {"gpus_per_worker": 1},
            {"cpus_per_actor": 3},
            {**two, "max_wait": "2s"},
            {**two, "max_wait": "90s"},
        ) as driver:
            driver.until(lambda line: "waiting for nodes, at most 90s" in line)
            in_time(cluster.add_node, num_cpus=1)
            assert driver.ended() == 0, driver.text
        gpu, actor, *more = [line for line in driver.lines if "INFO" not in line]
        assert gpu.startswith("error: 1 training workers with 1 GPUs each, but there are 0 GPUs")
        assert actor.startswith("error: 1 label actors with 3 CPUs and 0 GPUs each have no room")
        assert more[0].startswith("waiting for nodes, at most 2s (resources.max_wait): 2 training")
        assert more[1].startswith(
            "error: 2 training workers with 1 CPUs and 0 GPUs each, and a CPU"
        )
        assert more[1].endswith(
            "s were waited for nodes that have room for them (resources.max_wait=2s)"
        )
        assert more[-1] == "room: 3 CPUs on 2"


def test_an_autoscaler_is_asked_for_what_is_not_there_yet(tmp_path: Path) -> None:
    """Ray's own autoscaler, with nodes that are processes of this machine."""
    both = {"num_workers": 2, "gpus_per_worker": 1, "label_actors": 2, "gpus_per_actor": 1}
    with (
        autoscaling_head(tmp_path, {"CPU": 2, "GPU": 1}, most=2) as address,
        asking(address, {**both, "max_wait": "2m"}, {"num_workers": 3, "max_wait": "2s"}) as driver,
    ):
        assert driver.ended() == 0, driver.text
    waiting, *_, room, also, never = [line for line in driver.lines if "INFO" not in line]
    assert waiting == (
        "waiting for nodes, at most 2m (resources.max_wait): no node of the cluster has a CPU that "
        "can be used"
    )
    assert room == "room: 4 CPUs on 2"
    assert also.startswith("waiting for nodes, at most 2s")
    # With GPUs about, three workers are not put on CPUs because there are two.
    assert never.startswith("error: 3 training workers with 1 GPUs each, but there are 2 GPUs")
