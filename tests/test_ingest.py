"""The corpora of a run: drawn, split, and free of leaks."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from broken_files import jpeg
from hypothesis import given
from hypothesis import strategies as st
from packed import config, fill, keys, rejected, rows, run

from ns_ray import store
from ns_ray.config import DataConfig
from ns_ray.data import stage
from ns_ray.data.sources.items import Item
from ns_ray.data.sources.listing import Listing
from ns_ray.data.stage import ingest, list_all, split
from ns_ray.errors import DataError
from ns_ray.store.layout import RunLayout

# --------------------------------------------------------------------------------- splitting


def listing_of(sizes: list[int]) -> Listing:
    items = [Item(f"{c}/{i}", "", f"{c:02d}") for c, n in enumerate(sizes) for i in range(n)]
    return Listing("set", items, tuple(f"{c:02d}" for c in range(len(sizes))), "f")


def per_class(listing: Listing) -> Counter[str | None]:
    return Counter(item.label for item in listing.items)


@given(st.lists(st.integers(2, 60), min_size=2, max_size=8), st.data(), st.integers(0, 5))
def test_a_split_is_exact_stratified_and_complete(
    sizes: list[int], data: st.DataObject, seed: int
) -> None:
    listing = listing_of(sizes)
    held = data.draw(st.integers(len(sizes), sum(sizes) - len(sizes)))
    labels = data.draw(st.integers(len(sizes), sum(sizes) - held))
    train, validation, rest = split(listing, labels=labels, validation_size=float(held), seed=seed)
    assert (train.rows, validation.rows) == (labels, held)
    everything = [item.key for part in (train, validation, rest) for item in part.items]
    assert sorted(everything) == sorted(item.key for item in listing.items)
    assert len(per_class(train)) == len(per_class(validation)) == len(sizes)


def test_validation_images_do_not_depend_on_the_number_of_labels() -> None:
    listing = listing_of([40, 20])
    few = split(listing, labels=6, validation_size=0.1, seed=0)
    many = split(listing, labels=None, validation_size=0.1, seed=0)
    assert few[1] == many[1]
    assert per_class(few[1]) == {"00": 4, "01": 2}
    assert per_class(few[0]) == {"00": 4, "01": 2}
    assert {item.key for item in few[0].items} <= {item.key for item in many[0].items}
    assert split(listing, labels=6, validation_size=0.1, seed=1)[1] != few[1]
    assert many[2].rows == 0


def test_a_class_with_one_image_keeps_it_for_training(capsys: pytest.CaptureFixture[str]) -> None:
    train, validation, _ = split(listing_of([1, 9]), labels=None, validation_size=0.2, seed=0)
    assert per_class(train) == {"00": 1, "01": 7}
    assert per_class(validation) == {"01": 2}
    assert "no validation image of the class '00'" in capsys.readouterr().out


@pytest.mark.parametrize(("images", "said"), [(49, 1), (50, 0)])
def test_few_validation_images_are_said_to_tell_little(
    images: int, said: int, capsys: pytest.CaptureFixture[str]
) -> None:
    list_all(DataConfig(labeled="digits", validation_size=images), seed=0, pile=False)
    assert capsys.readouterr().out.count(f"data.validation: {images} images tell little") == said


@pytest.mark.parametrize(
    ("labels", "size", "message"),
    [
        (1, 0.1, r"data.labels=1 must be from 2 \(one per class\) to 18"),
        (19, 0.1, "data.labels=19 must be from 2"),
        (None, 19.0, "data.validation_size=19 asks for 19 of the 20 images .* at most 18"),
    ],
)
def test_asking_for_more_than_there_is(labels: int | None, size: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split(listing_of([10, 10]), labels=labels, validation_size=size, seed=0)


# ------------------------------------------------------------------------------ a run's corpora


@pytest.mark.slow
def test_the_corpora_of_a_run(tmp_path: Path) -> None:
    settings = {"labeled": "digits", "test": "digits:test", "labels": 100, "validation_size": 97}
    corpora = run(tmp_path, **settings)
    assert corpora.unlabeled is not None
    assert corpora.test is not None
    parts = (corpora.labeled, corpora.unlabeled, corpora.validation, corpora.test)
    assert [part.rows for part in parts] == [100, 1100, 97, 500]
    assert corpora.labeled.class_counts == (10,) * 10
    assert corpora.unlabeled.classes == ()
    assert corpora.labeled.classes == corpora.validation.classes == corpora.test.classes
    assert len(set().union(*map(keys, parts))) == 1797
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert run(tmp_path, **settings) == corpora
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert ingest(config(**settings), seed=1, out=RunLayout(str(tmp_path / "b"))).labeled != (
        corpora.labeled
    )


def test_what_earlier_versions_packed_stays_valid(tmp_path: Path) -> None:
    settings = {"labeled": "digits", "test": "digits:test", "labels": 100, "validation_size": 97}
    corpora = run(tmp_path, **settings)
    assert corpora.test is not None
    found = (corpora.validation.fingerprint, corpora.test.fingerprint)
    assert found == ("04135c7464db", "2a7703940ac7"), "every run would pack and train again"


def test_leaks_are_left_out_of_training_and_pile(tmp_path: Path) -> None:
    train = fill(tmp_path / "train", {"a": 6, "b": 6})
    test = fill(tmp_path / "test", {"a": 2, "b": 2}, start=100)
    val = fill(tmp_path / "val", {"a": 2, "b": 2}, start=200)
    pile = fill(tmp_path / "pile", {"x": 5}, start=300)
    for source, name in ((test / "a/000.jpg", "t.jpg"), (val / "b/001.jpg", "v.jpg")):
        (train / "a" / name).write_bytes(source.read_bytes())
        (pile / name).write_bytes(source.read_bytes())
    (pile / "same_as_train.jpg").write_bytes((train / "a/000.jpg").read_bytes())
    corpora = run(
        tmp_path,
        labeled=str(train),
        unlabeled=str(pile),
        validation=str(val),
        test=str(test),
        max_rejected=0.0,
    )
    assert corpora.unlabeled is not None
    assert rejected(corpora.labeled) == {"a/t.jpg": "leak", "a/v.jpg": "leak"}
    assert rejected(corpora.unlabeled) == {"t.jpg": "leak", "v.jpg": "leak"}
    assert "same_as_train.jpg" in keys(corpora.unlabeled)
    assert corpora.labeled.rows == 12
    with pytest.raises(DataError, match=r"data.labeled=.* none of the 4 .*leak: 4"):
        run(tmp_path / "2", labeled=str(test), unlabeled=str(pile), validation=str(test))


def test_several_piles_keep_their_keys_apart(tmp_path: Path) -> None:
    train = fill(tmp_path / "train", {"a": 8, "b": 8})
    one = fill(tmp_path / "one", {"a": 3}, start=100)
    two = fill(tmp_path / "two", {"a": 2}, start=200)
    corpora = run(tmp_path, labeled=str(train), labels=6, unlabeled=["rest", str(one), str(two)])
    assert corpora.unlabeled is not None
    found = keys(corpora.unlabeled)
    assert {key for key in found if key[0] != "0"} == {
        *(f"1/a/{i:03d}.jpg" for i in range(3)),
        *(f"2/a/{i:03d}.jpg" for i in range(2)),
    }
    assert len(found) == 5 + 16 - 6 - corpora.validation.rows


def test_class_lists_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = fill(tmp_path / "train", {"a": 6, "b": 6})
    other = fill(tmp_path / "other", {"a": 2, "z": 2}, start=100)
    with pytest.raises(DataError, match=r"data.test=.* has the class 'z', which data.labeled"):
        run(tmp_path, labeled=str(train), test=str(other), labels=4)
    with pytest.raises(DataError, match=r"data.validation=.* has the class 'z'"):
        run(tmp_path, labeled=str(train), validation=str(other), labels=4)
    capsys.readouterr()
    less = fill(tmp_path / "less", {"b": 2}, start=100)
    corpora = run(tmp_path, labeled=str(train), test=str(less), labels=4)
    assert "data.test: no image of the class 'a'" in capsys.readouterr().out
    assert corpora.test is not None
    assert {row["label"] for row in rows(corpora.test)} == {1}


def test_unusable_settings_are_named(tmp_path: Path) -> None:
    train = fill(tmp_path / "train", {"a": 6, "b": 6})
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"labeled": str(tmp_path / "gone")}, r"data.labeled=.*no such file or folder"),
        ({"labeled": str(fill(tmp_path / "one", {"a": 3}))}, "has one class only, 'a'"),
        ({"labeled": str(train / "a")}, "data.labeled=.* no labels; it needs a folder per class"),
        ({"labeled": str(train)}, r"data.unlabeled=\['rest'\] gives no unlabeled images.*labels"),
        ({"labeled": str(train), "unlabeled": []}, r"data.unlabeled=\[\]"),
        ({"labeled": str(train), "unlabeled": "nope"}, "data.unlabeled.0='nope'"),
        ({"labeled": str(fill(tmp_path / "all/train", {"a": 2}).parent)}, "all/train"),
    ]
    for settings, message in mistakes:
        with pytest.raises(DataError, match=message):
            run(tmp_path, **settings)
    corpora = ingest(
        config(labeled=str(train)), seed=0, out=RunLayout(str(tmp_path / "run")), pile=False
    )
    assert corpora.unlabeled is None


def test_what_is_left_out_is_remembered_for_the_report(tmp_path: Path) -> None:
    train = fill(tmp_path / "train", {"a": 12, "b": 12})
    pile = fill(tmp_path / "pile", {"x": 4}, start=100)
    more = fill(tmp_path / "more", {"y": 4}, start=200)
    (train / "loose.jpg").write_bytes(jpeg(300))
    (pile / "notes.txt").write_text("x")
    run(tmp_path, labeled=str(train), unlabeled=[str(pile), str(more)])
    notes = store.read_json(RunLayout(str(tmp_path / "run")).sources)["notes"]
    assert notes == {
        "labeled": [f"1 images of {train} have no label, left out"],
        "unlabeled": [f"{pile}: 1 files are no images by their name (.txt: 1)"],
    }


def test_a_class_without_a_readable_image_is_an_error(tmp_path: Path) -> None:
    train = fill(tmp_path / "train", {"a": 12, "b": 12})
    val = fill(tmp_path / "val", {"a": 1, "b": 1}, start=100)
    (train / "c").mkdir()
    (train / "c" / "only.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"no usable training image of the class 'c' \(empty: 1\)"):
        run(tmp_path, labeled=str(train), validation=str(val), unlabeled=str(val))


def test_images_without_labels_are_left_out_of_the_labeled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = fill(tmp_path / "train", {"a": 6, "b": 6})
    (train / "cover.jpg").write_bytes(jpeg(99))
    corpora = run(tmp_path, labeled=str(train), labels=4)
    assert "1 images of" in capsys.readouterr().out
    assert corpora.unlabeled is not None
    assert corpora.unlabeled.rows == 12 - 4 - corpora.validation.rows


def test_a_listing_that_takes_long_tells_its_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    list_all(config(labeled="digits", validation_size=97), seed=0, pile=False)
    assert "list:" not in capsys.readouterr().out
    monkeypatch.setattr(stage, "LONG", 0.0)
    list_all(config(labeled="digits", validation_size=97), seed=0, pile=False)
    assert "list: 1,297 images in " in capsys.readouterr().out
