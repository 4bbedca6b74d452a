"""`ns_ray.run` that dies at a given moment, as if the machine had lost its power:

python tests/kill_driver.py MOMENT --config run.yaml
"""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from tiny import processes

from ns_ray import log, store
from ns_ray.commands import run_app
from ns_ray.compute import environment

environment.prepare()  # before anything imports ray

from ns_ray.labeling import inference  # noqa: E402

MOMENTS = ("label", "select", "train", "evaluate")
"""In the order of a run: after some shards are labeled, after the first file of the selection,
at a step of the student's training, and when its predictions are written but not published."""

SHARDS, STEP = 3, 6


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_labeling() -> None:
    work = inference._run

    def counts(*args: Any) -> Iterator[dict[str, Any]]:
        for shards, row in enumerate(work(*args), start=1):
            yield row
            if args[-1] == "gen-01 label" and shards == SHARDS:
                die()

    inference._run = counts  # type: ignore[assignment]


def die_while_selecting() -> None:
    write = store.write_table

    def write_table(path: str, *args: Any) -> None:
        write(path, *args)
        if "/gen-01/selection/" in path:
            die()

    store.write_table = write_table  # type: ignore[assignment]


def die_while_training() -> None:
    write = log.Metrics.write

    def write_row(self: log.Metrics, stage: str, step: int, values: Mapping[str, float]) -> None:
        write(self, stage, step, values)
        if stage == "gen-01/train" and step >= STEP:
            for worker in processes("RayTrainWorker"):
                worker.kill()  # or it might end its few steps before it finds itself alone
            die()

    log.Metrics.write = write_row  # type: ignore[method-assign]


def die_while_evaluating() -> None:
    publish = store.publish

    def publish_stage(out: str, **facts: Any) -> store.Done:
        if facts["stage"] == "evaluate" and "/gen-01/" in out:
            die()
        return publish(out, **facts)

    store.publish = publish_stage


if __name__ == "__main__":
    moment = sys.argv.pop(1)
    {
        "label": die_while_labeling,
        "select": die_while_selecting,
        "train": die_while_training,
        "evaluate": die_while_evaluating,
    }[moment]()
    run_app()
