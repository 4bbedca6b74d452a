"""Files that are wrong end in one line that names them: some rounds of the fuzzer, and what it has
found."""

import json
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mutations as wrong
import pyarrow as pa
import pytest
import reported
import torch
import yaml
from fuzz_files import FINE, limits, restore, rounds, seal
from opened import KINDS, Kind, make_world, use_checkpoint
from typer.testing import CliRunner

from ns_ray import store
from ns_ray.commands import app
from ns_ray.config.loading import chosen_in, load_config, parse, recorded, set_value
from ns_ray.errors import ConfigError, DamagedFileError, DataError
from ns_ray.model.bundle import load
from ns_ray.store import open_bundle, open_corpus, open_labels, open_selection

ROUNDS = 10


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder whose files go wrong, and a copy of it."""
    folder = tmp_path_factory.mktemp("fuzz")
    root = make_world(folder / "world")
    return root, Path(shutil.copytree(root, folder / "kept", copy_function=shutil.copy2))


@pytest.fixture
def world(made: tuple[Path, Path]) -> Iterator[Path]:
    """That folder, put right again after a test."""
    root, kept = made
    yield root
    restore(kept, root)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_wrong_file_is_used_rightly_or_refused_in_a_line(
    made: tuple[Path, Path], name: str
) -> None:
    root, kept = made
    with limits():
        found = list(rounds(root, name, 2 if "reported" in name else ROUNDS, 1, kept))
    assert [one for one in found if one[2] not in FINE] == []


def test_the_judge_sees_what_must_not_be(
    made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, kept = made

    def of(opened: Callable[[Path], Any]) -> set[str]:
        kind = Kind("made/model/ns_ray.json", opened, KINDS["owner"].forged)
        monkeypatch.setitem(KINDS, "tried", kind)
        with limits():
            return {outcome for _, _, outcome, _ in rounds(root, "tried", 4, 1, kept)}

    def fails(root: Path) -> None:
        if (root / "made/model/ns_ray.json").read_bytes() != original:
            raise KeyError("x")

    def nameless(root: Path) -> None:
        if (root / "made/model/ns_ray.json").read_bytes() != original:
            raise DataError("something is wrong")

    original = (kept / "made/model/ns_ray.json").read_bytes()
    assert of(fails) == {"KeyError"}
    assert of(nameless) == {"names no file"}
    assert "differs" in of(lambda root: (root / "made/model/ns_ray.json").read_bytes())


# -------------------------------------------------------------------------------------------- YAML

MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12)
)

SETTINGS = "name: x\ndata: {labeled: x"

BOMBS = {
    "lists": (wrong.bomb(10, 12), "stand for more than 1,000,000 values"),
    "mappings": (wrong.bomb(10, 12, "dict"), "stand for more than 1,000,000 values"),
    "merged": (MERGED, "stand for more than 1,000,000 values"),
    "circle": ("name: &n [*n]", "contains itself"),
    "deep": (f"name: {'[' * 2000}", "nested too deeply"),
    "date": ("name: 2001-99-99", "month must be in"),
    "digits": (f"name: 1{'0' * 5000}", "limit"),
    "tag": ("name: !!timestamp x", "not valid YAML"),
    "key": ("teacher: {1: 2}", "key 1 must be text"),
}


@pytest.mark.parametrize(("text", "says"), BOMBS.values(), ids=BOMBS)
def test_yaml_that_explodes_is_a_config_error(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with limits(), pytest.raises(ConfigError, match=says) as caught:
        load_config(path)
    assert len(str(caught.value).splitlines()) == 1
    assert recorded(text.encode()) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_aliases_that_are_few_are_as_good_as_ever() -> None:
    text = f"{SETTINGS}, unlabeled: [y]}}\nteacher: &m {{model: a}}\nstudents: [*m, *m]"
    assert [one.model for one in parse(text).students] == ["a", "a"]


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_what_is_no_number_is_no_setting(value: str) -> None:
    text = f"{SETTINGS}}}\nteacher: {{model: a}}\ntrain: {{lr: {value}}}"
    with pytest.raises(ConfigError, match=r"train\.lr=.*finite"):
        parse(text)


def test_an_override_that_explodes_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"--set 'a=.*nested too deeply"):
        set_value({}, f"a={'[' * 2000}")


@pytest.mark.parametrize("chosen", ["5", "[1]", "{teacher: 3}"])
def test_what_a_run_has_chosen_is_a_mapping_or_nothing(chosen: str) -> None:
    assert chosen_in(f"chosen: {chosen}".encode()) == {}


# ------------------------------------------------------------------------------------ JSON, folders


def test_a_listed_file_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    out = tmp_path / "out"
    made: dict[str, Any] = {
        "stage": "x",
        "fingerprint": "f",
        "facts": {},
        "inputs": {},
        "seconds": 1.0,
    }
    store.publish(str(out), files=[], **made)
    plain = json.loads((out / store.DONE).read_text())
    del plain["checksum"]
    (out / store.DONE).write_text(json.dumps({**plain, "files": ["../mine"]}))
    store.publish(str(out), files=[], **made)
    assert (tmp_path / "mine").read_text() == "precious"


def test_pointers_in_a_circle_are_a_data_error(tmp_path: Path) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        store.write_json(f"{tmp_path}/{one}/pointer.json", {"corpus": f"{tmp_path}/{other}"})
    with pytest.raises(DamagedFileError, match=r"pointer\.json is damaged: it leads to"):
        open_corpus(f"{tmp_path}/a")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_classes": 10**12, "label_names": None}, "less than or equal to 10000000"),
        ({"label_names": [f"{i}" for i in range(5)]}, "a model of 3 classes, 5 by its config"),
        ({"num_classes": None, "label_names": "abc"}, "label_names 'abc'"),
        ({"pretrained_cfg": {"std": [0, 0, 0]}}, "images cannot be prepared"),
    ],
    ids=["many", "other", "text", "std"],
)
def test_a_bundle_that_cannot_be_right_is_refused(
    world: Path, change: dict[str, Any], says: str
) -> None:
    path = world / "made/model/config.json"
    plain = json.loads(path.read_text())
    cfg = plain["pretrained_cfg"] | change.get("pretrained_cfg", {}) | {"label_names": None}
    path.write_text(json.dumps({**plain, **change, "pretrained_cfg": cfg}))
    seal(path)
    with limits(), pytest.raises(DataError, match=says):
        load(open_bundle(f"{world}/made/model"))


def test_weights_that_promise_too_much_are_refused(world: Path) -> None:
    path = world / "made/model/model.safetensors"
    data = path.read_bytes()
    for length in (0, 2**32, 2**63 - 1):
        path.write_bytes(struct.pack("<Q", length) + data[8:])
        seal(path)
        with limits(), pytest.raises(DataError, match=r"timm cannot load .*/made/model"):
            load(open_bundle(f"{world}/made/model"))


# ------------------------------------------------------------------------------ tables, checkpoints


def changed(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Write a table anew, by a program that is wrong."""
    store.write_table(str(path), change(store.read_table(str(path))))


def twice(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(0, 1), table.slice(0, table.num_rows - 1)])


def valued(name: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        at, kind = table.column_names.index(name), table.schema.field(name).type
        return table.set_column(at, name, pa.array([value] * table.num_rows, kind))

    return change


CORPUS, LABELS = "corpora/test", "gen-01/pseudo_labels"
SELECTION, PREDICTIONS = "gen-01/selection", "gen-01/evaluation/test"

TABLES: dict[str, tuple[str, Callable[[pa.Table], pa.Table], str]] = {
    "fewer images": (CORPUS, lambda t: t.slice(1), "19 rows, and 20 by its manifest"),
    "image without its key": (CORPUS, valued("key", None), "column 'key' are missing"),
    "images without labels": (CORPUS, lambda t: t.drop_columns(["label"]), "no column 'label'"),
    "labels as text": (
        CORPUS,
        lambda t: t.set_column(2, "label", pa.array(["1"] * t.num_rows)),
        "column 'label' is string, not int32",
    ),
    "a label that is none": (CORPUS, valued("label", 3), "label 3, and there are 3 classes"),
    "a label below 0": (CORPUS, valued("label", -1), "column 'label' has values below 0"),
    "other classes": (LABELS, valued("probs", [0.5, 0.5, 0.0]), ""),
    "no probabilities": (LABELS, lambda t: t.drop_columns(["probs"]), "has no probabilities"),
    "not a number": (LABELS, valued("probs", [float("nan")] * 3), "probabilities that are none"),
    "copies": (SELECTION, valued("copies", 2**30), "by _DONE"),
    "a class that is none": (SELECTION, valued("label", 7), "label 7, and there are 3 classes"),
    "a key twice": (PREDICTIONS, twice, "has a key twice"),
    "another's keys": (PREDICTIONS, valued("key", "x"), "key 'x', which its corpus shard lacks"),
}


@pytest.mark.parametrize(("place", "change", "says"), TABLES.values(), ids=TABLES)
def test_a_table_of_a_wrong_program_is_named(
    world: Path, place: str, change: Callable[[pa.Table], pa.Table], says: str
) -> None:
    path = next((world / "made" / place).glob("shard-00000.*.parquet"))
    changed(path, change)
    corpus = open_corpus(f"{world}/made/{CORPUS}")

    def read() -> None:
        if place == CORPUS:
            list(corpus.scan(["key", "label"]))
        elif place == LABELS:
            labels = open_labels(f"{world}/made/{LABELS}")
            store.dense_probs(labels.read("shard-00000"), 3, str(path))
        elif place == SELECTION:
            open_selection(f"{world}/made/{SELECTION}").read("shard-00000")
        else:
            store.read_predictions(f"{world}/made/{PREDICTIONS}", corpus)

    if not says:  # other numbers, but such as may be
        read()
        return
    with pytest.raises(DamagedFileError, match=says) as caught:
        read()
    assert caught.value.path == str(path)


def test_nothing_is_taken_of_a_checkpoint_that_does_not_fit(world: Path) -> None:
    path = world / "checkpoints/last.pt"
    right = use_checkpoint(world)
    assert right[0] == 2
    for part, name in (("ema", "fc.weight"), ("optimizer", "param_groups"), ("model", "fc.bias")):
        state = torch.load(path, weights_only=True)
        state["model"] = {key: tensor + 1 for key, tensor in state["model"].items()}
        state[part][name] = torch.zeros(7) if part != "optimizer" else []
        broken = path.with_name("last-2.pt")
        torch.save(state, broken)  # the newer of the two
        assert use_checkpoint(world) == right
        assert broken.with_name("last-2.pt.damaged").exists()


# ------------------------------------------------------------------------------------------- verbs


def test_verbs_say_it_in_a_line(world: Path, tmp_path: Path) -> None:
    config = tmp_path / "made.yaml"
    settings = reported.config(world, "made").model_dump(mode="json")
    config.write_text(yaml.safe_dump(settings))
    run = world / "made"
    (run / "result.json").write_text('{"config_hash": 1, "generations": 7}')
    path = next((run / "gen-01/pseudo_labels").glob("shard-00000.*"))
    changed(path, lambda table: table.drop_columns(["confidence"]))
    asked = [
        (["report", str(run)], 3, "result.json is damaged: name: Field required"),
        (["status", "--config", str(config)], 0, "continues it"),
        (
            ["select", "--labels", f"{run}/gen-01/pseudo_labels", "--out", f"{tmp_path}/chosen"],
            3,
            f"{path.name} is damaged: it is no Parquet file as it was written: it has no column",
        ),
    ]
    for arguments, code, says in asked:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == code, done.output
        assert says in " ".join(done.output.split())
        assert "Traceback" not in done.output
