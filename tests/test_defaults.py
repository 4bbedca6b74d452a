"""What the product chooses where the `train` section of a run does not say."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ns_ray.api import whole
from ns_ray.config.defaults import Images, settle
from ns_ray.config.loading import (
    chosen_in,
    dump,
    dump_chosen,
    in_words,
    load_recipe,
    parse,
    recipe_names,
)
from ns_ray.config.run import RunConfig
from ns_ray.config.training import CHOSEN, CHOSEN_NOISE, train_config
from ns_ray.config.validation import validate
from ns_ray.errors import ConfigError
from ns_ray.store.layout import RunLayout
from ns_ray.training.job import lane_sizes, total_steps

IMAGES = Images(labeled=100, pile=10_000)


def config(train: dict[str, Any] | None = None, **settings: Any) -> RunConfig:
    raw = {
        "name": "run",
        "data": {"labeled": "photos"},
        "teacher": {"model": "resnet18", "pretrained": "true"},
        "students": [{"model": "resnet18", "pretrained": "true"}, {"model": "resnet34"}],
        **({} if train is None else {"train": train}),
        **settings,
    }
    return validate(RunConfig, raw)


def trainings(run: RunConfig, images: Images = IMAGES) -> list[Any]:
    """Settings of the teacher and of the students."""
    settled, _ = settle(run, images)
    return [train_config(settled.train, m) for m in (settled.teacher, *settled.students)]


def test_what_is_chosen_is_what_can_be_left_open() -> None:
    _, chosen = settle(config(), IMAGES)
    assert chosen.pop("label") == {"teachers": 3}
    for values in chosen.values():
        assert {*values} == {*CHOSEN, "noise"}
        assert {*values["noise"]} == {*CHOSEN_NOISE}


def test_few_labels_keep_what_pretrained_norms_know() -> None:
    teacher, student, scratch = trainings(config())
    assert (teacher.batch_norm, student.batch_norm, scratch.batch_norm) == ("kept", "kept", "live")
    assert teacher.lr < student.lr < scratch.lr
    many = trainings(config(), Images(labeled=50_000, pile=1_000_000))
    assert {train.batch_norm for train in many} == {"live"}


def test_more_images_take_more_steps_but_less_than_in_proportion() -> None:
    few, many = (Images(n, 100 * n) for n in (100, 10_000))
    for run in (config(), config(teacher={"model": "resnet18"})):
        for a, b in zip(trainings(run, few), trainings(run, many), strict=True):
            assert 5 < total_steps(b, many.labeled) / total_steps(a, few.labeled) < 50


def test_a_teacher_of_random_weights_is_not_stopped_early() -> None:
    fresh = {"model": "resnet18"}
    for labeled in (30, 5_000):
        run = config(teacher=fresh, students=[fresh])
        teacher, student = trainings(run, Images(labeled, 9_000))
        ratio = total_steps(teacher, labeled) / total_steps(student, labeled)
        assert ratio == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("labeled", [4_000, 50_000])
def test_random_weights_see_many_labels_often_enough(labeled: int) -> None:
    """Teachers 120 times, students 60 times: half as often cost 2.8 and 2.4 points."""
    fresh = {"model": "resnet18"}
    run = config(teacher=fresh, students=[fresh])
    teacher, student = trainings(run, Images(labeled, 50_000))
    assert (teacher.epochs, student.epochs) == (120, 60)


def test_a_larger_pile_takes_more_of_a_student_and_nothing_of_a_teacher() -> None:
    small, large = (trainings(config(), Images(100, pile)) for pile in (1_000, 1_000_000))
    assert small[0] == large[0]
    assert total_steps(large[1], 100) > 5 * total_steps(small[1], 100)


def test_what_is_said_stays() -> None:
    said = {"epochs": 7, "batch_size": 10, "noise": {"dropout": 0.5, "flip": 0.0}}
    run = config(said, teacher={"model": "resnet18", "train": {"weight_decay": 0.3}})
    teacher, student, _ = trainings(run)
    for train in (teacher, student):
        assert (train.epochs, train.batch_size, train.warmup_epochs) == (7, 10, 0.7)
        assert (train.noise.dropout, train.noise.flip) == (0.5, 0.0)
    assert (teacher.weight_decay, student.weight_decay) == (0.3, 0.05)
    assert student.noise.crop_scale == (0.3, 1.0)


@pytest.mark.parametrize("said", [{"lr": 0.1}, {"optimizer": "lamb"}])
def test_no_rate_is_mixed_with_another_optimizer_s(said: dict[str, Any]) -> None:
    for train in trainings(config(said)):
        assert train.model_dump() | said == train.model_dump()
        assert (train.weight_decay, train.clip_grad, train.ema_decay) == (5e-4, None, 0.999)
        assert train.epochs != 50  # how long is another question


def test_a_batch_can_be_shared_among_the_workers() -> None:
    for workers in (1, 3, 7, 48):
        run = config(resources={"num_workers": workers}, train={"accumulate": 2})
        for train in trainings(run):
            labeled, others = lane_sizes(train, workers, pseudo=True)
            assert labeled * workers * 2 == train.batch_size
            assert others == labeled * train.unlabeled_ratio


def test_a_student_of_pretrained_weights_is_pretrained() -> None:
    again = {"model": "resnet18", "init": "teacher"}
    teacher, student = trainings(config(students=[again]))
    assert student.batch_norm == teacher.batch_norm == "kept"
    _, scratch = trainings(config(teacher={"model": "resnet18"}, students=[again]))
    assert scratch.batch_norm == "live"


def test_small_images_are_shifted_and_large_ones_cropped() -> None:
    run = config(teacher={"model": "resnet18", "image_size": 32})
    small, large, _ = (train.noise for train in trainings(run))
    assert (small.crop_scale, small.crop_padding) == (None, 0.1)
    assert (large.crop_scale, large.crop_padding) == ((0.3, 1.0), 0.0)


def test_a_bundle_is_not_trained() -> None:
    settled, chosen = settle(config(teacher={"bundle": "theirs"}), IMAGES)
    assert settled.teacher.train == {}
    assert "teacher" not in chosen


@pytest.mark.parametrize("name", [n for n in recipe_names() if n.startswith("paper/")])
def test_the_paper_s_recipes_leave_nothing_open_that_matters(name: str) -> None:
    recipe = load_recipe(name)
    settled, _ = settle(recipe, Images(1_281_167, 81_000_000))
    for before, after in zip(
        (recipe.teacher, *recipe.students), (settled.teacher, *settled.students), strict=True
    ):
        assert train_config(recipe.train, before) == train_config(settled.train, after)


def test_settling_twice_is_settling_once() -> None:
    once, _ = settle(config(), IMAGES)
    assert settle(once, IMAGES) == (once, {})


def test_a_config_with_what_was_chosen_in_it_is_the_config_as_asked(tmp_path: Path) -> None:
    run = config({"epochs": 3})
    _, chosen = settle(run, IMAGES)
    text = dump(run) + dump_chosen(chosen)
    assert parse(text) == run
    written = yaml.safe_load(text)["chosen"]
    assert written["teacher"]["lr"] == 3e-4
    assert "epochs" not in written["teacher"]
    assert "lr=0.0003, " in in_words(written["teacher"])
    assert "noise.crop_scale=[0.3, 1.0]" in in_words(written["teacher"])


def test_what_was_chosen_when_a_run_began_stays() -> None:
    run = config()
    _, chosen = settle(run, IMAGES)
    chosen["teacher"] |= {"lr": 0.007}  # by an earlier version
    settled, again = settle(run, IMAGES, chosen)
    assert again == chosen
    assert settled.teacher.train["lr"] == 0.007
    assert settled.students[0].train["lr"] == 1e-3


def test_two_students_like_the_teacher_where_none_are_named() -> None:
    teacher = {"model": "resnet18", "image_size": 96, "train": {"epochs": 3}}
    raw = {"name": "run", "data": {"labeled": "photos"}, "teacher": teacher}
    run = validate(RunConfig, raw)
    assert [(s.model, s.image_size, s.train) for s in run.students] == [("resnet18", 96, {})] * 2
    assert parse(dump(run)) == run
    with pytest.raises(ConfigError, match="students"):
        validate(RunConfig, raw | {"teacher": {"bundle": "theirs"}})


def test_few_labels_have_three_teachers() -> None:
    fresh: dict[str, Any] = {"teacher": {"model": "resnet18"}}
    for run, images, teachers in [
        (config(**fresh), IMAGES, 3),
        (config(), IMAGES, 3),
        (config(teacher={"bundle": "/theirs"}), IMAGES, 1),
        (config(**fresh), Images(labeled=5000, pile=10_000), 1),
        (config(**fresh, train={"epochs": 9}), IMAGES, 1),  # whose length is the user's
        (config(**fresh, label={"teachers": 1}), IMAGES, 1),
        (config(**fresh, label={"teachers": 5}), IMAGES, 5),
    ]:
        settled, chosen = settle(run, images)
        assert settled.label.teachers == teachers
        asked = run.label.teachers is None and teachers > 1
        assert chosen.get("label") == ({"teachers": teachers} if asked else None)


def test_a_run_that_began_keeps_its_teachers() -> None:
    run = config(teacher={"model": "resnet18"})
    _, chosen = settle(run, IMAGES)
    assert settle(run, IMAGES, chosen)[1] == chosen
    one = {place: values for place, values in chosen.items() if place != "label"}
    assert settle(run, IMAGES, one)[0].label.teachers == 1


def test_what_was_chosen_stays_when_a_run_goes_on_with_other_resources(tmp_path: Path) -> None:
    """Its models were trained so; with others, all would be made again."""
    storage: dict[str, Any] = {"name": "mine", "storage": str(tmp_path)}
    layout = RunLayout.of(config(**storage))
    whole._record(config(**storage), layout)
    _, chosen = settle(config(**storage), IMAGES)
    with Path(layout.config).open("a") as file:
        file.write(dump_chosen(chosen))
    whole._record(config(**storage, resources={"num_workers": 3}), layout)
    text = Path(layout.config).read_bytes()
    assert chosen_in(text) == chosen
    assert yaml.safe_load(text)["resources"]["num_workers"] == 3
