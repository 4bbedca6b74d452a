"""Models on the Hugging Face Hub, by a Hub on the loopback: pushed, read back, refused."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import Hub, Repository, hub_running
from huggingface_hub import ModelCard, constants
from tiny import user_environment
from typer.testing import CliRunner

from ns_ray.commands import app
from ns_ray.config.training import ModelConfig
from ns_ray.model.bundle import save
from ns_ray.model.card import card
from ns_ray.model.networks import build

# Of huggingface_hub's own code.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

CLASSES = ("ant", "bee", "cat")
FACTS = {"run": "birds", "role": "student", "model": "test_resnet", "generation": 1}
DATA = "data: {labeled: 'hf://datasets/them/birds@main/train', unlabeled: [rest, 'cifar10:test']}\n"
LOADED = """
import json, sys, timm, torch
from huggingface_hub import snapshot_download
from ns_ray.store import open_bundle
model = timm.create_model("hf-hub:me/birds", pretrained=True).eval()
folder = snapshot_download("me/birds", local_dir=sys.argv[1])
logits = model(torch.ones(1, 3, 32, 32))[0].tolist()
names = model.pretrained_cfg["label_names"]
print(json.dumps([logits, names, open_bundle(folder).classes]))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_running() as found:
        yield found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a run leaves it, as far as a model is pushed from it."""
    root = tmp_path_factory.mktemp("run")
    (root / "config.yaml").write_text(DATA)
    torch.manual_seed(0)
    model = build(ModelConfig(model="test_resnet", image_size=32), 3)
    save(model, str(root / "model"), classes=CLASSES, fingerprint="f", provenance=FACTS)
    scores = {"test": {"rows": 30, "top1": 0.75, "top1_interval": [0.6, 0.9]}}
    (root / "model" / "README.md").write_text(card(CLASSES, FACTS, {"scores": scores}))
    return root


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """A shell in which the Hub is the one on the loopback."""
    given = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HOME": str(home)}
    return {
        **user_environment(),
        **given,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


@pytest.mark.slow
def test_a_pushed_model_is_what_timm_and_ns_ray_load(hub: Hub, run: Path, tmp_path: Path) -> None:
    environ = environment(hub, tmp_path / "home")
    (run / "model" / "notes.txt").write_text("mine")
    command = ["push", "--bundle", str(run), "--to", "me/birds", "--license", "mit", "--private"]
    for _ in range(2):  # the second time there is nothing new but a commit
        pushed = subprocess.run(
            [sys.executable, "-m", "ns_ray", *command], env=environ, capture_output=True, text=True
        )
        assert pushed.returncode == 0, pushed.stderr
        assert pushed.stdout.startswith(f"{hub.url}/me/birds: private, ")
        assert '"hf-hub:me/birds"' in pushed.stdout
    there = hub.models["me/birds"]
    assert there.private
    assert there.files.keys() == {"model.safetensors", "config.json", "README.md", "ns_ray.json"}
    assert [asked for asked in hub.asked if asked.startswith("PUT")] == [
        f"PUT /blobs/{next(iter(hub.blobs))}"
    ]
    read = subprocess.run(
        [sys.executable, "-c", LOADED, str(tmp_path / "here")],
        env=environ, capture_output=True, text=True,
    )  # fmt: skip
    assert read.returncode == 0, read.stderr
    logits, names, classes = json.loads(read.stdout.splitlines()[-1])
    torch.manual_seed(0)
    model = build(ModelConfig(model="test_resnet", image_size=32), 3).eval()
    with torch.no_grad():
        expected = model(torch.ones(1, 3, 32, 32))[0]
    torch.testing.assert_close(torch.tensor(logits), expected)
    assert names == classes == list(CLASSES)


@pytest.fixture
def here(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The Hub, for commands in this process."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return hub


def push(bundle: Path, to: str, *more: str) -> tuple[int, str]:
    """Exit code, and what is printed."""
    done = CliRunner().invoke(app, ["push", "--bundle", str(bundle), "--to", to, *more])
    return done.exit_code, done.output


def test_the_card_is_what_the_hub_reads(here: Hub, run: Path) -> None:
    code, said = push(run, "me/birds", "--license", "cc-by-4.0")
    assert code == 0, said
    text = here.models["me/birds"].files["README.md"].decode()
    head: Any = ModelCard(text).data
    assert (head.library_name, head.pipeline_tag) == ("timm", "image-classification")
    assert head.license == "cc-by-4.0"
    assert head.datasets == ["them/birds", "uoft-cs/cifar10"]
    [score] = head.eval_results or []
    assert (score.dataset_name, score.metric_type, score.metric_value) == ("test", "accuracy", 0.75)
    assert 'import timm\n\nmodel = timm.create_model("hf-hub:me/birds", pretrained=True)' in text
    assert "local-dir" not in text


def test_a_folder_of_timm_is_pushed_too(here: Hub, run: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((run / "model" / name).read_bytes())
    code, said = push(tmp_path, "me/theirs")
    assert code == 0, said
    files = here.models["me/theirs"].files
    assert files.keys() == {"model.safetensors", "config.json", "README.md"}
    assert "license" not in files["README.md"].decode()
    assert "Trained by Noisy Student" not in files["README.md"].decode()
    (tmp_path / "README.md").write_text("---\nlicense: mit\ndatasets: a/b\n---\n# Mine\n")
    code, said = push(tmp_path, "me/theirs")
    assert code == 0, said
    text = here.models["me/theirs"].files["README.md"].decode()
    head: Any = ModelCard(text).data
    assert (head.library_name, head.license, head.datasets) == ("timm", "mit", ["a/b"])
    assert "# Mine\n" in text
    assert 'timm.create_model("hf-hub:me/theirs"' in text


@pytest.mark.parametrize("to", ["birds", "me/birds/2", "me/my birds", "hf-hub:me/birds", "/birds"])
def test_a_name_that_is_none_is_refused_before_anything_is_asked(
    here: Hub, run: Path, to: str
) -> None:
    code, said = push(run, to)
    assert code == 2
    assert said.startswith(f"error: --to {to!r} is no OWNER/NAME")
    assert here.asked == []


def test_what_the_hub_refuses_is_one_line(
    here: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.models["them/birds"] = Repository()
    here.models["me/public"] = Repository()
    code, said = push(run, "them/birds")
    assert code == 2
    assert f"{here.url} does not let this token write to them/birds (You may not write" in said
    code, said = push(run, "them/new")
    assert (code, said.count("\n")) == (2, 1)
    assert "may write to them, or --to to a name of yours" in said
    code, said = push(run, "me/public", "--private")
    assert code == 2
    assert "me/public is public" in said
    assert here.models["me/public"].files == {}
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    code, said = push(run, "me/birds")
    assert (code, said.count("\n")) == (2, 1)
    assert "does not know the token (Invalid username or password.); set HF_TOKEN" in said
    monkeypatch.delenv("HF_TOKEN")
    code, said = push(run, "me/birds")
    assert (code, said.count("\n")) == (2, 1)
    assert f"no token for {here.url}: set HF_TOKEN" in said


def test_a_hub_that_fails_or_is_not_there_is_exit_4(
    here: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.failing = ("/api/repos/create",)
    code, said = push(run, "me/birds")
    assert (code, said.count("\n")) == (4, 1)
    assert "something broke; the same command tries again" in said
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    code, said = push(run, "me/birds")
    assert (code, said.count("\n")) == (4, 1)
    assert "me/birds could not be pushed to http://127.0.0.1:1: " in said
    assert "refused" in said
