"""`ns-ray label-next`: which images it asks about, its page in a browser, and the way back in."""

import csv
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from reported import CLASSES, PILE, keys_of, write_corpus, write_run
from tiny import Whole
from typer.testing import CliRunner

from ns_ray import store
from ns_ray.commands import app
from ns_ray.config import DataConfig
from ns_ray.data import ingest, list_source
from ns_ray.review.asking import page_of
from ns_ray.review.choosing import Candidates, closest, pool, spread
from ns_ray.store import RunLayout


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["label-next", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def lines_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


# ----------------------------------------------------------------------------------- choice


def candidates(margins: list[float], labels: list[int], digests: str | None = None) -> Candidates:
    """Images of two probable classes, with these margins."""
    n = len(margins)
    probs = np.stack([0.5 + np.array(margins) / 2, 0.5 - np.array(margins) / 2], axis=1)
    classes = np.stack([np.array(labels), 1 - np.array(labels)], axis=1)
    keys, shards = np.array([f"k{i}" for i in range(n)]), np.array(["s"] * n)
    return Candidates(keys, shards, np.array(list(digests or keys)), probs, classes)


def test_the_closest_of_each_class_are_kept_and_of_equal_images_one() -> None:
    found = candidates([0.4, 0.1, 0.2, 0.9, 0.2], [0, 0, 0, 1, 1], digests="abbcd")
    assert list(closest(found, each=9).keys) == ["k1", "k4", "k0", "k3"]
    assert list(closest(found, each=1).keys) == ["k1", "k4"]


def test_a_pool_is_shared_evenly_by_the_classes_as_far_as_they_go() -> None:
    found = closest(candidates([0.01 * i for i in range(20)], [0] * 17 + [1] * 3), each=99)
    assert Counter(pool(found, 8, spare=1).classes[:, 0]) == {0: 5, 1: 3}
    assert Counter(pool(found, 4, spare=2).classes[:, 0]) == {0: 4, 1: 3}
    assert list(pool(found, 4, spare=1).keys) == ["k0", "k1", "k17", "k18"]


def test_no_two_that_look_alike_are_chosen_where_others_are_left() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    features = np.array([[0.0], [0.1], [9.0], [9.1], [5.0], [0.0]], np.float32)
    # 0 has the least margin; 5, then 3 of class 1 look like it or like 2.
    assert spread(labels, features, 3) == [0, 3, 2]
    assert spread(labels, features, 4)[:3] == [0, 3, 2]
    assert spread(labels, features, 4)[3] == 4
    assert sorted(spread(labels, features, 6)) == list(range(6))
    assert sorted(spread(labels, features, 99)) == list(range(6))


# ----------------------------------------------------------------------------------- command


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and beside it what `label-next` wrote of it."""
    folder = tmp_path_factory.mktemp("asked")
    code, said = invoke(write_run(folder), "--count", 9, "--out", folder / "next")
    assert code == 0, said
    assert f"9 of {PILE} images" in said
    return folder


def test_what_is_written(made: Path) -> None:
    lines = lines_of(made / "next" / "label-next.csv")
    assert list(lines[0]) == ["path", "label", "guess", "confidence", "key", "uri"]
    assert len({line["key"] for line in lines}) == 9
    assert Counter(line["guess"] for line in lines) == dict.fromkeys(CLASSES, 3)
    corpus = store.open_corpus(str(made / "made" / "corpora" / "unlabeled"))
    stored = {
        row["key"]: row
        for _, table in corpus.scan(["key", "image", "uri"])
        for row in table.to_pylist()
    }
    for line in lines:
        assert line["label"] == ""
        assert line["path"].endswith(".png")
        assert (made / "next" / line["path"]).read_bytes() == stored[line["key"]]["image"]
        assert line["uri"] == stored[line["key"]]["uri"]


def test_labels_that_may_be_there_are_not_written_over(made: Path) -> None:
    before = (made / "next" / "label-next.csv").read_bytes()
    code, said = invoke(made / "made", "--out", made / "next")
    assert code == 2
    assert "has a label-next.csv already" in said
    assert (made / "next" / "label-next.csv").read_bytes() == before


def test_images_whose_labels_are_known_are_not_asked_about(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "made", tmp_path / "made")
    # The first of the pile, which the teacher is least sure of, have been labeled since.
    write_corpus(str(tmp_path / "made" / "corpora" / "labeled"), "unlabeled", 12, labeled=True)
    code, said = invoke(tmp_path / "made", "--count", PILE, "--out", tmp_path / "next")
    assert code == 0, said
    asked = {line["key"] for line in lines_of(tmp_path / "next" / "label-next.csv")}
    assert asked == set(keys_of("unlabeled", PILE)[12:])


def test_what_is_no_run_or_has_labeled_nothing_is_named(made: Path, tmp_path: Path) -> None:
    code, said = invoke(tmp_path, "--out", tmp_path / "next")
    assert (code, "is no run: it has no config.yaml" in said) == (2, True)
    shutil.copytree(made / "made", tmp_path / "made")
    for g in (1, 2):
        shutil.rmtree(tmp_path / "made" / f"gen-{g:02d}" / "pseudo_labels", ignore_errors=True)
    code, said = invoke(tmp_path / "made", "--out", tmp_path / "next")
    assert (code, "has no pseudo-labels yet" in said) == (3, True)


# ----------------------------------------------------------------------------------- page


def opened(browser: Browser, folder: Path, width: int, scheme: Any = "light") -> Page:
    """The page, alone: it needs no file beside it."""
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.problems = problems  # type: ignore[attr-defined]
    alone = folder / "alone.html"
    shutil.copy(folder / "next" / "index.html", alone)
    page.goto(alone.as_uri())
    return page


def saved(page: Page, to: Path) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save label-next.csv").click()
    assert download.value.suggested_filename == "label-next.csv"
    download.value.save_as(to)
    return lines_of(to)


@pytest.mark.parametrize(
    ("width", "scheme"), [pytest.param(1000, "light", marks=pytest.mark.slow), (360, "dark")]
)
def test_the_page_fills_in_the_table(
    browser: Browser, made: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    page = opened(browser, made, width, scheme)
    told = page.locator("#told")
    expect(told).to_contain_text("Image 1 of 9, 0 labeled. The teacher's guess: dog & $x$")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("#image").evaluate("i => i.complete && i.naturalWidth > 0")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()

    page.keyboard.press("3")
    expect(told).to_contain_text("Image 2 of 9, 1 labeled")
    page.get_by_role("button", name=CLASSES[1]).click()
    expect(page.get_by_role("button", name=CLASSES[1])).to_be_focused()  # as with Tab and Enter
    page.keyboard.press("ArrowRight")
    page.keyboard.press("1")
    expect(told).to_contain_text("Image 5 of 9, 3 labeled")
    page.get_by_role("button", name="Back").click()
    expect(told).to_contain_text("labeled cat")
    page.get_by_role("button", name="Remove label").click()
    page.keyboard.press("2")
    page.reload()
    expect(told).to_contain_text("Image 5 of 9, 3 labeled")

    before = lines_of(made / "next" / "label-next.csv")
    after = saved(page, tmp_path / "label-next.csv")
    given = [line["label"] for line in after]
    assert given == [CLASSES[2], CLASSES[1], "", CLASSES[1], *[""] * 5]
    assert [{**line, "label": ""} for line in after] == before
    for _ in range(5):
        page.get_by_role("button", name="Skip").click()
    expect(page.get_by_text("3 of 9 images have a label.")).to_be_visible()
    page.get_by_role("button", name="Go through them again").click()
    expect(told).to_contain_text("Image 1 of 9")
    assert page.problems == []  # type: ignore[attr-defined]
    page.close()


@pytest.mark.slow
def test_of_many_classes_the_likeliest_have_keys_and_the_others_are_typed(
    browser: Browser, tmp_path: Path
) -> None:
    images = [
        {
            **dict.fromkeys(("label", "uri"), ""),
            **{"path": f"images/{i}.png", "key": f"{i}.png", "guess": "class 5", "confidence": 0.4},
            **{"source": "data:image/png;base64,", "width": 8, "height": 8},
            "likely": list(range(5, 14)),
        }
        for i in range(4)
    ]
    (tmp_path / "next").mkdir()
    html = page_of("many", [f"class {i}" for i in range(30)], images, "mark")
    (tmp_path / "next" / "index.html").write_text(html)
    page = opened(browser, tmp_path, 800)
    assert page.locator("#classes button").count() == 9
    page.keyboard.press("2")
    page.keyboard.type("class 2")  # several begin so, one is named so
    page.keyboard.press("Enter")
    page.keyboard.type("class 29")
    page.keyboard.press("Enter")
    page.keyboard.type("class 3x")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("No class begins with class 3x.")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    given = [line["label"] for line in saved(page, tmp_path / "label-next.csv")]
    assert given == ["class 6", "class 2", "class 29", ""]
    page.close()


# ----------------------------------------------------------------------------------- way back


@pytest.mark.slow
@pytest.mark.ray
def test_a_filled_in_table_is_a_labeled_source_beside_the_same_pile(
    whole: Whole, tmp_path: Path
) -> None:
    assert whole.process.returncode in (0, 5), whole.process.stdout + whole.process.stderr
    code, said = invoke(whole.root, "--count", 30, "--out", tmp_path / "next")
    assert code == 0, said
    table = tmp_path / "next" / "label-next.csv"
    lines = lines_of(table)
    pile = str(whole.root.parent.parent / "pile")
    assert {line["key"] for line in lines} <= whole.good
    names = ("blue", "green", "red")
    for i, line in enumerate(lines):
        line["label"] = names[i % 3] if i < 24 else ""
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)

    moved = tmp_path / "moved"  # paths are relative to the table
    shutil.move(tmp_path / "next", moved)
    listing = list_source(str(moved / "label-next.csv"))
    assert listing.classes == names
    assert {item.key: item.label for item in listing.items} == {
        line["path"]: line["label"] or None for line in lines
    }
    # The pile still has them: there those are left out that are now validation images.
    sources = (str(whole.root.parent.parent / "labeled"), str(moved / "label-next.csv"))
    settings = DataConfig(labeled=sources, unlabeled=(pile,), validation_size=12)
    corpora = ingest(settings, seed=0, out=RunLayout(str(tmp_path / "run")))
    assert corpora.labeled.rows == 61 + 24 - 12
    held = [row for _, t in corpora.validation.scan(["key", "uri"]) for row in t.to_pylist()]
    asked = {row["uri"] for row in held if row["key"].startswith("1/")}
    assert 0 < len(asked) < 12
    assert corpora.unlabeled is not None
    assert corpora.unlabeled.rejected["leak"] == len(asked)
    keys = {key for _, t in corpora.unlabeled.scan(["key"]) for key in t["key"].to_pylist()}
    assert len(keys & {line["key"] for line in lines}) == 30 - len(asked)
