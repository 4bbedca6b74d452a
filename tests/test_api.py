"""ns_ray from Python: a run, a model and pseudo-labels as values."""

import io
import json
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from broken_files import jpeg
from PIL import Image
from safetensors.torch import load_file
from tiny import COLORS, RUN, flat_folder, folder_per_class, given_teacher, png, user_environment
from typer.testing import CliRunner

import ns_ray
from ns_ray.commands import app
from ns_ray.config import RunConfig, config_hash
from ns_ray.config.loading import load_config
from ns_ray.errors import ConfigError, DataError
from ns_ray.store import open_labels

SETTINGS = {name: RUN[name] for name in ("students", "accept", "resources")}
TRAIN = {**RUN["train"], "epochs": 2, "calibrate": False}


def train(folder: Path, **changes: Any) -> ns_ray.Run:
    """A run of seconds on the images in a folder."""
    return ns_ray.self_train(
        folder / "labeled",
        [folder / "pile"],
        **{
            "test": str(folder / "test"),
            "teacher": RUN["teacher"],
            "out": folder / "runs" / "tiny",
            **SETTINGS,
            "data": RUN["data"],
            "train": TRAIN,
            "label": {"teachers": 1},
            **changes,
        },
    )


def images(folder: Path) -> Path:
    folder_per_class(folder / "labeled", 20)
    folder_per_class(folder / "test", 5, start=300)
    flat_folder(folder / "pile", 90, start=500)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return given_teacher(tmp_path_factory.mktemp("teacher") / "bundle")


@pytest.fixture
def own_settings() -> Iterator[None]:
    """A process that has set torch to its liking, and finds it like that afterwards."""

    def found() -> tuple[Any, ...]:
        drawn = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())
        here = torch.get_default_device().type, torch.is_grad_enabled()
        return torch.get_default_dtype(), torch.get_num_threads(), here, drawn

    threads = torch.get_num_threads()
    with torch.random.fork_rng(()), torch.no_grad(), torch.device("meta"):
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(threads + 1)
        before = found()
        try:
            yield
            assert found() == before
        finally:
            torch.set_default_dtype(torch.float32)
            torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("without_ray", "own_settings")
def test_a_run_is_a_value_that_shows_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    alone = {"resources": {**RUN["resources"], "loaders": 0}}
    run = train(images(tmp_path), **alone)
    assert run.path == str(tmp_path / "runs" / "tiny")
    assert run.result == json.loads(Path(run.path, "result.json").read_text())
    assert Path(run.report_path).read_text().startswith("<!doctype html>")
    text, html = repr(run), run._repr_html_()
    for row in run.result["generations"]:
        assert f"{row['val_top1']:.4f}" in text
        assert f"<td>{row['val_top1']:.1%}</td>" in html
    assert "Do 90 unlabeled images make a better classifier" in html
    assert run.best.classes == tuple(COLORS)
    assert len(run.best.predict(tmp_path / "test")) == 15
    weights = load_file(Path(run.path, "model", "model.safetensors"))
    assert torch.float64 not in {tensor.dtype for tensor in weights.values()}
    assert signal.getsignal(signal.SIGTERM) is before, "a notebook's own way to end"

    capsys.readouterr()
    again = train(tmp_path, **alone)
    assert again == run
    assert "train" not in capsys.readouterr().out.split("run tiny")[0], "nothing is done again"
    with pytest.raises(ConfigError, match=r"seed: 0 -> 1.*or pass overwrite=True"):
        train(tmp_path, **alone, seed=1)


@pytest.mark.slow
@pytest.mark.usefixtures("without_ray")
def test_what_readme_shows_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines as they stand, with a network of seconds in place of the teacher and its budget."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (shown,) = re.findall(r"```python\n(.*?)```", readme, re.S)
    monkeypatch.chdir(tmp_path)
    images(tmp_path / "data").joinpath("labeled").rename("data/train")
    flat_folder(tmp_path / "data" / "more", 10, start=900)
    Path("photo.jpg").write_bytes(jpeg(1))
    whole = ns_ray.self_train

    def small(*sources: str, teacher: str, budget: str, **given: Any) -> ns_ray.Run:
        assert (teacher, budget) == ("efficientnet_b0.ra_in1k", "2h")
        resources = {**RUN["resources"], "loaders": 0}
        settings = {"train": TRAIN, "label": {"teachers": 1}, "data": RUN["data"]}
        given |= {**SETTINGS, **settings, "resources": resources}
        return whole(*sources, teacher=RUN["teacher"], **given)

    monkeypatch.setattr(ns_ray, "self_train", small)
    names: dict[str, Any] = {}
    exec(shown, names)
    assert names["run"].path == str(tmp_path / "runs" / "birds")
    assert names["run"].best.classes == tuple(COLORS)
    assert (tmp_path / "labels" / "_DONE.json").exists()


def asked_for(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> RunConfig:
    """The settings that a call comes to."""
    found: list[RunConfig] = []

    def execute(config: RunConfig, **_: Any) -> dict[str, Any]:
        found.append(config)
        return {}

    monkeypatch.setattr("ns_ray.api.runs.execute", execute)
    call()
    return found[0]


def test_settings_have_the_names_of_run_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "{name: birds, storage: runs, budget: 2h, seed: 3, control: true,"
        " data: {labeled: a, unlabeled: [b, c], test: d, labels: 100},"
        " teacher: {model: resnet18}, students: [{model: resnet34}, {bundle: null, model: x}],"
        " train: {noise: {dropout: 0.2}}}"
    )
    written = load_config(str(path))

    def with_arguments() -> Any:
        return ns_ray.self_train(
            Path("a"),
            ["b", Path("c")],
            test="d",
            teacher="resnet18",
            students=["resnet34", {"model": "x"}],
            budget="2h",
            out="runs/birds",
            data={"labels": 100},
            seed=3,
            control=True,
            train={"noise": {"dropout": 0.2}},
        )

    assert asked_for(monkeypatch, with_arguments) == written

    def on_top() -> Any:
        return ns_ray.self_train(config=path, train={"noise": {"flip": 0.0}}, seed=4)

    both = asked_for(monkeypatch, on_top)
    assert (both.train.noise.dropout, both.train.noise.flip, both.seed) == (0.2, 0.0, 4)
    assert both.data == written.data

    def of_a_recipe() -> Any:
        return ns_ray.self_train(recipe="digits", out="s3://bucket/runs/one?region=eu", test="t")

    digits = asked_for(monkeypatch, of_a_recipe)
    assert (digits.storage, digits.name) == ("s3://bucket/runs?region=eu", "one")
    assert (digits.data.labels, digits.data.test) == (30, "t")


def test_paths_and_single_models_are_taken_wherever_they_stand(
    teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call() -> Any:
        return ns_ray.self_train(
            "a",
            teacher=ns_ray.load(teacher),
            students="resnet18",
            out="runs/x",
            data={"validation": Path("v"), "unlabeled": [Path("u")]},
        )

    config = asked_for(monkeypatch, call)
    assert config.teacher.bundle == teacher
    assert [student.model for student in config.students] == ["resnet18"]
    assert (config.data.validation, config.data.unlabeled) == ("v", ("u",))


def test_what_is_left_open_is_chosen_as_for_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget may leave out students that nobody has named, and so on."""

    def call() -> Any:
        return ns_ray.self_train("a", "b", teacher=Path("a/bundle"), out="run", students=["x"])

    config = asked_for(monkeypatch, call)
    assert config.teacher.bundle == "a/bundle"
    assert (config.storage, config.name) == (".", "run")
    assert "epochs" not in config.model_dump()["train"]

    def two() -> Any:
        return ns_ray.self_train("a", "b", teacher="resnet18", out="/runs/r")

    config = asked_for(monkeypatch, two)
    assert [student.model for student in config.students] == ["resnet18"] * 2
    assert "students" not in config.model_fields_set
    assert (config.storage, config.name) == ("/runs", "r")
    assert config_hash(config)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"teacher": "resnet18", "out": None}, "out is missing: .*out='runs/birds'"),
        ({"teacher": "resnet18", "out": "a b"}, "name='a b'"),
        ({"out": "r"}, "setting 'teacher' is missing"),
        ({"teacher": "resnet18", "out": "r", "epochs": 3}, "unknown setting 'epochs'"),
        ({"teacher": "resnet18", "out": "r", "trian": {}}, "did you mean 'train'"),
        ({"teacher": "resnet18", "out": "r", "data": 3}, "data=3: give settings"),
        ({"out": "r", "config": "x.yaml", "recipe": "digits"}, "either config or recipe"),
        ({"out": "r", "config": "no.yaml"}, "^config no.yaml cannot be read: No such file"),
        ({"out": "r", "teacher": 3}, "teacher: int is no model; give a name of timm"),
        ({"out": "r", "teacher": "x", "students": 2}, "students: int is no model"),
        ({"out": "r", "teacher": "x", "name": "y"}, "name is given twice: .* argument out"),
        ({"out": "r", "teacher": "x", "data": {"labeled": "y"}}, "^data.labeled is given twice"),
        ({"out": "r", "teacher": "x", "test": np.zeros((2, 2))}, "data.test=array.* must be a"),
        ({"out": "r", "recipe": "digit"}, "did you mean 'digits'.*; recipe takes one of"),
    ],
)
def test_a_mistake_is_an_error_in_one_line(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as met:
        ns_ray.self_train("digits", **arguments)
    assert "\n" not in str(met.value)


def test_a_model_takes_images_as_people_have_them(teacher: str, tmp_path: Path) -> None:
    model = ns_ray.load(teacher)
    assert f"{model!r}" == f"Model({teacher!r}: test_resnet, 3 classes: blue, green, red)"
    data = png("blue", 1)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    pixels = np.asarray(Image.open(path))
    turned = Image.open(path).transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # shown turned clockwise
    turned.info["exif"] = turned.getexif().tobytes()
    several = [path, str(path), data, Image.open(path), pixels, turned]
    found = model.predict(several, top_k=3)
    assert [one.filename for one in found] == [
        *(str(path), str(path), "image 2", "image 3", "image 4", "image 5")
    ]
    first = found[0]
    assert [one.top for one in found] == [first.top] * len(several)
    assert first.label == first.top[0][0]
    assert first.score == first.top[0][1] == max(score for _, score in first.top)
    assert sum(score for _, score in first.top) == pytest.approx(1, abs=1e-4)
    with torch.no_grad():
        probs = model.network(model.transform(Image.open(path))[None]).softmax(dim=1)[0]
    assert first.score == pytest.approx(float(probs.max()), abs=2e-3)
    assert model.classes[int(probs.argmax())] == first.label


@pytest.mark.usefixtures("own_settings")
def test_a_model_works_as_in_a_fresh_process_and_leaves_this_one_as_it_was(teacher: str) -> None:
    model = ns_ray.load(teacher, predict={"runtime": "torch", "precision": "fp32"})
    first, again = (model.predict(png("red", 1))[0].score for _ in range(2))
    assert first == again
    assert {(p.dtype, p.device.type) for p in model.network.parameters()} == {
        (torch.float32, "cpu")
    }


def test_predictions_are_rows_a_table_and_a_frame(teacher: str, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(png("red", 2))
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n")
    found = ns_ray.load(teacher).predict(tmp_path, top_k=2)
    bad, good = found
    assert (bad.label, bad.score, bad.top) == (None, None, ())
    assert bad.error is not None
    assert "good.png" in repr(found)
    table, frame = found.to_arrow(), found.to_pandas()
    assert table.column_names == ["filename", "rank", "index", "label", "prob", "error"]
    assert list(frame["label"].dropna()) == [name for name, _ in good.top]
    assert f"<td>{good.label}</td>" in found._repr_html_()
    assert list(found[1:]) == [good]
    assert len(ns_ray.load(teacher).predict([])) == 0


MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "I", "F"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_pil_images_of_every_mode_are_seen_as_their_files_are(
    teacher: str, tmp_path: Path, mode: str
) -> None:
    gray = Image.open(io.BytesIO(png("blue", 1))).convert("L")
    values = np.asarray(gray, np.int32) * 256 if mode == "I" else np.asarray(gray, np.float32) / 255
    image = Image.fromarray(values) if mode in ("I", "F") else by_way_of(gray, mode)
    assert image.mode == mode
    plain = np.asarray(gray.convert("1").convert("L") if mode == "1" else gray)
    seen, expected = ns_ray.load(teacher).predict([image, plain])
    assert seen.error is None
    scores = dict(expected.top)
    assert all(score == pytest.approx(scores[name], abs=0.01) for name, score in seen.top)


def by_way_of(gray: Image.Image, mode: str) -> Image.Image:
    """A mode that Pillow makes only of some others."""
    before = {"La": "LA", "PA": "P", "RGBa": "RGBA", "HSV": "RGB"}.get(mode, "L")
    return gray.convert(before).convert(mode)


def test_a_pil_image_without_pixels_is_one_that_cannot_be_used(teacher: str) -> None:
    cut = Image.open(io.BytesIO(jpeg(1)[:900]))
    closed = Image.open(io.BytesIO(png("red", 1)))
    closed.close()
    several = [cut, closed, Image.new("RGB", (0, 3)), png("red", 1)]
    *bad, good = ns_ray.load(teacher).predict(several)
    assert [str(one.error).split(":")[0] for one in bad] == ["truncated", "broken", "broken"]
    assert good.error is None


def test_images_come_from_whatever_goes_through_them(teacher: str, tmp_path: Path) -> None:
    flat_folder(tmp_path, 3)
    model = ns_ray.load(teacher)
    listed = model.predict(sorted(tmp_path.glob("*.png")))
    assert list(model.predict(iter(sorted(tmp_path.glob("*.png"))))) == list(listed)
    with pytest.raises(ConfigError, match="BufferedReader is no image"), listed_file(tmp_path) as f:
        model.predict(f)


def listed_file(folder: Path) -> Any:
    return next(folder.iterdir()).open("rb")


FORKED = """
import multiprocessing, pickle, sys
import ns_ray
from ns_ray.errors import ConfigError

model = ns_ray.load(sys.argv[1])
first = list(model.predict(sys.argv[2]))
assert list(pickle.loads(pickle.dumps(model)).predict(sys.argv[2])) == first

def forked(use):
    try:
        use().predict(sys.argv[2])
    except ConfigError as error:
        assert "get_context('spawn')" in str(error)
        sys.exit(7)

for use in (lambda: model, lambda: ns_ray.load(sys.argv[1])):
    process = multiprocessing.get_context("fork").Process(target=forked, args=(use,))
    process.start()
    process.join(60)
    assert process.exitcode == 7, process.exitcode
"""


@pytest.mark.slow
def test_a_model_goes_to_other_processes_but_not_into_a_fork(teacher: str, tmp_path: Path) -> None:
    """A fork has none of torch's threads, and would wait for them."""
    (tmp_path / "a.png").write_bytes(png("red", 2))
    command = [sys.executable, "-c", FORKED, teacher, str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (3, "int is no image; give a path"),
        (np.zeros((4, 4, 3), np.float32), r"float32 \[4, 4, 3\]"),
        (np.zeros((3, 4, 4), np.uint8), r"uint8 \[3, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), "not empty"),
    ],
)
def test_what_is_no_image_is_refused(teacher: str, image: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ns_ray.load(teacher).predict([image])


def test_what_is_missing_is_named(teacher: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no bundle"):
        ns_ray.load(tmp_path)
    with pytest.raises(DataError, match="nowhere"):
        ns_ray.load(teacher).predict("nowhere.jpg")
    with pytest.raises(ConfigError, match="images='' names nothing"):
        ns_ray.load(teacher).predict("")
    for wrong in (0, 1.5, "2", None):
        with pytest.raises(ConfigError, match=f"top_k={wrong!r}"):
            ns_ray.load(teacher).predict(b"", top_k=wrong)  # type: ignore[arg-type]
    for device in ("gpu", None, "cuda:"):
        with pytest.raises(ConfigError, match=f"device={device!r} must be auto, cpu, cuda"):
            ns_ray.load(teacher, device=device)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"torch sees [0-9] CUDA devices"):
        ns_ray.load(teacher, device="cuda:9").predict(b"")
    with pytest.raises(ConfigError, match=r"unknown setting 'precison'.*'precision'"):
        ns_ray.load(teacher, predict={"precison": "fp32"})


def test_a_model_whose_folder_is_gone_says_which(teacher: str, tmp_path: Path) -> None:
    shutil.copytree(teacher, tmp_path / "model")
    model = ns_ray.load(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"has no config.json any more.*open the model where"):
        _ = model.network
    with pytest.raises(ConfigError, match="model is no bundle: expected"):
        model.predict(png("red", 1))


@pytest.mark.slow
@pytest.mark.usefixtures("without_ray")
def test_labels_are_a_dataset_with_the_place_of_each_image(teacher: str, tmp_path: Path) -> None:
    flat_folder(tmp_path / "pile", 50)
    out = tmp_path / "labels"
    some = {"rows_per_shard": 20}
    labels = ns_ray.label(teacher, tmp_path / "pile", out=out, data=some)
    found = labels.dataset().to_table()
    assert found.num_rows == labels.rows == 50
    places = {row["key"]: row["uri"] for row in found.to_pylist()}
    assert places == {path.name: str(path) for path in (tmp_path / "pile").iterdir()}
    sure = {one.filename: one for one in ns_ray.load(teacher).predict(tmp_path / "pile")}
    for row in found.to_pylist():
        assert row["class"] == sure[row["uri"]].label == labels.classes[row["label"]]
        assert row["confidence"] == pytest.approx(sure[row["uri"]].score, abs=2e-3)
    written = (out / "_DONE.json").stat().st_mtime_ns
    again = ns_ray.label(ns_ray.load(teacher), [str(tmp_path / "pile")], out=out, data=some)
    assert again == labels
    assert (out / "_DONE.json").stat().st_mtime_ns == written
    with pytest.raises(ConfigError, match="unknown setting 'lable'"):
        ns_ray.label(teacher, tmp_path / "pile", out=out, lable={})


@pytest.mark.usefixtures("without_ray")
def test_labels_of_other_images_are_not_replaced(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pile, out = tmp_path / "pile", tmp_path / "labels"
    flat_folder(pile, 3)
    flat_folder(tmp_path / "other", 4, start=9)
    labels = ns_ray.label(teacher, pile, out=out)
    with pytest.raises(ConfigError, match=rf"out='{out}' has the labels of {pile}; choose another"):
        ns_ray.label(teacher, tmp_path / "other", out=out)
    done = CliRunner().invoke(
        app, ["label", "--bundle", teacher, "--data", f"{tmp_path}/other", "--out", teacher]
    )
    assert done.exit_code == 2
    assert f"--out='{teacher}' has what `train` made" in done.stderr
    assert open_labels(str(out)) == labels
    assert open_labels(str(out)).dataset().count_rows() == 3
    pile.rename(tmp_path / "moved")
    assert ns_ray.label(teacher, tmp_path / "moved", out=out) == labels
    (tmp_path / "moved").rename(pile)
    flat_folder(pile, 1, start=20)
    capsys.readouterr()
    assert ns_ray.label(teacher, f"{pile}/", out=out).rows == 4
    assert "pile/ has changed since it was labeled, and is labeled again" in capsys.readouterr().out


def test_errors_name_the_arguments_of_python(teacher: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = {"out": tmp_path / "out"}
    with pytest.raises(DataError, match=f"^images='{tmp_path}/empty' holds no images"):
        ns_ray.label(teacher, tmp_path / "empty", **out)
    with pytest.raises(ConfigError, match="give a bundle for each model"):
        ns_ray.label(teacher, tmp_path, label={"teachers": 2}, **out)
    with pytest.raises(ConfigError, match=r"^out='https://x/y' is only read from"):
        ns_ray.label(teacher, tmp_path, out="https://x/y")
    with pytest.raises(ConfigError, match=r"^out='' is empty"):
        ns_ray.label(teacher, tmp_path, out="")
    wrong: Any
    for wrong in (3, None, [3]):
        with pytest.raises(ConfigError, match=r"^images: (int|NoneType) is no path"):
            ns_ray.label(teacher, wrong, **out)
        with pytest.raises(ConfigError, match=r"^bundle: (int|NoneType) is no path"):
            ns_ray.label(wrong, tmp_path, **out)
    with pytest.raises(ConfigError, match=r"^bundle is an empty list"):
        ns_ray.label([], tmp_path, **out)
    with pytest.raises(ConfigError, match=r"^data=3: give settings"):
        ns_ray.label(teacher, tmp_path, data=3, **out)
    with pytest.raises(ConfigError, match=r"^data\.labeled is given twice.* argument images"):
        ns_ray.label(teacher, tmp_path, data={"labeled": "x"}, **out)
    assert not (tmp_path / "out").exists()


def test_the_package_is_light() -> None:
    code = (
        "import sys, ns_ray; ns_ray.self_train, ns_ray.load, ns_ray.label, ns_ray.Run;"
        "assert not {'torch', 'ray', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


NOTEBOOK = """
import os, shutil, signal, sys, threading, time
from pathlib import Path
import ray
from starting import in_time
from test_api import train

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as a notebook has it
    folder = Path(sys.argv[1])
    cell = {"out": folder / "runs" / "cell", "test": None}

    def interrupt():
        while not (cell["out"] / "gen-00" / "checkpoints").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        train(folder, **cell)
    except KeyboardInterrupt:
        assert not ray.is_initialized()
    else:
        sys.exit("it was not interrupted")

    in_time(ray.init, "local", num_cpus=4, include_dashboard=False, log_to_driver=False)

    @ray.remote(num_cpus=1)
    def task():
        return train(folder, **cell).result["generations"]

    assert len(ray.get(task.remote())) == 2

    def score_again():
        shutil.rmtree(cell["out"] / "gen-01" / "evaluation")
        (cell["out"] / "result.json").unlink()
        return train(folder, **cell).result["generations"]

    assert len(score_again()) == 2
    assert ray.is_initialized(), "what the user started is left running"
    ray.shutdown()
    assert len(score_again()) == 2
    assert not ray.is_initialized(), "what the run started is not"
    print("all done")
"""


@pytest.mark.ray
@pytest.mark.slow
def test_after_an_interrupted_cell_in_a_task_and_with_ray_of_a_notebook(tmp_path: Path) -> None:
    script = tmp_path / "notebook.py"
    script.write_text(NOTEBOOK)
    path = f"{Path(__file__).parent}:{Path(ns_ray.__file__).parent.parent}"
    done = subprocess.run(
        [sys.executable, script, images(tmp_path)],
        env={**user_environment(), "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith("all done\n"), done.stdout + done.stderr
