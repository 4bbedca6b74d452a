"""The model card: what Hugging Face and people read in the README.md of a model folder."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ns_ray import store
from ns_ray.errors import DataError, first_line
from ns_ray.store import Bundle, open_bundle

CARD = "README.md"
HERE = "local-dir:PATH"
"""How timm names a model whose folder only its reader knows."""


def card(
    classes: Sequence[str], facts: Mapping[str, Any], row: Mapping[str, Any] | None = None
) -> str:
    """The model card: what Hugging Face and people expect in a model folder's README.md.

    Args:
        classes: class names.
        facts: the provenance.
        row: the model's row of result.json, once it has been scored.
    """
    shown = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    origin = (
        "Pretrained by others, and written as a bundle by ns_ray."
        if facts.get("role") == "pretrained"
        else "Trained by Noisy Student self-training with ns_ray; the weights are the exponential "
        "moving average."
    )
    rows = "\n".join(
        f"| {key} | {value} |"
        for key, value in facts.items()
        if isinstance(value, str | int | float) and key not in ("weights_sha256",)
    )
    scores = {name: found for name, found in (row or {}).get("scores", {}).items() if found}
    head = ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "noisy-student"],
        **_results(str(facts.get("run", "model")), scores),
    )
    body = (
        f"# {facts.get('model', 'model')}, {facts.get('role', 'trained')} of run "
        f"{facts.get('run', '?')}\n\n"
        f"Classifies an image into {len(classes)} classes: {shown}.\n"
        f"{origin}\n\n"
        f"{_loading(HERE)}\n"
        + (_scores_table(scores) if scores else "")
        + _robustness_table((row or {}).get("robustness") or {})
        + f"| | |\n|---|---|\n{rows}\n"
    )
    return str(ModelCard(f"---\n{head}\n---\n{body}"))


def scored_card(path: str, row: Mapping[str, Any]) -> str:
    """The model card of a published bundle, with the scores of its row of result.json."""
    bundle = open_bundle(path)
    facts = {"model": row["model"], "role": row["role"], **bundle.provenance}
    return card(bundle.classes, facts, row)


def _results(run: str, scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Scores as Hugging Face's model-index has them; nothing for a model without scores."""
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="image-classification",
            dataset_name=split,
            dataset_split=split,  # what tells results apart
            metric_type="accuracy" if name == "top1" else name,
            metric_value=value,
        )
        for split, found in scores.items()
        for name, value in found.items()
        if name not in ("rows", "top1_interval")
    ]
    return {"model_name": run, "eval_results": results} if results else {}


def _scores_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for found in scores.values() for name in found))
    lines = [f"| | {' | '.join(scores)} |", "|---" * (len(scores) + 1) + "|"]
    for name in names:
        values = (_score(found.get(name)) for found in scores.values())
        lines.append(f"| {name} | {' | '.join(values)} |")
    return "Fractions but for rows and nll (nats):\n\n" + "\n".join(lines) + "\n\n"


def _robustness_table(found: Mapping[str, Any]) -> str:
    if not found:
        return ""
    lines = []
    for name, value in found.items():
        if isinstance(value, Mapping):
            lines += [
                f"| accuracy under {name}, epsilon {epsilon} of 255 | {_score(accuracy)} |"
                for epsilon, accuracy in value.items()
            ]
        else:
            lines.append(f"| {name} | {_score(value)} |")
    head = "Corrupted, perturbed and attacked images (docs/robustness.md of ns_ray):\n\n| | |\n"
    return head + "|---|---|\n" + "\n".join(lines) + "\n\n"


def _score(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " to ".join(_score(end) for end in value)
    if isinstance(value, float):
        return f"{value:.4f}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _loading(name: str) -> str:
    """How a reader of the card gets the model."""
    return f'```python\nimport timm\n\nmodel = timm.create_model("{name}", pretrained=True)\n```\n'


def hub_card(bundle: Bundle, name: str, *, license: str | None, datasets: Sequence[str]) -> str:
    """The model card of a bundle as the Hub reads it: that of its folder, or a new one where there
    is none, with the name that it is loaded by.

    Args:
        bundle: the model folder.
        name: OWNER/NAME.
        license: as the Hub names it; None: what the card says, which may be nothing.
        datasets: of the Hub, that it has learnt from.

    Raises:
        DataError: the head of the README.md cannot be read.
    """
    path = store.join(bundle.path, CARD)
    facts = {"model": bundle.architecture, **bundle.provenance}
    facts = facts if bundle.provenance else {**facts, "role": "pretrained"}
    text = store.read_bytes(path).decode() if store.exists(path) else card(bundle.classes, facts)
    try:
        made = ModelCard(text)
    except ValueError as error:
        raise DataError(f"{path} is no model card: {first_line(error)}") from None
    head: Any = made.data
    head.library_name, head.pipeline_tag = "timm", "image-classification"
    head.license = license or head.license
    head.datasets = list(dict.fromkeys([*_listed(head.datasets), *datasets])) or None
    hub = f"hf-hub:{name}"
    made.text = made.text.replace(HERE, hub)
    if hub not in made.text:
        made.text = f"{made.text.rstrip()}\n\n{_loading(hub)}"
    return str(made)


def _listed(value: str | Sequence[str] | None) -> Sequence[str]:
    return [value] if isinstance(value, str) else value or []
