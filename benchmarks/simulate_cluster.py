"""A Noisy Student run on GPUs that are taken away: time, cost and work lost, simulated.

    python benchmarks/simulate_cluster.py [--seeds 4] [--price 2.0] [--out docs]

The recipe paper/efficientnet-l2 on 300 million images and 64 to 2,048 GPUs, in the model of
cluster_model.py, by checkpoint interval, shard size and life of a node. Prints Markdown tables of
means over seeds; writes simulated.csv and simulated.svg. What is not modelled: docs/scale.md.
"""

import argparse
import csv
import itertools
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cluster_model import Costs, Labeling, Training, simulate, work
from machine import machine
from matplotlib import rc_context
from matplotlib.figure import Figure

from ns_ray.config import ModelConfig, TrainConfig, load_recipe, train_config

Row = dict[str, Any]
Setting = tuple[list[Training | Labeling], int, float | None, float, Row]
"""Stages, GPUs, mean hours a node lives (None: for ever), share of losses with a notice, and what
else is named in the row."""

IMAGES, LABELED = 300_000_000, 1_271_167
"""The pile (docs/scale.md); ImageNet without the recipe's validation images."""
FORWARD = {"tf_efficientnet_b7": (600, 75.5e9), "tf_efficientnet_l2": (475, 341.8e9)}
"""Pixels, and FLOPs of a forward pass at that size (counted: `ns_ray.model.cost.forward_cost`)."""
PARAMETERS = {"tf_efficientnet_b7": 66.3e6, "tf_efficientnet_l2": 480.3e6}
"""Counted in the same way."""
HOUR = 3600.0


def training(model: ModelConfig, base: TrainConfig, seconds: float, accumulate: int) -> Training:
    """The training of a model of the recipe, the first teacher's if it has no fixres; but for
    FixRes itself, which is a thousandth of the work."""
    own = train_config(base, model)
    _, forward = FORWARD[str(model.model)]
    ratio = own.unlabeled_ratio if model.fixres else 0
    # A forward and a backward pass of twice its work; and the forward pass again.
    passes = 4 if own.grad_checkpointing else 3
    return Training(
        steps=math.ceil(own.epochs * LABELED / own.batch_size),
        flops=own.batch_size * (1 + ratio) * passes * forward,
        accumulate=accumulate,
        log_steps=own.log_steps,
        checkpoint_seconds=seconds,
        bytes=12 * PARAMETERS[str(model.model)],  # weights, average and momentum in fp32
    )


def stages(seconds: float, rows: int, accumulate: int) -> list[Training | Labeling]:
    """Those of the recipe in their order.

    Args:
        seconds: train.checkpoint_seconds.
        rows: data.rows_per_shard.
        accumulate: train.accumulate, of all models.
    """
    config = load_recipe("paper/efficientnet-l2")
    found: list[Training | Labeling] = [training(config.teacher, config.train, seconds, accumulate)]
    before = config.teacher
    for student in config.students:
        size, flops = FORWARD[str(before.model)]
        used = before.fixres.image_size if before.fixres else size
        found.append(Labeling(IMAGES, rows, flops * (used / size) ** 2))
        found.append(training(student, config.train, seconds, accumulate))
        before = student
    return found


def rows_of(table: str, seeds: int, price: float, settings: Iterable[Setting]) -> Iterator[Row]:
    """Means over the seeds: a row for each setting."""
    for jobs, gpus, hours, noticed, named in settings:
        costs = Costs(
            idle=named.get("idle_seconds", math.inf),
            patience=named.get("patience_seconds", Costs.patience),
        )
        life = hours * HOUR if hours else math.inf
        outcomes = [
            [
                simulate(job, gpus, life, noticed, 100 * seed + i, costs)
                for i, job in enumerate(jobs)
            ]
            for seed in range(seeds)
        ]
        ideal = sum(work(job, gpus, costs) for job in jobs)
        total = {
            name: mean(sum(getattr(one, name) for one in run) for run in outcomes)
            for name in ("seconds", "held", "lost", "restarts", "stops")
        }
        spread = stdev(sum(one.seconds for one in run) for run in outcomes)
        yield {
            "table": table,
            "gpus": gpus,
            "node_life_hours": hours or "never lost",
            "noticed": noticed,
            **named,
            "hours": round(total["seconds"] / HOUR, 2),
            "hours_sd": round(spread / HOUR, 2),
            "times_the_work": round(total["seconds"] / ideal, 3),
            "gpu_hours": round(total["held"] / HOUR),
            "cost": round(total["held"] / HOUR * price),
            "lost_gpu_hours": round(total["lost"] / HOUR, 1),
            "restarts": round(total["restarts"], 1),
            "stops": round(total["stops"], 1),
        }


def settings_of(small: bool) -> Iterator[tuple[str, list[Setting]]]:
    """The tables: a training by checkpoint interval and by passes a step, a labeling by shard
    size, a whole run."""
    sizes, lives = ((64,), (100,)) if small else ((64, 256, 1024, 2048), (1000, 100, 20))
    grid = list(itertools.product(sizes, lives))
    everywhere: list[Setting] = [
        ([stages(seconds, 1024, 2)[2]], gpus, life, told, {"checkpoint_seconds": seconds})
        for told in (0, 1)
        for (gpus, life), seconds in itertools.product(grid, (60, 180, 300, 600, 900, 1800))
    ]
    yield "checkpoints", everywhere
    yield (
        "passes",
        [
            ([stages(300, 1024, passes)[2]], gpus, life, 1, {"accumulate": passes})
            for (gpus, life), passes in itertools.product(grid, (1, 2, 4, 8))
        ],
    )
    yield (
        "idle",
        [
            (
                [stages(seconds, 1024, 2)[2]],
                gpus,
                100,
                1,
                {"idle_seconds": 600, "checkpoint_seconds": seconds},
            )
            for gpus, seconds in itertools.product(sizes, (60, 180, 300, 600, 900))
        ],
    )
    yield (
        "patience",
        [
            ([stages(300, 1024, 2)[2]], gpus, 100, told, {"patience_seconds": seconds})
            for gpus, seconds, told in itertools.product(sizes, (0, 120, 300), (0, 1))
        ],
    )
    yield (
        "shards",
        [
            ([stages(300, rows, 2)[1]], gpus, life, 0, {"rows_per_shard": rows})
            for (gpus, life), rows in itertools.product(grid, (128, 512, 1024, 4096))
        ],
    )
    yield (
        "run",
        [
            (stages(300, 1024, 2), gpus, life, told, {})
            for gpus, life, told in itertools.product(sizes, (None, *lives), (0, 1))
            if life or not told
        ],
    )


def draw(rows: list[Row], path: Path) -> None:
    """How many times as long a training takes as one that loses nothing, by checkpoint interval:
    a panel for each number of GPUs."""
    rows = [row for row in rows if row["table"] == "checkpoints"]
    sizes = sorted({row["gpus"] for row in rows})
    with rc_context({"svg.hashsalt": "simulated", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        for place, gpus in enumerate(sizes, 1):
            axes = figure.add_subplot(1, len(sizes), place)
            for color, life in enumerate(dict.fromkeys(row["node_life_hours"] for row in rows)):
                for told, style in ((0, "-"), (1, "--")):
                    line = [
                        (row["checkpoint_seconds"], row["times_the_work"])
                        for row in rows
                        if (row["gpus"], row["node_life_hours"], row["noticed"])
                        == (gpus, life, told)
                    ]
                    name = f"{life} h, {'with' if told else 'no'} notice"
                    axes.plot(*zip(*line, strict=True), style, color=f"C{color}", label=name)
            axes.set(title=f"{gpus:,} GPUs", xlabel="checkpoint_seconds")
            axes.set(xscale="log", yscale="log", ylim=(1, 12))
            axes.set_xticks([60, 180, 600, 1800], ["60", "180", "600", "1800"])
            axes.set_yticks([1, 1.5, 2, 3, 5, 10], ["1", "1.5", "2", "3", "5", "10"])
            axes.minorticks_off()
            axes.grid(axis="y", alpha=0.3)
        figure.axes[0].set_ylabel("times the work")
        figure.axes[0].legend(title="a node lives", fontsize=7)
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--price", type=float, default=2.0, help="of a GPU hour; an example")
    parser.add_argument("--small", action="store_true", help="64 GPUs only")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args()
    began, rows = time.monotonic(), []
    for name, settings in settings_of(args.small):
        made = list(rows_of(name, args.seeds, args.price, settings))
        print(f"\n{name}\n\n| " + " | ".join(list(made[0])[1:]) + " |")
        print("|" + "---:|" * (len(made[0]) - 1))
        for row in made:
            print("| " + " | ".join(f"{value}" for value in list(row.values())[1:]) + " |")
        rows += made
    with (args.out / "simulated.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, args.out / "simulated.svg")
    print(f"\n{args.seeds} seeds, {time.monotonic() - began:.0f} s on {machine()}")


if __name__ == "__main__":
    main()
