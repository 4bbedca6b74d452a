"""Files appear whole or not at all, and a publication replaces the one before it."""

import errno
import io
import json
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from ns_ray import store
from ns_ray.commands.door import faults_go_to
from ns_ray.errors import ConfigError, DataError, MissingFileError, StageError, StorageError
from ns_ray.store.paths import DONE


def publish(folder: Path, fingerprint: str, **files: str) -> store.Done:
    """A publication of text files."""
    names = [f"{name}.txt" for name in files]
    for name, text in zip(names, files.values(), strict=True):
        store.write_bytes(f"{folder}/{name}", text.encode())
    return store.publish(
        str(folder),
        stage="test",
        fingerprint=fingerprint,
        files=names,
        facts={"rows": len(names)},
        inputs={"from": "nowhere"},
        seconds=1.23456,
    )


# ---------------------------------------------------------------------------------- whole files


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = f"{tmp_path}/a/b c/ü#{{1}}.bin"
    store.write_bytes(path, b"one")
    store.write_bytes(path, b"two")
    assert store.read_bytes(path) == b"two"
    assert store.list_files(str(tmp_path), recursive=True) == ["a/b c/ü#{1}.bin"]


class Interrupted(BaseException):
    """Stands for a kill: not even an Exception."""


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Interrupted()])
@pytest.mark.parametrize("moment", ["while writing", "before renaming"])
def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, moment: str
) -> None:
    path = f"{tmp_path}/file.json"
    store.write_bytes(path, b"old")

    class HalfWritten(io.BytesIO):
        def write(self, data: Any) -> int:
            raise error

    class Disk(pafs.LocalFileSystem):  # type: ignore[misc]  # pyarrow has no types
        def open_output_stream(self, target: str, *_args: Any, **_kwargs: Any) -> Any:
            Path(target).write_bytes(b"ha")
            return HalfWritten()

    def refuse(*_args: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        if moment == "while writing":
            patch.setattr("ns_ray.store.files.filesystem", lambda p: (Disk(), p))
        else:
            patch.setattr(os, "replace", refuse)
        expected = StorageError if isinstance(error, OSError) else Interrupted
        with pytest.raises(expected):
            store.write_bytes(path, b"new")
    assert store.read_bytes(path) == b"old"
    if isinstance(error, OSError):
        assert os.listdir(tmp_path) == ["file.json"]


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StorageError, match=r"cannot write .*file: No space left .* free some"):
        store.write_bytes(f"{tmp_path}/file", b"")


def library() -> None:
    """A library that meets a full disk, and says so in its own way."""
    try:
        raise OSError(28, "No space left on device", "/disk/file")
    except OSError as error:
        raise RuntimeError("writing failed") from error


def spilling() -> None:
    raise RuntimeError("OutOfDiskError: Local disk is full\nThe object cannot be created")


def no_folder() -> None:
    raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")


@pytest.mark.parametrize("work", [library, spilling, no_folder])
def test_a_full_disk_is_no_fault_whoever_meets_it(work: Callable[[], None]) -> None:
    says = "cannot write .*free some space"
    with pytest.raises(StorageError, match=says) as caught, faults_go_to(None):
        work()
    assert caught.value.exit_code == 4


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match=f"cannot write {tmp_path}/file/below") as caught:
        store.write_bytes(f"{tmp_path}/file/below", b"")
    assert "\n" not in str(caught.value)
    assert not store.exists(f"{tmp_path}/file/below")


class Disk(pafs.LocalFileSystem):  # type: ignore[misc]
    """A disk that fails so many times before it works."""

    def __init__(self, error: OSError, times: int) -> None:
        super().__init__()
        self.error, self.times, self.calls = error, times, 0

    def _use(self) -> None:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error

    def open_input_stream(self, *args: Any, **options: Any) -> Any:
        self._use()
        return super().open_input_stream(*args, **options)

    def open_output_stream(self, *args: Any, **options: Any) -> Any:
        self._use()
        return super().open_output_stream(*args, **options)

    def get_file_info(self, *args: Any, **options: Any) -> Any:
        self._use()
        return super().get_file_info(*args, **options)


CALLS: dict[str, Callable[[str], Any]] = {
    "write": lambda path: store.write_bytes(path, b"new"),
    "read": store.read_bytes,
    "list": store.list_files,
}


def use(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ns_ray.store.files.filesystem", lambda path: (disk, path.removeprefix("s3:/"))
    )


@pytest.mark.parametrize("action", list(CALLS))
def test_what_works_the_second_time_is_no_error(
    action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path if action == "list" else tmp_path / "file"
    (tmp_path / "file").write_bytes(b"old")
    disk = Disk(OSError(errno.EIO, "Input/output error"), times=1)
    use(disk, monkeypatch)
    assert CALLS[action](str(path)) == {"write": None, "read": b"old", "list": ["file"]}[action]
    assert disk.calls == 2


def test_a_busy_store_is_given_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"old")
    disk = Disk(OSError("AWS Error SLOW_DOWN during GetObject operation"), times=2)
    use(disk, monkeypatch)
    assert store.read_bytes(f"s3:/{tmp_path}/file") == b"old"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "x"), "No space left on device; free some space there and run"),
        (OSError(errno.EACCES, "x"), "Permission denied; get the permission and run"),
        (OSError(errno.EROFS, "x"), "Read-only file system; get the permission and run"),
        (OSError("path is a directory"), "path is a directory; see that the disk or store"),
    ],
)
@pytest.mark.parametrize("action", list(CALLS))
def test_what_lasts_is_said_at_once(
    action: str, error: OSError, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(error, times=9)
    use(disk, monkeypatch)
    with pytest.raises(StorageError, match=f"^cannot {action} {tmp_path}/file: {says}") as caught:
        CALLS[action](f"{tmp_path}/file")
    assert disk.calls == 1
    assert caught.value.errno == error.errno
    assert caught.value.exit_code == StageError.exit_code == 4
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("code", ["ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID"])
def test_a_store_that_refuses_is_not_asked_again(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(OSError(f"AWS Error {code} during GetObject operation"), times=9)
    use(disk, monkeypatch)
    with pytest.raises(StorageError, match=f"cannot read s3:/{tmp_path}/file: .*{code}"):
        store.read_bytes(f"s3:/{tmp_path}/file")
    assert disk.calls == 1


@pytest.mark.parametrize("place", ["none", "file/below"])
def test_a_missing_file_can_be_told_from_a_broken_disk(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FileNotFoundError, match=f"cannot read {tmp_path}/{place}: N") as caught:
        store.read_bytes(f"{tmp_path}/{place}")
    assert isinstance(caught.value, StorageError)
    with pytest.raises(FileNotFoundError, match=f"cannot read {tmp_path}/{place}: N"):
        store.read_table(f"{tmp_path}/{place}")


@pytest.mark.parametrize("error", [StorageError("full", errno.ENOSPC), MissingFileError("gone", 2)])
def test_errors_travel_between_processes(error: StorageError) -> None:
    there = pickle.loads(pickle.dumps(error))
    assert (type(there), str(there), there.errno) == (type(error), str(error), error.errno)


def test_a_damaged_table_is_a_data_error(tmp_path: Path) -> None:
    path = f"{tmp_path}/x.parquet"
    store.write_table(path, pa.table({"n": [1]}))
    store.write_bytes(path, store.read_bytes(path)[:-9])

    def rows(path: str) -> NoReturn:
        store.read_rows(path, "n", ["1"], ["n"])
        raise AssertionError

    for read in (store.read_table, rows, lambda path: store.read_first(path, 1, ["n"])):
        with pytest.raises(DataError, match=r"x\.parquet is damaged: it is no Parquet file"):
            read(path)


def test_an_unknown_scheme_is_a_config_error() -> None:
    for call in (store.exists, store.read_bytes, store.list_files):
        with pytest.raises(ConfigError, match=r"'foo://bucket/x'.*s3://") as caught:
            call("foo://bucket/x")
        assert "\n" not in str(caught.value)


def test_file_uris_are_the_local_disk(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "x#1").write_bytes(b"hello")
    assert store.read_bytes(f"file://{tmp_path}/a b/x#1") == b"hello"
    assert store.list_files(f"file://{tmp_path}", recursive=True) == ["a b/x#1"]


def test_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert store.absolute("runs/x/") == f"{tmp_path}/runs/x"
    assert store.absolute("s3://bucket/runs/") == "s3://bucket/runs"
    assert store.absolute("~") == os.path.expanduser("~")
    assert store.join("a/", "b", "c") == "a/b/c"
    assert store.is_uri("gs://b")
    assert not store.is_uri("/b")


def test_a_missing_folder_has_no_files(tmp_path: Path) -> None:
    assert store.list_files(f"{tmp_path}/none") == []
    store.remove_files(str(tmp_path), ["gone.txt"])


def test_tables_come_back(tmp_path: Path) -> None:
    table = pa.table({"key": ["a", "b"], "n": [1, 2]})
    path = f"{tmp_path}/day=1/part.parquet"  # a folder name is never read as a column
    store.write_table(path, table)
    assert store.read_table(path).equals(table)
    assert store.read_table(path, ["n"]).column_names == ["n"]


@pytest.mark.parametrize(("text", "says"), [("{", "not valid JSON"), ("[1]", "not list")])
def test_bad_json_is_a_data_error(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=says):
        store.read_json(f"{tmp_path}/x.json")


# --------------------------------------------------------------------------------- publications


def test_publishing_removes_only_what_it_published_before(tmp_path: Path) -> None:
    publish(tmp_path, "one", a="1", b="1")
    (tmp_path / "mine.txt").write_text("not theirs")
    publish(tmp_path, "two", b="2", c="2")
    assert sorted(os.listdir(tmp_path)) == [DONE, "b.txt", "c.txt", "mine.txt"]
    assert (tmp_path / "b.txt").read_text() == "2"


def test_nothing_is_removed_before_the_new_publication_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, "one", a="1")

    def refuse(*_args: Any) -> None:
        raise ConfigError("disk full")

    monkeypatch.setattr("ns_ray.store.publication.write_json", refuse)
    with pytest.raises(ConfigError):
        publish(tmp_path, "two", b="2")
    done = store.already(str(tmp_path), "one")
    assert done is not None
    assert all((tmp_path / name).exists() for name in done.files)


def test_already_asks_for_just_these_inputs(tmp_path: Path) -> None:
    assert store.already(str(tmp_path), "one") is None
    done = publish(tmp_path, "one", a="1")
    again = store.already(str(tmp_path), "one")
    assert again is not None
    assert (again.stage, again.files, again.facts) == (done.stage, ["a.txt"], {"rows": 1})
    assert again.seconds == 1.235
    assert store.already(str(tmp_path), "two") is None
    publish(tmp_path, "two", a="2")
    assert store.already(str(tmp_path), "one") is None


def test_the_record_says_where_it_comes_from(tmp_path: Path) -> None:
    publish(tmp_path, "one", a="1")
    record = json.loads((tmp_path / DONE).read_text())
    assert record["inputs"] == {"from": "nowhere"}
    assert {"python", "torch", "timm", "ray", "ns-ray"} <= set(record["versions"])
    assert record["finished"].endswith("Z")


def test_fingerprints_tell_values_apart() -> None:
    one = store.fingerprint("a", {"x": 1, "y": [1, 2]}, None)
    assert one == store.fingerprint("a", {"y": [1, 2], "x": 1}, None)
    assert len(one) == 12
    others = [
        store.fingerprint("a", {"x": 1, "y": [2, 1]}, None),
        store.fingerprint("a", {"x": 1.5, "y": [1, 2]}, None),
        store.fingerprint("a", {"x": 1, "y": [1, 2]}),
        store.fingerprint("a", {"x": 1, "y": [1, 2]}, ""),
    ]
    assert len({one, *others}) == 5


def git(folder: Path, *arguments: str) -> str:
    """What git says in a folder, whatever the settings of who runs the tests."""
    settings = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *settings, *arguments],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_the_commit_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "checkout" / "package"
    inner.mkdir(parents=True)
    assert store.git_sha(str(inner)) is None  # installed
    git(tmp_path / "checkout", "init")
    assert store.git_sha(str(inner)) is None  # no commit yet
    git(inner, "commit", "--allow-empty", "-m", "one")
    sha = git(inner, "rev-parse", "HEAD")
    assert store.git_sha(str(inner)) == sha
    git(inner, "gc")
    assert (tmp_path / "checkout" / ".git" / "packed-refs").exists()
    assert store.git_sha(str(inner)) == sha
    git(inner, "worktree", "add", "-b", "other", str(tmp_path / "other"))
    assert store.git_sha(str(tmp_path / "other")) == sha
    git(inner, "checkout", "--detach")
    assert store.git_sha(str(inner)) == sha
    monkeypatch.setenv("PATH", "")
    assert store.git_sha(str(inner)) is None  # no git to ask
