"""Copies of validation and test images, and files that are in a pile twice: left out, and said."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from broken_files import encoded, picture
from packed import config, fill, keys, rejected, run
from PIL import Image, ImageEnhance
from reported import keys_of, write_run

from ns_ray import report, store
from ns_ray.compute import tasks
from ns_ray.data import signatures
from ns_ray.data.duplicates import repeats
from ns_ray.data.leaks import Signatures, thumbnail
from ns_ray.data.packing import pack
from ns_ray.report.copies import copies as copy_galleries
from ns_ray.report.facts import open_run
from ns_ray.store.corpora import Corpora, Corpus
from ns_ray.store.layout import RunLayout

Change = Callable[[Image.Image], Image.Image]


def cropped(image: Image.Image) -> Image.Image:
    """Without 5 % of each side, on the right and below."""
    box = (0, 0, 0.95 * image.width, 0.95 * image.height)
    return image.resize(image.size, Image.Resampling.BICUBIC, box=box)


CHANGES: dict[str, Change] = {
    "encoded": lambda image: image,
    "larger": lambda image: image.resize((150, 100), Image.Resampling.BICUBIC),
    "smaller": lambda image: image.resize((36, 24), Image.Resampling.BICUBIC),
    "cropped": cropped,
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def plant(folder: Path, source: Path) -> set[str]:
    """Write copies of an image, none of them the same file; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.open(source)
    for name, change in CHANGES.items():
        (folder / f"{name}.jpg").write_bytes(encoded(change(image), quality=75))
    return {f"{folder.name}/{name}.jpg" for name in CHANGES}


def sources(folder: Path) -> dict[str, Any]:
    """Labeled, validation and test images and a pile, which holds copies, and settings of them."""
    fill(folder / "train", {"a": 6, "b": 6})
    fill(folder / "val", {"a": 3, "b": 3}, start=100)
    fill(folder / "test", {"a": 3, "b": 3}, start=200)
    fill(folder / "pile", {"x": 30}, start=300)
    plant(folder / "pile" / "copies", folder / "test/a/001.jpg")
    image = Image.open(folder / "val/b/002.jpg")
    (folder / "train/a/copy.jpg").write_bytes(encoded(image, quality=80))
    names = {"labeled": "train", "unlabeled": "pile", "validation": "val", "test": "test"}
    return {setting: str(folder / name) for setting, name in names.items()}


def copies(corpus: Corpus) -> dict[str, dict[str, Any]]:
    table = store.read_table(f"{corpus.path}/copies.parquet")
    return {row["key"]: row for row in table.to_pylist()}


def pile_of(corpora: Corpora) -> Corpus:
    assert corpora.unlabeled is not None
    return corpora.unlabeled


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_every_kind_of_copy_is_left_out_and_no_other_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = sources(tmp_path)
    corpora = run(tmp_path, **settings, max_rejected=0.0)
    pile = pile_of(corpora)
    planted = {f"copies/{name}.jpg" for name in CHANGES}
    assert rejected(pile) == dict.fromkeys(planted, "near_leak")
    assert len(keys(pile)) == 30
    assert rejected(corpora.labeled) == {"a/copy.jpg": "near_leak"}
    assert "near_leak: 6" in capsys.readouterr().out
    found = copies(pile)
    assert {row["of"] for row in found.values()} == {"test/a/001.jpg"}
    assert sum(row["picture"] is not None for row in found.values()) == 4
    shown = Image.open(io.BytesIO(found["copies/cropped.jpg"]["picture"]))
    assert shown.size == (48, 32)
    assert copies(corpora.labeled)["a/copy.jpg"]["of"] == "validation/b/002.jpg"
    details = store.read_table(f"{pile.path}/rejected.parquet")["detail"].to_pylist()
    assert all(text.endswith("with test/a/001.jpg") for text in details)
    before = stamps(tmp_path / "run")
    assert run(tmp_path, **settings, max_rejected=0.0) == corpora
    assert stamps(tmp_path / "run") == before


def test_only_the_same_files_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    settings = sources(tmp_path)
    (tmp_path / "pile/x/same.jpg").write_bytes((tmp_path / "val/a/000.jpg").read_bytes())
    corpora = run(tmp_path, **settings, leaks="exact")
    assert rejected(pile_of(corpora)) == {"x/same.jpg": "leak"}
    assert corpora.labeled.rows == 13
    assert not store.exists(RunLayout(f"{tmp_path}/run").signatures)


def test_what_an_earlier_version_packed_is_not_packed_again(tmp_path: Path) -> None:
    settings = sources(tmp_path)
    assert config(**settings).model_dump() == config(**settings, leaks="near").model_dump()
    corpora = run(tmp_path, **settings, leaks="exact")
    place = RunLayout(f"{tmp_path}/run").sources
    of_then = store.fingerprint(config(**settings).model_dump(mode="json"), 0, True)
    store.write_json(place, {**store.read_json(place), "settings": of_then})
    assert run(tmp_path, **settings) == corpora
    os.remove(place)  # earlier versions still had none
    assert run(tmp_path, **settings) == corpora
    assert not store.exists(RunLayout(f"{tmp_path}/run").signatures)


def test_a_run_that_goes_on_keeps_its_signatures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = sources(tmp_path)
    corpora = run(tmp_path, **settings)
    monkeypatch.setattr(signatures, "_sign", None)  # would fail
    for name in ("labeled", "unlabeled"):
        os.remove(f"{tmp_path}/run/corpora/{name}/_DONE.json")
        os.remove(f"{tmp_path}/run/corpora/{name}/manifest.json")
    assert run(tmp_path, **settings) == corpora


def test_copies_stay_left_out_where_sources_were_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = sources(tmp_path)
    (tmp_path / "pile/x/again.jpg").write_bytes((tmp_path / "pile/x/003.jpg").read_bytes())
    corpora = run(tmp_path, **settings)
    for name in ("pile", "train"):
        for path in (tmp_path / name).rglob("*.jpg"):
            os.utime(path, (1, 1))
    capsys.readouterr()
    assert run(tmp_path, **settings) == corpora
    assert "but the same images" in capsys.readouterr().out


def test_a_packed_pile_with_copies_is_packed_anew_without_them(tmp_path: Path) -> None:
    settings = sources(tmp_path)
    clean = pack(str(fill(tmp_path / "more", {"x": 5}, 400)), out=str(tmp_path / "clean"))
    leaky = pack(settings["unlabeled"], out=str(tmp_path / "leaky"), classes=())
    assert pile_of(run(tmp_path / "1", **settings | {"unlabeled": clean.path})) == clean
    settings["unlabeled"] = leaky.path
    corpora = run(tmp_path / "2", **settings)
    assert pile_of(corpora).rows == 30
    assert set(rejected(pile_of(corpora)).values()) == {"near_leak"}
    for corpus in (clean, leaky):  # what was found is not looked for again
        store.write_bytes(f"{corpus.path}/{corpus.shards[0].file}", b"not Parquet")
    assert run(tmp_path / "2", **settings) == corpora
    assert pile_of(run(tmp_path / "1", **settings | {"unlabeled": clean.path})) == clean


def test_of_files_that_are_in_the_pile_twice_one_stays(tmp_path: Path) -> None:
    settings = sources(tmp_path)
    for name, of in (("one", "004"), ("two", "004"), ("three", "017")):
        (tmp_path / f"pile/x/{name}.jpg").write_bytes((tmp_path / f"pile/x/{of}.jpg").read_bytes())
    pile = pile_of(run(tmp_path, **settings, rows_per_shard=4))
    left = {key for key, reason in rejected(pile).items() if reason == "duplicate"}
    assert pile.rejected == {"near_leak": 6, "duplicate": 3}
    same = {"x/one.jpg", "x/two.jpg", "x/004.jpg"}, {"x/three.jpg", "x/017.jpg"}
    assert [len(names - left) for names in same] == [1, 1]
    assert keys(pile) == {f"x/{i:03d}.jpg" for i in range(30)} - left | (same[0] | same[1]) - left
    for key in left:
        assert copies(pile)[key]["of"] in keys(pile)
    # A shard that is lost is packed again, and its duplicates are left out again.
    before = {shard.file: store.read_bytes(f"{pile.path}/{shard.file}") for shard in pile.shards}
    store.set_aside(f"{pile.path}/{pile.shards[1].file}")
    assert pile_of(run(tmp_path, **settings, rows_per_shard=4)) == pile
    assert before == {s.file: store.read_bytes(f"{pile.path}/{s.file}") for s in pile.shards}
    assert len(copies(pile)) == 9


def test_repeats_are_told_by_place() -> None:
    chunks = [np.array(part, np.uint64) for part in ([5, 7], [], [5, 5, 1], [7])]
    assert sorted(repeats(chunks)) == [
        ((2, 0), (0, 0)),
        ((2, 1), (0, 0)),
        ((3, 0), (0, 1)),
    ]
    assert repeats([]) == []


def test_small_and_flat_images_are_copies_of_none() -> None:
    small = [picture(seed, 12, 12) for seed in range(2)]
    flat = [Image.new("RGB", (40, 40), (level, level, level)) for level in (30, 200)]
    found = np.stack([thumbnail(image) for image in (*small, *flat)])
    held = Signatures.of(["a", "b", "c", "d"], found)
    assert held.names == []
    assert held.copies(found)[0].tolist() == [-1] * 4
    assert Signatures.of([], found[:0]).copies(found[:0])[0].tolist() == []


def test_where_all_held_out_images_are_small_none_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"labeled": "digits", "test": "digits:test", "labels": 100, "validation_size": 97}
    corpora = run(tmp_path, **settings)
    assert (corpora.labeled.rejected, pile_of(corpora).rejected) == ({}, {})
    monkeypatch.setattr(signatures, "_sign", None)  # would fail
    os.remove(f"{tmp_path}/run/corpora/labeled/_DONE.json")
    assert run(tmp_path, **settings) == corpora


def with_copies(root: Path, rows: int, shown: int) -> None:
    """Say of a run's pile that so many images were left out as copies, and show some of them."""
    layout = RunLayout(str(root))
    out = layout.corpus("unlabeled")
    done = store.published(out)
    assert done is not None
    manifest = store.read_json(f"{out}/manifest.json")
    store.write_json(f"{out}/manifest.json", {**manifest, "rejected": {"near_leak": rows}})
    files = [
        {"key": f"x/{i}.jpg", "sha256": "", "of": f"test/{of}", "correlation": 0.99 + 0.001 * i,
         "picture": encoded(picture(i), "WEBP") if i < shown else None}
        for i, of in enumerate(keys_of("test", rows))
    ]  # fmt: skip
    store.write_table(f"{out}/copies.parquet", pa.Table.from_pylist(files, store.COPIES))
    listed = [*done.files, "copies.parquet"]
    store.publish(
        out, stage="pack", fingerprint=done.fingerprint, files=listed, facts=done.facts, inputs={},
        seconds=1.0,
    )  # fmt: skip


def test_the_report_shows_copies_beside_what_they_are_copies_of(tmp_path: Path) -> None:
    root = write_run(tmp_path)
    assert copy_galleries(open_run(str(root))) == ([], {})
    with_copies(root, rows=30, shown=8)
    (found,), thumbs = copy_galleries(open_run(str(root)))
    first, second, *_ = keys_of("test", 30)
    assert [(p.corpus, p.key) for p in found.pictures[:4]] == [
        *(("copies unlabeled", "x/0.jpg"), ("test", first)),
        *(("copies unlabeled", "x/1.jpg"), ("test", second)),
    ]
    assert set(thumbs) == {(p.corpus, p.key) for p in found.pictures}
    report.write(str(root))
    html = (root / "report.html").read_text()
    assert "6 of 30." in html
    assert all(thumb.source in html for thumb in thumbs.values())
    assert "x/0.jpg, left out as a copy of test image test/000.png" in html


@pytest.mark.ray
def test_copies_are_found_in_tasks(
    tmp_path: Path, ray_local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = sources(tmp_path)
    here = run(tmp_path / "1", **settings, rows_per_shard=10)
    monkeypatch.setattr(tasks, "TASK", 0.0)
    there = run(tmp_path / "2", **settings, rows_per_shard=10)
    assert rejected(pile_of(there)) == rejected(pile_of(here))
    assert copies(pile_of(there)) == copies(pile_of(here))
