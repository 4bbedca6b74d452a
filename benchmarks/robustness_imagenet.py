"""EfficientNet-Lite 0 to 2, with their ImageNet weights, on 20 photographs of ImageNet: the path of
1000 classes from end to end.

    python benchmarks/robustness_imagenet.py [--wheel foolbox-3.3.4-py3-none-any.whl] [--out DIR]

The photographs are those in the wheel of the package foolbox, which is downloaded (not installed)
when no file is given; the weights are those of the extra `lite`. 20 photographs say that the
numbers are computed as they should be, and nothing about which model is better.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from ns_ray.compute import cluster, prepare
from ns_ray.config import LITE, EvaluateConfig, ModelConfig, ResourcesConfig, RobustnessConfig

SIZES = (0, 1, 2)


def photographs(wheel: Path | None, out: Path) -> Path:
    """A folder per WordNet id, from file names such as imagenet_03_990.jpg (class 990)."""
    from ns_ray.model import imagenet_synsets

    if wheel is None:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", str(out), "foolbox==3.3.4"], check=True)
        (wheel,) = out.glob("foolbox-*.whl")
    folder = out / "photographs"
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if Path(name).name.startswith("imagenet_") and name.endswith(".jpg"):
                label = int(Path(name).stem.rsplit("_", 1)[1])
                place = folder / imagenet_synsets()[label]
                place.mkdir(parents=True, exist_ok=True)
                (place / Path(name).name).write_bytes(archive.read(name))
    return folder


def scored(out: Path, wheel: Path | None, config: RobustnessConfig) -> list[dict[str, Any]]:
    """Scores of each model: among all classes, among those of the photographs, robustness."""
    prepare()
    with cluster(ResourcesConfig()) as machine:
        from ns_ray.compute import resources
        from ns_ray.data import pack
        from ns_ray.model import fetch
        from ns_ray.robustness import evaluate_robustness
        from ns_ray.scoring import evaluate

        corpus = pack(str(photographs(wheel, out)), out=str(out / "corpus"))
        pool = resources.pool(ResourcesConfig(), machine)
        names = [f"tf_efficientnet_lite{size}" for size in SIZES]
        bundles = [
            fetch(ModelConfig(model=name, pretrained=LITE), str(out / name)) for name in names
        ]
        robust = evaluate_robustness(
            config,
            bundles,
            corpus,
            outs=[str(out / name / "robustness") for name in names],
            names=names,
            pool=pool,
            title="robustness",
        )
        found = []
        for name, bundle, result in zip(names, bundles, robust, strict=True):
            row: dict[str, Any] = {"robustness": result}
            for subset in (False, True):
                place = str(out / name / ("subset" if subset else "all"))
                config_ = EvaluateConfig(subset=subset)
                done = evaluate(config_, bundle, corpus, pool=pool, out=place, title=name)
                row["subset" if subset else "all"] = done.scores
            found.append(row)
    return found


def main() -> None:
    """Score the three models and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sequences", type=int, default=10)
    args = parser.parse_args()
    out = (args.out or Path(tempfile.mkdtemp(prefix="ns-ray-imagenet-"))).resolve()
    out.mkdir(parents=True, exist_ok=True)
    found = scored(out, args.wheel, RobustnessConfig(images=20, sequences=args.sequences))
    print("\n| | " + " | ".join(f"lite{size}" for size in SIZES) + " |")
    print("|---|" + "---:|" * len(SIZES))

    def line(title: str, values: list[float | None]) -> None:
        cells = ["-" if value is None else f"{100 * value:.1f}" for value in values]
        print(f"| {title} | " + " | ".join(cells) + " |")

    robust = [row["robustness"] for row in found]
    line("top-1", [row["all"]["top1"] for row in found])
    line("top-5", [row["all"]["top5"] for row in found])
    line("top-1 among the photographs' classes", [row["subset"]["top1"] for row in found])
    line("mean corruption error", [r["mean_corruption_error"] for r in robust])
    for family in ("noise", "blur", "weather", "digital", "extra"):
        of = [
            [c["mean"] for c in r["corruptions"].values() if c["family"] == family] for r in robust
        ]
        line(f"- {family}", [sum(values) / len(values) for values in of])
    line("mCE (AlexNet is 100)", [r["mce"] for r in robust])
    line("error relative to lite0", [r["relative"] for r in robust])
    line("mean flip rate", [r["mean_flip_rate"] for r in robust])
    line("mFR (AlexNet is 100)", [r["mfr"] for r in robust])
    for attack in ("fgsm", "pgd"):
        for epsilon in robust[0]["adversarial"][attack]:
            title = f"accuracy under {attack.upper()}, epsilon {epsilon}"
            line(title, [r["adversarial"][attack][epsilon] for r in robust])


if __name__ == "__main__":
    main()
