"""The selection stage over real Parquet files, in this process and in Ray tasks."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ns_ray import log, store
from ns_ray.compute import tasks
from ns_ray.config.labeling import SelectConfig
from ns_ray.errors import ConfigError, DamagedFileError, DataError
from ns_ray.selection import stage
from ns_ray.selection.printing import selection_table
from ns_ray.selection.stage import select
from ns_ray.store.corpora import Corpus, Shard
from ns_ray.store.evaluations import Evaluation
from ns_ray.store.labels import PseudoLabels, Selection, open_labels, open_selection
from ns_ray.store.schema import SELECTION, WEIGHTED_SELECTION, labels_table, part_name

CLASSES = ("cat", "dog", "emu")


def make_probs(rows: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Probabilities [rows, 3]: cats are common, emus rare, a third of the rows says 1.0."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, rows, p=[0.6, 0.3, 0.1])
    top = np.where(rng.random(rows) < 1 / 3, 1.0, 0.34 + 0.6 * rng.random(rows))
    probs = np.repeat((1 - top)[:, None] / 2, 3, axis=1)
    probs[np.arange(rows), labels] = top
    return probs.astype(np.float32)


def make_labels(
    path: Path, probs: np.ndarray[Any, Any], shards: int = 3, corpus: str = "corpus"
) -> PseudoLabels:
    """Published pseudo-labels; row i has the key `image-i`, wherever it lies."""
    folder, fingerprint = str(path), store.fingerprint(str(path), shards)
    names = []
    for index, rows in enumerate(np.array_split(np.arange(len(probs)), shards)):
        keys = pa.array([f"image-{row}" for row in rows], pa.string())
        table = labels_table(keys, probs[rows], f"shard-{index:05d}", None)
        names.append(part_name(f"shard-{index:05d}", fingerprint))
        store.write_table(store.join(folder, names[-1]), table)
    store.publish(
        folder,
        stage="label",
        fingerprint=fingerprint,
        files=names,
        facts={"corpus": corpus, "classes": CLASSES, "rows": len(probs)},
        inputs={},
        seconds=0,
    )
    return open_labels(folder)


def copies_by_key(chosen: Selection) -> dict[str, int]:
    """Key -> copies, over all shards."""
    rows = pa.concat_tables([chosen.read(shard) for shard in chosen.files]).to_pylist()
    return {row["key"]: row["copies"] for row in rows}


def test_the_same_rows_are_selected_on_any_number_of_shards(tmp_path: Path) -> None:
    probs, config = make_probs(700), SelectConfig(per_class=100)
    found = []
    for shards in (1, 3, 7):
        labels = make_labels(tmp_path / f"labels-{shards}", probs, shards)
        found.append(copies_by_key(select(config, labels, seed=5, out=str(tmp_path / f"{shards}"))))
    assert found[0] == found[1] == found[2]
    labels = make_labels(tmp_path / "labels-1", probs, 1)
    other = copies_by_key(select(config, labels, seed=6, out=str(tmp_path / "other")))
    assert other != found[0], "another seed breaks ties and draws copies otherwise"


def test_rows_and_facts(tmp_path: Path) -> None:
    probs = make_probs(1000)
    labels = make_labels(tmp_path / "labels", probs)
    config = SelectConfig(threshold=0.5, per_class=120, targets="hard", temperature=0.5)
    chosen = select(config, labels, seed=0, labeled_counts=[5, 6, 7], out=str(tmp_path / "out"))
    label, confidence = probs.argmax(axis=1), probs.max(axis=1)
    eligible = [int(((label == c) & (confidence > 0.5)).sum()) for c in range(3)]
    assert sorted(chosen.files) == ["shard-00000", "shard-00001", "shard-00002"]
    kept = [0, 0, 0]
    for shard in chosen.files:
        table = chosen.read(shard)
        assert table.schema == SELECTION
        assert set(table["shard"].to_pylist()) == {shard}
        assert chosen.counts[shard] == sum(table["copies"].to_pylist())
        for row in table.to_pylist():
            index = int(row["key"].removeprefix("image-"))
            assert row["label"] == label[index]
            assert row["confidence"] == confidence[index]
            kept[row["label"]] += 1
    assert kept == [120, 120, eligible[2]]
    assert chosen.kept == sum(kept)
    assert chosen.copies == sum(chosen.counts.values())
    rows = chosen.facts["table"]
    assert [row["class"] for row in rows] == list(CLASSES)
    assert [row["labeled"] for row in rows] == [5, 6, 7]
    assert [row["eligible"] for row in rows] == eligible
    assert [row["kept"] for row in rows] == kept
    assert rows[2]["copies"] == pytest.approx(120, rel=0.2)
    assert rows[0]["threshold"] > rows[2]["threshold"] == 0.5
    assert np.sum(chosen.facts["histogram"]) == 1000
    assert chosen.facts["targets"] == "hard"
    assert chosen.facts["temperature"] == 0.5
    assert chosen.labels == labels.path
    assert chosen.corpus == "corpus"


def test_no_balancing_keeps_all_above_the_threshold_once(tmp_path: Path) -> None:
    probs = make_probs(300)
    labels = make_labels(tmp_path / "labels", probs)
    config = SelectConfig(threshold=0.6, per_class=None)
    chosen = select(config, labels, seed=0, out=str(tmp_path / "out"))
    expected = {f"image-{i}": 1 for i in np.flatnonzero(probs.max(axis=1) > np.float32(0.6))}
    assert copies_by_key(chosen) == expected


def test_a_band_of_confidence(tmp_path: Path) -> None:
    probs = make_probs(500)
    labels = make_labels(tmp_path / "labels", probs)
    band: dict[str, Any] = {"threshold": 0.5, "max_confidence": 0.8}
    confidence = probs.max(axis=1)
    inside = (confidence > np.float32(0.5)) & (confidence <= np.float32(0.8))
    expected = {f"image-{i}" for i in np.flatnonzero(inside)}
    every = select(SelectConfig(**band, per_class=None), labels, seed=0, out=str(tmp_path / "all"))
    assert copies_by_key(every).keys() == expected
    assert every.facts["eligible"] == len(expected)
    few = select(SelectConfig(**band, per_class=10), labels, seed=0, out=str(tmp_path / "few"))
    for label in range(3):
        best = [i for i in np.flatnonzero(inside) if probs[i].argmax() == label]
        best = sorted(best, key=lambda i: -confidence[i])[:10]
        kept = {key for key in copies_by_key(few) if probs[int(key[6:])].argmax() == label}
        assert kept == {f"image-{i}" for i in best}


def test_a_share_of_the_pile_is_drawn_by_key_and_a_smaller_one_lies_inside(tmp_path: Path) -> None:
    labels = make_labels(tmp_path / "labels", make_probs(2000))
    found = []
    for share in (0.5, 0.25, 0.01):
        config = SelectConfig(threshold=0, per_class=None, share=share)
        found.append(set(copies_by_key(select(config, labels, seed=0, out=f"{tmp_path}/{share}"))))
        assert len(found[-1]) == pytest.approx(2000 * share, rel=0.1, abs=12)
    assert found[0] > found[1] > found[2]
    other = SelectConfig(threshold=0, per_class=None, share=0.5)
    again = set(copies_by_key(select(other, labels, seed=1, out=str(tmp_path / "seed"))))
    assert len(again - found[0]) > 300


def test_a_second_call_returns_what_was_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = make_labels(tmp_path / "labels", make_probs(100))
    first = select(SelectConfig(), labels, seed=0, out=str(tmp_path / "out"))
    monkeypatch.setattr(stage, "_each", None)
    assert select(SelectConfig(), labels, seed=0, out=str(tmp_path / "out")) == first
    assert open_selection(str(tmp_path / "out")) == first


def test_an_interrupted_selection_is_continued(tmp_path: Path) -> None:
    labels = make_labels(tmp_path / "labels", make_probs(300))
    out = tmp_path / "out"
    first = select(SelectConfig(), labels, seed=0, out=str(out))
    (out / "_DONE.json").unlink()
    gone, *left = [out / name for name in first.files.values()]
    gone.unlink()
    times = [file.stat().st_mtime_ns for file in left]
    second = select(SelectConfig(), labels, seed=0, out=str(out))
    assert second == first
    assert gone.exists()
    assert [file.stat().st_mtime_ns for file in left] == times, "finished files are not rewritten"


def test_a_new_selection_replaces_the_old_one(tmp_path: Path) -> None:
    labels = make_labels(tmp_path / "labels", make_probs(100))
    select(SelectConfig(), labels, seed=0, out=str(tmp_path / "out"))
    second = select(SelectConfig(per_class=3), labels, seed=0, out=str(tmp_path / "out"))
    assert sorted(second.files.values()) == store.list_files(second.path)[1:]
    assert second.kept == 9


def test_reassign_keeps_keys_and_copies_and_takes_new_labels(tmp_path: Path) -> None:
    old, new = make_probs(400, seed=0), make_probs(400, seed=1)
    config = SelectConfig(per_class=50, reassign=True)
    first = select(config, make_labels(tmp_path / "old", old), seed=0, out=str(tmp_path / "first"))
    labels = make_labels(tmp_path / "new", new)
    second = select(config, labels, seed=0, previous=first, out=str(tmp_path / "second"))
    assert copies_by_key(second) == copies_by_key(first)
    assert second.labels == labels.path
    assert (second.kept, second.copies, second.counts) == (first.kept, first.copies, first.counts)
    for shard in second.files:
        for row in second.read(shard).to_pylist():
            probs = new[int(row["key"].removeprefix("image-"))]
            assert (row["label"], row["confidence"]) == (probs.argmax(), probs.max())
    fresh = SelectConfig(per_class=50)
    third = select(fresh, labels, seed=0, previous=first, out=str(tmp_path / "third"))
    assert copies_by_key(third) != copies_by_key(first), "only with select.reassign"


def test_reassign_refuses_another_corpus(tmp_path: Path) -> None:
    probs, config = make_probs(60), SelectConfig(reassign=True)
    first = select(config, make_labels(tmp_path / "a", probs), seed=0, out=str(tmp_path / "first"))
    fewer = make_labels(tmp_path / "b", probs[:30])
    with pytest.raises(DataError, match=r"select\.reassign: key 'image-\d+' .* no pseudo-label"):
        select(config, fewer, seed=0, previous=first, out=str(tmp_path / "second"))
    other = make_labels(tmp_path / "c", probs, corpus="other")
    with pytest.raises(DataError, match=r"is of corpus, .* are of other"):
        select(config, other, seed=0, previous=first, out=str(tmp_path / "second"))


def test_nothing_above_the_threshold_names_the_setting_and_the_highest(tmp_path: Path) -> None:
    probs = np.full((20, 3), 1 / 3, np.float32)
    probs[7] = [0.2, 0.5312, 0.2688]
    labels = make_labels(tmp_path / "labels", probs)
    with pytest.raises(DataError, match=r"select\.threshold=0\.9: .* 20 rows .* 0\.5312"):
        select(SelectConfig(threshold=0.9), labels, seed=0, out=str(tmp_path / "out"))
    assert not (tmp_path / "out" / "_DONE.json").exists()


def test_unusable_labels_are_named(tmp_path: Path) -> None:
    probs = make_probs(30)
    probs[3] = np.nan
    labels = make_labels(tmp_path / "nan", probs)
    with pytest.raises(DataError, match="not a number"):
        select(SelectConfig(), labels, seed=0, out=str(tmp_path / "out"))
    labels = make_labels(tmp_path / "broken", make_probs(30))
    broken = Path(labels.path) / labels.files["shard-00001"]
    broken.write_bytes(b"PAR1")
    with pytest.raises(DamagedFileError, match=r"shard-00001\.\w+\.parquet is damaged"):
        select(SelectConfig(), labels, seed=0, out=str(tmp_path / "out"))


def test_the_table_shows_every_class_or_both_ends(tmp_path: Path) -> None:
    labels = make_labels(tmp_path / "labels", make_probs(100))
    chosen = select(SelectConfig(), labels, seed=0, out=str(tmp_path / "out"))
    with log.console.capture() as capture:
        log.console.print(selection_table(chosen))
    text = capture.get()
    assert all(name in text for name in (*CLASSES, "Pseudo-labeled", "Threshold"))
    row = chosen.facts["table"][0]
    chosen.facts["table"] = [{**row, "class": f"class-{i}", "rows": i} for i in range(100)]
    with log.console.capture() as capture:
        log.console.print(selection_table(chosen))
    text = capture.get()
    assert "class-9 " in text
    assert "80 more" in text
    assert "class-90" in text
    assert "class-50" not in text


def weights_by_key(chosen: Selection) -> dict[str, float]:
    """Key -> weight, over all shards."""
    rows = pa.concat_tables([chosen.read(shard) for shard in chosen.files]).to_pylist()
    return {row["key"]: row["weight"] for row in rows}


def test_weights_follow_the_confidences_of_the_pile(tmp_path: Path) -> None:
    probs = make_probs(900)
    confidence = probs.max(axis=1).astype(np.float64)
    config, found = SelectConfig(threshold=0.6, per_class=None, weights="soft"), []
    for shards in (1, 4):
        labels = make_labels(tmp_path / f"labels-{shards}", probs, shards)
        chosen = select(config, labels, seed=0, out=str(tmp_path / f"{shards}"))
        assert chosen.read("shard-00000").schema == WEIGHTED_SELECTION
        found.append(weights_by_key(chosen))
    assert found[0] == found[1]
    below = np.minimum(confidence - confidence.mean(), 0)
    expected = np.exp(-(below**2) / (2 * confidence.var() / 4))
    assert found[0].keys() == {f"image-{i}" for i in np.flatnonzero(confidence > 0.6)}
    for key, weight in found[0].items():
        assert weight == pytest.approx(expected[int(key[6:])], abs=1e-4)
    assert max(found[0].values()) == 1.0
    assert min(found[0].values()) < 0.7
    # Relabeled, the rows stay and their weights follow the new confidences.
    again = make_labels(tmp_path / "again", make_probs(900, seed=1), 4)
    config = config.model_copy(update={"reassign": True})
    second = select(config, again, seed=0, previous=chosen, out=str(tmp_path / "second"))
    assert weights_by_key(second).keys() == found[0].keys()
    assert weights_by_key(second) != found[0]


def test_equal_confidences_weigh_the_same(tmp_path: Path) -> None:
    labels = make_labels(tmp_path / "labels", np.full((20, 3), [0.7, 0.2, 0.1], np.float32))
    chosen = select(SelectConfig(weights="soft"), labels, seed=0, out=str(tmp_path / "out"))
    assert set(weights_by_key(chosen).values()) == {1.0}


# ------------------------------------------------------------------------- validation images


def make_scored(
    folder: Path, probs: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], shards: int = 2
) -> tuple[Evaluation, Corpus]:
    """Validation images of known classes, in an order of their own, and a teacher's predictions."""
    files, made = [], []
    for index, rows in enumerate(np.array_split(np.arange(len(probs)), shards)):
        name, keys = f"shard-{index:05d}", np.array([f"held-out-{row}" for row in rows])
        images = pa.table({"key": keys[::-1], "label": truth[rows][::-1].astype(np.int32)})
        store.write_table(str(folder / "corpus" / f"{name}.parquet"), images)
        made.append(Shard(name, f"{name}.parquet", len(rows), 1))
        files.append(part_name(name, "abcdef"))
        table = labels_table(pa.array(keys), probs[rows], name, None)
        store.write_table(str(folder / "scores" / files[-1]), table)
    scores, facts = str(folder / "scores"), {"top1": 0.9}
    store.publish(
        scores, stage="evaluate", fingerprint="s", files=files, facts=facts, inputs={}, seconds=0
    )
    corpus = Corpus(str(folder / "corpus"), "v", tuple(made), classes=CLASSES)
    return Evaluation(scores, facts, (), (), 0.0, fingerprint=f"scores of {folder.name}"), corpus


def wrong_below(
    limits: tuple[float, ...], each: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Probabilities and true classes of validation images: of the answers `c` those below the
    c-th limit are wrong."""
    top = np.tile(np.linspace(0.35, 0.99, each), 3)
    label = np.repeat(np.arange(3), each)
    probs = np.repeat((1 - top)[:, None] / 2, 3, axis=1)
    probs[np.arange(len(top)), label] = top
    right = top > np.repeat(limits, each)
    return probs.astype(np.float32), np.where(right, label, (label + 1) % 3)


def test_a_precision_gives_each_class_its_threshold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probs = make_probs(900)
    labels = make_labels(tmp_path / "labels", probs)
    scored = make_scored(tmp_path / "val", *wrong_below((0.0, 0.5, 0.8), 200))
    config = SelectConfig(precision=0.9, per_class=None)
    asked: dict[str, Any] = {"seed": 0, "evaluation": scored[0], "validation": scored[1]}
    chosen = select(config, labels, **asked, out=str(tmp_path / "out"))
    cat, dog, emu = least = [row["threshold"] for row in chosen.facts["table"]]
    assert cat == 0.3, "never below select.threshold"
    assert 0.44 < dog < 0.5, "a tenth of those above may be wrong, but for the doubt"
    assert 0.76 < emu < 0.8
    label, confidence = probs.argmax(axis=1), probs.max(axis=1)
    expected = np.flatnonzero(confidence > np.array(least, np.float32)[label])
    assert copies_by_key(chosen) == {f"image-{i}": 1 for i in expected}
    said = " ".join(capsys.readouterr().out.split())
    assert f"precision of 0.9: cat 0.3000, dog {dog:.4f}, emu {emu:.4f}" in said
    assert "above their class's threshold" in said
    # Other predictions, another selection; without the setting, they make no difference.
    other = make_scored(tmp_path / "other", *wrong_below((0.0, 0.0, 0.0), 200))
    asked |= {"evaluation": other[0], "validation": other[1]}
    again = select(config, labels, **asked, out=str(tmp_path / "out"))
    assert [row["threshold"] for row in again.facts["table"]] == [0.3] * 3
    plain = select(SelectConfig(), labels, **asked, out=str(tmp_path / "plain"))
    assert plain == select(SelectConfig(), labels, seed=0, out=str(tmp_path / "plain"))


def test_a_class_that_precision_empties_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probs = make_probs(300)
    of_emu = probs.argmax(axis=1) == 2
    probs[of_emu] = [0.2, 0.2, 0.6]
    labels = make_labels(tmp_path / "labels", probs)
    evaluation, corpus = make_scored(tmp_path / "val", *wrong_below((0.0, 0.0, 0.9), 40))
    config = SelectConfig(precision=0.95)
    asked: dict[str, Any] = {"seed": 0, "evaluation": evaluation, "validation": corpus}
    chosen = select(config, labels, **asked, out=str(tmp_path / "out"))
    assert [row["kept"] > 0 for row in chosen.facts["table"]] == [True, True, False]
    said = " ".join(capsys.readouterr().out.split())
    assert "too few or too often wrong: emu" in said
    assert "NO rows are left of emu" in said
    emus = make_labels(tmp_path / "emus", probs[of_emu])
    with pytest.raises(
        DataError, match=r"thresholds of select\.precision=0\.95 .* lower select\.p"
    ):
        select(config, emus, **asked, out=str(tmp_path / "none"))


def test_auto_temperature_takes_back_what_made_the_teacher_too_sure(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2.0, size=(3000, 3))
    odds = np.exp(logits)
    honest = odds / odds.sum(axis=1, keepdims=True)
    truth = (honest.cumsum(axis=1) > rng.random((3000, 1))).argmax(axis=1)
    too_sure = honest**2 / (honest**2).sum(axis=1, keepdims=True)
    labels = make_labels(tmp_path / "labels", make_probs(60))
    config, found = SelectConfig(targets="soft", temperature="auto"), []
    for name, probs in (("honest", honest), ("too-sure", too_sure)):
        scored = make_scored(tmp_path / name, probs.astype(np.float32), truth)
        asked: dict[str, Any] = {"evaluation": scored[0], "validation": scored[1]}
        chosen = select(config, labels, seed=0, **asked, out=str(tmp_path / "out"))
        found.append(chosen.facts["temperature"])
    assert found == pytest.approx([1.0, 2.0], rel=0.1)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"precision": 0.9},
            r"select\.precision=0\.9: .* only a run .* set select\.precision=null",
        ),
        (
            {"temperature": "auto", "targets": "soft"},
            r"select\.temperature=auto: .* set select\.temperature=1",
        ),
        (
            {"precision": 0.9, "temperature": "auto", "targets": "soft"},
            r"precision=0\.9 and select\.temperature=auto: .*=null and select\.temperature=1",
        ),
    ],
)
def test_without_validation_images_the_setting_is_named(
    tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    labels = make_labels(tmp_path / "labels", make_probs(30))
    with pytest.raises(ConfigError, match=says):
        select(SelectConfig(**settings), labels, seed=0, out=str(tmp_path / "out"))


def test_what_came_later_is_not_written_into_the_settings() -> None:
    """What was selected before there was a precision keeps its fingerprint."""
    assert not {"precision", "weights"} & set(SelectConfig().model_dump(mode="json"))
    assert SelectConfig(weights="soft").model_dump(mode="json")["weights"] == "soft"
    assert SelectConfig().model_dump(mode="json")["temperature"] == 1.0
    assert SelectConfig(precision=0.9).model_dump(mode="json")["precision"] == 0.9


# ---------------------------------------------------------------------------------------- Ray


@pytest.mark.ray
def test_ray_tasks_select_the_same_rows(
    ray_local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probs, config = make_probs(600), SelectConfig(per_class=80)
    labels = make_labels(tmp_path / "labels", probs, 7)
    here = select(config, labels, seed=0, out=str(tmp_path / "here"))
    monkeypatch.setattr(tasks, "TASK", 0.0)
    monkeypatch.setattr(stage, "TASK_FILES", 2)
    monkeypatch.setattr(stage, "say", lambda _: None)
    there = select(config, labels, seed=0, out=str(tmp_path / "there"))
    assert copies_by_key(there) == copies_by_key(here)
    assert there.facts == here.facts
    with pytest.raises(DataError, match=r"select\.threshold"):
        select(SelectConfig(threshold=1), labels, seed=0, out=str(tmp_path / "none"))
    (Path(labels.path) / labels.files["shard-00003"]).unlink()
    with pytest.raises(DataError, match=r"shard-00003\.\w+\.parquet cannot be read") as error:
        select(config, labels, seed=1, out=str(tmp_path / "error"))
    assert "Traceback" not in str(error.value)
