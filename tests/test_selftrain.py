"""The driver, with stages that only take notes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ns_ray import store
from ns_ray.config.labeling import LabelConfig, SelectConfig
from ns_ray.config.loading import config_hash
from ns_ray.config.noise import NoiseConfig
from ns_ray.config.run import DataConfig, RunConfig
from ns_ray.config.scoring import EvaluateConfig, RobustnessConfig
from ns_ray.config.validation import validate
from ns_ray.errors import DataError
from ns_ray.result import robustness_summary
from ns_ray.selftrain import self_train
from ns_ray.steps import Label, Score, Select, Train
from ns_ray.store.bundles import Bundle
from ns_ray.store.corpora import Corpora, Corpus, Shard
from ns_ray.store.evaluations import Evaluation
from ns_ray.store.labels import PseudoLabels, Selection
from ns_ray.store.layout import RunLayout
from ns_ray.store.publication import Facts
from ns_ray.training.stage import before_fixres

IMAGES = 40
CLASSES = ("a", "b")


def corpus(name: str, rows: int, **facts: Any) -> Corpus:
    return Corpus(f"/{name}", name, (Shard("shard-00000", "f", rows, 1),), **facts)


@dataclass
class Fakes:
    """Stages of a run whose models are right about the first so many of 40 images.

    Attributes:
        right: validation images that the teacher, the students in turn, and the control arm get
            right; test images are the other way round, so that choosing by test would show. The
            average of several teachers has three more right for each but the first.
        fitted: what fits into a budget.
        mirrored_alike: whether mirrored images look like the others.
        calls: (stage, title or name) in the order of the calls.
        asked: what each stage was asked for, by stage.
    """

    right: list[int]
    control_right: int = 0
    has_test: bool = True
    fitted: Facts = field(default_factory=dict)
    mirrored_alike: bool = True
    calls: list[tuple[str, str]] = field(default_factory=list)
    asked: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def note(self, stage: str, what: str, **asked: Any) -> None:
        self.calls.append((stage, what))
        self.asked.setdefault(stage, []).append(asked)

    def ingest(self, config: DataConfig, *, seed: int, out: RunLayout) -> Corpora:
        self.note("ingest", "", seed=seed)
        return Corpora(
            labeled=corpus("labeled", 20, classes=CLASSES, class_counts=(12, 8)),
            unlabeled=corpus("unlabeled", 500, rejected={"truncated": 3}),
            validation=corpus("validation", IMAGES, classes=CLASSES),
            test=corpus("test", IMAGES, classes=CLASSES) if self.has_test else None,
        )

    def fit_budget(self, config: RunConfig, data: Corpora) -> Facts:
        self.note("fit_budget", str(config.budget), rows=data.labeled.rows)
        return self.fitted

    def forecast(self, config: RunConfig, data: Corpora, out: str) -> None:
        self.note("forecast", out, config=config)

    def tell(self, found: Facts, out: RunLayout) -> None:
        self.note("tell", out.root, found=found)

    def together(self, data: Corpora, out: str) -> Corpus:
        self.note("together", out)
        rows = data.labeled.rows + data.validation.rows
        return corpus("all", rows, classes=CLASSES, class_counts=(32, 28))

    def symmetric(self, data: Corpora) -> bool:
        self.note("symmetric", str(data.labeled.rows))
        return self.mirrored_alike

    def fit(
        self,
        step: Train,
        *,
        labeled: Corpus,
        validation: Corpus | None,
        pseudo: Selection | None,
        teacher: Bundle | None,
        seed: int,
        provenance: Facts,
    ) -> Bundle:
        asked = {
            "labeled": labeled,
            "validation": validation,
            "pseudo": pseudo,
            "teacher": teacher,
            "seed": seed,
        }
        self.note("fit", step.title, step=step, provenance=provenance, **asked)
        facts = {**provenance, "seconds": 12.34, "parameters": 1000}
        return Bundle(step.out, CLASSES, "net", step.out, facts)

    def open_bundle(self, path: str) -> Bundle:
        self.note("open_bundle", path)
        return Bundle(path, CLASSES, "theirs", path)

    def pseudo_label(
        self,
        step: Label,
        config: LabelConfig,
        teachers: Sequence[Bundle],
        unlabeled: Corpus,
        *,
        noise: NoiseConfig | None,
        known: tuple[Corpus, Corpus] | None = None,
    ) -> PseudoLabels:
        asked = {"teacher": teachers[0], "others": teachers[1:], "known": known}
        self.note("pseudo_label", step.out, pile=unlabeled, noise=noise, **asked)
        return PseudoLabels(
            path=step.out,
            fingerprint="+".join(teacher.fingerprint for teacher in teachers),
            corpus=unlabeled.path,
            classes=CLASSES,
            files={},
            rows=unlabeled.rows,
            seconds=4.56,
            facts={"images_per_second": 77.0},
        )

    def select(
        self,
        step: Select,
        config: SelectConfig,
        labels: PseudoLabels,
        *,
        seed: int,
        labeled_counts: Sequence[int],
        previous: Selection | None,
        evaluation: Evaluation,
        validation: Corpus,
    ) -> Selection:
        asked = {"seed": seed, "labeled_counts": labeled_counts, "previous": previous}
        asked |= {"evaluation": evaluation, "validation": validation}
        self.note("select", step.out, out=step.out, labels=labels, **asked)
        return Selection(
            step.out, step.out, labels.path, "/unlabeled", {}, {}, kept=300, copies=400
        )

    def evaluate(
        self, step: Score, config: EvaluateConfig, models: Sequence[Bundle], corpus: Corpus
    ) -> Evaluation:
        self.note("evaluate", step.title, out=step.out, models=models)
        split = corpus.fingerprint
        right = min(self.right_of(models[0].path) + 3 * (len(models) - 1), IMAGES)
        if split == "test":
            right = IMAGES - right
        correct = tuple(i < right for i in range(IMAGES))
        keys = tuple(f"{split}-{i}" for i in range(IMAGES))
        scores = {"top1": right / IMAGES, "split": split}
        return Evaluation(step.out, scores, keys, correct, 1.0)

    def robustness(
        self,
        config: RobustnessConfig,
        models: Sequence[Bundle],
        corpus: Corpus,
        *,
        outs: Sequence[str],
        names: Sequence[str],
        batch_size: int,
    ) -> Sequence[Facts]:
        self.note("robustness", corpus.fingerprint, names=names, outs=outs)
        return [{"of": model.path} for model in models]

    def right_of(self, path: str) -> int:
        for part in path.split("/"):
            if part.startswith("gen-"):
                return self.right[int(part[4:])]
        return self.control_right if "/control/" in path else self.right[0]

    def titles(self, *stages: str) -> list[str]:
        return [what for stage, what in self.calls if stage in stages]


def run(tmp_path: Path, fakes: Fakes, **settings: Any) -> dict[str, Any]:
    students = settings.pop("students", len(fakes.right) - 1)
    if isinstance(students, int):
        students = [{"model": f"net{i + 1}"} for i in range(students)]
    raw = {
        "name": "fake",
        "storage": str(tmp_path),
        "data": {"labeled": "l", **({"test": "t"} if fakes.has_test else {})},
        "teacher": {"model": "net0"},
        "students": students,
        **settings,
        "label": {"teachers": 1, **settings.get("label", {})},
    }
    config = validate(RunConfig, raw)
    outcome = self_train(config, RunLayout.of(config), fakes)
    result = {**outcome.result, "best_bundle": outcome.best.path}
    assert json.loads(json.dumps(result)) == result
    assert result["config_hash"] == config_hash(config)
    return result


def folder(tmp_path: Path, *parts: str) -> str:
    return "/".join([str(tmp_path), "fake", *parts])


def teachers(fakes: Fakes) -> list[str]:
    """Generation of the teacher of each labeling."""
    return [asked["teacher"].path.split("/")[-2] for asked in fakes.asked["pseudo_label"]]


# ------------------------------------------------------------------------ who teaches, who is best


def test_accepted_students_teach_in_turn(tmp_path: Path) -> None:
    fakes = Fakes([20, 25, 30])
    result = run(tmp_path, fakes)
    assert teachers(fakes) == ["gen-00", "gen-01"]
    assert [g["accepted"] for g in result["generations"]] == [True, True, True]
    assert result["status"] == "done"
    assert result["best_generation"] == 2
    assert result["best_bundle"] == folder(tmp_path, "gen-02", "bundle")
    assert result["model"] == "model"


def test_a_refused_student_leaves_its_teacher_in_place(tmp_path: Path) -> None:
    fakes = Fakes([20, 15, 30])
    result = run(tmp_path, fakes)
    assert teachers(fakes) == ["gen-00", "gen-00"]
    assert [g["accepted"] for g in result["generations"]] == [True, False, True]
    assert result["generations"][2]["p_value"] == pytest.approx(0.5**11)  # against gen-00
    assert result["best_generation"] == 2


def test_an_unchanged_teacher_s_labels_go_to_the_same_folder(tmp_path: Path) -> None:
    # The stage returns what it finds there: the pile is not labeled twice.
    fakes = Fakes([20, 15, 30, 35])
    run(tmp_path, fakes)
    first, second, third = fakes.titles("pseudo_label")
    assert first == second == folder(tmp_path, "gen-01", "pseudo_labels")
    assert third == folder(tmp_path, "gen-03", "pseudo_labels")
    outs = [asked["out"] for asked in fakes.asked["select"]]
    assert outs == [folder(tmp_path, f"gen-0{g}", "selection") for g in (1, 2, 3)]


def test_a_refused_student_may_teach_all_the_same(tmp_path: Path) -> None:
    fakes = Fakes([20, 12, 14])
    result = run(tmp_path, fakes, accept={"otherwise": "continue"})
    assert teachers(fakes) == ["gen-00", "gen-01"]
    assert [g["accepted"] for g in result["generations"]] == [True, False, True]
    assert result["generations"][2]["p_value"] == pytest.approx(0.125)  # against gen-01
    # gen-02 was accepted, but by the lower standard of gen-01: gen-00 stays the best.
    assert result["best_generation"] == 0
    assert result["status"] == "done"


def test_a_run_without_any_accepted_student_says_so(tmp_path: Path) -> None:
    for otherwise in ("keep_teacher", "continue", "stop"):
        result = run(tmp_path, Fakes([20, 15, 10]), accept={"otherwise": otherwise})
        assert result["status"] == "no_student_accepted"
        assert result["best_generation"] == 0


def test_a_refused_student_may_end_the_run(tmp_path: Path) -> None:
    fakes = Fakes([20, 15, 30])
    result = run(tmp_path, fakes, accept={"otherwise": "stop"}, control=True)
    assert [g["generation"] for g in result["generations"]] == [0, 1]
    assert fakes.titles("fit") == ["gen-00 train", "gen-01 train", "control train"]
    assert fakes.asked["fit"][2]["step"].model.model == "net1"  # the last student that was trained
    assert result["status"] == "no_student_accepted"
    assert result["best_bundle"] == folder(tmp_path, "gen-00", "bundle")


@pytest.mark.parametrize(
    ("right", "max_p", "accepted"),
    [
        ([20, 20], 0.5, True),
        ([20, 18], 0.9, True),
        ([20, 16], 0.9, True),  # p = 31/32, but four images are chance
        ([20, 15], 0.9, False),
        ([20, 19], 0.5, False),
        ([20, 20], 0.05, False),
        ([20, 23], 0.05, False),  # p = 1/16
        ([20, 24], 0.05, True),  # p = 1/32
        ([20, 0], 1.0, True),
    ],
)
def test_the_gate(tmp_path: Path, right: list[int], max_p: float | None, accepted: bool) -> None:
    result = run(tmp_path, Fakes(right), accept={"max_p": max_p})
    assert result["generations"][1]["accepted"] is accepted


def test_images_are_paired_by_key(tmp_path: Path) -> None:
    class Shuffled(Fakes):
        def evaluate(
            self, step: Score, config: EvaluateConfig, models: Sequence[Bundle], corpus: Corpus
        ) -> Evaluation:
            scored = super().evaluate(step, config, models, corpus)
            if step.generation != 1:
                return scored
            # Other images first, and one that the teacher has not scored.
            keys, correct = (*scored.keys[::-1], "new"), (*scored.correct[::-1], True)
            return Evaluation(scored.path, scored.scores, keys, correct, 1.0)

    result = run(tmp_path, Shuffled([20, 22]))
    assert result["generations"][1]["p_value"] == pytest.approx(0.125)  # two gained, none lost


def test_the_best_is_chosen_on_validation_among_the_accepted(tmp_path: Path) -> None:
    # Everything is accepted, and on test it is the other way round.
    result = run(tmp_path, Fakes([20, 33, 28]), accept={"max_p": 1.0})
    assert result["best_generation"] == 1  # it has five more right, and none less
    rows = result["generations"]
    assert max(rows, key=lambda row: row["test_top1"])["generation"] == 0
    # Four images may be chance: the later model stays.
    assert run(tmp_path, Fakes([20, 33, 29]), accept={"max_p": 1.0})["best_generation"] == 2
    # The best on validation was refused: it gained fewer than the gate asks for.
    result = run(tmp_path, Fakes([20, 21]), accept={"max_p": 0.05})
    assert result["best_generation"] == 0


def test_among_equals_the_last_is_best(tmp_path: Path) -> None:
    assert run(tmp_path, Fakes([20, 25, 25]))["best_generation"] == 2


# --------------------------------------------------------------------------------- what they get


def test_students_get_what_was_selected_from_their_teacher_s_labels(tmp_path: Path) -> None:
    fakes = Fakes([20, 25, 30])
    run(tmp_path, fakes, seed=7)
    first, second, third = fakes.asked["fit"]
    assert first["pseudo"] is None
    assert second["pseudo"].path == folder(tmp_path, "gen-01", "selection")
    assert third["pseudo"].path == folder(tmp_path, "gen-02", "selection")
    assert second["teacher"].path == folder(tmp_path, "gen-00", "bundle")
    assert third["teacher"].path == folder(tmp_path, "gen-01", "bundle")
    selected = fakes.asked["select"]
    assert [asked["labels"].path for asked in selected] == fakes.titles("pseudo_label")
    assert all(asked["labeled_counts"] == (12, 8) for asked in selected)
    assert all(asked["seed"] == 7 for asked in selected)
    assert all(asked["labeled"].fingerprint == "labeled" for asked in fakes.asked["fit"])


def test_selection_knows_what_the_teacher_says_of_validation_images(tmp_path: Path) -> None:
    fakes = Fakes([20, 15, 30, 35])
    run(tmp_path, fakes)
    asked = fakes.asked["select"]
    assert {one["validation"].fingerprint for one in asked} == {"validation"}
    scored = [one["evaluation"].path for one in asked]
    assert scored == [folder(tmp_path, f"gen-0{g}", "evaluation", "validation") for g in (0, 0, 2)]


def test_seeds_differ_between_trainings_and_between_runs(tmp_path: Path) -> None:
    seeds = []
    for seed in (0, 1):
        fakes = Fakes([20, 25, 30])
        run(tmp_path, fakes, seed=seed, control=True)
        seeds += [asked["seed"] for asked in fakes.asked["fit"]]
    assert len(set(seeds)) == 8


def test_each_model_has_its_own_training_settings(tmp_path: Path) -> None:
    fakes = Fakes([20, 25])
    run(
        tmp_path,
        fakes,
        students=1,
        teacher={"model": "net0", "train": {"epochs": 3}},
        train={"epochs": 50},
    )
    epochs = [asked["step"].train.epochs for asked in fakes.asked["fit"]]
    assert epochs == [3, 50]


def test_a_fine_tuned_student_learns_from_pseudo_labels_first_and_from_labels_last(
    tmp_path: Path,
) -> None:
    fakes = Fakes([20, 25])
    student = {"model": "net1", "train": {"lr": 0.1}, "finetune": {"lr": 0.01}}
    run(tmp_path, fakes, students=[student])
    assert fakes.titles("fit") == ["gen-00 train", "gen-01 pretrain", "gen-01 train"]
    _, first, last = fakes.asked["fit"]
    assert (first["step"].train.lr, first["step"].train.labeled_weight) == (0.1, 0)
    assert first["pseudo"].path == folder(tmp_path, "gen-01", "selection")
    assert (last["step"].train.lr, last["step"].train.labeled_weight) == (0.01, 1)
    assert last.get("pseudo") is None
    assert last["teacher"].path == first["step"].out != last["step"].out
    assert last["step"].model.init == "teacher"


def test_the_teacher_is_noised_while_labeling_only_where_asked_for(tmp_path: Path) -> None:
    for noised in (False, True):
        fakes = Fakes([20, 25])
        train = {"noise": {"dropout": 0.33, "mixup": 0.2, "cutmix": 1.0}}
        run(tmp_path, fakes, label={"noised": noised}, train=train)
        noise = fakes.asked["pseudo_label"][0]["noise"]
        assert (noise.dropout if noise else None) == (0.33 if noised else None)
        # An image that is labeled has no other to be mixed with.
        assert noise is None or noise.mixing("labeled") == (0.0, 0.0)


def test_the_selection_is_made_anew_unless_it_is_only_to_be_relabeled(tmp_path: Path) -> None:
    for reassign in (False, True):
        fakes = Fakes([20, 25, 30])
        run(tmp_path, fakes, select={"reassign": reassign})
        first, second = (asked["previous"] for asked in fakes.asked["select"])
        assert first is None
        if reassign:
            assert second.path == folder(tmp_path, "gen-01", "selection")
        else:
            assert second is None


def test_the_control_arm_is_the_last_student_without_pseudo_labels(tmp_path: Path) -> None:
    fakes = Fakes([20, 25], control_right=22)
    student = {"model": "big", "init": "teacher", "train": {"epochs": 9}}
    result = run(tmp_path, fakes, students=1, control=True, teacher={"model": "small"})
    assert result["control"]["val_top1"] == 22 / IMAGES
    assert result["control"]["test_top1"] == 18 / IMAGES
    assert result["control"]["role"] == "control"
    assert len(result["generations"]) == 2

    fakes = Fakes([20, 25])
    raw: dict[str, Any] = {"name": "fake", "storage": str(tmp_path), "data": {"labeled": "l"}}
    raw |= {"teacher": {"model": "big", "pretrained": "tag"}, "students": [student]}
    config = validate(RunConfig, raw | {"control": True})
    self_train(config, RunLayout.of(config), fakes)
    control = fakes.asked["fit"][-1]
    assert control["step"].title == "control train"
    assert control["pseudo"] is None
    assert control["teacher"] is None
    assert control["step"].model.init == "scratch"
    assert control["step"].model.pretrained == "tag"  # where its teacher started
    assert control["step"].model.model == "big"
    assert control["step"].train.epochs == 9
    assert control["step"].out == folder(tmp_path, "control", "bundle")
    assert control["provenance"]["role"] == "control"


def test_the_control_arm_of_a_fine_tuned_student_takes_as_many_steps(tmp_path: Path) -> None:
    fakes = Fakes([20, 25])
    student = {"model": "net1", "init": "teacher", "finetune": {"lr": 0.01}}
    run(tmp_path, fakes, students=[student], control=True, train={"lr": 0.05})
    assert fakes.titles("fit")[-2:] == ["control pretrain", "control train"]
    *_, first, last = fakes.asked["fit"]
    assert (first["pseudo"], first["teacher"], last["pseudo"]) == (None, None, None)
    assert first["step"].model.init == "scratch"
    assert first["step"].train.labeled_weight == 1  # the student's is 0
    assert last["teacher"].path == first["step"].out
    assert (first["step"].train.lr, last["step"].train.lr) == (0.05, 0.01)


def test_a_control_arm_that_is_best_is_not_the_model(tmp_path: Path) -> None:
    result = run(tmp_path, Fakes([20, 25], control_right=39), control=True)
    assert result["best_generation"] == 1


def test_a_teacher_of_the_user_s_own(tmp_path: Path) -> None:
    fakes = Fakes([20, 25])
    result = run(tmp_path, fakes, teacher={"bundle": "/theirs"})
    assert fakes.titles("fit") == ["gen-01 train"]
    assert fakes.asked["pseudo_label"][0]["teacher"].path == "/theirs"
    assert result["generations"][0]["model"] == "theirs"


def test_a_teacher_with_other_classes_is_a_data_error(tmp_path: Path) -> None:
    class Other(Fakes):
        def open_bundle(self, path: str) -> Bundle:
            return Bundle(path, ("b", "a"), "theirs", path)

    with pytest.raises(DataError, match=r"knows the classes \['b', 'a'\].*\['a', 'b'\]"):
        run(tmp_path, Other([20, 25]), teacher={"bundle": "/theirs"})


def test_a_bad_teacher_labels_nothing(tmp_path: Path) -> None:
    fakes = Fakes([20, 25])
    with pytest.raises(DataError, match=r"accuracy is 0\.500.*label\.min_teacher_top1=0\.6"):
        run(tmp_path, fakes, label={"min_teacher_top1": 0.6})
    assert fakes.titles("pseudo_label") == []


# -------------------------------------------------------------------------------- test is read once


def test_test_is_scored_once_per_model_after_everything_is_decided(tmp_path: Path) -> None:
    fakes = Fakes([20, 15, 30], control_right=21)
    run(tmp_path, fakes, control=True)
    scored = [(stage, what) for stage, what in fakes.calls if what.endswith(" test")]
    assert [what for _, what in scored] == [
        "gen-00 test",
        "gen-01 test",
        "gen-02 test",
        "control test",
    ]
    assert fakes.calls[-4:] == scored
    outs = [asked["out"] for asked in fakes.asked["evaluate"]]
    assert len(set(outs)) == len(outs) == 8


def test_without_a_test_set(tmp_path: Path) -> None:
    fakes = Fakes([20, 25], has_test=False)
    result = run(tmp_path, fakes)
    assert not [what for what in fakes.titles("evaluate") if "test" in what]
    assert [row["test_top1"] for row in result["generations"]] == [None, None]
    assert "test" not in result["data"]


# -------------------------------------------------------------------------------------- result


def test_the_result_says_what_the_design_says(tmp_path: Path) -> None:
    fakes = Fakes([20, 25])
    result = run(tmp_path, fakes)
    assert set(result) >= {
        "name",
        "status",
        "best_generation",
        "model",
        "generations",
        "control",
        "data",
        "versions",
        "config_hash",
    }
    assert result["name"] == "fake"
    assert result["control"] is None
    assert {"python", "torch", "ns-ray"} <= set(result["versions"])
    assert {k: v for k, v in result["data"].items() if k != "classes"} == {
        "labeled": 20,
        "unlabeled": 500,
        "validation": IMAGES,
        "test": IMAGES,
        "rejected": {
            "labeled": {},
            "unlabeled": {"truncated": 3},
            "validation": {},
            "test": {},
        },
    }
    teacher, student = result["generations"]
    assert student["generation"] == 1
    assert student["role"] == "student"
    assert student["model"] == "net1"
    assert student["parameters"] == 1000
    assert student["val_top1"] == 25 / IMAGES
    assert student["test_top1"] == 15 / IMAGES
    assert student["accepted"] is True
    assert student["pseudo_labels"] == {"rows": 500, "kept": 300, "copies": 400}
    assert student["seconds"] == {"label": 4.6, "train": 12.3, "validation": 1.0, "test": 1.0}
    assert set(teacher) == set(student)
    assert teacher["role"] == "teacher"
    assert teacher["pseudo_labels"] is None
    assert "label" not in teacher["seconds"]


def test_labels_that_two_students_learn_from_are_paid_once(tmp_path: Path) -> None:
    result = run(tmp_path, Fakes([20, 15, 30]))
    paid = [row["seconds"].get("label") for row in result["generations"]]
    assert paid == [None, 4.6, None]
    rates = [row["images_per_second"].get("label") for row in result["generations"]]
    assert rates == [None, 77.0, None]
    assert result["generations"][2]["pseudo_labels"]["rows"] == 500


def test_every_model_s_scores_lie_beside_it(tmp_path: Path) -> None:
    run(tmp_path, Fakes([20, 25], control_right=22), control=True)
    for name, right in [("gen-00", 20), ("gen-01", 25), ("control", 22)]:
        scores = store.read_json(folder(tmp_path, name, "evaluation.json"))
        assert scores["validation"]["top1"] == right / IMAGES
        assert scores["test"] == {"top1": (IMAGES - right) / IMAGES, "split": "test"}


def test_robustness_is_scored_once_for_those_that_matter(tmp_path: Path) -> None:
    fakes = Fakes([20, 30, 20, 22], control_right=22)
    run(tmp_path, fakes, control=True, evaluate={"robustness": {}})
    (asked,) = fakes.asked["robustness"]  # the first teacher, the best, the last, the control arm
    assert asked["names"] == ["gen-00", "gen-01", "gen-03", "control"]
    assert asked["outs"] == [folder(tmp_path, name, "robustness") for name in asked["names"]]
    for name in ("gen-00", "gen-01", "gen-03", "control"):
        scores = store.read_json(folder(tmp_path, name, "evaluation.json"))
        assert scores["robustness"] == {"of": folder(tmp_path, name, "bundle")}
    skipped = store.read_json(folder(tmp_path, "gen-02", "evaluation.json"))
    assert skipped["robustness"] is None


def test_a_model_is_scored_before_its_fixres_where_that_is_asked_for(tmp_path: Path) -> None:
    """A model without `fixres` has nothing before it. The bundle is where `fit` keeps it."""
    fixres = {"model": "test_resnet", "fixres": {"image_size": 64, "lr": 0.1}}
    for asked_for in (False, True):
        fakes, place = Fakes([20, 30]), tmp_path / str(asked_for)
        robustness = {"before_fixres": asked_for, "baseline": "/theirs"}
        run(place, fakes, students=[fixres], evaluate={"robustness": robustness})
        (asked,) = fakes.asked["robustness"]
        names = ["/theirs", "gen-00", "gen-01", "gen-01/before-fixres"]
        assert asked["names"] == names[: 4 if asked_for else 3]
        scores = store.read_json(folder(place, "gen-01", "evaluation.json"))
        tuned = folder(place, "gen-01", "bundle")
        assert scores["robustness"] == {"of": tuned}
        if asked_for:
            assert asked["outs"][-1] == folder(place, "gen-01", "before-fixres/robustness")
            before = before_fixres(Bundle(tuned, CLASSES, "net", tuned))
            assert scores["robustness_before_fixres"] == {"of": before}
        else:
            assert "robustness_before_fixres" not in scores
        first = store.read_json(folder(place, "gen-00", "evaluation.json"))
        assert "robustness_before_fixres" not in first


def test_the_result_has_the_robustness_that_can_be_said_in_numbers() -> None:
    found = {
        "rows": 500,
        "constants": "cifar",
        "mean_corruption_error": 0.2,
        "mce": None,
        "corruptions": {"fog": {"mean": 0.3}},
        "adversarial": {"fgsm": {"2": 0.7, "8": 0.4}},
    }
    assert robustness_summary(found) == {
        "rows": 500,
        "constants": "cifar",
        "mean_corruption_error": 0.2,
        "fgsm": {"2": 0.7, "8": 0.4},
    }


def test_a_baseline_of_the_user_s_is_named(tmp_path: Path) -> None:
    fakes = Fakes([20, 30])
    run(tmp_path, fakes, evaluate={"robustness": {"baseline": "/theirs"}})
    assert fakes.asked["robustness"][0]["names"] == ["/theirs", "gen-00", "gen-01"]
    scores = store.read_json(folder(tmp_path, "gen-01", "evaluation.json"))
    assert scores["robustness"] == {"of": folder(tmp_path, "gen-01", "bundle")}


def test_every_pair_of_generations_is_compared_on_test(tmp_path: Path) -> None:
    run(tmp_path, Fakes([20, 25, 22], control_right=22), control=True)
    last = store.read_json(folder(tmp_path, "gen-02", "evaluation.json"))["paired"]
    assert set(last) == {"gen-00", "gen-01"}
    assert last["gen-00"]["lost"] == 2  # test: 2 fewer right than gen-00
    assert last["gen-01"]["gained"] == 3
    assert last["gen-01"]["difference"] == pytest.approx(3 / IMAGES)
    assert last["gen-01"]["p"] == pytest.approx(0.5**4)
    control = store.read_json(folder(tmp_path, "control", "evaluation.json"))["paired"]
    assert set(control) == {"gen-00", "gen-01", "gen-02"}


def test_bundles_know_where_they_come_from(tmp_path: Path) -> None:
    fakes = Fakes([20, 25])
    result = run(tmp_path, fakes)
    for g, (asked, role) in enumerate(zip(fakes.asked["fit"], ["teacher", "student"], strict=True)):
        facts = asked["provenance"]
        assert facts["run"] == "fake"
        assert facts["role"] == role
        assert facts["generation"] == g
        assert facts["config_hash"] == result["config_hash"]
