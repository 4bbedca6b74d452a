"""`ns-ray evaluate`: a model's scores on labeled images, or several models' beside each other."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from ns_ray import store
from ns_ray.api import listed, owning, ready_to_infer
from ns_ray.commands.completing import bundles
from ns_ray.commands.options import Data, Debug, Json, Out, set_of
from ns_ray.compute import Pool
from ns_ray.config import (
    DataConfig,
    EvaluateConfig,
    PredictConfig,
    ResourcesConfig,
    Settings,
    parse_sections,
)
from ns_ray.errors import DataError
from ns_ray.log import aside, print_json, say, tabulate
from ns_ray.store import Bundle, Corpus, open_bundle

PARTS = ("model", "bundle")
"""Folders that say nothing of the model in them."""
TAKEN = ("corpus", "baseline")
"""Folders of the result that are no model's."""


class EvaluateSettings(Settings):
    """What `--set` changes for `ns-ray evaluate`."""

    data: DataConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    predict: PredictConfig = PredictConfig()
    resources: ResourcesConfig = ResourcesConfig()


def evaluate(
    bundle: Annotated[
        list[str],
        typer.Option(
            help="A run folder, a bundle, or a timm local-dir. Given several times, the models are "
            "scored beside each other, and each is compared with the first.",
            autocompletion=bundles,
            show_default=False,
        ),
    ],
    data: Data,
    out: Out,
    set_: Annotated[list[str] | None, set_of(EvaluateSettings)] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Score a model on labeled images. The scores are in evaluation.json of the result; those of
    several models in NAME/evaluation.json, and beside each other in report.html."""
    settings = parse_sections(EvaluateSettings, set_, data={"labeled": data})
    models, place = [open_bundle(one) for one in bundle], store.kept_folder(out, "--out")
    _know_the_same(models)
    names = names_of(bundle) if len(models) > 1 else [models[0].path]
    folders = [store.join(place, name) for name in names] if len(models) > 1 else [place]
    robustness = settings.evaluate.robustness is not None
    with aside(json):
        with owning(place, "evaluation.json" if len(models) == 1 else "report.html"):
            images = listed(settings.data)
            with ready_to_infer(
                images, settings.data, settings.resources, place, labeled=True, ray=robustness
            ) as (corpus, pool):
                scores = _scores(settings, models, names, corpus, pool, place, folders)
            for folder, found in zip(folders, scores, strict=True):
                store.write_json(store.join(folder, "evaluation.json"), found)
        _say(names, models, scores, data, place)
    if json:
        print_json({"models": _as_json(names_of(bundle), models, scores)})


def _say(
    names: Sequence[str],
    models: Sequence[Bundle],
    scores: Sequence[Mapping[str, Any]],
    data: str,
    place: str,
) -> None:
    if len(models) == 1:
        say(f"{place}: top-1 {scores[0]['top1']:.4f} on {scores[0]['rows']:,} images")
        return
    tabulate(_table(names, models, scores))
    from ns_ray import report

    page = store.join(place, "report.html")
    say(f"report: {report.beside(names, models, scores, data=data, out=page)}")


def _as_json(
    names: Sequence[str], models: Sequence[Bundle], scores: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The models as plain values; `scores` is what evaluation.json has."""
    return [
        {
            "name": name,
            "path": model.path,
            "architecture": model.architecture,
            "parameters": model.parameters or None,
            "scores": found,
        }
        for name, model, found in zip(names, models, scores, strict=True)
    ]


def _know_the_same(models: Sequence[Bundle]) -> None:
    """Fail where two models answer different questions.

    Raises:
        DataError: names the two.
    """
    first = models[0]
    for other in models[1:]:
        odd = sorted(set(first.classes) ^ set(other.classes))
        if odd:
            raise DataError(
                f"{first.path} and {other.path} know different classes ({', '.join(odd[:5])}); "
                "models are compared on the same ones"
            )


def names_of(paths: Sequence[str]) -> list[str]:
    """A name for each model: that of its folder, with those above it where two would be named
    alike, and a number where the same model is given again."""
    parts = [[part for part in store.absolute(path).split("/") if part] for path in paths]
    parts = [p[:-1] if len(p) > 1 and p[-1] in PARTS else p for p in parts]
    times: Counter[str] = Counter()
    for p in parts:
        times["/".join(p)] += 1
        p[-1] += f"-{again}" if (again := times["/".join(p)]) > 1 else ""
    names = [p[-1] for p in parts]
    for depth in range(2, max(map(len, parts)) + 1):
        alike = Counter([*names, *TAKEN])
        names = [
            "-".join(p[-depth:]) if alike[name] > 1 else name
            for p, name in zip(parts, names, strict=True)
        ]
    return names


def _scores(
    settings: EvaluateSettings,
    models: Sequence[Bundle],
    names: Sequence[str],
    corpus: Corpus,
    pool: Pool,
    place: str,
    folders: Sequence[str],
) -> list[dict[str, Any]]:
    """What evaluation.json of each model holds."""
    from ns_ray.robustness import evaluate_beside
    from ns_ray.scoring import compare
    from ns_ray.scoring import evaluate as score

    several = len(models) > 1
    scored = [
        score(
            settings.evaluate,
            model,
            corpus,
            pool=pool,
            out=store.join(folder, "predictions"),
            title=f"evaluate {name}" if several else "evaluate",
            predict=settings.predict,
        )
        for model, name, folder in zip(models, names, folders, strict=True)
    ]
    scores = [dict(one.scores) for one in scored]
    for found, one in zip(scores[1:], scored[1:], strict=True):
        found["paired"] = {names[0]: compare(*scored[0].beside(one))}
    if settings.evaluate.robustness is not None:
        robustness = evaluate_beside(
            settings.evaluate,
            models,
            corpus,
            names=names,
            outs=[store.join(folder, "robustness") for folder in folders],
            baseline=store.join(place, "baseline"),
            pool=pool,
            predict=settings.predict,
        )
        for found, damaged in zip(scores, robustness, strict=True):
            found["robustness"] = damaged
    return scores


def _table(
    names: Sequence[str], models: Sequence[Bundle], scores: Sequence[Mapping[str, Any]]
) -> Table:
    """The models on one screen; p: that a model is better than the first."""
    rows = [_figures(*pair) for pair in zip(models, scores, strict=True)]
    made = Table(box=box.SIMPLE_HEAD)
    made.add_column("model", overflow="fold")
    columns = [title for title in rows[0] if any(row[title] for row in rows)]
    for title in columns:
        made.add_column(title, justify="right")
    for name, row in zip(names, rows, strict=True):
        made.add_row(name, *(row[title] for title in columns))
    return made


def _figures(model: Bundle, scores: Mapping[str, Any]) -> dict[str, str]:
    """A model's figures by the title of their column; empty where there is none."""
    low, high = scores["top1_interval"]
    k = next((name for name in scores if re.fullmatch("top[0-9]+", name) and name != "top1"), None)
    damaged = scores.get("robustness") or {}
    means = {
        "corruption error": damaged.get("mean_corruption_error"),
        "flip rate": damaged.get("mean_flip_rate"),
    }
    paired = [f"{found['p']:.3f}" for found in scores.get("paired", {}).values()]
    return {
        "top-1": f"{scores['top1']:.4f}",
        "95 %": f"{low:.4f}-{high:.4f}",
        **({f"top-{k[3:]}": f"{scores[k]:.4f}"} if k else {}),
        "ECE": f"{scores['ece']:.4f}",
        "parameters": f"{model.parameters:,}" if model.parameters else "",
        "p": "".join(paired),
        **{title: "" if value is None else f"{value:.4f}" for title, value in means.items()},
    }
