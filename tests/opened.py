"""Every kind of file, in a finished run and beside it, and how the program opens it."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import mutations as wrong
import numpy as np
import torch
import yaml
from mutations import Mutation
from reported import CLASSES, config, write_run
from tiny import flat_folder, folder_per_class

from ns_ray import report, store
from ns_ray.api import whole
from ns_ray.compute import tasks
from ns_ray.config import DataConfig, SelectConfig, dump
from ns_ray.config.loading import load_config
from ns_ray.config.training import ModelConfig, TrainConfig
from ns_ray.data.packing import pack
from ns_ray.data.stage import ingest
from ns_ray.model.bundle import load, save
from ns_ray.model.networks import build
from ns_ray.planning import run_status
from ns_ray.selection.stage import select
from ns_ray.store import Corpus, RunLayout, open_bundle, open_corpus, open_labels, open_selection
from ns_ray.training.examples import Examples
from ns_ray.training.job import Job
from ns_ray.training.learner import Learner

IMAGE = torch.linspace(-2, 2, 3 * 32 * 32).reshape(1, 3, 32, 32)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        file: where it is, below the folder of the world.
        open: opens it as users do; what it gives is compared.
        forged: what a wrong program writes.
        checked: whether checksums tell damage.
    """

    file: str
    open: Callable[[Path], Any]
    forged: tuple[Mutation, ...]
    checked: bool = True


# ------------------------------------------------------------------------------------- what is read


def use_bundle(root: Path) -> Any:
    bundle = open_bundle(f"{root}/made/model")
    model, spec = load(bundle)
    with torch.no_grad():
        return bundle.classes, bundle.parameters, spec, model(IMAGE).tolist()


def rows_of(corpus: Corpus) -> Any:
    """All that training and labeling read of a corpus."""
    tables = [table.to_pylist() for _, table in corpus.scan(["key", "image", "label", "sha256"])]
    return corpus.classes, corpus.rows, tables


def batches_of(examples: Examples) -> Any:
    stream = examples.stream(1, 0)
    return [examples.load(chunk).to_pylist() for chunk in stream.chunks(0)]


def use_corpus(root: Path) -> Any:
    corpus = open_corpus(f"{root}/made/corpora/labeled")
    return rows_of(corpus), batches_of(Examples(corpus))


def use_labels(root: Path) -> Any:
    labels = open_labels(f"{root}/made/gen-01/pseudo_labels")
    pile = open_corpus(labels.corpus)
    here = mock.patch.object(tasks, "done_here", return_value=True)
    with tempfile.TemporaryDirectory() as out, here:
        chosen = select(SelectConfig(threshold=0.5), labels, seed=0, out=out)
        used = batches_of(Examples(pile, chosen, labels))
        return labels.classes, labels.rows, chosen.kept, chosen.class_counts, used


def use_selection(root: Path) -> Any:
    chosen = open_selection(f"{root}/made/gen-01/selection")
    pile = open_corpus(chosen.corpus)
    used = batches_of(Examples(pile, chosen, soft=False))
    return chosen.kept, chosen.copies, chosen.class_counts, used


def use_predictions(root: Path) -> Any:
    corpus = open_corpus(f"{root}/made/corpora/test")
    said = store.read_predictions(f"{root}/made/gen-01/evaluation/test", corpus, probs=True)
    return said and {name: np.asarray(value).tolist() for name, value in vars(said).items()}


def use_config(root: Path) -> Any:
    return dump(load_config(root / "config.yaml"))


def use_run(root: Path) -> Any:
    """The same command again, and a look at the run."""
    settings = config(root, "made")
    again = json.loads((root / "result.json").read_text())
    with (
        mock.patch.object(whole, "_work", return_value=again),
        mock.patch.object(whole, "_report"),
    ):
        code = whole.execute(settings)["status"]
    return code, [(line.name, line.state) for line in run_status(settings).lines]


def use_report(root: Path) -> Any:
    """But for what says when."""
    report.write(f"{root}/made")
    return len((root / "made" / "report.html").read_text()) > 10_000


def look_at_run(root: Path) -> Any:
    found = run_status(config(root, "made"))
    return [(line.name, line.state) for line in found.lines], found.verdict.partition("last")[0]


def use_owner(root: Path) -> Any:
    with store.owned(f"{root}/owned"):
        return True


def use_sources(root: Path) -> Any:
    settings = DataConfig(labeled=f"{root}/labeled", unlabeled=(f"{root}/pile",), validation_size=6)
    os.utime(root / "labeled" / "blue" / "0000.png", ns=(10**18, 10**18))  # to be looked at again
    corpora = ingest(settings, seed=0, out=RunLayout(f"{root}/ingested"))
    return [rows_of(c) for c in (corpora.labeled, corpora.unlabeled, corpora.validation) if c]


def use_checkpoint(root: Path) -> Any:
    learner = _learner(root)
    step = learner.restore()
    return step and (step, [v.double().sum().item() for v in learner.model.state_dict().values()])


_learners: dict[Path, Learner] = {}


def _learner(root: Path) -> Learner:
    if root not in _learners:
        corpus = open_corpus(f"{root}/made/corpora/labeled")
        train = TrainConfig(batch_size=4)
        settings: dict[str, Any] = {
            "model": ModelConfig(model="test_resnet", image_size=32).model_dump(),
            "train": train.model_dump(),
            "labeled": corpus.path,
            "checkpoint": f"{root}/checkpoints/last.pt",
            "out": f"{root}/trained",
            **dict.fromkeys(("validation", "selection", "start_from")),
            **{"soft": False, "temperature": 1.0, "seed": 0, "fingerprint": "f", "steps": 3},
            **{"loaders": 0, "in_turn": False, "threads": 1, "device": "cpu", "lanes": 1},
            **{"trained_groups": 0, "provenance": {}},
        }
        made = Job(**settings)
        _learners[root] = Learner(made, train, corpus, torch.device("cpu"))
    return _learners[root]


JSON, TABLE = (wrong.json_changed,), (wrong.table_changed, wrong.footer_changed)

KINDS = {
    "bundle config": Kind("made/model/config.json", use_bundle, JSON),
    "bundle provenance": Kind("made/model/ns_ray.json", use_bundle, JSON),
    "bundle done": Kind("made/model/_DONE.json", use_bundle, JSON),
    "weights": Kind(
        "made/model/model.safetensors", use_bundle, (wrong.tensors_changed, wrong.pickled)
    ),
    "config": Kind("config.yaml", use_config, (wrong.yaml_changed,), checked=False),
    "run config": Kind("made/config.yaml", use_run, (wrong.yaml_changed,), checked=False),
    "result": Kind("made/result.json", use_run, JSON, checked=False),
    "result seen": Kind("made/result.json", look_at_run, JSON, checked=False),
    "result reported": Kind("made/result.json", use_report, JSON, checked=False),
    "scores reported": Kind("made/gen-01/evaluation.json", use_report, JSON, checked=False),
    "shard": Kind("made/corpora/labeled/shard-00000.aaaaaa.parquet", use_corpus, TABLE),
    "manifest": Kind("made/corpora/labeled/manifest.json", use_corpus, JSON),
    "corpus done": Kind("made/corpora/labeled/_DONE.json", use_corpus, JSON),
    "labels": Kind("made/gen-01/pseudo_labels/shard-00000.ffffff.parquet", use_labels, TABLE),
    "labels done": Kind("made/gen-01/pseudo_labels/_DONE.json", use_labels, JSON),
    "selection": Kind("made/gen-01/selection/shard-00000.*.parquet", use_selection, TABLE),
    "selection done": Kind("made/gen-01/selection/_DONE.json", use_selection, JSON),
    "predictions": Kind(
        "made/gen-01/evaluation/test/shard-00000.ffffff.parquet", use_predictions, TABLE
    ),
    "predictions done": Kind("made/gen-01/evaluation/test/_DONE.json", use_predictions, JSON),
    "stage done seen": Kind("made/gen-01/selection/_DONE.json", look_at_run, JSON, checked=False),
    "checkpoint": Kind("checkpoints/last.pt", use_checkpoint, (wrong.state_changed, wrong.pickled)),
    "owner": Kind("owned/owner.json", use_owner, JSON, checked=False),
    "sources": Kind("ingested/corpora/sources.json", use_sources, JSON, checked=False),
    "packed done": Kind("ingested/corpora/labeled/_DONE.json", use_sources, JSON),
    "pointer": Kind("ingested/corpora/unlabeled/pointer.json", use_sources, JSON, checked=False),
}


# ---------------------------------------------------------------------------------------- the world


def make_world(root: Path) -> Path:
    """A finished run, a bundle, a checkpoint, a config, and a folder that somebody works in."""
    write_run(root, "made")
    torch.manual_seed(0)
    model = build(ModelConfig(model="test_resnet", image_size=32), len(CLASSES))
    facts = {"run": "made", "role": "student", "seconds": 1.5, "labeled": "f"}
    save(model, f"{root}/made/model", classes=CLASSES, fingerprint="e" * 12, provenance=facts)
    settings: dict[str, Any] = {
        "name": "x",
        "data": {"labeled": "here", "unlabeled": ["there", "rest"]},
    }
    settings |= {"train": {"epochs": 2, "lr": 0.1, "noise": {"crop_scale": [0.5, 1.0]}}}
    settings |= {"teacher": {"model": "test_resnet"}, "students": [{"model": "test_resnet"}]}
    (root / "config.yaml").write_text(yaml.safe_dump(settings))
    shutil.copy(root / "made" / "result.json", root)
    learner = _learner(root)
    learner.restore()
    learner.checkpoint(2, seconds=1.0, waited=0.5)
    folder_per_class(root / "labeled", 5)
    flat_folder(root / "raw", 9, start=500)
    (root / "owned").mkdir()
    there: dict[str, Any] = {
        "host": "elsewhere",
        "pid": 7,
        "machine": "other",
        "born": "1",
        "token": "x",
    }
    there |= {"started": "2026-01-01", "heartbeat": "2026-01-01", "beats": 3}
    store.write_json(f"{root}/owned/owner.json", there)
    pack(f"{root}/raw", out=f"{root}/pile", classes=())
    use_sources(root)
    return root
