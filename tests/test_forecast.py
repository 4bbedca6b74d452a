"""What a run is going to take: said before it, written when it begins, and compared at its end."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from reported import write_run
from tiny import flat_folder, folder_per_class, settings
from typer.testing import CliRunner

from ns_ray import report
from ns_ray.commands import app
from ns_ray.compute.resources import Pool, Workers
from ns_ray.config.loading import config_hash, dump, parse
from ns_ray.config.run import PricesConfig, RunConfig
from ns_ray.config.validation import validate
from ns_ray.data.packing import pack
from ns_ray.errors import StageError
from ns_ray.planning import forecast
from ns_ray.planning.estimates import hours
from ns_ray.planning.forecast import forecast_run
from ns_ray.store.corpora import Corpora, open_corpus
from ns_ray.store.plans import Hours, PlannedStage, read_plan, write_plan

HERE = Workers(count=1, cpus=2, gpus=0, loaders=2, in_process=True, in_turn=True)
POOL = Pool(actors=1, cpus=2, gpus=0, in_process=True)


def run(folder: Path, **more: Any) -> RunConfig:
    plain = settings({"storage": str(folder), "data.labeled": "somewhere", **more})
    return validate(RunConfig, plain)


@pytest.fixture
def data(tmp_path: Path) -> Corpora:
    for name, source in (
        ("labeled", folder_per_class(tmp_path / "l", 8)),
        ("pile", flat_folder(tmp_path / "p", 30)),
    ):
        pack(str(source), out=str(tmp_path / f"{name}.corpus"), rows_per_shard=50)
    images = open_corpus(str(tmp_path / "labeled.corpus"))
    return Corpora(images, open_corpus(str(tmp_path / "pile.corpus")), images, None)


def test_what_is_held_costs_money() -> None:
    workers, pool = Workers(count=2, cpus=3, gpus=1, loaders=4), Pool(actors=2, cpus=5, gpus=0.5)
    assert hours("train", 1800, workers, pool) == Hours(1800, 7.0, 1.0)
    assert hours("label", 3600, workers, pool) == Hours(3600, 10.0, 1.0)
    assert hours("train", 3600, HERE, POOL) == Hours(3600, 2.0, 0.0)  # loaders take turns
    prices = PricesConfig(cpu_hour=0.05, gpu_hour=2)
    assert (Hours(1, 10, 3) + Hours(1, 10, 1)).money(prices) == pytest.approx(9)
    assert Hours(1, 10, 3).money(PricesConfig(gpu_hour=2)) == 6
    assert Hours(1, 10, 3).money(PricesConfig()) is None


def test_prices_make_no_other_run(tmp_path: Path) -> None:
    plain, priced = run(tmp_path), run(tmp_path, **{"prices.cpu_hour": 0.04})
    assert config_hash(plain) == config_hash(priced)
    assert "prices" not in plain.model_dump()
    with pytest.raises(Exception, match=r"prices\.cpu_hour"):
        parse(dump(plain), ["prices.cpu_hour=-1"])


@pytest.mark.slow
def test_a_plan_has_hours_room_and_money(tmp_path: Path) -> None:
    labeled, pile = folder_per_class(tmp_path / "l", 20), flat_folder(tmp_path / "p", 30)
    changes = {"data.labeled": str(labeled), "data.unlabeled": [str(pile)]}
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(settings({"storage": str(tmp_path / "runs"), **changes})))

    def ask(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["plan", "--config", str(path), *arguments])
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    said = ask("--set", "prices.cpu_hour=3600", "--set", "prices.currency=EUR")
    assert " CPU-hours, 27 MB of disk, " in said  # two models of 0.4 M, two checkpoints each
    assert " EUR" in said
    assert "what isn't measured" not in said
    unknown = ask("--no-measure")
    assert "about 0 s: 0 CPU-hours, 27 MB of disk; and what isn't measured: gen-00 train" in unknown
    assert "of disk besides the images" in ask("--images", "100", "--no-measure")


@pytest.mark.slow
def test_a_run_writes_its_plan_once(
    data: Corpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, config = str(tmp_path / "plan.json"), run(tmp_path)
    forecast_run(config, data, workers=HERE, pool=POOL, out=out)
    assert "plan: about " in capsys.readouterr().out
    stages, disk = read_plan(out)
    assert [(s.id, s.kind, s.images) for s in stages] == [
        ("gen-00/train", "train", 10 * 10),
        ("gen-00/validation", "score", 24),
        ("gen-01/label", "label", 30),
        ("gen-01/train", "train", 10 * 20),
        ("gen-01/validation", "score", 24),
    ]
    assert all(stage.seconds for stage in stages)
    assert {(stage.cpus, stage.gpus) for stage in stages} == {(2.0, 0.0)}
    assert disk > 2 * 4 * 373_658
    before = Path(out).read_bytes()
    forecast_run(config, data, workers=HERE, pool=POOL, out=out)
    assert Path(out).read_bytes() == before
    assert capsys.readouterr().out == ""
    Path(out).write_text("{}")
    forecast_run(config, data, workers=HERE, pool=POOL, out=out)
    assert "it is made again" in capsys.readouterr().out
    assert read_plan(out)[0]


@pytest.mark.parametrize("kind", [StageError, RuntimeError])
def test_a_plan_that_cannot_be_made_costs_no_run(
    kind: type[Exception],
    data: Corpora,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> Any:
        raise kind("no memory")

    monkeypatch.setattr(forecast, "measured", fail)
    forecast_run(run(tmp_path), data, workers=HERE, pool=POOL, out=str(tmp_path / "plan.json"))
    assert "no plan: no memory" in capsys.readouterr().out
    assert not (tmp_path / "plan.json").exists()


def planned(id_: str, seconds: float | None, **more: Any) -> PlannedStage:
    kind: Any = "train" if "train" in id_ else "label" if "label" in id_ else "score"
    return PlannedStage(id_, kind, 100, seconds, more.get("cpus", 2.0), more.get("gpus", 0.0))


def rows_of(root: Path) -> dict[str, list[str]]:
    """Rows of the table of what was planned."""
    page = Path(report.write(str(root))).read_text()
    table = page.partition('aria-label="Time planned and taken"')[2].partition("</table>")[0]
    cells = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in table.split("<tr>")]
    return {row[0]: row[1:] for row in cells if row}


@pytest.mark.slow
def test_the_report_compares_the_plan_with_what_came(tmp_path: Path) -> None:
    root = write_run(tmp_path, prices={"cpu_hour": 36.0})
    result = json.loads((root / "result.json").read_text())
    result["generations"][1]["seconds"]["label"] = 4.0
    (root / "result.json").write_text(json.dumps(result))
    took = {row["generation"]: row["seconds"] for row in result["generations"]}
    stages = [
        *(planned(f"gen-{g:02d}/train", took[g]["train"] / 2) for g in took),
        planned("gen-01/label", took[1]["label"]),
        planned("gen-00/validation", None),
        planned("gen-07/train", 1e6),  # never made
    ]
    write_plan(str(root / "plan.json"), stages, 5_000_000)
    rows = rows_of(root)
    assert rows["Training"][2] == "2.00"
    assert rows["Labeling"][2] == "1.00"
    assert "Scoring" not in rows
    seconds = sum(took[g]["train"] for g in took) + took[1]["label"]
    assert rows["All"][3] == f"{2 * seconds / 3600:.2f}"
    page = (root / "report.html").read_text()
    assert "Disk: 5 MB planned, " in page
    assert f", {36 * 2 * seconds / 3600:,.2f} USD spent" in page


@pytest.mark.slow
def test_a_report_without_a_plan_or_with_a_damaged_one_has_no_comparison(tmp_path: Path) -> None:
    root = write_run(tmp_path)
    assert rows_of(root) == {}
    (root / "plan.json").write_text('{"stages": 3}')
    assert rows_of(root) == {}
