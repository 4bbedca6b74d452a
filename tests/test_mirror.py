"""Growing files of a run that has its folder in an object store."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ns_ray.errors import StorageError
from ns_ray.store import mirror
from ns_ray.store.mirror import mirrored


def soon(true: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    while not true():
        time.sleep(0.01)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "COPY_SECONDS", 0.01)


def test_on_a_local_disk_files_grow_in_place(tmp_path: Path) -> None:
    with mirrored(str(tmp_path), ["a.txt"]) as folder:
        assert folder == str(tmp_path)


def test_a_store_has_what_grows_before_it_is_whole(tmp_path: Path, quick: None) -> None:
    bucket = tmp_path / "store"
    with mirrored(f"file://{bucket}", ["log.txt"]) as folder:
        growing = Path(folder, "log.txt")
        (Path(folder) / "sub").mkdir()
        Path(folder, "sub", "events").write_text("e")
        for text in ("one\n", "one\ntwo\n"):
            growing.write_text(text)
            soon(lambda text=text: (bucket / "log.txt").exists() and now(bucket) == text)  # type: ignore[misc]
        soon((bucket / "sub" / "events").exists)
    assert not Path(folder).exists()


def now(bucket: Path) -> str:
    return (bucket / "log.txt").read_text()


def test_the_end_is_kept_however_it_comes(tmp_path: Path) -> None:
    def work() -> None:
        with mirrored(f"file://{tmp_path}/store", ["log.txt"]) as folder:
            Path(folder, "log.txt").write_text("last words")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert now(tmp_path / "store") == "last words"


def test_the_next_process_appends(tmp_path: Path) -> None:
    for line in ("one\n", "two\n"):
        with (
            mirrored(f"file://{tmp_path}/store", ["log.txt"]) as folder,
            Path(folder, "log.txt").open("a") as file,
        ):
            file.write(line)
    assert now(tmp_path / "store") == "one\ntwo\n"


def test_what_did_not_change_is_not_copied_again(tmp_path: Path, quick: None) -> None:
    bucket = tmp_path / "store"
    with mirrored(f"file://{bucket}", ["log.txt"]) as folder:
        Path(folder, "log.txt").write_text("one")
        soon((bucket / "log.txt").exists)
        first = (bucket / "log.txt").stat()
        Path(folder, "other.txt").write_text("two")
        soon((bucket / "other.txt").exists)
    last = (bucket / "log.txt").stat()
    assert (last.st_ino, last.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)


def test_a_store_that_fails_costs_only_the_copies(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[str] = []

    def refuse(path: str, data: bytes) -> None:
        tried.append(path)
        raise StorageError(f"cannot write {path}: no")

    monkeypatch.setattr("ns_ray.store.files.write_bytes", refuse)
    with mirrored(f"file://{tmp_path}/store", []) as folder:
        Path(folder, "log.txt").write_text("one")
        soon(lambda: len(tried) >= 2)
    says = capsys.readouterr().out
    assert says.splitlines() == [
        f"cannot write file://{tmp_path}/store/log.txt: no; what could not be copied is in {folder}"
    ]
    assert Path(folder, "log.txt").read_text() == "one"


@pytest.mark.slow
def test_a_first_file_that_cannot_be_read_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "store" / "log.txt").mkdir(parents=True)
    with (
        pytest.raises(StorageError, match=r"cannot read .*log\.txt"),
        mirrored(f"file://{tmp_path}/store", ["log.txt"]),
    ):
        raise AssertionError
