"""How foreign images of the pile are: from the teacher's features to the student's images."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from reported import CLASSES, PILE, answers, keys_of, write_run
from tiny import COLORS, MODEL, flat_folder, folder_per_class

import ns_ray
from ns_ray import report, store
from ns_ray.compute.resources import Pool
from ns_ray.config.labeling import LabelConfig, PredictConfig, SelectConfig
from ns_ray.config.training import ModelConfig
from ns_ray.data.images import encode_png
from ns_ray.data.packing import pack
from ns_ray.errors import ConfigError, DataError
from ns_ray.labeling.foreign import FEWEST, scale_of
from ns_ray.labeling.stage import pseudo_label
from ns_ray.model import bundle
from ns_ray.model.networks import build
from ns_ray.report.facts import open_run
from ns_ray.report.gallery import of_run
from ns_ray.selection.stage import select
from ns_ray.store.bundles import Bundle
from ns_ray.store.corpora import Corpus
from ns_ray.store.labels import PseudoLabels, Selection, open_labels
from ns_ray.store.layout import RunLayout
from ns_ray.store.schema import labels_schema, labels_table, part_name

HERE = Pool(actors=1, cpus=1.0, gpus=0.0, in_process=True)
OWN, OTHER = 30, 10


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(1)
    model = build(ModelConfig.model_validate(MODEL), len(COLORS))
    out = tmp_path_factory.mktemp("teacher") / "bundle"
    return bundle.save(model, str(out), classes=list(COLORS), fingerprint="t", provenance={})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Corpus]:
    """Colors, labeled and held out; and a pile of which a quarter are stripes."""
    folder = tmp_path_factory.mktemp("images")
    pile = flat_folder(folder / "own", OWN, start=500)
    for i in range(OTHER):
        stripes = np.zeros((16, 16, 3), np.uint8)
        stripes[:, i % 2 :: 2] = 255 - i
        (pile / f"stripes-{i}.png").write_bytes(encode_png(stripes))
    sources = {
        "labeled": folder_per_class(folder / "labeled", 20),
        "held out": folder_per_class(folder / "held out", 20, start=100),
        "few": folder_per_class(folder / "few", FEWEST // 4, start=200),
    }
    found = {name: pack(str(place), out=f"{place}-packed") for name, place in sources.items()}
    return found | {"pile": pack(str(pile), out=f"{pile}-packed", classes=(), rows_per_shard=25)}


def label(
    teacher: Bundle, images: dict[str, Corpus], out: Path, *known: str, **more: Any
) -> PseudoLabels:
    told: Any = tuple(images[name] for name in known) or None
    config, pile = LabelConfig(batch_size=8), images["pile"]
    return pseudo_label(
        config, teacher, pile, pool=HERE, out=str(out), title="label", known=told, **more
    )


def columns(labels: PseudoLabels, *names: str) -> dict[str, Any]:
    """Key -> values of some columns."""
    tables = [labels.read(shard, ["key", *names]) for shard in labels.files]
    rows = pa.concat_tables(tables).to_pylist()
    return {row.pop("key"): row for row in rows}


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("named", ["", "/model/"])
def test_labels_of_any_images_say_what_is_foreign_to_a_run(
    teacher: Bundle,
    images: dict[str, Corpus],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    named: str,
) -> None:
    run = RunLayout(str(tmp_path / "run"))
    shutil.copytree(teacher.path, run.model)
    for place, source in (("labeled", "labeled"), ("validation", "held out")):
        shutil.copytree(images[source].path, run.corpus(place))
    labels = ns_ray.label(f"{run.root}{named}", images["pile"].path, out=tmp_path / "labels")
    table = labels.dataset().to_table()
    above = sum(value > 1 for value in table["foreign"].to_pylist())
    assert f"label: {above / len(table):.1%} of the pile is foreign" in capsys.readouterr().out
    stripes = [row["foreign"] for row in table.to_pylist() if "stripes" in row["key"]]
    assert min(stripes) > 1


@pytest.mark.usefixtures("without_ray")
def test_a_run_whose_images_are_gone_labels_all_the_same(
    teacher: Bundle, images: dict[str, Corpus], tmp_path: Path
) -> None:
    run = RunLayout(str(tmp_path / "run"))
    shutil.copytree(teacher.path, run.model)
    assert not ns_ray.label(run.root, images["pile"].path, out=tmp_path / "labels").foreign


@pytest.mark.parametrize("runtime", ["torch", pytest.param("openvino", marks=pytest.mark.slow)])
def test_labels_say_how_foreign_each_image_is(
    teacher: Bundle, images: dict[str, Corpus], tmp_path: Path, runtime: Any
) -> None:
    predict = PredictConfig(runtime=runtime, precision="fp32")
    labels = label(teacher, images, tmp_path / "a", "labeled", "held out", predict=predict)
    plain = label(teacher, images, tmp_path / "b", predict=predict)
    foreign = {key: row["foreign"] for key, row in columns(labels, "foreign").items()}
    other = [value for key, value in foreign.items() if "stripes" in key]
    own = [value for key, value in foreign.items() if "stripes" not in key]
    assert (len(other), len(own)) == (OTHER, OWN)
    assert min(other) > 1
    assert np.mean(np.array(own) > 1) < 0.3
    assert abs(np.median(own)) < 0.7
    # All else is as it is without.
    assert (labels.foreign, plain.foreign) == (True, False)
    assert labels.fingerprint != plain.fingerprint
    shard = next(iter(plain.files))
    assert plain.read(shard).schema.equals(labels_schema(len(COLORS), None))
    said, before = (columns(x, "probs", "label", "confidence") for x in (labels, plain))
    for key, row in said.items():
        assert row["label"] == before[key]["label"]
        np.testing.assert_allclose(row["probs"], before[key]["probs"], atol=1e-3)
        assert row["confidence"] == pytest.approx(before[key]["confidence"], abs=1e-4)


def test_labels_of_earlier_versions_stay(
    teacher: Bundle, images: dict[str, Corpus], tmp_path: Path
) -> None:
    before = label(teacher, images, tmp_path / "labels")
    again = label(teacher, images, tmp_path / "labels", "labeled", "held out")
    assert again == before
    assert not again.foreign


def test_nothing_is_said_where_it_cannot_be_told(
    teacher: Bundle, images: dict[str, Corpus], tmp_path: Path
) -> None:
    labels = label(teacher, images, tmp_path / "labels", "labeled", "few")
    assert not labels.foreign
    with pytest.raises(ConfigError, match=r"select\.max_foreign=1\.0: .* 20 validation images"):
        select(SelectConfig(max_foreign=1), labels, seed=0, out=str(tmp_path / "out"))


def test_several_teachers_say_the_mean(
    teacher: Bundle, images: dict[str, Corpus], tmp_path: Path
) -> None:
    known = ("labeled", "held out")
    alone = label(teacher, images, tmp_path / "a", *known)
    twice = label(teacher, images, tmp_path / "b", *known, others=[teacher])
    said, before = columns(twice, "foreign"), columns(alone, "foreign")
    for key, row in said.items():
        assert row["foreign"] == pytest.approx(before[key]["foreign"], abs=1e-3)


def test_one_is_the_limit_of_held_out_images() -> None:
    nearness = -(np.random.default_rng(0).random(1000).astype(np.float32) ** 2)
    scale = scale_of(nearness)
    assert scale is not None
    foreign = scale.foreign(nearness)
    assert np.mean(foreign > 1) == pytest.approx(0.05, abs=0.001)
    assert np.median(foreign) == pytest.approx(0, abs=1e-6)
    assert scale_of(nearness[: FEWEST - 1]) is None
    alike = scale_of(np.full(50, -0.5, np.float32))
    assert alike is not None
    assert np.isfinite(alike.foreign(nearness)).all()


# ------------------------------------------------------------------------------- selection


def written(folder: Path, probs: Any, foreign: Any) -> PseudoLabels:
    """Published pseudo-labels in two shards; row i has the key `image-i`."""
    names = []
    for index, rows in enumerate(np.array_split(np.arange(len(probs)), 2)):
        keys, shard = pa.array([f"image-{row}" for row in rows]), f"shard-{index:05d}"
        part = None if foreign is None else foreign[rows].astype(np.float32)
        names.append(part_name(shard, "f" * 12))
        table = labels_table(keys, probs[rows], shard, None, part)
        store.write_table(str(folder / names[-1]), table)
    facts: dict[str, Any] = {"corpus": "corpus", "classes": CLASSES, "rows": len(probs)}
    facts |= {} if foreign is None else {"foreign": True}
    store.publish(
        str(folder), stage="label", fingerprint=folder.name, files=names, facts=facts, inputs={},
        seconds=0,
    )  # fmt: skip
    return open_labels(str(folder))


def copies(chosen: Selection) -> dict[str, int]:
    rows = pa.concat_tables([chosen.read(shard) for shard in chosen.files]).to_pylist()
    return {row["key"]: row["copies"] for row in rows}


def test_foreign_images_are_never_copied_and_left_out_on_demand(tmp_path: Path) -> None:
    """Of 90 images, the last class is rare: it is filled up with copies, but not of these."""
    labels = np.repeat([0, 1, 2], [40, 40, 10])
    probs = np.full((90, 3), 0.05, np.float32)
    probs[np.arange(90), labels] = 0.9
    foreign = np.where(np.arange(90) % 2, 1.5, 0.5)
    foreign[88] = 1.0  # the limit itself is not foreign
    told, untold = written(tmp_path / "told", probs, foreign), written(tmp_path / "un", probs, None)
    config = SelectConfig(per_class=30)
    plain = copies(select(config, untold, seed=0, out=str(tmp_path / "a")))
    chosen = select(config, told, seed=0, out=str(tmp_path / "b"))
    found = copies(chosen)
    assert found.keys() == plain.keys()
    for key, count in plain.items():
        is_foreign = foreign[int(key.removeprefix("image-"))] > 1
        assert found[key] == (min(count, 1) if is_foreign else count)
    assert plain["image-89"] > found["image-89"] == 1
    assert found["image-88"] > 1
    facts = chosen.facts["foreign"]
    assert (facts["rows"], facts["of"], facts["expected"]) == (45, 90, 0.05)
    assert facts["least"] == pytest.approx((0.5 - 0.05) / 0.95)
    assert sum(facts["histogram"]) == 90
    assert sum(facts["histogram"][20:]) == 45
    without = select(
        SelectConfig(per_class=30, max_foreign=1), told, seed=0, out=str(tmp_path / "c")
    )
    rows = {int(key.removeprefix("image-")) for key in copies(without)}
    assert rows == {i for i in range(90) if foreign[i] <= 1}
    assert without.facts["foreign"] == facts


def test_a_score_that_is_no_number_is_told(tmp_path: Path) -> None:
    foreign = np.full(6, 0.5)
    foreign[3] = np.nan
    labels = written(tmp_path / "labels", answers(6, 0), foreign)
    with pytest.raises(DataError, match="how foreign it is"):
        select(SelectConfig(), labels, seed=0, out=str(tmp_path / "out"))


def test_most_of_the_pile_is_foreign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The log and the report say so, and show the images."""
    root = write_run(tmp_path)
    layout = RunLayout(str(root))
    out = Path(layout.pseudo_labels(2))
    foreign = np.linspace(-1, 3, PILE)
    probs = answers(PILE, 3, np.linspace(0.36, 0.96, PILE))
    keys = keys_of("unlabeled", PILE)
    for n, rows in enumerate(np.array_split(np.arange(PILE), 2)):
        shard = f"shard-{n:05d}"
        part = foreign[rows].astype(np.float32) + 0.5
        table = labels_table(pa.array([keys[i] for i in rows]), probs[rows], shard, None, part)
        store.write_table(str(out / part_name(shard, "f" * 12)), table)
    done = store.published(str(out))
    assert done is not None
    store.publish(
        str(out), stage="label", fingerprint="g" * 12, files=done.files,
        facts={**done.facts, "foreign": True}, inputs={}, seconds=2.0,
    )  # fmt: skip
    config = SelectConfig(threshold=0.5, per_class=12)
    select(config, open_labels(str(out)), seed=0, labeled_counts=(4, 4, 4), out=layout.selection(2))
    assert "WARNING: most of the pile is foreign" in " ".join(capsys.readouterr().out.split())
    run = open_run(str(root))
    (most,) = [g for g in of_run(run)[0] if g.title == "Most foreign"]
    assert [p.key for p in most.pictures[:3]] == keys[:-4:-1]
    assert most.total == int((foreign + 0.5 > 1).sum())
    text = Path(report.write(str(root))).read_text()
    share = most.total / PILE
    assert text.count(f"{share:.1%} of the pile is foreign, farther from") == 2
    assert "Most of the pile is foreign" in text
