"""Runs that are disturbed at random moments, and whether anything was lost:

    python tests/chaos/trials.py --runs 12 --seed 0 --out DIR
    python tests/chaos/trials.py --runs 4 --decode apart --out DIR
    python tests/chaos/trials.py --runs 4 --at-once 2 --out DIR

A run on a head without CPUs and three nodes, DDP over two workers, two labeling actors. Each run
has a schedule drawn from its seed: a fault for some of its stages, or several at once, so many
seconds after the stage was seen to begin. A driver that has ended is started again with the same
command, as its user would do. Prints a Markdown table and writes DIR/trials.csv, a line per fault.
"""

import argparse
import csv
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from statistics import median

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import conftest  # noqa: F401  its environment

from faults import FAULTS, OF_DISKS, Scene, await_victim, own_disk
from raylets import Driver, cluster_of
from tiny import flat_folder, folder_per_class, write_config

from ns_ray.log import say
from ns_ray.store.labels import open_labels

STAGES = (
    "pack unlabeled",
    "gen-00 train",
    "gen-00 validation",
    "gen-01 label",
    "select",
    "gen-01 train",
    "gen-01 validation",
)
"""Whose first line says that they have begun, or have just ended where they are short."""
HITS = {
    "actor killed": "label validation",
    "worker killed": "train",
    "worker stopped": "train label",
}
"""Stages, by their last word, in which such a fault finds somebody."""
PILE, CPUS = 90, 2
AGAIN = 60
"""Most times that the same command is started again."""
PAUSE = 2.0
"""Seconds before the same command is started again."""
AT_ONCE = " + "
BOUND = 900.0
"""Seconds after which a run hangs."""


@dataclass(frozen=True)
class Trial:
    """One fault and what became of it.

    Attributes:
        run, seed: of which run.
        stage: in which it was done.
        after: seconds after the stage was seen to begin.
        fault: what was done; several things at once are joined by " + ".
        hit: to whom; empty where there was nobody.
        restarts: of the command, until it went on.
        seconds: from the fault's begin until the run went on: its first line after the fault.
    """

    run: int
    seed: int
    stage: str
    after: float
    fault: str
    hit: str
    restarts: int
    seconds: float


@dataclass(frozen=True)
class Ended:
    """How a disturbed run ended.

    Attributes:
        code: exit code.
        keys: labeled images of the pile.
        twice: of these, those that are there more than once.
        accuracy: of the student on validation images, a fraction.
        left: files that should not be there.
    """

    code: int
    keys: int
    twice: int
    accuracy: float
    left: tuple[str, ...]

    @property
    def well(self) -> bool:
        """Whether nothing was lost, doubled or left behind."""
        return self.code in (0, 5) and self.keys == PILE and not self.twice and not self.left


class Stubborn:
    """A user who starts the same command again until it ends well.

    Attributes:
        drivers: all of them; the last is at work.
        codes: exit codes of those before it.
    """

    def __init__(self, command: list[str], address: str) -> None:
        self.codes: list[int] = []
        self.drivers = [Driver(command, address)]
        self._command, self._address = command, address
        self._gives_up = False
        self._thread = threading.Thread(target=self._insist, daemon=True)
        self._thread.start()

    def _insist(self) -> None:
        while True:
            code = self.driver.ended(BOUND)
            self.codes.append(code)
            if code in (0, 5) or len(self.codes) > AGAIN or self._gives_up:
                return
            time.sleep(PAUSE)
            self.drivers.append(Driver(self._command, self._address))

    @property
    def driver(self) -> Driver:
        """At work."""
        return self.drivers[-1]

    @property
    def lines(self) -> list[str]:
        """All that was said, by all drivers."""
        return [line for driver in self.drivers for line in driver.lines]

    @property
    def over(self) -> bool:
        """Whether it has ended, well or for good."""
        return not self._thread.is_alive()

    def until(self, says: Callable[[list[str]], bool]) -> None:
        """Wait for what is said, or for the end."""
        end = time.monotonic() + BOUND
        while not self.over and not says(self.lines):
            assert time.monotonic() < end, "\n".join(self.lines)
            time.sleep(0.05)

    def give_up(self) -> None:
        """Leave nothing running."""
        self._gives_up = True
        self.driver.kill()


Plan = dict[str, tuple[tuple[str, ...], float]]


def schedule(seed: int, faults: int, drawn: Sequence[str], at_once: int = 1) -> Plan:
    """Stages in their order, each with its faults and the seconds to wait before them.

    Args:
        seed: decides all.
        faults: how many stages have some.
        drawn: of which faults.
        at_once: how many a stage has, at the same moment; one of disks at most.
    """
    chance = random.Random(seed)
    stages = sorted(chance.sample(STAGES, faults), key=STAGES.index)
    plan: Plan = {}
    for stage in stages:
        some: list[str] = []
        for _ in range(at_once):
            no_disk = any(fault in OF_DISKS for fault in some)
            meant = [fault for fault in drawn if not (no_disk and fault in OF_DISKS)]
            some.append(chance.choice(_meant(stage, meant)))
        plan[stage] = (tuple(some), chance.uniform(0, 4))
    return plan


def _meant(stage: str, drawn: Sequence[str]) -> list[str]:
    """Faults that can hit somebody in a stage."""
    return [f for f in drawn if f not in HITS or stage.split()[-1] in HITS[f].split()]


def disturbed(
    folder: Path,
    run: int,
    seed: int,
    faults: int,
    drawn: Sequence[str] = tuple(FAULTS),
    decode: str = "with_model",
    at_once: int = 1,
) -> tuple[list[Trial], Ended]:
    """One run with its faults, those of disks only where it can have a disk of its own; `decode` is
    its `label.decode`."""
    with own_disk(folder) as disk:
        some = [fault for fault in drawn if disk or fault not in OF_DISKS]
        plan = schedule(seed, faults, some, at_once)
        trials, code = _trials(folder, run, seed, plan, disk, decode)
        return trials, _ended((disk or folder) / "runs" / "tiny", code)


def _trials(
    folder: Path,
    run: int,
    seed: int,
    plan: Plan,
    disk: Path | None,
    decode: str,
) -> tuple[list[Trial], int]:
    """What became of each fault, and the last exit code."""
    config = write_config(
        folder / "run.yaml",
        {
            "storage": str((disk or folder) / "runs"),
            "data.labeled": str(folder_per_class(folder / "labeled", 20)),
            "data.unlabeled": [str(flat_folder(folder / "pile", PILE, start=500))],
            "data.rows_per_shard": 10,
            "train.epochs": 16,
            "resources.num_workers": 2,
            "resources.cpus_per_worker": 1,
            "resources.label_actors": 2,
            "label.decode": decode,
        },
    )
    trials = []
    with cluster_of(CPUS, CPUS, CPUS) as (cluster, nodes):
        user = Stubborn(["-m", "ns_ray.run", "--config", str(config)], cluster.address)
        scene = Scene(cluster, nodes, CPUS, user, random.Random(seed), disk)
        try:
            for stage, (faults, after) in plan.items():
                user.until(partial(_begun, stage))
                time.sleep(after)
                for fault in faults:
                    await_victim(scene, fault)
                times, start = len(user.codes), time.monotonic()
                hit = AT_ONCE.join([] if user.over else scene.do(faults))
                user.until(partial(_more, len(user.lines)))
                seconds = round(time.monotonic() - start, 1)
                again = sum(code not in (0, 5) for code in user.codes[times:])
                what = AT_ONCE.join(faults)
                trials.append(Trial(run, seed, stage, round(after, 1), what, hit, again, seconds))
            user.until(lambda _: False)
        finally:
            user.give_up()
            (folder / "said.txt").write_text("\n".join(user.lines))
    return trials, user.codes[-1]


def _begun(stage: str, lines: list[str]) -> bool:
    return any(line.startswith(stage) for line in lines)


def _more(said: int, lines: list[str]) -> bool:
    new = lines[said:]
    return any(not line.startswith("error:") and "taking over" not in line for line in new)


def _ended(root: Path, code: int) -> Ended:
    """What a run has left."""
    if not (root / "result.json").exists():
        return Ended(code, 0, 0, 0.0, ())
    labels = open_labels(f"{root}/gen-01/pseudo_labels")
    counts = Counter(row["key"] for shard in labels.files for row in labels.read(shard).to_pylist())
    result = json.loads((root / "result.json").read_text())
    left = [str(path.relative_to(root)) for path in root.rglob("*") if _is_left(path)]
    return Ended(
        code,
        len(counts),
        sum(count > 1 for count in counts.values()),
        result["generations"][-1]["val_top1"],
        tuple(left),
    )


def _is_left(path: Path) -> bool:
    return path.name == "owner.json" or path.suffix in (".tmp", ".damaged")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--faults", type=int, default=5, help="in each run")
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="FAULT")
    parser.add_argument("--decode", choices=("with_model", "apart"), default="with_model")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="faults of a stage")
    parser.add_argument("--out", required=True, metavar="DIR")
    asked = parser.parse_args()
    out = Path(asked.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "trials.csv").open("a", newline="") as file:
        rows = csv.DictWriter(
            file, [*(f.name for f in fields(Trial)), *(f.name for f in fields(Ended))]
        )
        if not file.tell():
            rows.writeheader()
        for run in range(asked.runs):
            folder = Path(tempfile.mkdtemp(prefix="chaos", dir=out))
            some = (asked.faults, asked.only, asked.decode, asked.at_once)
            trials, ended = disturbed(folder, run, asked.seed + run, *some)
            for trial in trials:
                rows.writerow({**asdict(trial), **asdict(ended)})
                say(str(trial))
            say(f"{ended}: {'well' if ended.well else 'NOT WELL'}")
            file.flush()
    say(table(out / "trials.csv"))


def table(path: Path) -> str:
    """Trials by fault, as Markdown; those that hit nobody are left out."""
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["hit"]]
    lines = [
        "| fault | trials | in stages | command started again | seconds until it went on, median "
        "(longest) | images lost or twice |",
        "|---|---:|---|---:|---:|---:|",
    ]
    several = sorted({row["fault"] for row in rows} - {*FAULTS})
    for fault in (*FAULTS, *several):
        some = [row for row in rows if row["fault"] == fault]
        if some:
            seconds = [float(row["seconds"]) for row in some]
            stages = ", ".join(s for s in STAGES if any(row["stage"] == s for row in some))
            again = sum(int(row["restarts"]) for row in some)
            lost = sum(PILE - int(row["keys"]) + int(row["twice"]) for row in some)
            lines.append(
                f"| {fault} | {len(some)} | {stages} | {again} | {median(seconds):.0f} "
                f"({max(seconds):.0f}) | {lost} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    main()
