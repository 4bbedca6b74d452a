"""The report: what it says, in a real browser, and about damaged or different runs."""

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, Request
from reported import (
    CLASSES,
    PILE,
    TEST,
    VALIDATION,
    WRONG,
    answers,
    config,
    keys_of,
    write_probs,
    write_run,
)
from typer.testing import CliRunner

from ns_ray import report, store
from ns_ray.api import execute
from ns_ray.commands import app
from ns_ray.report import findings, gallery, pictures, pile
from ns_ray.report.damaged import damaged
from ns_ray.report.facts import open_run
from ns_ray.report.lessons import kept_precision
from ns_ray.report.robustness import robustness
from ns_ray.report.words import DASH
from ns_ray.store.corpora import Shard
from ns_ray.store.layout import RunLayout

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report; tests that change it make a copy."""
    root = write_run(tmp_path_factory.mktemp("made"))
    report.write(str(root))
    return root


def facts_of(folder: Path) -> dict[str, Any]:
    """What a stage says of what it has published."""
    done = store.published(str(folder))
    assert done is not None
    return done.facts


def text_of(root: Path, name: str = "report.html") -> str:
    return (root / name).read_text()


def plain(html: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html)))


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["report", *arguments])
    return result.exit_code, result.output


# ------------------------------------------------------------------------------------- content


def scored_on_damaged(made: Path, **numbers: Any) -> Any:
    """The robustness section of the best model, some of its numbers changed."""
    best = open_run(str(made)).best
    changed = replace(best, scores={"robustness": {**best.robustness, **numbers}})
    return robustness([("best", "student", changed)])


def test_the_accuracy_on_perturbed_frames_is_shown_where_it_is_known(made: Path) -> None:
    label = "Top-1 of perturbed frames (higher is better)"
    known = scored_on_damaged(made, mean_perturbed_top1=0.6125)
    assert dict(known["summary"])[label] == [("61.3%", None)]
    assert label not in dict(scored_on_damaged(made)["summary"])  # as an earlier program leaves it


def test_balanced_accuracy_is_shown_where_classes_are_uneven(made: Path, tmp_path: Path) -> None:
    assert "Balanced" not in text_of(made)
    root = shutil.copytree(made, tmp_path / "uneven")
    files = list(root.glob("*/evaluation.json"))
    for file in files:
        scores = json.loads(file.read_text())
        for row, rows, recall in zip(
            scores["test"]["classes"], (80, 10, 10), (1.0, 0.5, 0.25), strict=True
        ):
            row |= {"rows": rows, "recall": recall}
        file.write_text(json.dumps(scores))
    report.write(str(root))
    page = text_of(root)
    assert page.count("<td>58.3%</td>") == len(files)
    assert "Balanced: the mean over classes, which have unlike numbers" in page


def test_what_a_model_was_before_its_fixres_has_a_column(made: Path) -> None:
    best = open_run(str(made)).best
    before = {**best.robustness, "mean_corruption_error": 0.125}
    changed = replace(
        best, scores={"robustness": best.robustness, "robustness_before_fixres": before}
    )
    found: Any = robustness([("best", "student", changed), ("other", "control", best)])
    assert found["columns"] == ["best", "best before fixres", "other"]
    shown = [cell.text for cell in dict(found["summary"])["Mean corruption error"]]
    assert shown == ["3.0%", "12.5%", "3.0%"]


def test_damaged_images_have_intervals_where_they_are_known(made: Path) -> None:
    corruptions = open_run(str(made)).best.robustness["corruptions"]
    corruptions["fog"]["mean_interval"] = [0.01, 0.0625]
    found = scored_on_damaged(
        made,
        corruptions=corruptions,
        mean_corruption_error_interval=[0.02, 0.04],
        adversarial={"pgd": {"0": 0.9, "4": 0.5}},
        adversarial_intervals={"pgd": {"0": [0.8, 0.95], "4": [0.4, 0.6]}},
    )
    assert dict(found["summary"])["Mean corruption error"] == [("3.0%", f"2.0{DASH}4.0")]
    errors = {row["name"]: row["errors"][0] for row in found["corruptions"]}
    assert errors["fog"] == ("3.0%", f"1.0{DASH}6.2")
    assert errors["pixelate"].interval is None
    assert found["attacks"] == [
        ("PGD, epsilon 0", [("90.0%", f"80.0{DASH}95.0")]),
        ("PGD, epsilon 4", [("50.0%", f"40.0{DASH}60.0")]),
    ]
    assert all(cells[0].interval is None for _, cells in scored_on_damaged(made)["attacks"])


def test_the_verdict_is_a_question_and_an_answer(made: Path) -> None:
    run = open_run(str(made))
    assert findings.asked(run) == (
        f"Do {PILE} unlabeled images make a better classifier of 3 classes than 12 labeled ones "
        "alone?"
    )
    # 10 images gained and none lost: p = 0.5 ** 10 / 2; against the control arm 8: 0.5 ** 8 / 2.
    assert findings.outcome(run) == (
        f"Yes: generation 2 is right on 95.0% of {TEST} test images, 25.0 points above the first "
        "teacher (p < 0.001) and 20.0 points above the control arm, which had the same noise and "
        "no unlabeled image (p = 0.002)."
    )
    assert findings.outcome(run) in plain(text_of(made))


@pytest.mark.slow
def test_the_report_says_what_computed_the_weights(tmp_path: Path) -> None:
    root = write_run(tmp_path)

    def train(folder: str, **facts: object) -> None:
        (root / folder / "bundle").mkdir()
        (root / folder / "bundle" / "ns_ray.json").write_text(json.dumps(facts))

    train("gen-00", precision="bf16", device="NVIDIA H100", workers=2)
    invoke(str(root))
    assert "Trained in bf16 on NVIDIA H100 with 2 workers." in plain(text_of(root))
    train("gen-01", precision="fp32", device="x86_64", workers=1)
    train("gen-02", precision="fp32", device="x86_64", workers=1)
    invoke(str(root))
    assert (
        "Trained in generation 0: bf16 on NVIDIA H100 with 2 workers; generation 1, generation 2: "
        "fp32 on x86_64 with 1 worker."
    ) in plain(text_of(root))


@pytest.mark.parametrize(
    ("change", "beginning"),
    [
        ({"best_generation": 0, "status": "no_student_accepted"}, "No: none of the students was"),
        ({"best_generation": 0}, "No: the students that were accepted are worse on validation"),
        ({"best_generation": 1}, "Not proven: generation 1 is right on 80.0%"),
    ],
)
def test_the_verdict_claims_no_more_than_was_shown(
    made: Path, change: dict[str, object], beginning: str
) -> None:
    run = open_run(str(made))
    run.result.update(change)
    if "status" in change:
        for row in run.result["generations"][1:]:
            row["accepted"] = False
    assert findings.outcome(run).startswith(beginning)
    assert ("no student has helped" in findings.outcome(run)) == (run.best is run.teacher)


@pytest.mark.parametrize(
    ("control", "said"),
    [
        # Of the delivered model's 38 right answers of 40, the control arm has these, and more.
        (0, "is ahead of the delivered model, though chance could explain it: right on 100.0% of"),
        (2, ""),
        (10, ""),
    ],
)
def test_the_headline_says_that_the_control_arm_is_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, control: int, said: str
) -> None:
    monkeypatch.setitem(WRONG, "control", control)
    root = write_run(tmp_path)
    run = open_run(str(root))
    found = " ".join(findings.warnings(run))
    assert found == (
        f"The control arm, trained on labeled images alone, {said} {TEST} test images, 5.0 points "
        "above generation 2 (p = 0.12)."
        if said
        else ""
    )
    report.write(str(root))
    assert found in plain(text_of(root))


def test_a_better_control_arm_is_called_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WRONG, "control", 0)
    root = write_run(tmp_path)
    run = open_run(str(root))
    run.result.update(best_generation=1)  # 8 wrong: p = 0.5 ** 8 / 2
    assert findings.warnings(run) == [
        "The control arm, trained on labeled images alone, is better than the delivered model: "
        f"right on 100.0% of {TEST} test images, 20.0 points above generation 1 (p = 0.002)."
    ]


def test_the_numbers_are_those_of_the_run(made: Path) -> None:
    shown = plain(text_of(made))
    for folder, wrong in WRONG.items():
        scores = json.loads((made / folder / "evaluation.json").read_text())
        assert f"{scores['test']['top1']:.1%}" in shown
        assert f"{scores['test']['ece']:.1%}" in shown
        assert scores["test"]["top1"] == 1 - wrong / TEST
    mean = json.loads((made / "gen-02" / "evaluation.json").read_text())["robustness"]
    assert f"{mean['mean_corruption_error']:.1%}" in shown
    facts = facts_of(made / "gen-02" / "selection")
    for row in facts["table"]:
        numbers = [row["labeled"], row["rows"], row["kept"], row["copies"]]
        assert " ".join(f"{n:,}" for n in numbers) in shown
    assert "4 /pictures/bad0.png" in shown.replace("truncated ", "")
    assert "321/s" in shown


def test_precision_of_pseudo_labels_is_measured_on_validation(made: Path) -> None:
    run = open_run(str(made))
    first = kept_precision(run, run.lessons[0])
    assert first is not None
    # The teacher's first 12 of 30 answers are wrong: each class gets 10 answers, 4 of them wrong.
    assert [(k.rows, k.right) for k in first] == [(10, 6)] * 3
    assert run.lessons[1].teacher == 1
    assert "6 of 10" in plain(text_of(made))


def test_several_first_teachers_are_named_and_judged_by_their_average(tmp_path: Path) -> None:
    root = write_run(tmp_path)
    result = json.loads((root / "result.json").read_text())
    result["generations"][0]["teachers"] = {"count": 3, "val_top1": 24 / VALIDATION}
    (root / "result.json").write_text(json.dumps(result))
    keys, average = keys_of("validation", VALIDATION), RunLayout(str(root)).average
    write_probs(average, "evaluate", keys, answers(VALIDATION, 6), {})
    report.write(str(root))
    shown = plain(text_of(root))
    assert "Labeled by the average of 3 first teachers, right on 80.0% of the" in shown
    assert "the first of them alone on 60.0%." in shown
    assert shown.count("Labeled by the average") == 1
    run = open_run(str(root))
    first, second = (kept_precision(run, lesson) for lesson in run.lessons)
    assert first is not None
    assert second is not None
    assert [(k.rows, k.right) for k in first] == [(10, 8)] * 3  # 6 of 30 are wrong, not 12
    assert sum(k.rows - k.right for k in second) == WRONG["gen-01"]


def test_the_galleries_show_the_rows_they_promise(made: Path) -> None:
    run = open_run(str(made))
    pile, labeled = gallery.of_run(run)
    shown = {g.title: ([p.key for p in g.pictures], g.total) for g in [*pile, *labeled]}
    keys = keys_of("unlabeled", PILE)
    sure, unsure, low, full, changed = (shown[g.title] for g in pile)
    kept = facts_of(made / "gen-02" / "selection")["kept"]
    assert sure[0][0] == keys[-1]
    assert sure[1] == unsure[1] == kept
    assert unsure[0][0] == min(
        key
        for shard in run.lessons[1].selection.files
        for key in run.lessons[1].selection.read(shard)["key"].to_pylist()
    )
    assert low[0] == keys[:12]
    assert set(full[0]).isdisjoint(set(low[0]) | set(sure[0]))
    assert changed == ([keys[5], keys[4], keys[3]], 3)  # wrong in the first labels only
    test = keys_of("test", TEST)
    right, wrong, both = (shown[g.title] for g in labeled)
    assert (sorted(right[0]), right[1]) == (test[2:12], 10)
    assert wrong == both == ([], 0)
    thumbs = pictures.thumbnails(run, [*pile, *labeled])
    assert set(thumbs) == {(p.corpus, p.key) for g in [*pile, *labeled] for p in g.pictures}


def scored_on_corrupted(root: Path, folder: str, told: dict[str, str]) -> None:
    """Leave what scoring leaves: units of adversarial and of six test images of the first shard."""
    keys = keys_of("test", TEST)[:6]
    images = {"keys": keys, "labels": [i % 3 for i in range(6)], "place": "shard-00000"}
    out = root / folder / "robustness"
    for i, suite in enumerate(("adversarial", "corruptions")):
        unit = {"suite": suite, **images, "name": None, "level": 0}
        part = {"suite": suite, "rows": [], "unit": unit, "told": told if i else {}}
        store.write_json(str(out / f"{i}.json"), part)
    store.publish(
        str(out), stage="robustness", fingerprint="f", files=["0.json", "1.json"], facts={},
        inputs={}, seconds=1.0,
    )  # fmt: skip
    path = root / folder / "evaluation.json"
    scores = json.loads(path.read_text())
    scores["robustness"]["constants"] = "cifar"
    path.write_text(json.dumps(scores))


def test_corrupted_images_that_only_the_student_has_right_are_shown(tmp_path: Path) -> None:
    root = write_run(tmp_path, evaluate={"robustness": {}})
    old = {"clean 0": "5:0", "fog 2": "0:1 4:0 5:0", "pixelate 1": "0:1 4:2"}
    old["gaussian_noise 5"] = "0:2 1:0 4:0"
    scored_on_corrupted(root, "gen-00", old)
    scored_on_corrupted(root, "gen-02", {"gaussian_noise 5": "1:0", "gaussian_noise 1": "3:0"})
    run = open_run(str(root))
    found, thumbs = damaged(run)
    assert found is not None
    # The student has image 1 wrong too; the teacher had image 5 wrong before.
    assert (found.title, found.total) == ("Set right by generation 2", 6)
    keys = keys_of("test", TEST)
    assert [(p.key, p.caption) for p in found.pictures] == [
        (keys[0], (f"{CLASSES[2]} → {CLASSES[0]}", "gaussian noise 5")),
        (keys[4], (f"{CLASSES[0]} → {CLASSES[1]}", "fog 2")),
    ]
    data = base64.b64decode(thumbs["corruptions", keys[0]].source.partition("base64,")[2])
    assert np.asarray(Image.open(io.BytesIO(data))).std() > 10  # before, it was all black
    report.write(str(root))
    html = text_of(root)
    assert thumbs["corruptions", keys[0]].source in html
    assert "2 of 6" in plain(html)


def test_corrupted_images_are_left_out_where_they_were_not_kept(tmp_path: Path) -> None:
    root = write_run(tmp_path, evaluate={"robustness": {}})
    assert damaged(open_run(str(root))) == (None, {})
    scored_on_corrupted(root, "gen-00", {"fog 2": "0:1"})
    scored_on_corrupted(root, "gen-02", {})
    found, thumbs = damaged(open_run(str(root)))
    assert found is not None
    assert len(thumbs) == 1
    next((root / "corpora" / "test").glob("shard-00000*")).unlink()  # said, but not shown
    again, none = damaged(open_run(str(root)))
    assert again is not None
    assert (len(again.pictures), none) == (1, {})
    (root / "corpora" / "test").rename(root / "corpora" / "gone")
    assert damaged(open_run(str(root))) == (None, {})
    (root / "corpora" / "gone").rename(root / "corpora" / "test")
    part = json.loads((root / "gen-02" / "robustness" / "1.json").read_text())
    del part["told"]  # as an earlier version left it
    (root / "gen-02" / "robustness" / "1.json").write_text(json.dumps(part))
    assert damaged(open_run(str(root))) == (None, {})


def test_what_was_in_the_sources_and_not_taken_is_told(made: Path) -> None:
    assert "Left out: not read unlabeled: 3 files <here> are no images" in plain(text_of(made))


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    root = write_run(tmp_path, plain=True)
    result = store.read_json(str(root / "result.json"))
    result["control"] = None
    result["data"].pop("test")
    for row in result["generations"]:
        row["test_top1"] = None
    store.write_json(str(root / "result.json"), result)
    shutil.rmtree(root / "corpora" / "test")
    shutil.rmtree(root / "corpora" / "unlabeled")
    shown = plain(Path(report.write(str(root))).read_text())
    assert "of 30 validation images" in shown
    for absent in ("Robustness", "How often a model is right", "control arm", "None%", "nan"):
        assert absent not in shown
    assert "Confusions that changed most" in shown


def test_a_page_needs_nothing_from_outside(made: Path) -> None:
    html = text_of(made)
    outside = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:|#)([^"'\s)>]+)""", html)
    assert outside == []
    assert "<script" not in html
    assert len(html) < 500_000


# ------------------------------------------------------------------------------------- browser


@pytest.fixture
def opened(browser: Browser) -> Open:
    """Opens a page, and fails on anything it complains about or fetches."""

    def open_page(path: Path, width: int, scheme: Literal["light", "dark"]) -> Page:
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        complaints: list[str] = []

        def fetched(request: Request) -> None:
            if not request.url.startswith(("file:", "data:")):
                complaints.append(request.url)

        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", fetched)
        page.goto(path.as_uri())
        page.wait_for_load_state()
        assert complaints == []
        return page

    return open_page


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (360, "dark")])
def test_the_report_in_a_browser(made: Path, opened: Open, width: int, scheme: str) -> None:
    page = opened(made / "report.html", width, scheme)
    assert page.title() == "made: Noisy Student report"
    # Nothing makes the page wider than the screen, and every picture is there and described.
    assert page.evaluate("document.documentElement.scrollWidth") == width
    images = page.locator("img")
    assert images.count() > 40
    assert images.evaluate_all("all => all.every(i => i.alt && i.complete && i.naturalWidth > 0)")
    charts = page.locator("svg[role=img]")
    assert charts.evaluate_all("all => all.every(c => c.getAttribute('aria-label'))")
    assert page.locator("svg.chart").count() == 3 + 1 + 1 + 4 + 1
    assert page.get_by_role("rowheader", name=CLASSES[2]).count() >= 2  # as text, not as a script
    headings = page.get_by_role("heading", level=2).all_inner_texts()
    assert headings == [
        *("Accuracy", "Robustness", "Calibration", "Confusions", "Pseudo-labels", "Images"),
        *("Time", "Data and settings"),
    ]
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.close()


@pytest.mark.slow
def test_a_comparison_in_a_browser(made: Path, opened: Open, tmp_path: Path) -> None:
    other = write_run(tmp_path, "other", train={"epochs": 7})
    shutil.copy(other / "gen-00" / "evaluation.json", other / "gen-02" / "evaluation.json")
    code, printed = invoke(str(made), str(other))
    assert (code, printed) == (0, f"{other}/compare-made.html\n")
    page = opened(other / "compare-made.html", 400, "light")
    assert page.get_by_role("heading", level=1).inner_text() == "made → other"
    assert "epochs: 'chosen'" in page.inner_text("body")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.close()


# ---------------------------------------------------------------------------------------- doors


def test_the_command_rebuilds_the_report(made: Path) -> None:
    (made / "report.html").unlink()
    assert invoke(str(made)) == (0, f"{made}/report.html\n")
    assert (made / "report.html").exists()


def test_mistakes_end_with_one_line(made: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(made, unfinished)
    (unfinished / "result.json").unlink()
    strange = tmp_path / "strange"
    shutil.copytree(made, strange)
    result = store.read_json(str(strange / "result.json"))
    result["data"]["classes"] = ["cat", "cow", "dog"]
    store.write_json(str(strange / "result.json"), result)
    for arguments, code, words_of_it in (
        ((str(tmp_path),), 2, "is no run"),
        ((str(made), str(unfinished)), 3, "has not finished"),
        ((str(made), str(strange)), 3, "know different classes (<script>"),
        ((str(made), "--out", "x.html"), 2, "RUN/report.html"),
    ):
        found, printed = invoke(*arguments)
        assert (found, printed.count("\n")) == (code, 1), printed
        assert words_of_it in printed


def test_a_run_ends_with_its_report_and_outlives_a_failing_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_run(tmp_path)
    settings = config(tmp_path, "made")
    capsys.readouterr()
    assert execute(settings)["status"] == "done"
    assert capsys.readouterr().out.endswith(f"report: {root}/report.html\n")
    written = (root / "report.html").stat().st_mtime_ns
    assert execute(settings)["status"] == "done"  # nothing has changed
    assert (root / "report.html").stat().st_mtime_ns == written
    (root / "report.html").unlink()
    (root / "gen-01" / "pseudo_labels" / "_DONE.json").unlink()
    capsys.readouterr()
    assert execute(settings)["status"] == "done"
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("the report could not be written: ")
    assert last.endswith(f"ns-ray report {root} tries again")


def test_a_thumbnail_is_small_and_upright() -> None:
    photo = Image.new("RGB", (1200, 800), "red")
    photo.paste("blue", (0, 0, 1200, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    data = io.BytesIO()
    photo.save(data, "JPEG", exif=exif)
    thumb = pictures.thumbnail(data.getvalue())
    assert (thumb.width, thumb.height) == (round(pictures.SIDE * 2 / 3), pictures.SIDE)
    kind, _, text = thumb.source.partition(";base64,")
    small = Image.open(io.BytesIO(base64.b64decode(text)))
    assert kind == "data:image/webp"
    red, _, blue = np.asarray(small.convert("RGB"))[5, small.width - 5]
    assert blue > 200 > 60 > red


def test_galleries_of_a_large_pile_come_from_some_of_its_shards() -> None:
    shards = [Shard(f"shard-{i:05d}", "", 1000, pile.SCANNED_BYTES // 10) for i in range(200)]
    some = pile.sample(shards)
    assert len(some) == len(set(some)) == 10
    assert some[-1] in shards[150:]
    assert pile.sample(shards[:9]) == shards[:9]
    assert pile.sample([Shard("one", "", 1, 10**12)])[0].name == "one"
    assert pile.sample([]) == []
