"""Several first teachers: what labels is the average of their probabilities."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_evaluating import model
from test_selftrain import Fakes, folder, run
from tiny import COLORS, flat_folder, folder_per_class
from typer.testing import CliRunner, Result

from ns_ray.ablation.grid import arm_config, load_grid
from ns_ray.ablation.sharing import Shared, SharedStages
from ns_ray.commands import app
from ns_ray.compute.resources import Pool, Workers
from ns_ray.config.labeling import LabelConfig, PredictConfig
from ns_ray.config.loading import load_recipe
from ns_ray.config.scoring import EvaluateConfig
from ns_ray.data.packing import pack
from ns_ray.errors import DataError
from ns_ray.itinerary import steps
from ns_ray.selftrain import self_train
from ns_ray.stages import RayStages
from ns_ray.store.bundles import open_bundle
from ns_ray.store.corpora import open_corpus
from ns_ray.store.labels import PseudoLabels, open_labels
from ns_ray.store.layout import RunLayout
from ns_ray.store.schema import dense_probs
from ns_ray.training import Limits

THREE = {"label": {"teachers": 3}}
STAGES = RayStages(
    pool=Pool(actors=1, cpus=1.0, gpus=0.0, in_process=True),
    workers=Workers(count=1, cpus=1.0, gpus=0.0, loaders=0, in_process=True),
    limits=Limits(max_failures=0),
    predict=PredictConfig(runtime="torch", precision="fp32"),
    metrics=None,
)

# -------------------------------------------------------------------------------------- the driver


def bundles(*names: str, tmp_path: Path) -> list[str]:
    return [folder(tmp_path, "gen-00", *name.split("/"), "bundle") for name in names]


def test_all_first_teachers_label_for_the_first_student_and_one_model_for_later_ones(
    tmp_path: Path,
) -> None:
    fakes = Fakes([20, 25, 30])
    run(tmp_path, fakes, **THREE)
    trained = ["gen-00 train", "gen-00 train 2", "gen-00 train 3", "gen-01 train", "gen-02 train"]
    assert fakes.titles("fit") == trained
    first, later = fakes.asked["pseudo_label"]
    others = bundles("teacher-02", "teacher-03", tmp_path=tmp_path)
    assert first["teacher"].path == folder(tmp_path, "gen-00", "bundle")
    assert [other.path for other in first["others"]] == others
    assert later["teacher"].path == folder(tmp_path, "gen-01", "bundle")
    assert not later["others"]
    student = fakes.asked["fit"][3]
    assert student["teacher"].path == folder(tmp_path, "gen-00", "bundle")


def test_a_refused_student_leaves_all_first_teachers_in_place(tmp_path: Path) -> None:
    fakes = Fakes([20, 15, 30])
    run(tmp_path, fakes, **THREE)
    first, second = fakes.asked["pseudo_label"]
    assert first["others"] == second["others"]
    assert len(first["others"]) == 2
    assert len(set(fakes.titles("pseudo_label"))) == 1


def test_further_teachers_are_trained_alike_but_for_their_seeds(tmp_path: Path) -> None:
    alone, several, next_run = Fakes([20, 25, 30]), Fakes([20, 25, 30]), Fakes([20, 25, 30])
    run(tmp_path, alone, seed=4, control=True)
    run(tmp_path, several, seed=4, control=True, label={"teachers": 100})
    run(tmp_path, next_run, seed=5, control=True)
    seeds = {fit["step"].title: fit["seed"] for fit in several.asked["fit"]}
    for fit in alone.asked["fit"]:  # what a run with one teacher has made is made as before
        assert seeds[fit["step"].title] == fit["seed"]
        assert fit["step"] in [other["step"] for other in several.asked["fit"]]
    every = [*seeds.values(), *(fit["seed"] for fit in next_run.asked["fit"])]
    assert len(set(every)) == 103 + 4
    one, other = several.asked["fit"][0], several.asked["fit"][1]
    same = ("labeled", "validation", "pseudo", "provenance")
    assert [one[name] for name in same] == [other[name] for name in same]
    assert one["step"].train == other["step"].train
    assert len({fit["step"].checkpoints for fit in several.asked["fit"]}) == 103


def test_the_first_of_them_is_the_first_teacher_of_everything_else(tmp_path: Path) -> None:
    fakes = Fakes([20, 25])
    result = run(tmp_path, fakes, **THREE)
    teacher, student = result["generations"]
    assert teacher["val_top1"] == 20 / 40
    assert teacher["teachers"] == {"count": 3, "val_top1": 26 / 40}
    assert "teachers" not in student
    assert student["p_value"] == pytest.approx(0.5**6)  # five more than the first of them
    scored = [call for call in fakes.asked["evaluate"] if len(call["models"]) > 1]
    assert [call["out"] for call in scored] == [folder(tmp_path, "gen-00", "evaluation", "average")]
    [selected] = fakes.asked["select"]
    assert selected["evaluation"].path == scored[0]["out"], "of what has labeled"
    assert teacher["seconds"]["train"] == pytest.approx(3 * 12.34, abs=0.1)
    assert teacher["seconds"]["validation"] == 2.0
    alone = run(tmp_path, Fakes([20, 25]))["generations"][0]
    assert "teachers" not in alone


def test_the_average_must_be_good_enough_to_label(tmp_path: Path) -> None:
    label = {"teachers": 3, "min_teacher_top1": 0.6}
    run(tmp_path, Fakes([20, 25]), label=label)  # 26 of 40
    with pytest.raises(DataError, match=r"accuracy is 0\.600.*label\.min_teacher_top1=0\.61"):
        run(tmp_path, Fakes([18, 25]), label=label | {"min_teacher_top1": 0.61})


# ------------------------------------------------------------------------------------- an ablation


def test_arms_share_the_first_teacher_and_all_others(tmp_path: Path) -> None:
    name, grid = load_grid("teachers")
    fitted, labeled = [], []
    for arm in grid.arms:
        config = arm_config(lambda more: load_recipe("ablation-digits", more), name, grid, arm, 0)
        fakes = Fakes([20, 25])
        stages = SharedStages(fakes, Shared(str(tmp_path)), config.name)
        self_train(config, RunLayout(str(tmp_path / config.name)), stages)
        fitted.append([fit["step"].out for fit in fakes.asked["fit"]])
        labeled += fakes.titles("pseudo_label")
    one, three, one_hard, three_hard = fitted
    assert [len(places) for places in fitted] == [2, 4, 2, 4]
    assert one[0] == one_hard[0] == three[0] == three_hard[0]
    assert three[:3] == three_hard[:3]
    assert len({place for places in fitted for place in places}) == 3 + 4  # and four students
    assert labeled[0] == labeled[2] != labeled[1] == labeled[3]


# --------------------------------------------------------------------------------------- for real


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, a packed pile, and packed labeled images."""
    folder = tmp_path_factory.mktemp("teachers")
    for seed, name in enumerate(("one", "two")):
        model(folder / name, seed)
    pack(str(flat_folder(folder / "images", 12)), out=str(folder / "pile"), classes=())
    pack(str(folder_per_class(folder / "labeled", 4)), out=str(folder / "validation"))
    return folder


def label(place: Path, out: Path, *names: str, settings: tuple[str, ...] = ()) -> Result:
    arguments = ["label", "--data", str(place / "pile"), "--out", str(out)]
    for name in names:
        arguments += ["--bundle", str(place / name)]
    for setting in ("predict.runtime=torch", "predict.precision=fp32", *settings):
        arguments += ["--set", setting]
    return CliRunner().invoke(app, arguments)


def probs_of(labels: PseudoLabels) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for shard in labels.files:
        table = labels.read(shard)
        probs = dense_probs(table, len(COLORS))
        found |= dict(zip(table["key"].to_pylist(), probs, strict=True))
        np.testing.assert_array_equal(table["label"].to_numpy(), probs.argmax(axis=1))
        np.testing.assert_allclose(table["confidence"].to_numpy(), probs.max(axis=1), atol=1e-3)
    return found


def test_what_is_written_is_the_mean_of_the_models_probabilities(
    place: Path, tmp_path: Path
) -> None:
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    fingerprints = []
    for names in (("one",), ("two",), ("one", "two")):
        out = tmp_path / "-".join(names)
        done = label(place, out, *names)
        assert done.exit_code == 0, done.output
        labels = open_labels(str(out))
        found[names] = probs_of(labels)
        fingerprints.append(labels.fingerprint)
    one, two, both = found.values()
    assert one.keys() == two.keys() == both.keys()
    assert len(both) == 12
    for key, probs in both.items():
        np.testing.assert_allclose(probs, (one[key] + two[key]) / 2, atol=2e-3)
    assert max(abs(one[key] - two[key]).max() for key in both) > 0.2
    assert len(set(fingerprints)) == 3
    facts = json.loads((tmp_path / "one-two" / "_DONE.json").read_text())["facts"]
    assert (facts["teacher"], facts["others"]) == (str(place / "one"), [str(place / "two")])

    # A run's stage makes of the same models what the command has made.
    step = replace(steps(load_recipe("digits")).students[0].label, out=str(tmp_path / "one-two"))
    models = [open_bundle(str(place / name)) for name in ("one", "two")]
    pile, labeled = (open_corpus(str(place / name)) for name in ("pile", "validation"))
    known = (labeled, labeled)
    again = STAGES.pseudo_label(step, LabelConfig(), models, pile, noise=None, known=known)
    assert again.fingerprint == fingerprints[-1]


def test_the_average_is_scored_as_one_model(place: Path, tmp_path: Path) -> None:
    """With itself a model scores what it scores alone; with another one as their mean does."""
    corpus = open_corpus(str(place / "validation"))
    one, two = open_bundle(str(place / "one")), open_bundle(str(place / "two"))
    scores = []
    for i, models in enumerate([[one], [one, one], [one, two]]):
        step = replace(steps(load_recipe("digits")).teacher.validation, out=str(tmp_path / str(i)))
        scores.append(STAGES.evaluate(step, EvaluateConfig(), models, corpus).scores)
    assert scores[0]["nll"] == pytest.approx(scores[1]["nll"], abs=1e-3)
    assert abs(scores[0]["nll"] - scores[2]["nll"]) > 0.1


@pytest.mark.parametrize(
    ("names", "settings", "code", "says"),
    [
        (("one", "odd"), (), 3, "models label together when they know the same ones"),
        (("one",), ("label.teachers=3",), 2, "label.teachers=3 is for whole runs"),
    ],
)
def test_models_that_cannot_label_together(
    place: Path,
    tmp_path: Path,
    names: tuple[str, ...],
    settings: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    model(place / "odd", 5, ["red", "green", "blue"])
    done = label(place, tmp_path / "out", *names, settings=settings)
    assert done.exit_code == code
    assert says in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()
