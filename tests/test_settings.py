"""Settings as people write them: recipes, overrides, mistakes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ns_ray import config as configs
from ns_ray.config.loading import (
    config_hash,
    differences,
    dump,
    load_config,
    load_recipe,
    parse,
    parse_sections,
    recipe_names,
)
from ns_ray.config.run import RunConfig
from ns_ray.config.training import TrainConfig, train_config
from ns_ray.config.validation import validate
from ns_ray.errors import ConfigError

SMALLEST = """
name: x
data: {labeled: digits}
teacher: {model: resnet18}
students: [{model: resnet18}, {model: resnet34}]
"""


def settings(*overrides: str) -> RunConfig:
    return parse(SMALLEST, overrides)


def mistake(*overrides: str, text: str = SMALLEST) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_survives_the_way_to_yaml_and_back(name: str) -> None:
    config = load_recipe(name)
    assert config.name == name.rpartition("/")[2]
    assert parse(dump(config)) == config
    assert config_hash(parse(dump(config))) == config_hash(config)
    for model in (config.teacher, *config.students):
        if model.bundle is None:
            train_config(config.train, model)


def test_the_default_recipe_is_there() -> None:
    assert "digits" in recipe_names()


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'digit' does not exist \(did you mean 'digits'\?\)"):
        load_recipe("digit")


# --------------------------------------------------------------------------------------- --set


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.epochs=20", "train.epochs", 20),
        ("train.lr=1e-3", "train.lr", 0.001),
        ("train.lr=1E-3", "train.lr", 0.001),
        ("train.lr=2.5e-3", "train.lr", 0.0025),
        ("train.weight_decay=0", "train.weight_decay", 0),
        ("train.noise.randaugment=null", "train.noise.randaugment", None),
        ("train.noise.crop_scale=[0.5, 1.0]", "train.noise.crop_scale", (0.5, 1.0)),
        ("train.noise.off_labeled=[flip, crop]", "train.noise.off_labeled", ("flip", "crop")),
        ("control=true", "control", True),
        ("name=run-2", "name", "run-2"),
        ("name='2024'", "name", "2024"),
        ('name="1e5"', "name", "1e5"),
        ("name=inf", "name", "inf"),
        ("students.1.model=vgg11", "students.1.model", "vgg11"),
        ("students.0.train.epochs=7", "students.0.train", {"epochs": 7}),
        ("students.0.model_args={act_layer: silu}", "students.0.model_args.act_layer", "silu"),
        ("students=[{model: resnet50}]", "students.0.model", "resnet50"),
        ("data.unlabeled=pile", "data.unlabeled", ("pile",)),
        ("data.unlabeled=[a, b]", "data.unlabeled.1", "b"),
        ("data.test=s3://bucket/a=b", "data.test", "s3://bucket/a=b"),
        ("select.per_class=auto", "select.per_class", "auto"),
        ("select.per_class=130000", "select.per_class", 130000),
        ("train.optimizer_args.momentum=0.8", "train.optimizer_args.momentum", 0.8),
    ],
)
def test_set(override: str, path: str, value: Any) -> None:
    node: Any = settings(override)
    for part in path.split("."):
        if isinstance(node, tuple):
            node = node[int(part)]
        else:
            node = node[part] if isinstance(node, dict) else getattr(node, part)
    assert node == value
    assert type(node) is type(value) or isinstance(node, float)


def test_later_overrides_win_and_leave_the_rest() -> None:
    config = settings("train.epochs=3", "train.epochs=4", "train.noise.flip=0")
    assert config.train.epochs == 4
    assert config.train.noise.flip == 0
    assert config.train.noise.dropout == TrainConfig().noise.dropout
    assert config.students[1].model == "resnet34"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.epochs", "must look like train.epochs=20"),
        ("=3", "must look like train.epochs=20"),
        ("train.lr=[", "not valid YAML"),
        ("students.2.model=x", "'2' must be an index from 0 to 1"),
        ("students.first.model=x", "'first' must be an index from 0 to 1"),
        ("students.-1.model=x", "'-1' must be an index"),
        ("train.lr=fast", "train.lr='fast'"),
        ("train.lr=-1", "train.lr=-1"),
        ("train.lr=nan", "train.lr"),
        ("train=5", "train"),
        ("name=a/b", "name='a/b'"),
        ("train.noise.off_labeled=[flips]", "train.noise.off_labeled.0='flips'"),
        ("select.per_class=0", "per_class must be at least 1"),
        ("students.0.bundle=x", "either `model`"),
        ("students.0={bundle: x}", "students.0.bundle: only the teacher"),
        ("teacher.init=teacher", "the first teacher has no teacher; use scratch"),
        ("students.0.train.epoch=3", "unknown setting 'epoch' (did you mean 'epochs'?)"),
        ("students.0.train.noise.flop=3", "unknown setting 'noise.flop' (did you mean 'flip'?)"),
        ("train.noise.crop_scale=[0.9, 0.1]", "0 < low <= high <= 1"),
    ],
)
def test_a_bad_override_is_one_line_that_names_it(override: str, says: str) -> None:
    assert says in mistake(override)


def test_a_value_has_no_settings_inside() -> None:
    text = SMALLEST.replace("labeled: digits", "labeled: digits, unlabeled: [rest]")
    assert "'rest' is a single value" in mistake("data.unlabeled.0.x=1", text=text)


# ------------------------------------------------------------------------------- unknown settings


def sections() -> list[tuple[str, str]]:
    """A misspelled path for each section of a run, and what should be suggested."""
    return [
        ("nme=1", "'name'"),
        ("data.labelled=1", "'labeled'"),
        ("teacher.modle=1", "'model'"),
        ("students.1.image_sise=1", "'image_size'"),
        ("label.batchsize=1", "'batch_size'"),
        ("select.treshold=1", "'threshold'"),
        ("train.epoch=1", "'epochs'"),
        ("train.noise.drop_out=1", "'dropout'"),
        ("accept.maxp=1", "'max_p'"),
        ("evaluate.topk=1", "'top_k'"),
        ("resources.num_worker=1", "'num_workers'"),
    ]


@pytest.mark.parametrize(("override", "suggestion"), sections())
def test_an_unknown_setting_is_answered_with_the_nearest(override: str, suggestion: str) -> None:
    message = mistake(override)
    assert f"unknown setting '{override.removesuffix('=1')}'" in message
    assert f"did you mean {suggestion}?" in message


def test_every_section_is_strict() -> None:
    shown = [getattr(configs, name) for name in dir(configs)]
    models = [m for m in shown if isinstance(m, type) and issubclass(m, configs.Settings)]
    assert configs.RunConfig in models
    for model in models:
        assert model.model_config["extra"] == "forbid"


def test_a_word_like_none_of_them_gets_the_list() -> None:
    message = mistake("accept.qqqq=1")
    assert "did you mean" not in message
    assert "known: max_p, otherwise" in message


def test_all_mistakes_are_named_at_once() -> None:
    message = mistake("train.epoch=1", "select.treshold=1", "seed=-1")
    for part in ("'train.epoch'", "'select.treshold'", "seed=-1"):
        assert part in message


def test_what_is_missing_is_named() -> None:
    assert "setting 'data' is missing" in mistake(text="name: x")


# --------------------------------------------------------------------------------------- files


def test_a_file_is_named_in_its_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(SMALLEST + "seeed: 1\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: unknown setting 'seeed'"):
        load_config(path)
    path.write_text(SMALLEST)
    assert load_config(path, ["seed=3"]).seed == 3


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"a: [", "is not valid YAML"),
        (b"- a", "must be a mapping of settings, not list"),
        (b"", "must be a mapping of settings, not NoneType"),
        (b"\xff\xfe\x00\x81", "is not a text file"),
    ],
)
def test_a_file_that_holds_no_settings(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope\.yaml cannot be read: No such file"):
        load_config(tmp_path / "nope.yaml")


def test_every_default_is_written_out_and_what_is_left_open_is_not() -> None:
    plain = yaml.safe_load(dump(settings("train.noise.dropout=0.3")))
    assert plain["train"]["label_smoothing"] == 0.1
    assert plain["train"]["noise"]["dropout"] == 0.3
    assert "lr" not in plain["train"]
    assert "stochastic_depth" not in plain["train"]["noise"]
    assert set(plain) == {*RunConfig.model_fields} - {"budget", "prices", "refit", "trackers"}


LATER = {
    "class_weights": "balanced",
    "logit_adjustment": 1.0,
    "noise.mixup": 0.2,
    "noise.cutmix": 1.0,
}


@pytest.mark.parametrize("name", LATER)
def test_what_came_later_is_written_only_where_it_is_on(name: str) -> None:
    """What was trained before there was such a setting keeps its fingerprint."""
    off = {"class_weights": "null"}.get(name, "0")
    written = settings(f"train.{name}={off}").model_dump_json()
    assert f'"{name.rpartition(".")[2]}"' not in written
    on = settings(f"train.{name}={LATER[name]}")
    assert on.train != settings().train
    assert parse(dump(on)) == on
    # A student may do without.
    own = settings(f"train.{name}={LATER[name]}", f"students.1.train.{name}={off}")
    assert train_config(own.train, own.students[0]) == on.train
    assert train_config(own.train, own.students[1]) == settings().train


def test_noises_in_words_say_what_mixes_the_images_of_a_stream() -> None:
    off = "train.noise={randaugment: null, crop_scale: null, flip: 0, dropout: 0}"
    own = ("stochastic_depth=0", "mixup=0.2", "cutmix=1", "off_labeled=[mixup, cutmix]")
    noise = settings(off, *(f"train.noise.{each}" for each in own)).train.noise
    assert noise.live("labeled") == "none"
    assert noise.live("unlabeled") == "mixup 0.2, cutmix 1"
    assert noise.unmixed().live("unlabeled") == "none"


class Sections(configs.Settings):
    train: TrainConfig = TrainConfig()
    select: configs.SelectConfig = configs.SelectConfig()


def test_one_stage_alone() -> None:
    overrides = ["train.lr=1e-2", "select.per_class=null"]
    found = parse_sections(Sections, overrides, select={"max_copies": 2})
    assert found.train.lr == 0.01
    assert found.select.per_class is None
    assert found.select.max_copies == 2
    with pytest.raises(ConfigError, match=r"did you mean 'train'\?\); known: train, select"):
        parse_sections(Sections, ["trian.lr=1"])


# ------------------------------------------------------------------------- sameness of two configs


def test_the_hash_ignores_where_and_with_what_a_run_works() -> None:
    one = config_hash(settings())
    same = ["storage=/elsewhere", "resources.num_workers=4", "resources.loaders=0"]
    same += ["prices.cpu_hour=0.05", "label.decode=apart"]
    assert config_hash(settings(*same)) == one
    for override in ("seed=1", "train.lr=0.051", "students.1.model=resnet50", "data.test=t"):
        assert config_hash(settings(override)) != one
    assert len(one) == 12


def test_teachers_are_written_where_they_are_set() -> None:
    assert "teachers" not in settings().model_dump()["label"]
    assert parse(dump(settings())).label.teachers is None
    assert parse(dump(settings("label.teachers=1"))).label.teachers == 1
    assert parse(dump(settings("label.teachers=3"))).label.teachers == 3
    assert config_hash(settings("label.teachers=3")) != config_hash(settings())


def test_a_given_teacher_is_one() -> None:
    given = ("teacher={bundle: /mine}", "label.teachers=2")
    assert "label.teachers=2, but teacher.bundle=/mine is one teacher" in mistake(*given)


def test_defaults_and_the_same_values_written_out_have_one_hash() -> None:
    assert config_hash(settings("train.label_smoothing=0.1")) == config_hash(settings())
    assert config_hash(settings().model_dump(mode="json")) == config_hash(settings())


def test_differences_name_each_setting() -> None:
    old = settings().model_dump(mode="json")
    new = settings("train.noise.erase=0.2", "seed=2", "students.1.model=vgg11").model_dump(
        mode="json"
    )
    found = differences(old, new)
    assert "seed: 0 -> 2" in found
    assert "train.noise.erase: 0.0 -> 0.2" in found
    assert any(line.startswith("students: ") for line in found)
    assert len(found) == 3
    assert differences(old, old) == []
    assert differences({}, {"a": 1}) == ["a: None -> 1"]


# ------------------------------------------------------------------------------ a model's own


def test_a_model_s_own_training_settings() -> None:
    config = settings(
        "train.lr=0.3",
        "train.optimizer_args={momentum: 0.9}",
        "students.1.train={epochs: 9, noise: {flip: 0}, optimizer_args: {eps: 1e-3}}",
    )
    assert train_config(config.train, config.students[0]) == config.train
    own = train_config(config.train, config.students[1])
    assert own.epochs == 9
    assert own.lr == 0.3
    assert own.noise == config.train.noise.model_copy(update={"flip": 0.0})
    assert set(own.optimizer_args) == {"momentum", "eps"}


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        settings().seed = 3


def test_validate_says_where_it_comes_from() -> None:
    with pytest.raises(ConfigError, match=r"^here: epochs=0: "):
        validate(TrainConfig, {"epochs": 0}, origin="here")
