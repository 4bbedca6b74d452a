"""Sources of a run that exists: copied, changed, or gone."""

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken_files import jpeg
from packed import fill, keys, rejected, run

from ns_ray import store
from ns_ray.compute import tasks
from ns_ray.data.stage import pack
from ns_ray.errors import DataError, MissingSourceError
from ns_ray.store.corpora import Corpora


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with images: broken ones, a leak, a pile of a folder and a table."""
    folder = tmp_path / "job-1"
    fill(folder / "train", {"a": 8, "b": 8})
    fill(folder / "test", {"a": 2, "b": 2}, start=100)
    fill(folder / "pile", {"x": 5}, start=200)
    (folder / "pile/x/broken.jpg").write_bytes(b"none")
    shutil.copy(folder / "test/a/000.jpg", folder / "pile/x/leak.jpg")
    images = pa.table({"image": [jpeg(300 + i) for i in range(6)]})
    pq.write_table(images, folder / "table.parquet", row_group_size=4)
    monkeypatch.chdir(folder)
    return folder


def start(tmp_path: Path, **settings: object) -> Corpora:
    usual = {
        "labeled": "train", "test": "test", "unlabeled": ["pile", "table.parquet"],
        "validation_size": 4, "max_rejected": 0.5,
    }  # fmt: skip
    return run(tmp_path, **usual | settings)


def unpack_again(job: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same images in another folder, with times of their own."""
    copy = job.parent / "job-2"
    shutil.copytree(job, copy)
    for n, path in enumerate(sorted(copy.rglob("*.*"))):
        os.utime(path, ns=(n, 10**18 + n))
    monkeypatch.chdir(copy)
    return copy


def published(tmp_path: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("_DONE.json")}


def begin(tmp_path: Path, students: int) -> None:
    """What a run leaves that has trained a teacher and so many students."""
    for g in range(students + 1):
        (tmp_path / f"run/gen-{g:02d}/bundle").mkdir(parents=True)
    (tmp_path / "run/gen-01/pseudo_labels").mkdir()


def test_copied_images_are_the_same(
    tmp_path: Path, job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpora, before = start(tmp_path), published(tmp_path)
    assert corpora.unlabeled is not None
    assert rejected(corpora.unlabeled) == {"0/x/broken.jpg": "not_an_image", "0/x/leak.jpg": "leak"}
    unpack_again(job, monkeypatch)
    capsys.readouterr()
    assert start(tmp_path) == corpora
    assert published(tmp_path) == before
    said = capsys.readouterr().out
    for name in ("labeled", "unlabeled", "validation", "test"):
        assert f"data.{name}: other files than when this run began, but the same images" in said
    assert "pack " not in said
    assert start(tmp_path) == corpora
    (line,) = capsys.readouterr().out.splitlines()  # nothing else: what was compared once is known
    assert line.startswith("data.validation: 4 images tell little")


def test_a_run_of_before_is_recognized_too(
    tmp_path: Path, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpora = start(tmp_path)
    (tmp_path / "run/corpora/sources.json").unlink()
    unpack_again(job, monkeypatch)
    assert start(tmp_path) == corpora


def test_other_images_are_named_before_they_are_packed(
    tmp_path: Path, job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpora = start(tmp_path)
    begin(tmp_path, students=2)
    copy = unpack_again(job, monkeypatch)
    for key in sorted(keys(corpora.labeled))[:3]:
        data = bytearray((copy / "train" / key).read_bytes())
        data[-3] ^= 1
        (copy / "train" / key).write_bytes(data)
    capsys.readouterr()
    again = start(tmp_path)
    said = capsys.readouterr().out.splitlines()
    line = (
        "since this run began, images have changed: data.labeled (3 of 12); packs, "
        "trains the teacher, labels the pile and trains 2 students again"
    )
    first = next(n for n, text in enumerate(said) if text.startswith("pack "))
    assert line in said[:first]
    assert again.labeled.fingerprint != corpora.labeled.fingerprint
    assert (again.validation, again.test) == (corpora.validation, corpora.test)
    assert again.unlabeled == corpora.unlabeled


@pytest.mark.ray
def test_images_are_compared_in_tasks(
    tmp_path: Path,
    job: Path,
    ray_local: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpora = start(tmp_path)
    copy = unpack_again(job, monkeypatch)
    shutil.copy(copy / "train/a/000.jpg", copy / "pile/x/000.jpg")
    monkeypatch.setattr(tasks, "TASK", 0.0)
    assert start(tmp_path).labeled == corpora.labeled
    assert "images have changed: data.unlabeled (1 of 13); packs again" in capsys.readouterr().out


def test_a_changed_pile_leaves_the_teacher(
    tmp_path: Path, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpora = start(tmp_path)
    begin(tmp_path, students=1)
    (job / "pile/x/new.jpg").write_bytes(jpeg(400))
    (job / "pile/x/000.jpg").unlink()
    (job / "pile/x/001.jpg").unlink()
    capsys.readouterr()
    again = start(tmp_path)
    assert again.labeled == corpora.labeled
    assert again.unlabeled != corpora.unlabeled
    assert (
        "data.unlabeled (2 of 13 gone, 1 new); packs, labels the pile and trains the student again"
    ) in capsys.readouterr().out
    (job / "pile/x/broken.jpg").write_bytes(jpeg(401))  # mended
    start(tmp_path)
    assert "data.unlabeled (1 of 12)" in capsys.readouterr().out


def test_another_label_is_another_image(
    tmp_path: Path, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = job / "train.csv"
    paths = sorted(str(path.relative_to(job)) for path in (job / "train").rglob("*.jpg"))
    lines = [f"{path},{path.split('/')[1]}" for path in paths]
    table.write_text("\n".join(["path,label", *lines]))
    settings = {"labeled": "train.csv", "validation": "test", "test": None}
    start(tmp_path, **settings)
    table.write_text("\n".join(["path,label", *lines]) + "\n")
    capsys.readouterr()
    start(tmp_path, **settings)
    assert "data.labeled: other files" in capsys.readouterr().out
    lines[0] = lines[0].removesuffix("a") + "b"
    table.write_text("\n".join(["path,label", *lines]))
    start(tmp_path, **settings)
    assert "data.labeled (1 of 16); packs again" in capsys.readouterr().out


def test_a_corpus_that_was_packed_again_is_another(
    tmp_path: Path, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    piles: list[object] = ["packed", ["pile", "packed"]]
    for unlabeled in piles:
        for n in range(2):
            fill(job / "more", {"y": 3}, start=500 + n)
            pack("more", out=str(job / "packed"), seed=n)
            capsys.readouterr()
            corpora = start(tmp_path, unlabeled=unlabeled)
        assert "data.unlabeled (another packed corpus); packs again" in capsys.readouterr().out
    os.utime(job / "pile/x/000.jpg")
    assert start(tmp_path, unlabeled=piles[1]) == corpora


def test_a_run_goes_on_without_its_sources(
    tmp_path: Path, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpora = start(tmp_path)
    shutil.rmtree(job / "train")
    shutil.rmtree(job / "pile")
    capsys.readouterr()
    assert start(tmp_path) == corpora
    assert capsys.readouterr().out == (
        f"data.labeled='train' is gone: goes on with the images packed in {tmp_path}/run/corpora\n"
    )
    with pytest.raises(MissingSourceError, match=r"data.labeled='train': there is no such file"):
        start(tmp_path, labels=4)
    store.remove_files(corpora.labeled.path, [corpora.labeled.shards[0].file])
    with pytest.raises(DataError, match="there is no such file"):
        start(tmp_path)
