"""How long a training stands still when it loses a worker or a node, and what it does again:

    python tests/chaos/losses.py --losses 12 --seed 0 --out DIR

One long training on a head without CPUs and three nodes of two, DDP over two workers, a checkpoint
every ten seconds. Some seconds after its steps have come again, a node or a worker is killed, in
turn; another node comes at once. Prints a Markdown table, writes DIR/losses.csv, a line per loss:
what benchmarks/cluster_model.py is held against (docs/scale.md).
"""

import argparse
import csv
import json
import os
import random
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import conftest  # noqa: F401  its environment

from faults import TRAINERS, Scene, kill_node, kill_worker
from raylets import Driver, cluster_of
from tiny import flat_folder, folder_per_class, write_config

from ns_ray.log import say

CPUS, CHECKPOINT_SECONDS, BOUND = 2, 10.0, 300.0


def kill_training_node(scene: Scene) -> str | None:
    """A node dies that trains."""
    alone = [replace(scene, nodes=[node]) for node in scene.nodes]
    hit = scene.chance.choice([one for one in alone if one.workers(*TRAINERS)])
    scene.nodes.remove(hit.nodes[0])
    found = kill_node(hit)
    scene.nodes += hit.nodes
    return found


KINDS = {"node": kill_training_node, "worker": kill_worker}


@dataclass(frozen=True)
class Loss:
    """One loss.

    Attributes:
        killed: node or worker.
        after: seconds that steps had been coming for.
        still: seconds from the kill to the first step that was not done before.
        again: steps that were done again in these.
        again_seconds: that they took the first time.
    """

    killed: str
    after: float
    still: float
    again: int
    again_seconds: float


@dataclass(frozen=True)
class Steps:
    """What metrics.jsonl says of a training, whose steps are told once.

    Attributes:
        path: the file.
    """

    path: Path

    def rows(self, since: float = 0.0) -> list[dict[str, float]]:
        """Steps that were told after a time, the unfinished last line left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_text().split("\n")[:-1]
        rows = [row for line in lines if "step" in (row := json.loads(line))]
        return [row for row in rows if row["time"] > since]

    def until(self, since: float, count: int = 1) -> list[dict[str, float]]:
        """The first steps that are told after a time."""
        end = time.time() + BOUND
        while len(found := self.rows(since)) < count:
            assert time.time() < end, f"no step for {BOUND:.0f} s"
            time.sleep(0.1)
        return found


def losses(folder: Path, count: int, seed: int) -> list[Loss]:
    """The losses of one training."""
    config = write_config(
        folder / "run.yaml",
        {
            "storage": str(folder / "runs"),
            "data.labeled": str(folder_per_class(folder / "labeled", 20)),
            "data.unlabeled": [str(flat_folder(folder / "pile", 20, start=500))],
            "train.epochs": 100_000,
            "train.log_steps": 1,
            "train.checkpoint_seconds": CHECKPOINT_SECONDS,
            "label.teachers": 1,
            "resources.num_workers": 2,
            "resources.cpus_per_worker": 1,
            "resources.max_failures": -1,
        },
    )
    chance, found = random.Random(seed), []
    with cluster_of(CPUS, CPUS, CPUS) as (cluster, nodes):
        user = Alone(Driver(["-m", "ns_ray.run", "--config", str(config)], cluster.address))
        scene = Scene(cluster, nodes, CPUS, user, chance)
        steps = Steps(folder / "runs" / "tiny" / "metrics.jsonl")
        try:
            start = steps.until(0.0, 20)[0]["time"]
            for number in range(count):
                time.sleep(chance.uniform(1.5, 3.5) * CHECKPOINT_SECONDS)
                killed, at = list(KINDS)[number % 2], time.time()
                assert KINDS[killed](scene), killed
                # A step that was under way is told a moment later.
                first = steps.until(at + 2.0)[0]
                # Steps that are done again are not told again.
                again = [row for row in steps.rows(start) if row["time"] < first["time"]]
                again = [row for row in again if row["step"] > first["resumed_at"]]
                seconds = again[-1]["time"] - again[0]["time"] if again else 0.0
                found.append(
                    Loss(
                        killed,
                        round(at - start, 1),
                        round(first["time"] - at, 1),
                        len(again),
                        round(seconds, 1),
                    )
                )
                say(str(found[-1]))
                start = first["time"]
        finally:
            user.driver.kill()
            (folder / "said.txt").write_text(user.driver.text)
    return found


@dataclass(frozen=True)
class Alone:
    """A user with one driver."""

    driver: Driver


def table(found: list[Loss]) -> str:
    """By what was killed, as Markdown."""
    lines = [
        "| killed | losses | seconds until a new step, median (least, most) | of these work "
        "done again, median (most) |",
        "|---|---:|---:|---:|",
    ]
    for killed in KINDS:
        some = [loss for loss in found if loss.killed == killed]
        still = [loss.still for loss in some]
        again = [loss.again_seconds for loss in some]
        lines.append(
            f"| {killed} | {len(some)} | {median(still):.0f} ({min(still):.0f}, {max(still):.0f}) "
            f"| {median(again):.1f} ({max(again):.1f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--losses", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, metavar="DIR")
    asked = parser.parse_args()
    out = Path(asked.out)
    out.mkdir(parents=True)
    found = losses(out, asked.losses, asked.seed)
    with (out / "losses.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, [field.name for field in fields(Loss)])
        rows.writeheader()
        rows.writerows(asdict(loss) for loss in found)
    say(table(found))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    main()
