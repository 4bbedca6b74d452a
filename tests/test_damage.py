"""Files that a disk, a crash or a copy has damaged: noticed, set aside, and made again."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import typer
from tiny import flat_folder, folder_per_class, settings

from ns_ray import report, store
from ns_ray.api import execute
from ns_ray.commands.door import door
from ns_ray.compute.resources import Machine
from ns_ray.config.run import RunConfig
from ns_ray.config.validation import validate
from ns_ray.errors import DamagedFileError, DataError
from ns_ray.planning.status import run_status
from ns_ray.store.labels import open_labels, open_selection
from ns_ray.training.checkpoints import Checkpoints

Spoil = Callable[[bytes], bytes]


def flipped(data: bytes) -> bytes:
    """Three bytes in the middle are others."""
    at = len(data) // 2
    return data[:at] + bytes(byte ^ 0xFF for byte in data[at : at + 3]) + data[at + 3 :]


SPOILED: dict[str, Spoil] = {
    "cut": lambda data: data[: len(data) * 2 // 3],
    "emptied": lambda data: b"",
    "flipped": flipped,
}


def table(rows: int = 60) -> pa.Table:
    keys = [f"key-{i}" for i in range(rows)]
    images = [hashlib.sha512(bytes([i])).digest() * 4 for i in range(rows)]
    return pa.table({"key": keys, "image": pa.array(images, pa.binary()), "n": range(rows)})


# ------------------------------------------------------------------------------------ single files


def test_no_byte_of_a_table_changes_unnoticed(tmp_path: Path) -> None:
    path, made = f"{tmp_path}/x.parquet", table()
    store.write_table(path, made, 20)
    data = Path(path).read_bytes()
    noticed = 0
    places = range(0, len(data), 211)
    for at in places:
        Path(path).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        try:
            assert store.read_table(path).equals(made), at  # what no reader looks at
        except DamagedFileError:
            noticed += 1
    assert noticed > 0.7 * len(places)


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_all_readers_notice(tmp_path: Path, spoil: Spoil) -> None:
    path = f"{tmp_path}/x.parquet"
    store.write_table(path, table(), 20)

    def bit_by_bit(path: str) -> None:
        with store.open_table(path) as file:
            for group in range(file.num_row_groups):
                file.read_row_group(group)

    Path(path).write_bytes(spoil(Path(path).read_bytes()))
    readers: list[Callable[[str], Any]] = [
        store.read_table,
        lambda path: store.read_rows(path, "key", ["key-1", "key-21", "key-41"], ["image", "n"]),
        lambda path: store.read_first(path, 60, ["key", "image", "n"]),
        bit_by_bit,
    ]
    for read in readers:
        with pytest.raises(DamagedFileError, match=r"x\.parquet is damaged"):
            read(path)


def test_the_keys_of_damaged_rows_are_named(tmp_path: Path) -> None:
    path = f"{tmp_path}/x.parquet"
    store.write_table(path, table(), 20)
    data = bytearray(Path(path).read_bytes())
    with store.open_table(path) as file:
        column = file.metadata.row_group(1).column(1)
    data[column.dictionary_page_offset + column.total_compressed_size // 2] ^= 1
    Path(path).write_bytes(data)
    assert store.read_table(path, ["key"]).num_rows == 60, "other columns can be read"
    with pytest.raises(DamagedFileError, match=r"rows 20 to 39, keys 'key-20' to 'key-39'"):
        store.read_table(path)


@pytest.mark.parametrize(
    "spoil", [*SPOILED.values(), lambda data: data.replace(b"12", b"13")], ids=[*SPOILED, "digit"]
)
def test_a_damaged_done_file_is_none(
    tmp_path: Path, spoil: Spoil, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path)
    # Seconds that round to 0.0, but are 0.1 when they are rounded twice.
    said = store.publish(
        out, stage="x", fingerprint="f", files=[], facts={"rows": 12}, inputs={}, seconds=0.04996
    )
    assert store.published(out) == said
    path = tmp_path / store.DONE
    path.write_bytes(spoil(path.read_bytes()))
    assert store.published(out) is None
    assert f"{store.DONE} is damaged" in capsys.readouterr().out.replace("\n", "")
    assert [one.name for one in tmp_path.iterdir()] == [f"{store.DONE}.damaged"]


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_the_checkpoint_before_a_damaged_one_is_taken(tmp_path: Path, spoil: Spoil) -> None:
    cpu, path = torch.device("cpu"), f"{tmp_path}/last.pt"
    saved = Checkpoints(path)
    assert saved.read(cpu) == (None, [])
    for step in (1, 2, 3):
        saved.write({"step": step, "model": {"w": torch.full((100,), float(step))}})
    assert len(list(tmp_path.iterdir())) == 2
    state, said = Checkpoints(path).read(cpu)
    assert (state and state["step"], said) == (3, [])
    Path(path).write_bytes(spoil(Path(path).read_bytes()))  # the first and the third
    again = Checkpoints(path)
    state, said = again.read(cpu)
    assert state is not None
    assert (state["step"], state["model"]["w"].tolist()) == (2, [2.0] * 100)
    assert len(said) == 1
    assert "last.pt is damaged" in said[0]
    again.write({"step": 4})
    assert {one.name for one in tmp_path.iterdir()} == {"last.pt", "last-2.pt", "last.pt.damaged"}
    for one in tmp_path.glob("*.pt"):
        one.write_bytes(spoil(one.read_bytes()))
    state, said = Checkpoints(path).read(cpu)
    assert state is None
    assert len(said) == 2


def test_only_files_of_the_run_are_set_aside_and_once(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    mine, theirs = tmp_path / "run" / "a.parquet", tmp_path / "a.parquet"
    for path in (mine, theirs, tmp_path / "run" / "result.json"):
        path.write_bytes(b"x")
    mending = store.Mending(f"{tmp_path}/run")
    with pytest.raises(DamagedFileError):
        mending.mend(DamagedFileError(str(theirs), "spoiled"))
    mending.mend(DamagedFileError(str(mine), "spoiled"))
    assert {one.name for one in tmp_path.rglob("*")} == {"run", "a.parquet", "a.parquet.damaged"}
    mine.write_bytes(b"x")
    with pytest.raises(DamagedFileError):
        mending.mend(DamagedFileError(str(mine), "spoiled"))


def test_what_cannot_be_made_again_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = validate(RunConfig, settings({"storage": str(tmp_path), **SOURCES}))
    shard = tmp_path / "tiny" / "corpora" / "unlabeled" / "shard-00000.parquet"
    met = [DamagedFileError(str(shard), "rows 0 to 9, keys 'a' to 'b'"), DataError("no folder x")]

    def work(*_: object) -> None:
        shard.parent.mkdir(parents=True, exist_ok=True)
        shard.write_bytes(b"")
        raise met.pop(0)

    monkeypatch.setattr("ns_ray.api.whole._work", work)
    says = (
        r"shard-00000\.parquet is damaged: .*keys 'a' to 'b'; it cannot be made again: no folder x"
    )
    with pytest.raises(DataError, match=says):
        execute(config)
    assert not met


def test_a_command_makes_its_own_damaged_files_again(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "out" / "a.parquet", tmp_path / "labels" / "a.parquet"
    for path in (mine, theirs):
        path.parent.mkdir()
        path.write_bytes(b"x")
        (path.parent / store.DONE).write_text("{}")

    def command(out: str) -> None:
        for path in (mine, theirs):
            if path.exists():
                raise DamagedFileError(str(path), "spoiled")

    with pytest.raises(typer.Exit) as ended:
        door(command)(out=str(tmp_path / "out"))
    assert ended.value.exit_code == DataError.exit_code
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")} == {
        *("out/a.parquet.damaged", "labels/a.parquet", f"labels/{store.DONE}")
    }


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_damaged_config_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Spoil
) -> None:
    config = validate(RunConfig, settings({"storage": str(tmp_path), **SOURCES}))
    monkeypatch.setattr("ns_ray.api.whole._work", lambda *_: {"status": "done"})
    monkeypatch.setattr("ns_ray.api.whole.show", lambda *_: None)
    path = tmp_path / "tiny" / "config.yaml"
    assert execute(config)["status"] == "done"
    whole = path.read_bytes()
    path.write_bytes(spoil(whole))
    assert execute(config)["status"] == "done"
    assert path.read_bytes() == whole


# -------------------------------------------------------------------------------------- whole runs

SOURCES: dict[str, Any] = {"data.labeled": "labeled", "data.unlabeled": ["pile"]}

HALF = ["result.json", "model", "gen-01/bundle", "gen-01/evaluation", "gen-01/evaluation.json"]
"""What a run lacks that was killed while its student was trained."""

KINDS = [
    "config.yaml",
    "result.json",
    "model/model.safetensors",
    "model/config.json",
    "model/_DONE.json",
    "corpora/unlabeled/shard-00000*.parquet",
    "corpora/labeled/shard-00000*.parquet",
    "corpora/labeled/manifest.json",
    "corpora/labeled/_DONE.json",
    "gen-00/bundle/model.safetensors",
    "gen-00/bundle/config.json",
    "gen-00/bundle/ns_ray.json",
    "gen-00/bundle/_DONE.json",
    "gen-00/evaluation.json",
    "gen-00/evaluation/validation/shard-00000*.parquet",
    "gen-00/evaluation/validation/_DONE.json",
    "gen-01/pseudo_labels/shard-00001*.parquet",
    "gen-01/pseudo_labels/_DONE.json",
    "gen-01/selection/shard-00001*.parquet",
    "gen-01/selection/_DONE.json",
    "gen-01/checkpoints/*/last.pt",
]


READ = ("corpora/unlabeled/shard", "corpora/labeled/shard", "gen-01/selection/shard")
"""What the training of a student reads."""


@contextmanager
def no_cluster(*_: object) -> Iterator[Machine]:
    yield Machine(cpus=2, gpus=0, local=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunConfig, Path]]:
    """A run's settings, and a copy of what it left."""
    folder = tmp_path_factory.mktemp("damage")
    changes = {
        "storage": f"{folder}/runs",
        "data.labeled": str(folder_per_class(folder / "labeled", 16)),
        "data.unlabeled": [str(flat_folder(folder / "pile", 80, start=500))],
        "data.validation_size": 15,
        "train.epochs": 2,
        "train.calibrate": False,
        "label.teachers": 1,
        "resources.loaders": 0,
    }
    config = validate(RunConfig, settings(changes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ns_ray.compute.cluster", no_cluster)
        assert execute(config)["generations"]
        shutil.copytree(folder / "runs" / "tiny", folder / "kept")
        yield config, folder / "kept"


def restore(kept: Path, root: Path, without: Sequence[str]) -> None:
    """Put a copy of a run in its place, or somewhere else."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(kept, root)
    for name in without:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def verdict(root: Path) -> dict[str, Any]:
    """What a run has found, without how long it took."""
    found = json.loads((root / "result.json").read_text())
    rows = ("val_top1", "accepted", "pseudo_labels", "scores")
    return {
        "best": found["best_generation"],
        "rows": [[row[name] for name in rows] for row in found["generations"]],
        "hash": found["config_hash"],
    }


def cases() -> Iterator[Any]:
    """Every damage of every kind of file of a finished run and of a half one. That has a student to
    train: trials, but for one damage of each kind of file, and all of what the training reads."""
    for i, kind in enumerate(KINDS):
        for j, how in enumerate(SPOILED):
            yield pytest.param(kind, how, False)
            often = kind.startswith(READ) or (i + j) % len(SPOILED) == 0
            yield pytest.param(kind, how, True, marks=[] if often else pytest.mark.trial)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "how", "half"), list(cases()))
def test_a_run_with_a_damaged_file_ends_as_ever(
    made: tuple[RunConfig, Path], kind: str, how: str, half: bool
) -> None:
    (config, kept), spoil = made, SPOILED[how]
    root = Path(config.storage) / config.name
    restore(kept, root, HALF if half else [])
    for path in root.glob(kind):
        path.write_bytes(spoil(path.read_bytes()))
    assert execute(config)["generations"]
    assert verdict(root) == verdict(kept)
    if half and kind.startswith(READ):
        for path in kept.glob(kind):
            assert (root / path.relative_to(kept)).read_bytes() == path.read_bytes()
            assert (
                list((root / path.relative_to(kept)).parent.glob("*.damaged")) or "corpora" in kind
            )
    assert execute(config)["generations"], "and again"
    store.check_bundle(f"{root}/model")


def files_with(root: Path, text: str) -> list[str]:
    """Files of a run that name a place, but for its settings and Ray's log."""
    return [
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and path.name not in ("config.yaml", "ray.log")
        if text.encode() in path.read_bytes()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True], ids=["finished", "half"])
def test_a_copied_run_is_a_run(
    made: tuple[RunConfig, Path], half: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, kept = made
    original, copy = Path(config.storage) / config.name, tmp_path / config.name
    assert files_with(kept, str(original)) == []
    restore(kept, copy, HALF if half else [])
    shutil.rmtree(original, ignore_errors=True)
    before = (copy / "config.yaml").read_text().partition("chosen:")[2]
    there = config.model_copy(update={"storage": str(tmp_path)})
    published = {path: path.stat().st_mtime_ns for path in copy.rglob(store.DONE)}
    assert execute(there)["generations"]
    assert verdict(copy) == verdict(kept)
    assert {path: path.stat().st_mtime_ns for path in published} == published, "nothing done again"
    assert (copy / "config.yaml").read_text().partition("chosen:")[2] == before
    assert not original.exists()
    labels = open_selection(f"{copy}/gen-01/selection").labels
    assert labels == f"{copy}/gen-01/pseudo_labels"
    assert open_labels(labels).corpus == f"{copy}/corpora/unlabeled"
    capsys.readouterr()
    assert report.write(str(copy)) == f"{copy}/report.html"
    assert run_status(there).verdict.startswith("finished")
