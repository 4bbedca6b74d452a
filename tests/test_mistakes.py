"""What an outsider gets wrong: each mistake is one line that names the value and the setting, and
costs nothing. Two more are handled instead, see test_run.py: a class with one image, and a class
that is missing in test."""

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import typer
import yaml
from tiny import flat_folder, folder_per_class, start, user_environment, write_config
from typer.testing import CliRunner

from ns_ray import errors
from ns_ray.commands import app, run_app
from ns_ray.config.loading import config_hash, dump, load_either
from ns_ray.errors import StageError, StorageError
from ns_ray.store.corpora import open_corpus

CONFIG, DATA, FAULT = 2, 3, 70


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    folder_per_class(folder / "labeled", 8)
    folder_per_class(folder / "one-class", 8, names=["red"])
    flat_folder(folder / "pile", 12, start=500)
    (folder / "empty").mkdir()
    (folder / "file").write_text("not a folder")
    return folder


@pytest.fixture
def config(images: Path, tmp_path: Path) -> Path:
    """A config without mistakes."""
    return write_config(
        tmp_path / "run.yaml",
        {
            "storage": str(tmp_path / "runs"),
            "data.labeled": str(images / "labeled"),
            "data.unlabeled": [str(images / "pile")],
            "data.validation_size": 6,
            "resources.loaders": 0,
        },
    )


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is neither there nor may it be started."""

    def init(**_: Any) -> None:
        raise AssertionError("Ray is started before the mistake is found")

    monkeypatch.setattr("ns_ray.compute.prepare", lambda **_: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)


def mistake(config: Path, settings: list[str]) -> tuple[int, str]:
    """Exit code and the line that a user reads."""
    arguments = [word for setting in settings for word in ("--set", setting)]
    done = CliRunner().invoke(run_app, ["--config", str(config), *arguments])
    assert isinstance(done.exception, SystemExit), done.exception
    *_, last = done.output.splitlines()
    assert done.output.count("error:") == 1
    assert "Traceback" not in done.output
    assert last.startswith("error: ")
    return done.exit_code, last


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("train.epoch=3", "unknown setting 'train.epoch' (did you mean 'epochs'?)"),
        ("trian.epochs=3", "unknown setting 'trian' (did you mean 'train'?)"),
        ("train.epochs=many", "train.epochs='many'"),
        ("resources.num_workers=999", "resources.num_workers=999, but there are"),
        ("resources.num_workers=999", "set resources.num_workers to at most"),
    ],
)
def test_a_wrong_setting(setting: str, says: str, config: Path, no_ray: None) -> None:
    code, line = mistake(config, [setting])
    assert code == CONFIG
    assert says in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("teacher.model=tset_resnet", "teacher: model 'tset_resnet' is not known to timm"),
        ("students.0.model=efficentnet_b0", "students.0: model 'efficentnet_b0'"),
        ("students.0.model=efficentnet_b0", "(did you mean 'efficientnet_b0'?)"),
        ("teacher.model=test_vit", "teacher: image_size=8 does not fit 'test_vit'"),
    ],
)
def test_a_wrong_model(setting: str, says: str, config: Path, without_ray: None) -> None:
    smaller = ["teacher.image_size=8"] if "vit" in setting else []
    code, line = mistake(config, [setting, *smaller])
    assert code == CONFIG
    assert says in line


def test_a_storage_that_cannot_be_written(config: Path, images: Path, no_ray: None) -> None:
    code, line = mistake(config, [f"storage={images}/file/runs"])
    assert code == CONFIG
    assert f"storage='{images}/file/runs': cannot write" in line


@pytest.mark.slow
def test_a_disk_that_fails_in_mid_run_is_no_wrong_setting(
    config: Path, tmp_path: Path, without_ray: None
) -> None:
    root = tmp_path / "runs" / "tiny"
    root.mkdir(parents=True)
    (root / "gen-00").write_text("in the way of a folder")
    code, line = mistake(config, [])
    assert code == StageError.exit_code
    assert line.startswith(f"error: cannot write {root}/gen-00/")
    assert line.endswith("run the same command again, which goes on")
    assert open_corpus(f"{root}/corpora/labeled").rows == 18

    (root / "gen-00").unlink()
    done = CliRunner().invoke(run_app, ["--config", str(config)])
    assert done.exit_code in (0, 5), done.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("data.labeled={}/labelled", "data.labeled='{}/labelled': there is no such file or folder"),
        ("data.labeled={}/labelled", "(did you mean 'labeled'?)"),
        ("data.labeled={}/one-class", "data.labeled='{}/one-class' has one class only, 'red'"),
        ("data.labeled={}/pile", "data.labeled='{}/pile' holds 12 images but no labels"),
        ("data.unlabeled=rest", "data.unlabeled=['rest'] gives no unlabeled images"),
        ("data.unlabeled={}/empty", "data.unlabeled.0='{}/empty' holds no images"),
        ("data.test={}/nowhere", "data.test='{}/nowhere': there is no such file or folder"),
        ("data.validation_size=22", "data.validation_size=22 asks for 22 of the 24 images"),
    ],
)
def test_images_that_cannot_be_used(
    setting: str, says: str, config: Path, images: Path, without_ray: None
) -> None:
    code, line = mistake(config, [setting.format(images)])
    assert code == DATA
    assert says.format(images) in line


def test_a_run_says_first_that_a_student_is_smaller_than_its_teacher(
    config: Path, images: Path, without_ray: None
) -> None:
    small = "students.0.model_args={channels: [8, 8, 8, 16]}"
    sources = ["--set", f"data.labeled={images}/nowhere"]
    done = CliRunner().invoke(run_app, ["--config", str(config), *sources, "--set", small])
    assert done.exit_code == DATA
    assert done.output.startswith("students.0 is smaller than teacher: ")
    done = CliRunner().invoke(run_app, ["--config", str(config), *sources])
    assert done.output.startswith("error: ")


@pytest.mark.parametrize("verb", ["label", "evaluate"])
def test_a_wrong_bundle_is_found_before_images_are_packed(
    verb: str, images: Path, tmp_path: Path, no_ray: None
) -> None:
    places = ["--data", str(images / "labeled"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [verb, "--bundle", str(tmp_path / "nothing"), *places])
    assert done.exit_code == CONFIG, done.output
    assert done.output.startswith(f"error: {tmp_path}/nothing is no bundle")
    assert not (tmp_path / "out").exists()


def test_a_missing_selection_is_found_before_anything_is_packed(
    config: Path, tmp_path: Path, no_ray: None
) -> None:
    places = ["--selection", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["train", "--config", str(config), *places])
    assert done.exit_code == DATA, done.output
    assert done.output.startswith(f"error: {tmp_path}/nothing ")
    assert not (tmp_path / "out").exists()


OUT = ["select --labels x", "label --bundle x --data x", "evaluate --bundle x --data x"]
OUT += ["pack --data x", "train --recipe digits", "fetch --model x", "label-next x"]
OUT += ["suspects --recipe digits", "ablate noise --recipe ablation-digits"]
OUT_FILES = ["export --bundle x", "predict --bundle x x", "report x x", "init x --pile x"]


@pytest.mark.parametrize("command", [*OUT, *OUT_FILES])
def test_an_output_of_the_wrong_kind_is_found_first(
    command: str, images: Path, no_ray: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not after the work, and not as a disk that fails."""
    for module in ("one_stage", "evaluating"):  # models and labels come before
        for name in ("open_labels", "open_bundle"):
            monkeypatch.setattr(f"ns_ray.commands.{module}.{name}", lambda _: None, raising=False)
    file, empty = f"{images}/file", f"{images}/empty"
    wrong = {f"{file}/below": f"{file} is no folder; name another", "": "is empty; name a folder"}
    wrong |= {empty: "is a folder; name a file"} if command in OUT_FILES else {file: "is no folder"}
    for out, says in wrong.items():
        done = CliRunner().invoke(app, [*command.split(), "--out", out])
        assert done.exit_code == CONFIG, done.output
        assert done.output.startswith(f"error: --out={out!r}")
        assert says in done.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            "plan --recipe digits --images 0",
            "'--images': Input should be greater",
        ),
        (
            "plan --recipe digits --images 9 --pile -1",
            "'--pile': Input should be greater",
        ),
        (
            "plan --recipe digits --images 9 --classes 1",
            "'--classes': Input should be greater",
        ),
        ("plan --recipe digits --pile 9", "--pile and --classes go with --images"),
        ("status", "give the folder of a run, or --config, or --recipe"),
    ],
)
def test_a_wrong_option(arguments: str, says: str) -> None:
    done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code == CONFIG
    assert says in done.output


def test_the_command_itself_says_it_in_one_line(config: Path) -> None:
    done = start(["-m", "ns_ray.run"], config, "--set", "train.epoch=3")
    assert done.returncode == CONFIG
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "did you mean 'epochs'?" in done.stderr


def test_debug_shows_where_it_comes_from(config: Path) -> None:
    done = start(["-m", "ns_ray.run"], config, "--set", "train.epoch=3", "--debug")
    assert done.returncode == CONFIG
    assert "Traceback" in done.stderr
    assert "error:" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_the_config_of_these_tests_has_no_mistake(
    config: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*_: Any, **__: Any) -> None:
        raise StageError("training would begin")

    monkeypatch.setattr("ns_ray.stages.fit", fit)
    assert mistake(config, []) == (StageError.exit_code, "error: training would begin")


def test_a_storage_that_refuses_writes_is_no_mistake_of_a_run_begun_there(
    config: Path, tmp_path: Path, no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was right before, and may be again: Kubernetes starts such a job again."""

    def read_only(path: str, _: Any) -> None:
        raise StorageError(f"cannot write {path}: Read-only file system", errno.EROFS)

    monkeypatch.setattr("ns_ray.store.owner.write_json", read_only)
    assert mistake(config, [])[0] == CONFIG
    root = tmp_path / "runs" / "tiny"
    root.mkdir(parents=True, exist_ok=True)
    settings = load_either(str(config), None, None)
    told = dump(settings) + yaml.safe_dump({"config_hash": config_hash(settings)})
    (root / "config.yaml").write_text(told)
    code, line = mistake(config, [])
    assert code == StageError.exit_code
    assert "Read-only file system" in line


# ---------------------------------------------------------------------------- mistakes of our own


@pytest.mark.slow
def test_a_fault_of_ours_is_one_line_and_its_traceback_lies_in_the_folder_of_the_run(
    config: Path, tmp_path: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*_: Any, **__: Any) -> None:
        raise TypeError("unsupported operand\nand more about it")

    monkeypatch.setattr("ns_ray.stages.fit", fit)
    code, line = mistake(config, [])
    file = tmp_path / "runs" / "tiny" / "fault.txt"
    assert code == FAULT
    assert line == (
        "error: a fault of ns-ray (TypeError: unsupported operand); "
        f"the traceback is in {file}; please report it"
    )
    text = file.read_text()
    assert "Traceback" in text
    assert "and more about it" in text


def test_a_fault_of_ours_without_a_run_leaves_its_traceback_in_the_temporary_folder(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError

    monkeypatch.setattr("ns_ray.planning.run_status", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    done = CliRunner().invoke(app, ["status", "--config", str(config)])
    assert done.exit_code == FAULT
    (file,) = tmp_path.glob("ns-ray-fault-*.txt")
    assert done.output == (
        f"error: a fault of ns-ray (KeyError); the traceback is in {file}; please report it\n"
    )
    assert "KeyError" in file.read_text()


def test_a_fault_with_nowhere_to_write_shows_its_traceback(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError

    monkeypatch.setattr("ns_ray.planning.run_status", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    done = CliRunner().invoke(app, ["status", "--config", str(config)])
    assert done.exit_code == FAULT
    assert "Traceback" in done.output
    assert done.output.splitlines()[-1].startswith("error: a fault of ns-ray (KeyError)")


def test_no_error_of_ours_ends_with_1() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.NsRayError)}
    assert codes == {CONFIG, DATA, StageError.exit_code, FAULT}


def test_every_command_says_what_it_and_its_options_do() -> None:
    group = typer.main.get_command(app)
    commands = dict(group.commands)  # type: ignore[attr-defined]
    assert {"run", "label", "serve"} < commands.keys()
    for name, command in commands.items():
        assert command.help, name
        assert [option.name for option in command.params if not option.help] == []
        assert "debug" in {option.name for option in command.params}, name


@pytest.mark.parametrize("seeds", ["0 1", "1,", "one", "0-4"])
def test_seeds_are_whole_numbers_with_commas_between_them(seeds: str, tmp_path: Path) -> None:
    arguments = ["noise", "--recipe", "ablation-digits", "--out", str(tmp_path), "--seeds", seeds]
    done = CliRunner().invoke(app, ["ablate", *arguments])
    assert done.exit_code == CONFIG
    assert done.output == (
        f"error: --seeds {seeds!r} must be whole numbers with commas between them, such as 0,1,2\n"
    )


@pytest.mark.parametrize(
    ("options", "seeds"), [([], [0, 1, 2]), (["--seeds", "7"], [7]), (["--seeds", "3,1"], [3, 1])]
)
def test_every_seed_reaches_the_ablation(
    options: list[str], seeds: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def compare(names: list[str], *_: Any, **given: Any) -> None:
        assert names == ["noise", "init"]
        seen.extend(given["seeds"])

    monkeypatch.setattr("ns_ray.ablation.ablate", compare)
    grids = ["noise", "init", "--recipe", "ablation-digits", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, ["ablate", *grids, *options])
    assert done.exit_code == 0, done.output
    assert seen == seeds


@pytest.mark.ray
@pytest.mark.slow
def test_a_temporary_folder_too_deep_for_sockets_names_what_to_set(tmp_path: Path) -> None:
    deep = tmp_path / ("temporary" * 12)
    deep.mkdir()
    code = "from ns_ray.compute import cluster; from ns_ray.config import ResourcesConfig\n"
    code += "with cluster(ResourcesConfig()): print('started')"
    told = "set RAY_TMPDIR to a folder with a short"
    for more, found in (({}, told), ({"RAY_TMPDIR": "/tmp"}, "started")):
        environ = {**user_environment(), "TMPDIR": str(deep), **more}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False
        )
        assert found in done.stdout + done.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("late", "ended"), [(2, "started"), (9, "a local Ray did not start or")])
def test_a_ray_that_is_too_late_is_started_again(late: int, ended: str) -> None:
    """On a busy machine: Ray's limits are no settings of it, and the next start is as good as
    any."""
    code = """
import sys
import ray
init, late = ray.init, int(sys.argv[1])
def starts(**arguments):
    global late
    late -= 1
    if late >= 0:
        raise Exception("The current node timed out during startup. This could happen")
    return init(**arguments)
ray.init = starts
from ns_ray.compute import cluster
from ns_ray.config import ResourcesConfig
with cluster(ResourcesConfig()):
    print("started")
"""
    command = [sys.executable, "-c", code, str(late)]
    done = subprocess.run(
        command, env=user_environment(), capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    assert said.count("did not start in time") == 2
    assert ended in said
