"""Training on a real, small cluster: shared among workers, killed, and gone wrong."""

import platform
import shutil
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from tiny import COLORS, MODEL, RUN, flat_folder, folder_per_class, processes

from ns_ray import store
from ns_ray.compute.resources import Workers
from ns_ray.config.labeling import SelectConfig
from ns_ray.config.noise import NoiseConfig
from ns_ray.config.training import ModelConfig, TrainConfig, fixres_config
from ns_ray.data.packing import pack
from ns_ray.errors import ConfigError, ImageError, StageError
from ns_ray.model.bundle import load
from ns_ray.selection.stage import select
from ns_ray.store import schema
from ns_ray.store.bundles import open_bundle
from ns_ray.store.corpora import Corpus, open_corpus
from ns_ray.store.labels import Selection, open_labels
from ns_ray.training import loader, stage
from ns_ray.training import workers as ray_workers
from ns_ray.training.examples import Examples
from ns_ray.training.learner import Learner
from ns_ray.training.rows import Sizes, batches

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS = 10
ONE = Workers(count=1, cpus=1.0, gpus=0.0, loaders=1)
SETTINGS = {**RUN["train"], "epochs": 2, "batch_size": 8, "accumulate": 2}


@dataclass(frozen=True)
class Data:
    """40 labeled images, and 60 with the labels of a teacher who is right."""

    labeled: Corpus
    pseudo: Selection


@dataclass
class Trained:
    """What a training left and told."""

    out: str
    rows: dict[int, dict[str, float]] = field(default_factory=dict)

    @property
    def losses(self) -> list[list[float]]:
        names = ("train_loss", "labeled_loss", "pseudo_loss", "lr")
        return [[row[name] for name in names] for row in self.rows.values()]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return dict(load_file(f"{self.out}/model.safetensors"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("data")
    names = list(COLORS)
    images = folder_per_class(folder / "labeled", 14)
    (images / "red" / "0000.png").unlink()
    (images / "red" / "0001.png").unlink()
    labeled = pack(str(images), out=str(folder / "corpus"), rows_per_shard=16)
    assert labeled.rows == 40
    pile = pack(
        str(flat_folder(folder / "pile", 60, start=500)),
        out=str(folder / "pile-corpus"),
        classes=(),
        rows_per_shard=16,
    )
    files = []
    for shard, table in pile.scan(["key"]):
        truth = [int(key.split(".")[0]) % len(names) for key in table["key"].to_pylist()]
        probs = np.full((len(truth), len(names)), 0.1, np.float32)
        probs[np.arange(len(truth)), truth] = 0.8
        keys = table["key"].combine_chunks()
        files.append(schema.part_name(shard.name, "teacher"))
        labels = schema.labels_table(pa.array(keys), probs, shard.name, None)
        store.write_table(f"{folder}/labels/{files[-1]}", labels)
    store.publish(
        f"{folder}/labels",
        stage="label",
        fingerprint="teacher",
        files=files,
        facts={"corpus": pile.path, "classes": names, "rows": pile.rows},
        inputs={},
        seconds=0.0,
    )
    chosen = select(
        SelectConfig(), open_labels(f"{folder}/labels"), seed=0, out=f"{folder}/selection"
    )
    assert chosen.kept == 60
    return Data(labeled, chosen)


def fit(
    data: Data,
    out: Path,
    workers: Workers = ONE,
    on_row: Any = None,
    fixres: dict[str, Any] | None = None,
    **changes: Any,
) -> Trained:
    trained = Trained(f"{out}/bundle")

    def record(step: int, values: Any) -> None:
        trained.rows[step] = dict(values)
        if on_row is not None:
            on_row(step)

    stage.fit(
        ModelConfig.model_validate({**MODEL, "fixres": fixres}),
        TrainConfig.model_validate({**SETTINGS, **changes}),
        labeled=data.labeled,
        pseudo=data.pseudo,
        seed=5,
        workers=workers,
        checkpoints=f"{out}/checkpoints",
        out=trained.out,
        title="train",
        provenance={"run": "test", "role": "student"},
        metrics=record,
    )
    return trained


@pytest.fixture(scope="module")
def alone(data: Data, ray_local: Any, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One worker, which makes two forward passes for a step."""
    return fit(data, tmp_path_factory.mktemp("alone"))


def test_a_training_tells_every_step(alone: Trained) -> None:
    assert list(alone.rows) == list(range(1, STEPS + 1))
    losses = np.array(alone.losses)
    assert np.isfinite(losses).all()
    np.testing.assert_allclose(losses[:, 0], losses[:, 1:3].mean(axis=1), rtol=1e-5)


def test_two_workers_do_what_one_does_in_two_passes(
    alone: Trained, data: Data, ray_local: Any, tmp_path: Path
) -> None:
    """Lanes are the same images under the same noise, so losses and gradients are equal up to the
    order of additions. What BatchNorm has averaged isn't: one worker has seen both lanes of a
    step, one after the other, where rank 0 has only seen its own."""
    pair = fit(data, tmp_path, Workers(count=2, cpus=1.0, gpus=0.0, loaders=1), accumulate=1)
    assert list(pair.rows) == list(alone.rows)
    np.testing.assert_allclose(pair.losses, alone.losses, rtol=1e-4, atol=1e-5)
    ours, theirs = pair.weights, alone.weights
    assert set(ours) == set(theirs)
    learned = [name for name in ours if "running" not in name and "tracked" not in name]
    for name in learned:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "workers",
    [
        Workers(count=1, cpus=1.0, gpus=0.0, loaders=0, in_process=True),
        Workers(count=1, cpus=1.0, gpus=0.0, loaders=2, in_turn=True),
    ],
    ids=["in a thread", "in turn"],
)
def test_batches_are_the_same_whoever_makes_them(
    workers: Workers, alone: Trained, data: Data, ray_local: Any, tmp_path: Path
) -> None:
    assert fit(data, tmp_path, workers).losses == alone.losses


@pytest.mark.parametrize("in_turn", [3, 0])
def test_loaders_rest_while_the_model_works_where_they_share_cpus(
    in_turn: int, data: Data, ray_local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    real = loader._make_task

    class Task:
        def __init__(self, num_returns: int) -> None:
            self._task = real.options(num_returns=num_returns)

        def remote(self, *arguments: Any) -> Any:
            made = self._task.remote(*arguments)
            asked.extend(made if isinstance(made, list) else [made])
            return made

        options = classmethod(lambda cls, num_returns: cls(num_returns))

    monkeypatch.setattr(loader, "_make_task", Task)
    examples = Examples(data.labeled)
    rows = batches([examples.stream(1, 0)], Sizes(4, 0, 16), lane=0, start=0, seed=0)
    made = loader.from_tasks([examples], rows, NoiseConfig(), 16, processes=2, in_turn=in_turn)
    round_, busy = 2 * (in_turn or loader.AHEAD), []
    for _ in range(2 * round_):
        next(made)
        done, _ = ray_local.wait(asked, num_returns=len(asked), timeout=0)
        busy.append(len(asked) - len(done))
    made.close()
    if in_turn:
        assert busy == [0] * 2 * round_
        assert len(asked) == 2 * round_
    else:
        assert len(asked) == 3 * round_ - 1


@pytest.mark.parametrize("in_turn", [3, 0])
def test_no_batch_is_made_beyond_the_last_step(in_turn: int, data: Data, ray_local: Any) -> None:
    examples = Examples(data.labeled)
    rows = list(
        islice(batches([examples.stream(1, 0)], Sizes(4, 0, 16), lane=0, start=0, seed=0), 11)
    )
    in_tasks = loader.from_tasks(
        [examples], iter(rows), NoiseConfig(), 16, processes=2, in_turn=in_turn
    )
    in_thread = list(loader.from_thread([examples], iter(rows), NoiseConfig(), 16))
    assert len(in_thread) == 11
    for ours, theirs in zip(in_tasks, in_thread, strict=True):
        assert np.array_equal(ours.images, theirs.images)


def test_a_round_has_many_small_batches_and_few_large_ones() -> None:
    assert loader.round_of(Sizes(32, 224, 32)) == 16
    assert loader.round_of(Sizes(64, 192, 64)) == 5
    assert loader.round_of(Sizes(256, 768, 224)) == loader.AHEAD


def test_a_killed_worker_is_replaced_and_the_weights_are_the_same(
    alone: Trained,
    data: Data,
    ray_local: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ray_workers, "NOTICED", 1.0)  # no node goes
    killed: list[int] = []

    def kill(step: int) -> None:
        if step >= STEPS // 2 and not killed:
            for process in processes("RayTrainWorker"):
                process.kill()
                killed.append(process.pid)

    again = fit(data, tmp_path, on_row=kill)
    assert len(killed) == 1
    assert "lost a worker" in capsys.readouterr().out
    assert again.rows[STEPS]["resumed_at"] >= STEPS // 2 - 1
    assert list(again.rows) == list(range(1, STEPS + 1))
    assert again.losses == alone.losses
    for name, weights in again.weights.items():
        assert torch.equal(weights, alone.weights[name]), name


def test_a_resumed_training_reports_what_all_attempts_took(data: Data, tmp_path: Path) -> None:
    here = Workers(count=1, cpus=1.0, gpus=0.0, loaders=0, in_process=True)

    def stop(step: int) -> None:
        if step == STEPS // 2:
            raise RuntimeError("stopped")

    with pytest.raises(StageError, match="stopped"):
        fit(data, tmp_path, here, on_row=stop)
    (path,) = (tmp_path / "checkpoints").rglob("last.pt")
    state = torch.load(path, weights_only=True)
    assert state["seconds"] > 0
    torch.save({**state, "seconds": 1000.0, "waited": 500.0}, path)
    facts = open_bundle(fit(data, tmp_path, here).out).provenance
    assert facts["seconds"] > 1000
    assert facts["seconds_waited"] >= 500
    # All 16 images of all 10 steps, in all these seconds.
    assert facts["images_per_second"] == pytest.approx(160 / facts["seconds"], abs=0.05)


def test_what_is_trained_is_not_trained_again(
    alone: Trained, data: Data, ray_local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_workers, "run_workers", None)
    folder = Path(alone.out)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert fit(data, folder.parent).rows == {}
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_diverging_training_names_the_setting(data: Data, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"train\.lr \(1e\+30\)") as caught:
        fit(data, tmp_path, HERE, lr=1e30)
    assert "\n" not in str(caught.value)


def test_a_device_without_room_names_the_settings(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asks_for_a_petabyte(*_: Any) -> Any:
        return torch.empty(2**50, dtype=torch.uint8)

    monkeypatch.setattr(Learner, "backward", asks_for_a_petabyte)
    with pytest.raises(ConfigError, match=r"no memory for \d+ bytes more; raise train\.accumulate"):
        fit(data, tmp_path, HERE)


@pytest.mark.parametrize("in_process", [True, False])
def test_an_image_that_has_broken_is_named_in_one_line_and_nothing_is_retried(
    in_process: bool,
    data: Data,
    ray_local: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts = []
    trainer = ray_workers.make_trainer

    def counted(*args: Any) -> Any:
        attempts.append(0)
        return trainer(*args)

    monkeypatch.setattr(ray_workers, "make_trainer", counted)
    shutil.copytree(data.labeled.path, tmp_path / "corpus")
    broken = open_corpus(f"{tmp_path}/corpus")
    for shard in broken.shards:
        table = broken.read(shard)
        images = [image[: len(image) // 2] for image in table["image"].to_pylist()]
        column = table.schema.get_field_index("image")
        table = table.set_column(column, table.schema.field("image"), pa.array(images, pa.binary()))
        store.write_table(f"{tmp_path}/corpus/{shard.file}", table)
    workers = replace(ONE, in_process=in_process)
    with pytest.raises(ImageError, match=r"^truncated: [^\n]*$"):
        fit(replace(data, labeled=broken), tmp_path, workers)
    assert len(attempts) == 1


@pytest.mark.parametrize(
    ("changes", "setting"),
    [({"batch_size": 9}, r"train\.batch_size"), ({"unlabeled_ratio": 0.9}, "unlabeled_ratio")],
)
def test_a_batch_that_workers_cannot_share_is_refused(
    changes: dict[str, Any], setting: str, data: Data, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"{setting}.* cannot share evenly.*a multiple of 2"):
        fit(data, tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_fine_tuning_changes_the_last_layers_only_and_goes_on_when_stopped(
    data: Data, ray_local: Any, tmp_path: Path
) -> None:
    here = Workers(count=1, cpus=1.0, gpus=0.0, loaders=0, in_process=True)
    fixres = {"image_size": 48, "epochs": 1, "lr": 0.1, "trained_groups": 2}
    whole = fit(data, tmp_path / "whole", here, fixres=fixres)
    steps = STEPS + 5
    assert list(whole.rows) == list(range(1, steps + 1))
    assert whole.rows[steps]["lr"] == pytest.approx(0.1)
    assert whole.rows[steps]["pseudo_loss"] == 0

    before = load_file(next((tmp_path / "whole" / "checkpoints").glob("*/trained/*.safetensors")))
    changed = {k for k, v in whole.weights.items() if not torch.equal(v, before[k])}
    assert {name.split(".")[0] for name in changed} == {"layer4", "fc"}
    statistics = {name for name in before if "layer4" in name and "running" in name}
    assert statistics <= changed

    bundle = open_bundle(whole.out)
    assert load(bundle)[1].size == 48
    assert load(bundle)[1].crop_pct == 1.0
    assert bundle.provenance["fixres_steps"] == 5
    kept = next((tmp_path / "whole" / "checkpoints").glob("*/trained"))
    assert stage.before_fixres(bundle) == str(kept)
    assert load(open_bundle(str(kept)))[1].size == MODEL["image_size"]

    def stop(step: int) -> None:
        if step == STEPS + 3:
            raise RuntimeError("stopped")

    with pytest.raises(StageError, match="stopped"):
        fit(data, tmp_path / "again", here, on_row=stop, fixres=fixres)
    again = fit(data, tmp_path / "again", here, fixres=fixres)
    assert next(iter(again.rows)) == STEPS + 3
    for name, weights in again.weights.items():
        assert torch.equal(weights, whole.weights[name]), name


def bf16_machine(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    """From here on the CPU multiplies bfloat16 itself, or does not."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": has}, raising=False)


def stop_after_half(step: int) -> None:
    if step == STEPS // 2 + 1:
        raise RuntimeError("stopped")


HERE = Workers(count=1, cpus=1.0, gpus=0.0, loaders=0, in_process=True)


def test_a_training_keeps_the_precision_it_was_begun_with_on_another_machine(
    data: Data,
    ray_local: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bf16_machine(monkeypatch, has=True)
    whole = fit(data, tmp_path / "whole", HERE)
    with pytest.raises(StageError, match="stopped"):
        fit(data, tmp_path / "moved", HERE, on_row=stop_after_half)
    bf16_machine(monkeypatch, has=False)
    moved = fit(data, tmp_path / "moved", HERE)
    assert "going on in bf16, as begun, though fp32 is faster" in capsys.readouterr().out
    for name, weights in moved.weights.items():
        assert torch.equal(weights, whole.weights[name]), name
    assert open_bundle(moved.out).provenance["precision"] == "bf16"
    assert open_bundle(fit(data, tmp_path / "new", HERE).out).provenance["precision"] == "fp32"


def test_what_weights_depend_on_besides_the_settings_is_published(
    data: Data, ray_local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bf16_machine(monkeypatch, has=False)
    with pytest.raises(StageError, match="stopped"):
        fit(data, tmp_path, HERE, on_row=stop_after_half)
    trained = fit(data, tmp_path, replace(HERE, cpus=2.0))
    machine = {"device": platform.machine(), "workers": 1}
    assert open_bundle(trained.out).provenance["made_on"] == [
        {"from_step": 0, **machine, "threads": 1},
        {"from_step": STEPS // 2, **machine, "threads": 2},
    ]
    card = (Path(trained.out) / "README.md").read_text()
    for name, value in {**machine, "precision": "fp32"}.items():
        assert f"| {name} | {value} |\n" in card


LEVERS: dict[str, Any] = {
    "class_weights": "balanced",
    "logit_adjustment": 1.0,
    "noise": {**SETTINGS["noise"], "mixup": 0.4, "cutmix": 1.0},
}


def test_images_are_mixed_alike_in_a_resumed_training_and_on_two_workers(
    alone: Trained, data: Data, ray_local: Any, tmp_path: Path
) -> None:
    whole = fit(data, tmp_path / "whole", HERE, **LEVERS)
    assert (np.array(whole.losses)[:, 1:3] != np.array(alone.losses)[:, 1:3]).all()
    with pytest.raises(StageError, match="stopped"):
        fit(data, tmp_path / "again", HERE, on_row=stop_after_half, **LEVERS)
    again = fit(data, tmp_path / "again", HERE, **LEVERS)
    assert again.rows[STEPS]["resumed_at"] == STEPS // 2
    for name, weights in again.weights.items():
        assert torch.equal(weights, whole.weights[name]), name
    two = Workers(count=2, cpus=1.0, gpus=0.0, loaders=1)
    pair = fit(data, tmp_path / "pair", two, **{**LEVERS, "accumulate": 1})
    np.testing.assert_allclose(pair.losses, whole.losses, rtol=1e-4, atol=1e-5)


def test_fine_tuning_keeps_the_precision_of_the_training(
    data: Data, ray_local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixres = {"image_size": 48, "epochs": 1, "lr": 0.1, "trained_groups": 2}

    def move(step: int) -> None:
        if step == STEPS + 1:
            raise RuntimeError("stopped")
        bf16_machine(monkeypatch, has=step < STEPS)

    bf16_machine(monkeypatch, has=True)
    with pytest.raises(StageError, match="stopped"):
        fit(data, tmp_path, HERE, on_row=move, fixres=fixres)
    (tmp_path / "checkpoints").rename(tmp_path / "moved")
    for file in (tmp_path / "moved").glob("*/fixres.pt"):
        file.unlink()
    (tmp_path / "moved").rename(tmp_path / "checkpoints")
    tuned = fit(data, tmp_path, HERE, fixres=fixres)
    assert open_bundle(tuned.out).provenance["precision"] == "bf16"


def test_fine_tuning_goes_on_with_the_last_rate_of_a_step_schedule_on_clean_images() -> None:
    train_settings = {"schedule": "step", "epochs": 350, "decay_epochs": 2.4, "lr": 0.128}
    model = ModelConfig.model_validate({**MODEL, "fixres": {"image_size": 48}})
    found = fixres_config(model, TrainConfig.model_validate(train_settings))
    assert found is not None
    assert found[1].lr == pytest.approx(0.128 * 0.97**145)
    mixed = {**train_settings, "noise": {"mixup": 0.2, "cutmix": 1.0}}
    found = fixres_config(model, TrainConfig.model_validate(mixed))
    assert found is not None
    assert found[1].noise.live("labeled") == "dropout 0.2, stochastic depth 0.2"
    with pytest.raises(ConfigError, match=r"fixres\.lr must be set: a cosine schedule"):
        fixres_config(model, TrainConfig(schedule="cosine"))
