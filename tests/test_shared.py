"""A cluster of two nodes, and a path that is another folder on each: the working directory of a
node's processes stands for the disk that only this node has."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import flat_folder, user_environment

PROGRAM = """
import json, os, sys
import ray
from ray.cluster_utils import Cluster
from ns_ray.compute import Machine
from ns_ray.errors import ConfigError
from ns_ray.planning import check_shared
from starting import in_time
from typer.testing import CliRunner
from ns_ray.commands import app

driver, other, mounted, pile = sys.argv[1:]
cluster, said = Cluster(), []
for folder in (driver, other):
    os.chdir(folder)
    in_time(cluster.add_node, num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20)
os.chdir(driver)
in_time(ray.init, address=cluster.address, log_to_driver=False, logging_level="ERROR")
for storage in (mounted, "/proc/self/cwd/runs"):
    try:
        check_shared(Machine(cpus=2, gpus=0, local=False), storage, "storage")
        said.append(None)
    except ConfigError as error:
        said.append(str(error))
done = CliRunner().invoke(app, ["pack", "--data", pile, "--out", "/proc/self/cwd/packed"])
said.append([done.exit_code, done.output])
ray.shutdown()
cluster.shutdown()
print(json.dumps(said))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_disk_of_one_node_is_told_from_a_shared_folder(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("driver", "other", "mounted")]
    for folder in folders:
        folder.mkdir()
    pile = flat_folder(tmp_path / "pile", 4)
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, [*folders, pile])],
        env={**user_environment(), "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    shared, apart, (code, alone) = json.loads(ran.stdout.splitlines()[-1])
    assert shared is None
    assert "storage='/proc/self/cwd/runs' is not the same place on every node" in apart
    assert "the driver's file is not there" in apart
    assert code == 2, alone
    assert "--out='/proc/self/cwd/packed' is not the same place on every node" in alone
    left = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert left == []
    assert not (folders[1] / "runs").exists()
