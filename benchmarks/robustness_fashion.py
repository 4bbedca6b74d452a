"""First teacher against the delivered model on Fashion-MNIST: clean, corrupted, attacked.

    python benchmarks/robustness_fashion.py [RUN ...] [--images 500] [--sequences 100]

RUN is a finished run folder of the recipe `fashion-mnist`, one for each seed (by default
runs/fashion-mnist-0 to -4, which `benchmarks/rivals.py --recipe fashion-mnist --out runs` leaves).
Both models see the same corrupted test images. Prints a Markdown table: mean and standard deviation
over the runs. Counts are kept in RUN/robustness-N: rerun, it only prints.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from ns_ray.compute import cluster, prepare
from ns_ray.config import ResourcesConfig, RobustnessConfig


def delivered(run: Path) -> int:
    """Generation of the model that the run delivers."""
    return int(json.loads((run / "result.json").read_text())["best_generation"])


def scored(run: Path, config: RobustnessConfig, machine: Any) -> list[dict[str, Any]]:
    """For the first teacher and the delivered model: test scores, with `robustness` among them."""
    from ns_ray.compute import resources
    from ns_ray.robustness import evaluate_robustness
    from ns_ray.store import open_bundle, open_corpus

    places = [run / "gen-00", run / f"gen-{delivered(run):02d}"]
    folder = run / f"robustness-{config.images}"
    robust = evaluate_robustness(
        config,
        [open_bundle(str(place / "bundle")) for place in places],
        open_corpus(str(run / "corpora" / "test")),
        outs=[str(folder / place.name) for place in places],
        names=[place.name for place in places],
        pool=resources.pool(ResourcesConfig(), machine),
        title=f"{run.name} robustness",
    )
    tests = [json.loads((place / "evaluation.json").read_text())["test"] for place in places]
    return [{**test, "robustness": r} for test, r in zip(tests, robust, strict=True)]


def rows(scores: dict[str, Any]) -> dict[str, float]:
    """The numbers of the table, by title."""
    robust = scores["robustness"]
    numbers = {"clean accuracy": scores["top1"], "ECE": scores["ece"]}
    numbers["mean corruption error"] = robust["mean_corruption_error"]
    for family in ("noise", "blur", "weather", "digital"):
        of = [r["mean"] for r in robust["corruptions"].values() if r["family"] == family]
        numbers[f"- {family}"] = statistics.mean(of)
    numbers["mean flip rate"] = robust["mean_flip_rate"]
    for attack, curve in robust["adversarial"].items():
        for epsilon, value in curve.items():
            numbers[f"accuracy under {attack.upper()}, epsilon {epsilon}"] = value
    return numbers


def percent(values: list[float]) -> str:
    """Mean and standard deviation, in percent."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.2f} ± {100 * spread:.2f}"


def main() -> None:
    """Score the runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--sequences", type=int, default=100)
    args = parser.parse_args()
    runs = args.runs or [Path("runs", f"fashion-mnist-{seed}") for seed in range(5)]
    absent = [str(run) for run in runs if not (run / "result.json").exists()]
    if absent:
        sys.exit(f"no finished run in {', '.join(absent)}; see benchmarks/rivals.py")
    config = RobustnessConfig(images=args.images, sequences=args.sequences)
    prepare()
    with cluster(ResourcesConfig()) as machine:
        found = [scored(run.resolve(), config, machine) for run in runs]
    print(f"\n{len(runs)} runs; {args.images} test images, {args.sequences} sequences each\n")
    print("| | teacher | delivered | difference |")
    print("|---|---:|---:|---:|")
    pairs = [[rows(one) for one in pair] for pair in found]
    for title in pairs[0][0]:
        old, new = ([pair[i][title] for pair in pairs] for i in (0, 1))
        gaps = [b - a for a, b in zip(old, new, strict=True)]
        print(f"| {title} | {percent(old)} | {percent(new)} | {percent(gaps)} |")
    relative = [pair[1]["robustness"]["relative"] for pair in found]
    if None not in relative:
        print(f"\nCorruption error relative to the teacher: {percent(relative)} %")


if __name__ == "__main__":
    main()
