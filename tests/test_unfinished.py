"""What people see of a run before its end: its report, and `ns-ray status --follow`."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser
from reported import VALIDATION, WRONG, answers, keys_of, scores, write_probs, write_run
from test_selftrain import Fakes, run
from tiny import flat_folder, folder_per_class, interrupted_at, write_config
from typer.testing import CliRunner

from ns_ray import report, store
from ns_ray.commands import app, run_app
from ns_ray.compute.resources import Pool, Workers
from ns_ray.config.labeling import PredictConfig
from ns_ray.errors import StorageError
from ns_ray.planning import following, run_status
from ns_ray.report.words import DASH
from ns_ray.stages import RayStages
from ns_ray.store import PlannedStage, RunLayout
from ns_ray.training import Limits

STAGES = RayStages(
    pool=Pool(actors=1, cpus=1, gpus=0, in_process=True),
    workers=Workers(count=1, cpus=1, gpus=0, loaders=0, in_process=True, in_turn=True),
    limits=Limits(),
    predict=PredictConfig(),
    metrics=None,
)


def begun(folder: Path, models: int) -> tuple[Path, dict[str, Any]]:
    """A run, killed when so many of its models were scored; what it then told last."""
    root = write_run(folder)
    result = store.read_json(str(root / "result.json"))
    (root / "result.json").unlink()
    for g in range(models, 3):
        shutil.rmtree(root / f"gen-0{g}")
    for row in result["generations"]:
        row["test_top1"] = None
    shutil.rmtree(root / "control")
    for file in root.glob("gen-*/evaluation.json"):  # the driver writes them at its end
        file.unlink()
    for row in result["generations"][:models]:
        place = root / f"gen-0{row['generation']}"
        shutil.rmtree(place / "evaluation" / "test")
        wrong = WRONG[place.name]
        write_probs(
            str(place / "evaluation" / "validation"),
            "evaluate",
            keys_of("validation", VALIDATION),
            answers(VALIDATION, wrong),
            scores(VALIDATION, wrong),
        )
    stages = [
        PlannedStage("gen-01/train", "train", 1000, 40.0, 2.0, 0.0),
        PlannedStage("gen-02/train", "train", 1000, 60.0, 2.0, 0.0),
        PlannedStage("gen-02/train", "train", 1000, 3.0, 2.0, 0.0),
    ]
    store.write_plan(str(root / "plan.json"), stages, 10**7)
    result |= {
        "status": "unfinished",
        "generations": result["generations"][:models],
        "control": None,
        "best_generation": models - 1,
    }
    return root, result


def text_of(root: Path) -> str:
    return (root / "report.html").read_text()


# ------------------------------------------------------------------------------------ the driver


def test_the_driver_tells_what_it_knows_after_each_model(tmp_path: Path) -> None:
    fakes = Fakes([20, 15, 30], control_right=20)
    ended = run(tmp_path, fakes, control=True)
    told = [asked["found"] for asked in fakes.asked["tell"]]
    assert [len(found["generations"]) for found in told] == [1, 2, 3, 3]
    assert [found["best_generation"] for found in told] == [0, 0, 2, 2]
    assert [found["control"] is not None for found in told] == [False, False, False, True]
    assert {found["status"] for found in told} == {"unfinished"}
    assert all(row["test_top1"] is None for found in told for row in found["generations"])
    assert ended["status"] == "done"


@pytest.mark.slow
def test_a_run_that_is_interrupted_leaves_a_report_and_goes_on(
    tmp_path: Path, without_ray: None
) -> None:
    folder_per_class(tmp_path / "labeled", 12)
    flat_folder(tmp_path / "pile", 40, start=500)
    changes = {
        "storage": str(tmp_path / "runs"),
        "data.labeled": str(tmp_path / "labeled"),
        "data.unlabeled": [str(tmp_path / "pile")],
        "data.validation_size": 0.25,
        "train.epochs": 1,
        "resources.loaders": 0,
    }
    settings = str(write_config(tmp_path / "tiny.yaml", changes))

    with interrupted_at("gen-01 train"):
        assert CliRunner().invoke(run_app, ["--config", settings]).exit_code == 130
    root = tmp_path / "runs" / "tiny"
    first = text_of(root)
    assert "This run has not finished" in first
    assert "and there is no student yet" in first
    assert [g["role"] for g in store.read_json(f"{root}/so_far.json")["generations"]] == ["teacher"]
    assert CliRunner().invoke(app, ["report", str(root)]).exit_code == 0
    assert "images kept" in text_of(root)  # of gen-01 select, which came after the first page
    assert CliRunner().invoke(run_app, ["--config", settings]).exit_code == 0
    assert "not finished" not in text_of(root)
    assert not (root / "so_far.json").exists()


# -------------------------------------------------------------------------------------- the page


def test_the_page_says_what_is_done_and_what_comes(tmp_path: Path, browser: Browser) -> None:
    root, found = begun(tmp_path, models=2)
    STAGES.tell(found, RunLayout(str(root)))
    page = browser.new_page(viewport={"width": 1000, "height": 800})
    page.goto((root / "report.html").as_uri())
    head = page.locator("header").inner_text()
    assert "This run has not finished: " in head
    right = f"{1 - WRONG['gen-01'] / VALIDATION:.1%}"
    assert f"So far, generation 1 is right on {right} of {VALIDATION} validation images" in head
    rows = {
        cells[0]: cells[1:]
        for row in page.locator("#steps tbody tr").all()
        if (cells := row.locator("th, td").all_inner_texts())
    }
    assert rows["gen-01 label"][:2] == ["done", "60 images"]
    assert rows["gen-02 train"] == ["to come", "", "1 min 3 s", DASH]
    assert rows["gen-02 test"][0] == "to come"
    done = sum(cells[0] == "done" for cells in rows.values())
    assert f"{done} of {len(rows)} steps are done; the others take about 1 min 43 s" in head
    assert page.locator("#accuracy tbody tr").count() == 2
    assert page.get_by_text("(best so far)").count() == 1
    assert page.locator("#pseudo-labels h3").count() == 1
    assert Axe().run(page).violations_count == 0
    page.close()


def test_a_page_of_the_first_teacher_compares_it_with_nothing(
    tmp_path: Path, browser: Browser
) -> None:
    root, found = begun(tmp_path, models=1)
    STAGES.tell(found, RunLayout(str(root)))
    page = browser.new_page()
    page.goto((root / "report.html").as_uri())
    assert "and there is no student yet." in page.locator("header").inner_text()
    assert page.locator(".tiles > div").count() == 2  # its accuracy and its calibration
    for absent in ("#pseudo-labels", "#confusions", "#robustness"):
        assert page.locator(absent).count() == 0
    assert page.get_by_text("Where teacher and student disagree").count() == 0
    assert Axe().run(page).violations_count == 0
    page.close()


def test_before_the_first_model_there_are_steps_and_settings(
    tmp_path: Path, browser: Browser
) -> None:
    root, _ = begun(tmp_path, models=0)
    result = CliRunner().invoke(app, ["report", str(root)])
    assert (result.exit_code, result.output) == (0, f"{root}/report.html\n")
    page = browser.new_page()
    page.goto((root / "report.html").as_uri())
    assert "no model of it has been scored yet" in page.locator("header").inner_text()
    assert "unlabeled corpus" in page.locator("#steps").inner_text()
    assert Axe().run(page).violations_count == 0
    page.close()


def test_what_a_run_with_other_settings_has_told_or_ended_with_is_not_shown(tmp_path: Path) -> None:
    root, found = begun(tmp_path, models=2)
    other = {**found, "config_hash": "0" * 12}
    for name in ("so_far.json", "result.json"):
        store.write_json(str(root / name), other)
    report.write(str(root))
    assert "no model of it has been scored yet" in text_of(root)


def test_a_run_that_goes_on_does_not_tell_again_what_it_told(tmp_path: Path) -> None:
    root, found = begun(tmp_path, models=2)
    layout = RunLayout(str(root))
    STAGES.tell(found, layout)
    (root / "report.html").write_text("as it was")
    first = {**found, "generations": found["generations"][:1], "best_generation": 0}
    STAGES.tell(first, layout)
    STAGES.tell(found, layout)
    assert text_of(root) == "as it was"
    again = json.loads(json.dumps(found))
    again["generations"][1]["seconds"]["train"] = 99.0  # a damaged model was made again
    STAGES.tell(again, layout)
    assert "This run has not finished" in text_of(root)


def test_a_page_that_cannot_be_written_is_said_and_costs_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, found = begun(tmp_path, models=1)
    (root / "report.html").mkdir()
    STAGES.tell(found, RunLayout(str(root)))
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("the report of what is known so far could not be written: ")
    shutil.rmtree(root / "gen-00")
    STAGES.tell({**found, "control": 7}, RunLayout(str(root)))
    assert "could not be written" in capsys.readouterr().out


# --------------------------------------------------------------------------------------- status


def status(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["status", *arguments])
    return found.exit_code, found.output


def test_status_takes_the_folder_of_a_run_wherever_it_lies(tmp_path: Path) -> None:
    root, _ = begun(tmp_path / "here", models=2)
    moved = shutil.move(root, tmp_path / "moved")
    code, printed = status(str(moved))
    assert code == 0
    assert "gen-01 select" in printed
    assert "the command that started the run continues it" in printed
    for wrong, words in (
        ([str(tmp_path)], "is no run"),
        ([str(moved), "--recipe", "digits"], "leave out --config, --recipe and --set"),
        ([str(moved), "--set", "seed=1"], "leave out --config, --recipe and --set"),
        ([], "give the folder of a run, or --config, or --recipe"),
    ):
        code, printed = status(*wrong)
        assert (code, printed.count("\n")) == (2, 1), printed
        assert words in printed


def end(root: Path, found: dict[str, Any]) -> None:
    store.write_json(str(root / "result.json"), {**found, "status": "done"})


def test_without_a_terminal_what_changes_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, found = begun(tmp_path, models=2)
    monkeypatch.setattr(following, "PLAIN_SECONDS", 0.05)
    looks, plain = 0, run_status

    def look(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        if looks == 3:
            metrics = {"stage": "gen-02/train", "step": 5}
            (root / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
        if looks == 4:
            raise StorageError("for a moment")
        if looks == 5:
            end(root, found)
        return plain(*arguments)

    monkeypatch.setattr(following, "run_status", look)
    code, printed = status(str(root), "--follow")
    assert code == 0
    lines = printed.splitlines()
    assert lines.count("gen-01 label: done, 60 images") == 1
    assert (
        len([line for line in lines if line.startswith("gen-02 train: in progress, step 5")]) == 1
    )
    assert lines[-1].startswith("finished: done, best generation 1")
    assert "\x1b" not in printed


def test_following_ends_with_the_process_that_was_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that has failed: it would be followed for ever, in a pipe without a word."""
    root, _ = begun(tmp_path, models=2)
    monkeypatch.setattr(following, "PLAIN_SECONDS", 0.01)
    looks: list[int] = []
    at_work = ExitStack()

    def look(*arguments: Any) -> Any:
        looks.append(1)
        if len(looks) == 2:
            at_work.enter_context(store.owned(str(root)))
        if len(looks) == 5:
            at_work.close()
        if len(looks) == 9:
            raise KeyboardInterrupt
        return run_status(*arguments)

    monkeypatch.setattr(following, "run_status", look)
    code, printed = status(str(root), "--follow")
    assert (code, len(looks)) == (0, 6)
    assert printed.splitlines()[-1].endswith("the command that started the run continues it")


def test_following_ends_with_a_machine_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner's file stays, and nobody here can ask for its process."""
    root, _ = begun(tmp_path, models=2)
    monkeypatch.setattr(following, "PLAIN_SECONDS", 0.01)
    monkeypatch.setattr(following, "STALE_SECONDS", 0.1)
    owner = {"pid": 12, "machine": "another", "token": "abc", "beats": 1}
    looks: list[int] = []

    def look(*arguments: Any) -> Any:
        looks.append(1)
        if len(looks) <= 20:  # it is at work for longer than one that stands still is waited for
            (root / "owner.json").write_text(json.dumps({**owner, "beats": len(looks)}))
        assert len(looks) < 1000
        return run_status(*arguments)

    monkeypatch.setattr(following, "run_status", look)
    code, printed = status(str(root), "--follow")
    assert (code, len(looks) > 20) == (0, True)
    assert printed.splitlines()[-1].endswith("the command that started the run continues it")


def on_a_terminal(root: Path, rows: int) -> tuple[subprocess.Popen[bytes], list[bytes]]:
    """`ns-ray status ROOT --follow` with a terminal of its own, and what appears there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "ns_ray", "status", str(root), "--follow"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": str(rows)},
        start_new_session=True,
        # As a terminal has it: a shell's background ignores it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(theirs)
    shown: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(ours, 65536):
                shown.append(data)
        except OSError:  # it has ended
            pass

    threading.Thread(target=read, daemon=True).start()
    return process, shown


def wait_for(words: bytes, shown: list[bytes], process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if words in b"".join(shown):
            return
        assert process.poll() is None, b"".join(shown)
        time.sleep(0.1)
    raise AssertionError(b"".join(shown))


def test_on_a_terminal_the_table_changes_until_the_run_has_ended(tmp_path: Path) -> None:
    root, found = begun(tmp_path, models=2)
    process, shown = on_a_terminal(root, rows=18)
    try:
        wait_for(b"continues it", shown, process)
        assert b"the first 4" in b"".join(
            shown
        )  # those that are done leave room for those that come
        assert b"labeled corpus" not in b"".join(shown)
        assert re.search(rb"\d more", b"".join(shown))
        end(root, found)
        assert process.wait(60) == 0
        assert b"finished: done" in b"".join(shown)
        assert b"labeled corpus" in b"".join(shown)  # at the end there is all of it
    finally:
        process.kill()
        process.wait()


def test_ctrl_c_ends_following(tmp_path: Path) -> None:
    root, _ = begun(tmp_path, models=1)
    process, shown = on_a_terminal(root, rows=60)
    try:
        wait_for(b"continues it", shown, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
