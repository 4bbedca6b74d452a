"""A run that is fitted into a time: what is measured, what is chosen, and that it stays chosen."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from test_selftrain import Fakes
from tiny import MODEL, flat_folder, folder_per_class, settings
from typer.testing import CliRunner

from ns_ray import store
from ns_ray.ablation import ablate
from ns_ray.commands import run_app
from ns_ray.compute.resources import Machine, Pool, Workers
from ns_ray.config.defaults import BUDGET, Images, settle
from ns_ray.config.loading import chosen_in, config_hash, dump, parse
from ns_ray.config.run import RunConfig
from ns_ray.config.training import train_config
from ns_ray.config.validation import seconds_of, validate
from ns_ray.data.packing import pack
from ns_ray.errors import ConfigError
from ns_ray.model.cost import Cost, Rate
from ns_ray.planning import budget, costs, estimates
from ns_ray.planning.costs import Counts, Stage
from ns_ray.planning.plan import make_plan
from ns_ray.selftrain import self_train
from ns_ray.store.corpora import Corpora, open_corpus
from ns_ray.store.layout import RunLayout

HERE = Workers(count=1, cpus=2, gpus=0, loaders=2, in_process=True, in_turn=True)
POOL = Pool(actors=1, cpus=2, gpus=0, in_process=True)
COUNTS = Counts(classes=3, labeled=100, unlabeled=1000, validation=0, test=0)


def run(**raw: Any) -> RunConfig:
    named = {
        "name": "run",
        "data": {"labeled": "photos"},
        "teacher": MODEL,
        "label": {"teachers": 1},
    }
    return validate(RunConfig, named | raw)


# ----------------------------------------------------------------------------------- durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), ("1h2s", 3602)],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds
    assert run(budget=text).budget == text


@pytest.mark.parametrize("wrong", ["90", "30 m", "0s", "", "-5m", "30m1h", "PT30M", "soon", "1d"])
def test_what_is_no_duration_is_named_with_what_is(wrong: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(dump(run()), [f"budget='{wrong}'"])
    assert f"budget={wrong!r}: a duration above zero looks like 90s, 30m, 2h" in str(refused.value)
    with pytest.raises(ConfigError, match="budget=90: a duration"):
        parse(dump(run()), ["budget=90"])


def test_a_run_without_a_budget_is_the_run_that_it_was() -> None:
    plain, asked = run(), run(budget="30m")
    assert "budget" not in dump(plain)
    assert config_hash(plain) != config_hash(asked)
    assert parse(dump(asked)) == asked


# ---------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("seconds", "students", "found"),
    [
        (1000, 2, (1.0, 2)),  # 100 for each of three models, and 20 for each labeling
        (340, 2, (1.0, 2)),
        (190, 2, (0.5, 2)),
        (115, 2, (0.25, 2)),
        (114, 2, (0.47, 1)),
        (70, 2, (0.25, 1)),
        (69, 2, None),
        (114, 1, (0.47, 1)),
    ],
)
def test_steps_come_before_students(seconds: float, students: int, found: Any) -> None:
    def price(steps: float, number: int) -> float:
        return 100 * steps * (number + 1) + 20 * number

    assert budget.choose(price, seconds, range(students, 0, -1)) == found


def test_nothing_is_chosen_where_no_length_is_open() -> None:
    assert budget.choose(lambda steps, number: 100.0, 99, [1]) is None
    assert budget.choose(lambda steps, number: 100.0, 100, [1]) == (1.0, 1)


def stage(steps: int | None) -> Stage:
    kind: Literal["train", "label"] = "label" if steps is None else "train"
    return Stage("a", kind, "a", "net", 32, 1000, steps, cost=None, rate=100.0, loading=0.05)


def test_a_stage_takes_what_its_workers_take() -> None:
    def seconds(steps: int | None, workers: Workers, pool: Pool = POOL) -> float:
        asked = stage(steps)
        found = estimates.stage_seconds(asked, workers, pool)
        assert found is not None
        return found - estimates.START_SECONDS[asked.kind]

    assert seconds(10, HERE) == pytest.approx(10 + 25)  # in turn with two loaders
    beside = Workers(count=4, cpus=2, gpus=1, loaders=2)
    assert seconds(10, beside) == pytest.approx(25 / 4)
    assert seconds(10, Workers(4, 2, 1, loaders=10)) == pytest.approx(10 / 4)
    assert seconds(None, HERE) == pytest.approx(10 + 25)
    assert seconds(None, HERE, Pool(actors=3, cpus=1, gpus=0)) == pytest.approx((10 + 50) / 1.5)
    assert seconds(None, beside, Pool(actors=8, cpus=10, gpus=1)) == pytest.approx(10 / 8)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that trains 1000 images/s and labels 2000; what steps need is no question."""
    for replayed in ("training_cost", "forward_cost"):
        monkeypatch.setattr(costs, replayed, lambda *_, **__: Cost(1, 1, 1, 1, 1))
    monkeypatch.setattr(costs, "measured_rate", lambda *_, **__: Rate(1000, 2000))


def fitted(config: RunConfig, passed: float = 0.0) -> Any:
    return budget.fitted(config, COUNTS, HERE, POOL, (), passed)[0]


def trained(config: RunConfig, found: Any) -> list[float]:
    """Epochs of the teacher and of the students."""
    settled, _ = settle(config, Images(100, 1000), {BUDGET: found})
    return [train_config(settled.train, m).epochs for m in (settled.teacher, *settled.students)]


@pytest.mark.usefixtures("rates")
def test_a_run_is_fitted_into_its_time() -> None:
    # 600 steps of 32 images, twice 300 of 256: 173 s, half a second of labeling, and the starts.
    whole = fitted(run(budget="1h"))
    assert (whole["steps"], whole["students"]) == (1.0, 2)
    assert trained(run(), whole) == trained(run(), {}) == [192.0, 96.0, 96.0]
    shorter = fitted(run(budget="120s"))
    assert 0.5 < shorter["steps"] < 0.7
    assert shorter["students"] == 2
    assert trained(run(), shorter) == [round(e * shorter["steps"], 2) for e in (192, 96, 96)]
    later = fitted(run(budget="120s"), passed=20)
    assert later["steps"] < shorter["steps"]
    fewest = fitted(run(budget="45s"))
    assert fewest["students"] == 1
    assert len(trained(run(), fewest)) == 2


@pytest.mark.usefixtures("rates")
def test_what_is_set_stays() -> None:
    own = run(budget="60s", teacher={**MODEL, "train": {"epochs": 7}}, students=[MODEL, MODEL])
    found = fitted(own)
    assert found["students"] == 2
    teacher, *students = trained(own, found)
    assert teacher == 7
    assert students == [round(96 * found["steps"], 2)] * 2


@pytest.mark.usefixtures("rates")
@pytest.mark.parametrize(
    ("settings", "lower"),
    [
        ({}, "lower image_size, the pile"),
        ({"label": {"teachers": 2}}, "lower label.teachers (now 2), image_size"),
        ({"label": {}}, "lower label.teachers (now 3), image_size"),  # so many are chosen
        ({"students": [MODEL] * 2}, "lower the number of students, image_size"),
        ({"train": {"epochs": 50}, "control": True}, "lower train.epochs, control (false), image"),
        ({"teacher": {**MODEL, "train": {"epochs": 50}}}, "lower teacher.train.epochs, image_size"),
    ],
)
def test_what_cannot_fit_says_what_it_takes_and_why(settings: Any, lower: str) -> None:
    with pytest.raises(ConfigError) as refused:
        fitted(run(budget="9s", **settings))
    assert str(refused.value).startswith("budget=9s: with the fewest steps this run takes about ")
    assert lower in str(refused.value)


def test_a_budget_shortens_the_warm_up_too() -> None:
    settled, chosen = settle(run(), Images(100, 1000), {BUDGET: {"steps": 0.5, "students": 1}})
    assert chosen["teacher"]["epochs"] == 96.0
    assert chosen["teacher"]["warmup_epochs"] == 9.6
    assert [*chosen] == [BUDGET, "teacher", "students.0"]
    assert settle(run(), Images(100, 1000), chosen) == (settled, chosen)


# --------------------------------------------------------------------------------- in a run


def test_a_run_chooses_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run(storage=str(tmp_path), budget="30m", data={"labeled": "l", "test": "t"})
    layout = RunLayout.of(config)
    store.write_bytes(layout.config, dump(config).encode())
    first = Fakes([20, 30], fitted={"steps": 0.6, "students": 1, "time": "27 min"})
    self_train(config, layout, first)
    assert first.titles("fit_budget") == ["30m"]
    assert first.titles("fit") == ["gen-00 train", "gen-01 train"]
    said = "budget 30m: steps x0.6, 1 of 2 students, about 27 min"
    assert said in capsys.readouterr().out
    written = store.read_bytes(layout.config)
    assert chosen_in(written)[BUDGET] == first.fitted

    again = Fakes([20, 30], fitted={"steps": 1.0, "students": 2, "time": "1 s"})
    self_train(config, layout, again)
    assert again.titles("fit_budget") == []
    assert [a["step"] for a in again.asked["fit"]] == [a["step"] for a in first.asked["fit"]]
    assert store.read_bytes(layout.config) == written
    assert said in capsys.readouterr().out


def test_without_a_budget_nothing_is_measured(tmp_path: Path) -> None:
    fakes = Fakes([20, 30, 30])
    config = run(storage=str(tmp_path), data={"labeled": "l", "test": "t"})
    self_train(config, RunLayout.of(config), fakes)
    assert fakes.titles("fit_budget") == []
    assert len(fakes.titles("fit")) == 3


def test_a_plan_says_that_it_is_without_the_budget() -> None:
    found = make_plan(run(budget="30m"), COUNTS, Machine(2, 0, local=True), measure=False)
    assert found.notes[0].startswith("budget=30m is fitted when the run starts")


def test_an_ablation_has_no_budget(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave it out"):
        ablate(
            ["noise"],
            lambda more: parse(dump(run(budget="30m")), more),
            out=str(tmp_path),
            seeds=[0],
        )


@pytest.mark.ray
@pytest.mark.slow
def test_steps_are_measured_as_a_training_worker(ray_local: Any, tmp_path: Path) -> None:
    labeled, pile = folder_per_class(tmp_path / "l", 4), flat_folder(tmp_path / "p", 10)
    for name, source in (("labeled", labeled), ("pile", pile)):
        pack(str(source), out=str(tmp_path / f"{name}.corpus"), rows_per_shard=50)
    images = open_corpus(str(tmp_path / "labeled.corpus"))
    data = Corpora(images, open_corpus(str(tmp_path / "pile.corpus")), images, None)
    worker = Workers(count=2, cpus=1, gpus=0, loaders=1)
    facts = budget.fit_budget(run(budget="9h"), data, workers=worker, pool=POOL, passed=0)
    assert (facts["steps"], facts["students"]) == (1.0, 2)
    with pytest.raises(ConfigError, match="budget=1s: with the fewest steps"):
        budget.fit_budget(run(budget="1s"), data, workers=worker, pool=POOL, passed=0)


@pytest.mark.slow
@pytest.mark.usefixtures("without_ray")
def test_a_run_with_a_budget_ends_and_goes_on_as_it_began(tmp_path: Path) -> None:
    plain = settings(
        {
            "storage": str(tmp_path / "runs"),
            "data.labeled": str(folder_per_class(tmp_path / "labeled", 8)),
            "data.unlabeled": [str(flat_folder(tmp_path / "pile", 20, start=500))],
            "data.validation_size": 12,
            "resources.loaders": 0,
            "students": [{**MODEL, "train": {"epochs": 2}}],
        }
    )
    del plain["train"]["epochs"]
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(plain))
    command = ["--config", str(config)]

    refused = CliRunner().invoke(run_app, [*command, "--budget", "1s"])
    assert refused.exit_code == 2
    assert "budget=1s: with the fewest steps this run takes about" in refused.stderr
    assert "students.0.train.epochs" in refused.stderr

    done = CliRunner().invoke(run_app, [*command, "--budget", "3h", "--overwrite"])
    assert done.exit_code in (0, 5), done.output
    root = tmp_path / "runs" / "tiny"
    fitted = chosen_in((root / "config.yaml").read_bytes())[BUDGET]
    said = f"budget 3h: steps x1, about {fitted['time']}\n"
    assert f"budget 3h: measuring a few steps\n{said}" in done.stdout

    result = json.loads((root / "result.json").read_text())
    (root / "result.json").unlink()
    again = CliRunner().invoke(run_app, [*command, "--budget", "3h"])
    assert again.exit_code == done.exit_code, again.output
    assert said in again.stdout
    assert "measuring" not in again.stdout
    assert chosen_in((root / "config.yaml").read_bytes())[BUDGET] == fitted
    rerun = json.loads((root / "result.json").read_text())
    for one, other in zip(rerun["generations"], result["generations"], strict=True):
        assert {**one, "seconds": None} == {**other, "seconds": None}
