"""The stages of a run, bound to its share of a machine or cluster: what the driver is handed."""

from functools import partial
from typing import Any

from ns_ray import resources
from ns_ray.config import RunConfig
from ns_ray.evaluate import evaluate
from ns_ray.ingest import ingest
from ns_ray.log import Metrics
from ns_ray.pseudo_label import pseudo_label
from ns_ray.resources import Machine
from ns_ray.robustness.suites import evaluate_robustness
from ns_ray.selection import select
from ns_ray.selftrain import Stages
from ns_ray.train import fit
from ns_ray.values import open_bundle


def open_stages(config: RunConfig, machine: Machine, metrics: Metrics | None = None) -> Stages:
    """The stages of a run, with their share of a machine or cluster on which Ray runs."""
    pool = resources.pool(config.resources, machine)
    workers = resources.workers(config.resources, machine)

    def train(*args: Any, **inputs: Any) -> Any:
        stage = str(inputs["title"]).replace(" ", "/")
        return fit(
            *args,
            workers=workers,
            max_failures=config.resources.max_failures,
            metrics=partial(metrics.write, stage) if metrics else None,
            **inputs,
        )

    return Stages(
        ingest=ingest,
        fit=train,
        open_bundle=open_bundle,
        pseudo_label=partial(pseudo_label, pool=pool, predict=config.predict),
        select=select,
        evaluate=partial(evaluate, pool=pool, predict=config.predict),
        robustness=partial(evaluate_robustness, pool=pool, predict=config.predict),
    )
