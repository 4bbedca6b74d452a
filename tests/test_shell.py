"""How commands behave among other programs: pipes, JSON, completion."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from broken_files import jpeg
from served import make_bundle
from test_earlier_runs import EARLIER, unpacked
from test_evaluating import evaluate, place
from tiny import user_environment
from typer.testing import CliRunner

from ns_ray.commands import app

__all__ = ["place"]  # a fixture

NS_RAY = str(Path(sys.executable).with_name("ns-ray"))
PLAN = ["plan", "--recipe", "digits", "--images", "1000", "--pile", "5000", "--no-measure"]
STATUS = ["status", "--recipe", "digits"]
LONG = "a_long_name_that_no_width_of_a_terminal_has_room_for" * 3


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle in `runs/birds/model` and images in `pile`."""
    folder = tmp_path_factory.mktemp("shell")
    make_bundle(folder / "runs" / "birds" / "model")
    (folder / "pile").mkdir()
    for name in (LONG, "b"):
        (folder / "pile" / f"{name}.jpg").write_bytes(jpeg(1))
    return folder


def call(here: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command as a shell starts it, in a folder."""
    options = {"stdout": subprocess.PIPE, "env": user_environment(), **options}
    command = [NS_RAY, *arguments]
    return subprocess.run(command, cwd=here, stderr=subprocess.PIPE, text=True, **options)


# --------------------------------------------------------------------------------------- pipes

PREDICT = ["predict", "--bundle", "runs/birds", "pile"]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[*PREDICT, "--format", "csv"], PREDICT, STATUS])
def test_a_reader_that_has_left_ends_a_command_quietly(here: Path, arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = call(here, *arguments, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.slow
def test_the_first_line_of_many_is_enough(here: Path) -> None:
    """Two megabytes, and a reader of one line: the shell says what became of both."""
    for i in range(40):
        (here / "many" / f"{i}").mkdir(parents=True, exist_ok=True)
    picture = jpeg(2)
    for i in range(1200):
        (here / "many" / f"{i % 40}" / f"{LONG}{i}.jpg").write_bytes(picture)
    line = '"$0" predict --bundle runs/birds many --format csv | head -1; echo ${PIPESTATUS[@]}'
    done = subprocess.run(
        ["bash", "-c", line, NS_RAY],
        cwd=here,
        env=user_environment(),
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("filename,rank,index,label,prob,error\n141 0\n", "")


@pytest.mark.slow
def test_tables_in_a_pipe_are_plain_and_whole(here: Path) -> None:
    done = call(here, *PREDICT, "--top-k", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["image", "class", "probability"]
    assert len(lines) == 1 + 4  # no rules, nothing folded
    assert f"{here}/pile/{LONG}.jpg  " in lines[1]
    assert all(line.isascii() and line == line.rstrip() for line in lines)
    table = CliRunner().invoke(app, PLAN).output.splitlines()
    assert table[0] == "plan of digits"
    assert table[1].startswith("stage           model        px ")
    assert table[2].startswith("gen-00 train    test_resnet  32  120,000 ")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["plan", "--confg", "x"]])
def test_help_and_usage_in_a_pipe_have_no_boxes(here: Path, arguments: list[str]) -> None:
    environ = {**user_environment(), "GITHUB_ACTIONS": "true"}  # typer takes that for a terminal
    done = call(here, *arguments, env=environ)
    said = done.stdout + done.stderr
    assert "ns-ray" in said
    assert said.isascii()
    assert "\x1b" not in said


ODD = "caf\xe9 \u2603"


@pytest.mark.slow
@pytest.mark.parametrize("format", ["table", "json"])
def test_letters_that_the_output_does_not_have_are_escaped(here: Path, format: str) -> None:
    (here / ODD).mkdir(exist_ok=True)
    (here / ODD / "a.jpg").write_bytes(jpeg(1))
    environ = {**user_environment(), "PYTHONIOENCODING": "ascii"}
    command = ["predict", "--bundle", "runs/birds", ODD, "--format", format]
    done = call(here, *command, env=environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    if format == "json":
        assert json.loads(done.stdout)[0]["filename"] == f"{here}/{ODD}/a.jpg"
    else:
        assert r"caf\xe9 \u2603" in done.stdout


@pytest.mark.slow
def test_a_command_works_without_streams(here: Path) -> None:
    """As a shell, or what starts services, may close them."""
    command = '"$0" predict --bundle runs/birds pile --format csv --out closed.csv <&- >&- 2>&-'
    done = subprocess.run(["bash", "-c", command, NS_RAY], cwd=here, env=user_environment())
    assert done.returncode == 0
    assert len((here / "closed.csv").read_text().splitlines()) == 1 + 2 * 3


# ---------------------------------------------------------------------------------------- JSON


def answered(*arguments: str) -> tuple[int, Any, str]:
    """Exit code, the JSON on standard output, and what is on standard error."""
    done = CliRunner().invoke(app, [*arguments, "--json"])
    return done.exit_code, json.loads(done.stdout), done.stderr


def test_a_plan_as_json(here: Path) -> None:
    code, found, said = answered(*PLAN)
    assert (code, said) == (0, "")
    assert found["images"]["labeled"] == 1000
    assert found["stages"][0]["id"] == "gen-00/train"
    assert isinstance(found["stages"][0]["parameters"], int)
    assert found["stages"][0]["seconds"] is None
    assert found["total"]["disk_bytes"] > 10**6
    assert found["total"]["money"] is None
    assert answered(*PLAN, "--set", "prices.cpu_hour=1")[1]["total"]["money"] == 0.0


def test_a_run_that_is_done_as_json(tmp_path: Path) -> None:
    run = unpacked(EARLIER[0], tmp_path)
    code, found, said = answered("run", "--config", str(run / "config.yaml"))
    assert code == 0
    assert found == json.loads((run / "result.json").read_text())
    assert "best: generation" in said
    code, found, said = answered("status", "--config", str(run / "config.yaml"))
    assert (code, said) == (0, "")
    assert found["root"] == str(run)
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert {stage["state"] for stage in found["stages"]} == {"done"}
    assert stages["labeled corpus"]["counts"] == {"images": 40, "rejected": 0}
    assert stages["gen-01 train"]["counts"] == {"parameters": 7642}
    assert stages["gen-01 train"]["seconds"] > 0
    code, found, _ = answered("status", "--recipe", "digits", "--set", f"storage={tmp_path}/new")
    assert {stage["state"] for stage in found["stages"]} == {"missing"}
    assert found["stages"][0]["seconds"] is None


def test_checks_as_json(here: Path) -> None:
    wrong = ["--set", "data.labeled=nowhere", "--set", "teacher.model=nothing"]
    code, found, _ = answered("check", "--recipe", "digits", "--set", f"storage={here}", *wrong)
    assert code == 3
    assert not found["can_start"]
    failed = {
        one["name"]: one["exit_code"] for one in found["findings"] if one["state"] == "failed"
    }
    assert failed == {"data": 3, "teacher": 2}
    assert {one["exit_code"] for one in found["findings"] if one["state"] == "ok"} == {None}


@pytest.mark.slow
@pytest.mark.parametrize("bundles", [["two"], ["birds", "two"]])
def test_scores_as_json(place: Path, tmp_path: Path, bundles: list[str]) -> None:
    done = evaluate(place, tmp_path, *bundles, more=("--json",))
    assert done.exit_code == 0, done.output
    models = json.loads(done.stdout)["models"]
    assert [model["name"] for model in models] == bundles
    assert [model["parameters"] for model in models] == [372_979] * len(bundles)
    folder = tmp_path if len(bundles) == 1 else tmp_path / "two"
    assert models[-1]["scores"] == json.loads((folder / "evaluation.json").read_text())
    assert "images/s" in done.stderr  # what is for people


# ---------------------------------------------------------------------------------- completion


def offered(here: Path, *words: str) -> list[str]:
    """What Bash offers for the last word, with what `--show-completion bash` prints."""
    script = """
        source <("$0" --show-completion bash)
        COMP_WORDS=(ns-ray "$@"); COMP_CWORD=$#
        _ns_ray_completion "$0"
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "-c", script, NS_RAY, *words],
        cwd=here, env=user_environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pre"], ["predict"]),
        (["plan", "--recipe", "di"], ["digits"]),
        (["run", "--recipe", "paper/s"], ["paper/svhn"]),
        (["predict", "--bundle", ""], ["runs/birds"]),
        (["evaluate", "--bundle", "./runs/birds/"], ["./runs/birds/model"]),
        (["fetch", "--model", "test_resn"], ["test_resnet"]),
        (["predict", "--bundle", "nowhere/"], []),
    ],
)
def test_bash_offers_what_there_is(here: Path, words: list[str], expected: list[str]) -> None:
    assert offered(here, *words) == expected


def test_zsh_offers_the_same(here: Path) -> None:
    environ = {**user_environment(), "_NS_RAY_COMPLETE": "complete_zsh"}
    environ["_TYPER_COMPLETE_ARGS"] = "ns-ray plan --recipe di"
    assert call(here, env=environ).stdout.strip() == """_arguments '*: :(("digits"))'"""


@pytest.mark.parametrize("words", ["plan --recipe ", "fetch --model "])
def test_completion_imports_neither_torch_nor_ray(here: Path, words: str) -> None:
    code = (
        "import atexit, sys\n"
        "heavy = {'torch', 'timm', 'ray'}\n"
        "atexit.register(lambda: sys.stderr.write(str(sorted(heavy & set(sys.modules)))))\n"
        "from ns_ray.commands import app\n"
        "app(prog_name='ns-ray')\n"
    )
    environ = {**user_environment(), "_NS_RAY_COMPLETE": "complete_bash"}
    environ |= {"COMP_WORDS": f"ns-ray {words}", "COMP_CWORD": str(1 + len(words.split()))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, env=environ, capture_output=True, text=True
    )
    assert done.stderr == "[]"
    assert done.stdout
