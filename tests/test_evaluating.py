"""`ns-ray evaluate` of several models: their files, the table, and the page."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser
from tiny import COLORS, MODEL, folder_per_class
from typer.testing import CliRunner, Result

from ns_ray.commands import app
from ns_ray.commands.evaluating import names_of
from ns_ray.config.training import ModelConfig
from ns_ray.data.packing import pack
from ns_ray.model.bundle import save
from ns_ray.model.networks import build
from ns_ray.scoring.paired import compare
from ns_ray.store.tables import read_table


def model(folder: Path, seed: int, classes: list[str] | None = None) -> str:
    """An untrained model whose answers differ from image to image."""
    torch.manual_seed(seed)
    names = classes or sorted(COLORS)
    net: Any = build(ModelConfig.model_validate(MODEL), len(names))
    with torch.no_grad():
        net.get_classifier().weight.mul_(50)
    save(net, str(folder), classes=names, fingerprint=f"m{seed}", provenance={})
    return str(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models, the first one in a run's folder, and packed images."""
    folder = tmp_path_factory.mktemp("evaluating")
    for seed, name in enumerate(("birds/model", "two", "more/two")):
        model(folder / name, seed)
    pack(str(folder_per_class(folder / "images", 10)), out=str(folder / "test"), rows_per_shard=20)
    return folder


def evaluate(
    place: Path,
    out: Path,
    *bundles: str,
    settings: tuple[str, ...] = (),
    more: tuple[str, ...] = (),
) -> Result:
    arguments = ["evaluate", "--data", str(place / "test"), "--out", str(out), *more]
    for name in bundles:
        arguments += ["--bundle", str(place / name)]
    for setting in (*settings, "predict.runtime=torch", "predict.precision=fp32"):
        arguments += ["--set", setting]
    return CliRunner().invoke(app, arguments)


def scores_in(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "evaluation.json").read_text()))


def right(folder: Path) -> dict[str, bool]:
    """Whether a model is right, by key, from its predictions; image i of a class is CLASS/i.png."""
    found = {}
    for path in (folder / "predictions").glob("shard*.parquet"):
        for row in read_table(str(path), ["key", "label"]).to_pylist():
            found[row["key"]] = sorted(COLORS)[row["label"]] == row["key"].split("/")[0]
    return found


@pytest.mark.slow
def test_several_models_leave_their_scores_a_table_and_a_page(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = evaluate(place, out, "birds", "two", "more/two")
    assert done.exit_code == 0, done.output
    folders = [out / name for name in ("birds", f"{place.name}-two", "more-two")]
    assert sorted(out.iterdir()) == sorted([*folders, out / "corpus", out / "report.html"])
    first, second, third = (scores_in(folder) for folder in folders)
    assert "paired" not in first
    was, now = right(folders[0]), right(folders[2])
    pairs = torch.tensor([[was[key], now[key]] for key in sorted(was)]).numpy()
    assert len(pairs) == 30
    assert third["paired"] == {folders[0].name: compare(pairs[:, 0], pairs[:, 1])}
    page = re.sub(r"<[^>]+>|\s", " ", (out / "report.html").read_text())
    for folder, found in zip(folders, (first, second, third), strict=True):
        line = next(row for row in done.output.splitlines() if folder.name in row.split())
        assert f"{found['top1']:.4f}" in line
        assert f"{found['ece']:.4f}" in line
        assert "372,979" in line
        assert f"{found['top1']:.1%}" in page
    assert page.count("(best)") == [one["top1"] for one in (first, second, third)].count(
        max(first["top1"], second["top1"], third["top1"])
    )
    assert f"p = {third['paired'][folders[0].name]['p']:.2f}" in page
    assert done.output.endswith(f"report: {out}/report.html\n")


def test_one_model_leaves_what_it_always_did(place: Path, tmp_path: Path) -> None:
    done = evaluate(place, tmp_path, "two")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["corpus", "evaluation.json", "predictions"]
    found = scores_in(tmp_path)
    assert "paired" not in found
    assert done.output.endswith(f"{tmp_path}: top-1 {found['top1']:.4f} on 30 images\n")


def test_models_of_other_classes_are_not_compared(place: Path, tmp_path: Path) -> None:
    model(place / "odd", 5, ["blue", "green", "pink"])
    done = evaluate(place, tmp_path / "out", "two", "odd")
    assert done.exit_code == 3
    assert f"{place}/two and {place}/odd know different classes (pink, red)" in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/runs/a", "/runs/b/model", "/runs/b/gen-00/bundle"], ["a", "b", "gen-00"]),
        (["/x/model", "/y/model", "s3://bucket/z"], ["x", "y", "z"]),
        (["/runs/a/gen-01", "/runs/b/gen-01"], ["a-gen-01", "b-gen-01"]),
        (
            ["/runs/a/model", "/x/gen-01", "/runs/a", "/y/gen-01"],
            ["a", "x-gen-01", "a-2", "y-gen-01"],
        ),
        (["/runs/1/a/b", "/runs/2/a/b", "/a/b"], ["1-a-b", "2-a-b", "a-b"]),
        (["/x/corpus", "/b"], ["x-corpus", "b"]),
    ],
)
def test_every_model_has_a_name_of_its_own(paths: list[str], names: list[str]) -> None:
    assert names_of(paths) == names


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_the_page_of_several_models_in_a_browser(
    place: Path, tmp_path: Path, browser: Browser
) -> None:
    few = "{images: 6, sequences: 2, severities: [3], suites: [corruptions, perturbations]}"
    settings = (f"evaluate.robustness={few}",)
    done = evaluate(place, tmp_path, "birds", "more/two", settings=settings)
    assert done.exit_code == 0, done.output
    first, second = (scores_in(tmp_path / name)["robustness"] for name in ("birds", "two"))
    assert (first["relative_to"], second["relative_to"]) == (None, "birds")
    for found in (first, second):
        assert f"{found['mean_corruption_error']:.4f}" in done.output
        assert f"{found['mean_flip_rate']:.4f}" in done.output
    html = (tmp_path / "report.html").read_text()
    assert re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:|#)[^"'\s)>]""", html) == []
    for width in (1200, 360):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto((tmp_path / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        headings = page.get_by_role("heading", level=2).all_inner_texts()
        assert headings == ["Models", "Against birds", "Robustness", "Where they are"]
        assert f"{first['mean_corruption_error']:.1%}" in page.inner_text("#robustness")
        report = Axe().run(page)
        assert report.violations_count == 0, report.generate_report()
        page.close()
