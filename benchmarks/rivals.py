"""What a run makes of its images against what others make of them: same data, seeds and images
through the network.

    python benchmarks/rivals.py --recipe digits --seeds 0 1 2 3 4 --set data.labels=30 --out DIR

Makes the recipe's run for every seed and, on its own corpora:

- teacher-long: the first teacher, and it again with two and four times the steps;
- control-filled: the last student on labeled images alone, which fill the batch, at two rates;
- probe: logistic regression on the features of pretrained weights, where a model has them;
- fixmatch: FixMatch, see fixmatch.py;
- teacher-all-labels: the first teacher on labeled and validation images together.

Of several models of a rival the better one on validation is taken. All but the probe and the
teachers see as many images as teacher and students together; how they are counted is said in
rival_arms.py. `delivered` is the best generation; with `refit: true` the line `refit` is what the
run leaves in model/ in its place. Test is scored when all models of a
seed are there, once each; with --no-test it is left alone. What is in DIR already is not made
again. Prints a Markdown table and writes DIR/rivals.csv, a line per seed and arm.
"""

import argparse
import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from machine import machine as machine_name

from ns_ray import store
from ns_ray.compute import Machine, cluster, prepare
from ns_ray.config import RunConfig, load_either, settle
from ns_ray.log import say
from ns_ray.store import RunLayout

NAMES = ("teacher-long", "control-filled", "probe", "fixmatch", "teacher-all-labels")
DELIVERED = "delivered"


@dataclass(frozen=True)
class Line:
    """One arm with one seed. Accuracies are fractions; None: not scored, or trained on it.

    Attributes:
        chosen: the model that was taken, of those that the arm had.
        images: that went through the network in training.
        seconds: that its training took, and for a student and the delivered model those before it.
    """

    seed: int
    arm: str
    chosen: str
    images: int
    seconds: float
    validation_top1: float | None
    validation_ece: float | None
    test_top1: float | None
    test_ece: float | None


def one_seed(config: RunConfig, machine: Machine, only: Sequence[str], test: bool) -> list[Line]:
    """The run of one seed, then its rivals; test comes last."""
    from rival_arms import RIVALS, Ground, chosen

    from ns_ray.chosen import images_of
    from ns_ray.compute import resources
    from ns_ray.itinerary import steps
    from ns_ray.selftrain import self_train

    layout, stages = RunLayout.of(config), _stages(config, machine, test)
    outcome = self_train(config, layout, stages)
    if test:
        store.write_json(layout.result, outcome.result)
    data = stages.ingest(config.data, seed=config.seed, out=layout)
    settled, _ = settle(config, images_of(data, symmetric=stages.symmetric(data)))
    ground = Ground(
        config=config,
        settled=settled,
        plan=steps(settled, layout, students=len(outcome.result["generations"]) - 1),
        data=data,
        stages=stages,
        device=resources.workers(config.resources, machine).device,
        root=store.join(layout.root, "rivals"),
    )
    lines = _of_run(config.seed, outcome.result, ground)
    rivals = {arm: chosen(found) for arm in only if (found := RIVALS[arm](ground))}
    for arm, model in rivals.items():
        on_test = None
        if data.test is not None:
            on_test = ground.score(model.bundle, model.out, "test", data.test).scores
        on_validation = model.validation.scores if model.validation else None
        said = (config.seed, arm, model.what, model.images, model.bundle.seconds)
        lines.append(Line(*said, *_scores(on_validation), *_scores(on_test)))
    return lines


def _stages(config: RunConfig, machine: Machine, test: bool) -> Any:
    """The real stages, without a report, and without test images where those are left alone."""
    from ns_ray.stages import RayStages, open_stages

    class Unreported(RayStages):
        def ingest(self, *args: Any, **named: Any) -> Any:
            data = super().ingest(*args, **named)
            return data if test else replace(data, test=None)

        def tell(self, *_: Any) -> None:
            pass

    return Unreported(**vars(open_stages(config, machine)))


def _of_run(seed: int, result: Mapping[str, Any], ground: Any) -> list[Line]:
    """The delivered model, the first teacher, the students and the control arm of a run."""
    from rival_arms import seen

    from ns_ray.steps import among_more

    rows, plan = ground.data.labeled.rows, ground.plan
    others = sum(seen(t, rows) for t in plan.teacher.others)
    own = {arm.generation: sum(seen(t, rows) for t in arm.trainings) for arm in plan.arms}
    generations = result["generations"]
    best = generations[result["best_generation"]]
    arms = [(DELIVERED, best, ground.images), ("first teacher", generations[0], own[0])]
    arms += [
        (
            f"student {row['generation']}",
            row,
            others + sum(own[g] for g in range(row["generation"] + 1)),
        )
        for row in generations[1:]
    ]
    if result["control"]:
        arms.append(("control arm", result["control"], own[result["control"]["generation"]]))
    lines = []
    for arm, row, images in arms:
        what = f"generation {row['generation']}" if arm == DELIVERED else row["model"]
        scores = [*_scores(row["scores"]["validation"]), *_scores(row["scores"]["test"])]
        trained = generations if arm == DELIVERED else generations[: row["generation"] + 1]
        trained = trained or [row]  # the control arm, whose generation is -1
        seconds = sum(each["seconds"]["train"] for each in trained)
        lines.append(Line(seed, arm, what, images, seconds, *scores))
    if "refit" in result:
        held_out, again = ground.data.validation.rows, result["refit"]
        line = [t for t in plan.refit.trainings if t.generation in again["generations"]]
        trained = [among_more(step, rows, held_out) for step in line]
        images = ground.images + sum(seen(step, rows + held_out) for step in trained)
        what, tested = f"generation {again['generations'][-1]}", _scores(again["scores"]["test"])
        lines.append(
            Line(seed, "refit", what, images, again["seconds"]["train"], None, None, *tested)
        )
    return lines


def _scores(found: Mapping[str, Any] | None) -> tuple[float | None, float | None]:
    """Accuracy and calibration error."""
    return (found["top1"], found["ece"]) if found else (None, None)


def spread(values: Iterable[float | None], scale: float = 100) -> str:
    """Mean and standard deviation, in percent; a dash where one is missing."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "-"
    about = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return f"{scale * statistics.mean(numbers):.2f} ± {scale * about:.2f}"


def table(lines: Sequence[Line]) -> list[str]:
    """Markdown: a row per arm, in percent and points; ECE and differences are on test, or without
    it on validation."""
    split = "test" if any(line.test_top1 is not None for line in lines) else "validation"
    delivered = {line.seed: line for line in lines if line.arm == DELIVERED}
    shown = [
        f"| arm | chosen | images | validation | test | ECE, {split} | delivered minus it |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for arm in dict.fromkeys(line.arm for line in lines):
        found = [line for line in lines if line.arm == arm]
        pairs = [
            (getattr(delivered[line.seed], f"{split}_top1"), getattr(line, f"{split}_top1"))
            for line in found
        ]
        gains = [a - b for a, b in pairs if a is not None and b is not None]
        cells = [
            arm,
            ", ".join(dict.fromkeys(line.chosen for line in found)),
            f"{statistics.mean(line.images for line in found):,.0f}",
            spread(line.validation_top1 for line in found),
            spread(line.test_top1 for line in found),
            spread(getattr(line, f"{split}_ece") for line in found),
            "" if arm == DELIVERED else spread(gains),
        ]
        shown.append(f"| {' | '.join(cells)} |")
    return shown


def main() -> None:
    """Run the seeds, write the lines after each of them, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe")
    parser.add_argument("--config", metavar="FILE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--set", nargs="*", action="extend", default=[], metavar="A.B=C")
    parser.add_argument("--only", default=",".join(NAMES), help="rivals, with commas between")
    parser.add_argument("--no-test", action="store_true", help="score validation only")
    parser.add_argument("--out", required=True, metavar="DIR")
    args = parser.parse_args()
    only = [name for name in args.only.split(",") if name]
    if unknown := [name for name in only if name not in NAMES]:
        parser.error(f"--only={','.join(unknown)}: choose from {', '.join(NAMES)}")
    asked = load_either(args.config, args.recipe, args.set)
    changes = {"storage": str(Path(args.out).resolve())}
    configs = [
        asked.model_copy(update={**changes, "seed": seed, "name": f"{asked.name}-{seed}"})
        for seed in args.seeds
    ]
    prepare()
    Path(args.out).mkdir(parents=True, exist_ok=True)
    lines: list[Line] = []
    with cluster(asked.resources, f"{args.out}/ray.log") as machine:
        for config in configs:
            say(f"== {config.name}")
            lines += one_seed(config, machine, only, not args.no_test)
            with Path(args.out, "rivals.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, [field.name for field in fields(Line)])
                writer.writeheader()
                writer.writerows(asdict(line) for line in lines)
    print(f"\n{asked.name}, {' '.join(args.set)}; seeds {args.seeds}; {machine_name()}\n")
    print("\n".join(table(lines)))


if __name__ == "__main__":
    main()
