"""Lists of sources: their keys, classes, splits, and images that several of them have."""

from pathlib import Path
from typing import Any

import pytest
from broken_files import jpeg
from packed import config, fill, keys, rows, run

from ns_ray import store
from ns_ray.config.loading import dump, parse
from ns_ray.data.packing import pack
from ns_ray.data.sources.items import Item
from ns_ray.data.sources.listing import Listing, Packed
from ns_ray.data.sources.uniting import united
from ns_ray.data.stage import split
from ns_ray.errors import ConfigError, DataError
from ns_ray.store.layout import RunLayout


def test_labeled_sources_are_one_set(tmp_path: Path) -> None:
    one = fill(tmp_path / "one", {"class2": 6, "class10": 6})
    two = fill(tmp_path / "two", {"class1": 6, "class2": 4}, start=100)
    test = [str(fill(tmp_path / f"t{i}", {f"class{i}": 1}, start=200 + i)) for i in (1, 2)]
    found = run(tmp_path, labeled=[str(one), str(two)], test=test, labels=15)
    assert found.unlabeled is not None
    assert found.test is not None
    assert found.labeled.classes == ("class1", "class2", "class10")
    assert found.test.class_counts == (1, 1, 0)
    assert (found.labeled.rows, found.validation.rows) == (15, 3)
    everything = set().union(*map(keys, (found.labeled, found.unlabeled, found.validation)))
    assert everything == {
        f"{i}/{path.relative_to(folder)}"
        for i, folder in enumerate((one, two))
        for path in folder.rglob("*.jpg")
    }
    of_label = {row["key"].split("/")[1]: row["label"] for row in rows(found.labeled)}
    assert of_label == {"class1": 0, "class2": 1, "class10": 2}


def test_a_list_of_one_is_that_source(tmp_path: Path) -> None:
    train = str(fill(tmp_path / "train", {"a": 4, "b": 4}))
    assert config(labeled=[train], test=[train]) == config(labeled=train, test=train)
    text = "{name: x, teacher: {model: resnet18}, data: {labeled: [a, b], validation: c}}"
    again = parse(dump(parse(text)))
    assert (again.data.labeled, again.data.validation) == (("a", "b"), "c")


@pytest.mark.parametrize("value", ["[]", "5", "{a: b}", "[a, 3]"])
def test_what_is_no_source_is_named(value: str) -> None:
    text = "{name: x, teacher: {model: resnet18}, data: {labeled: " + value + "}}"
    with pytest.raises(ConfigError, match=r"data.labeled.*: must be a source, or a list"):
        parse(text)


def test_each_source_of_a_list_is_checked(tmp_path: Path) -> None:
    train = str(fill(tmp_path / "train", {"a": 4, "b": 4}))
    flat = str(tmp_path / "train" / "a")
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"labeled": [train, "gone"]}, r"data.labeled.1='gone'"),
        ({"labeled": [train, flat]}, r"data.labeled.1=.* no labels"),
        ({"labeled": train, "test": [train, flat]}, r"data.test.1=.* no labels"),
    ]
    for settings, message in mistakes:
        with pytest.raises(DataError, match=message):
            run(tmp_path, **settings, labels=4)


def test_one_image_with_two_labels_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = fill(tmp_path / "one", {"a": 4, "b": 4})
    two = fill(tmp_path / "two", {"a": 4, "b": 4}, start=100)
    val = fill(tmp_path / "val", {"a": 1, "b": 1}, start=200)
    settings = {"labeled": [str(one), str(two)], "validation": str(val), "unlabeled": str(val)}
    (two / "a/same.jpg").write_bytes((one / "a/001.jpg").read_bytes())
    with pytest.raises(DataError, match="none of the 2 images can be used"):
        run(tmp_path, **settings)
    assert "several labels" not in capsys.readouterr().out
    (two / "b/003.jpg").write_bytes((one / "a/000.jpg").read_bytes())
    pile = fill(tmp_path / "pile", {"x": 2}, start=300)
    run(tmp_path, **{**settings, "unlabeled": str(pile)})
    said = " ".join(capsys.readouterr().out.split())
    assert "data.labeled: 1 images have several labels" in said
    assert f"{one}/a/000.jpg as 'a'" in said
    assert f"{two}/b/003.jpg as 'b'" in said
    assert f"data.labeled: 1 images are there several times, such as {one}/a/001.jpg as 'a'" in said
    noted = store.read_json(RunLayout(str(tmp_path / "run")).sources)["notes"]["labeled"]
    assert [note.partition(", such as")[0] for note in noted] == [
        "1 images have several labels",
        "1 images are there several times",
    ]


def test_one_image_in_two_folders_of_one_source_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = fill(tmp_path / "one", {"a": 4, "b": 4})
    (one / "b/link.jpg").symlink_to(one / "a/000.jpg")
    val = fill(tmp_path / "val", {"a": 1, "b": 1}, start=200)
    pile = fill(tmp_path / "pile", {"x": 2}, start=300)
    run(tmp_path, labeled=str(one), validation=str(val), unlabeled=str(pile))
    assert "data.labeled: 1 images have several labels" in capsys.readouterr().out


def test_names_that_differ_in_case_between_sources_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = fill(tmp_path / "one", {"Cat": 4, "dog": 4})
    two = fill(tmp_path / "two", {"cat": 4, "dog": 4}, start=100)
    run(tmp_path, labeled=[str(one), str(two)], labels=4)
    assert "data.labeled: 'Cat' and 'cat' are two classes" in capsys.readouterr().out


def test_a_packed_corpus_and_files_are_split_evenly(tmp_path: Path) -> None:
    more = fill(tmp_path / "more", {"b": 40, "c": 20})
    old = pack(str(fill(tmp_path / "old", {"c": 20, "a": 40, "b": 20}, 100)), out=f"{tmp_path}/p")
    (tmp_path / "more/extra.jpg").write_bytes(jpeg(999))
    found = run(tmp_path, labeled=[old.path, str(more)], labels=70, validation_size=0.25)
    assert found.unlabeled is not None
    assert found.labeled.classes == ("a", "b", "c")
    parts = (found.labeled, found.validation, found.unlabeled)
    assert [part.rows for part in parts] == [70, 35, 35]
    assert len(set().union(*map(keys, parts))) == 140
    for part in parts[:2]:
        for row in rows(part):
            name = part.classes[row["label"]]
            assert f"/{name}/" in row["key"]
    held = [(row["key"][0], found.validation.classes[row["label"]]) for row in rows(parts[1])]
    assert {pair: held.count(pair) for pair in held} == {
        ("0", "a"): 10,
        ("0", "b"): 5,
        ("1", "b"): 10,
        ("0", "c"): 5,
        ("1", "c"): 5,
    }


def test_the_classes_of_a_source_that_has_all_keep_their_order() -> None:
    def listing(*classes: str) -> Listing:
        return Listing("set", [Item(name, "", name) for name in classes], classes, "f")

    whole = united([listing("a", "z"), listing("z", "m", "a")], labeled=True)
    assert whole.classes == ("z", "m", "a")
    assert united([listing("b", "a"), listing("c10", "c9")], labeled=True).classes == (
        *("a", "b"),
        *("c9", "c10"),
    )


def test_a_split_of_one_corpus_is_what_it_was(tmp_path: Path) -> None:
    """Earlier runs recognize their parts of a corpus by these ranks."""
    corpus = pack(str(fill(tmp_path / "a", {"a": 8, "b": 4})), out=str(tmp_path / "p"))
    whole = Listing(corpus.path, [], corpus.classes, corpus.fingerprint, packed=(Packed(corpus),))
    train, held, _ = split(whole, labels=None, validation_size=3.0, seed=5)
    assert held.packed == (Packed(corpus, ((0, 2), (0, 1)), 5),)
    assert train.packed == (Packed(corpus, ((2, 8), (1, 4)), 5),)
    two = united([whole, whole], labeled=True)
    piles = united([two, whole], labeled=False)
    assert [part.prefix for part in piles.packed] == ["0/0/", "0/1/", "1/"]
