"""Files on a local disk or in an object store, written so that nothing half-written is read.

A file appears whole or not at all. A stage writes its files under names that carry its
fingerprint, lists them in `_DONE.json`, writes that last, and only then removes what an earlier
publication left. Readers look at the listed files only. Rerun with the same fingerprint, the stage
returns what it published.

A disk or store that fails is a `StorageError` that names the path, the reason and what to do. What
may pass by itself, such as a store that is too busy, is tried again first.

Paths are local paths or URIs (s3://, gs://) that pyarrow understands.
"""

import errno
import hashlib
import json
import os
import platform
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, wraps
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import tenacity

from ns_ray.errors import ConfigError, DataError, MissingFileError, StorageError, first_line

DONE = "_DONE.json"

P = ParamSpec("P")
T = TypeVar("T")
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_ABSENT = {errno.ENOENT, errno.ENOTDIR}
_LASTING = {
    *(_FULL | _FORBIDDEN | _ABSENT),
    *(errno.EEXIST, errno.EISDIR, errno.EFBIG, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG),
}
_REFUSED = re.compile("ACCESS_DENIED|NO_SUCH_|INVALID_|SIGNATURE_DOES_NOT_MATCH|_TOKEN|MISSING_")
"""In what Arrow says of S3, which has no error numbers: "AWS Error NO_SUCH_BUCKET during ..."."""


def _guarded(
    action: str,
) -> Callable[[Callable[Concatenate[str, P], T]], Callable[Concatenate[str, P], T]]:
    """For functions of a path: try again what may pass, and raise what lasts as ours."""

    def guard(work: Callable[Concatenate[str, P], T]) -> Callable[Concatenate[str, P], T]:
        @wraps(work)
        def guarded(path: str, /, *args: P.args, **options: P.kwargs) -> T:
            try:
                try:
                    return work(path, *args, **options)
                except OSError as error:
                    if not _may_pass(path, error):
                        raise
                return _patience(path)(work, path, *args, **options)
            except OSError as error:
                raise failure(action, path, error) from error
            except pa.ArrowInvalid as error:
                raise DataError(f"{path} is no Parquet file: {first_line(error)}") from error

        return guarded

    return guard


def _may_pass(path: str, error: BaseException) -> bool:
    """Whether the same call could go well a little later."""
    if not isinstance(error, OSError):
        return False
    if number := _number(error):
        return number not in _LASTING
    return is_uri(path) and not _REFUSED.search(str(error))


def _number(error: OSError) -> int | None:
    """Its errno; Parquet readers leave it out where a file is missing."""
    return error.errno or (errno.ENOENT if isinstance(error, FileNotFoundError) else None)


def _patience(path: str) -> tenacity.Retrying:
    """Ten seconds of trying again, for which the clients of S3 and GCS may need longer."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: _may_pass(path, error)),
        stop=tenacity.stop_after_attempt(4) | tenacity.stop_after_delay(10),
        wait=tenacity.wait_exponential_jitter(initial=1, max=8, jitter=1),
        reraise=True,
    )


def failure(action: str, path: str, error: OSError) -> StorageError:
    """What a user is told when `action`, such as "write", failed."""
    if isinstance(error, StorageError):
        return error
    number = _number(error)
    reason = os.strerror(number) if number and not is_uri(path) else first_line(error)
    if action == "read" and number in _ABSENT:
        return MissingFileError(
            f"cannot read {path}: {reason}; a stage makes its files again when the {DONE} beside "
            f"them is removed",
            number,
        )
    if number in _FULL:
        advice = "free some space there"
    elif number in _FORBIDDEN or (number is None and "ACCESS_DENIED" in reason):
        advice = "get the permission"
    else:
        advice = "see that the disk or store is there and works"
    return StorageError(
        f"cannot {action} {path}: {reason}; {advice} and run the same command again, which goes on",
        number,
    )


def is_uri(path: str) -> bool:
    """Whether a path names an object store rather than the local disk."""
    return "://" in path


def absolute(path: str | os.PathLike[str]) -> str:
    """The same place, whatever the working directory of the process that reads it."""
    text = os.fspath(path)
    return text.rstrip("/") if is_uri(text) else os.path.abspath(os.path.expanduser(text))


def join(path: str, *parts: str) -> str:
    """Path of a file or folder inside another."""
    return "/".join([path.rstrip("/"), *parts])


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path, and the path within it.

    Raises:
        ConfigError: the scheme is unknown.
    """
    if not is_uri(path):
        return pafs.LocalFileSystem(), absolute(path)
    scheme, _, rest = path.partition("://")
    store, slash, inner = rest.partition("/")
    try:
        if re.search(r"\?\w+=", path):  # options, such as s3://bucket/a?region=eu-west-1
            return _from_uri(path)
        # Arrow parses only what comes before the path: names may hold spaces, braces and hashes.
        fs, root = _from_uri(f"{scheme}://{store}" if store else f"{scheme}:///")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"{path!r}: {error}; use a folder, or an s3:// or gs:// URI") from None
    return fs, f"{root.rstrip('/')}{slash}{inner}"


@lru_cache(maxsize=64)
def _from_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """Connecting costs a request or more, so it is done once for each store."""
    fs, inner = pafs.FileSystem.from_uri(uri)
    return fs, str(inner)


@_guarded("read")
def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    fs, inner = filesystem(path)
    return bool(fs.get_file_info(inner).type != pafs.FileType.NotFound)


@_guarded("read")
def read_bytes(path: str) -> bytes:
    """A whole file.

    Raises:
        MissingFileError: there is none.
        StorageError: it cannot be read.
    """
    fs, inner = filesystem(path)
    with fs.open_input_stream(inner) as stream:
        return bytes(stream.read())


@_guarded("write")
def write_bytes(path: str, data: bytes) -> None:
    """Write a file that appears whole or not at all.

    Raises:
        StorageError: the place cannot be written.
    """
    fs, inner = filesystem(path)
    local = isinstance(fs, pafs.LocalFileSystem)
    target = f"{inner}.{uuid.uuid4().hex[:8]}.tmp" if local else inner
    try:
        if local:
            os.makedirs(os.path.dirname(inner), exist_ok=True)
        with fs.open_output_stream(target) as stream:
            stream.write(data)
        if local:
            os.replace(target, inner)
    except OSError:
        if local and os.path.exists(target):
            os.unlink(target)
        raise


def read_json(path: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DataError: the file is not a JSON object.
    """
    try:
        value = json.loads(read_bytes(path))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def write_json(path: str, value: Mapping[str, Any]) -> None:
    """Write a JSON object, indented for people."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


@_guarded("read")
def read_table(path: str, columns: list[str] | None = None) -> pa.Table:
    """A whole Parquet file, or some of its columns."""
    fs, inner = filesystem(path)
    return pq.read_table(inner, columns=columns, filesystem=fs, partitioning=None)


@_guarded("read")
def read_rows(path: str, column: str, values: list[str], columns: list[str]) -> pa.Table:
    """The rows of a Parquet file whose `column` is one of `values`, with some of their columns:
    only the row groups that hold them are read."""
    fs, inner = filesystem(path)
    wanted = pa.array(values, pa.string())
    with fs.open_input_file(inner) as source:
        file = pq.ParquetFile(source)
        groups = [
            group
            for group in range(file.num_row_groups)
            if pc.any(pc.is_in(file.read_row_group(group, [column])[column], wanted)).as_py()
        ]
        table = file.read_row_groups(groups, list({column, *columns}))
    return table.filter(pc.is_in(table[column], wanted))


@_guarded("read")
def read_first(path: str, rows: int, columns: list[str]) -> pa.Table:
    """At most so many rows from the beginning of a Parquet file, with some of their columns."""
    fs, inner = filesystem(path)
    with fs.open_input_file(inner) as source:
        file = pq.ParquetFile(source)
        batch = next(file.iter_batches(rows, columns=columns), None)
        schema = pa.schema([file.schema_arrow.field(name) for name in columns])
        return pa.Table.from_batches([batch] if batch is not None else [], schema)


def write_table(path: str, table: pa.Table, row_group_size: int = 256) -> None:
    """Write a Parquet file that appears whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=row_group_size, compression="zstd")
    write_bytes(path, sink.getvalue().to_pybytes())


@_guarded("list")
def changed(path: str) -> float | None:
    """When a folder's files changed last, in seconds since the epoch; None without any."""
    fs, inner = filesystem(path)
    infos = fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True, recursive=True))
    return max((info.mtime_ns / 1e9 for info in infos if info.mtime_ns), default=None)


@_guarded("list")
def list_files(path: str, recursive: bool = False) -> list[str]:
    """Names (relative to `path`) of the files in a folder, sorted. A missing folder has none."""
    fs, inner = filesystem(path)
    selector = pafs.FileSelector(inner, allow_not_found=True, recursive=recursive)
    start = len(inner.rstrip("/")) + 1
    return sorted(
        info.path[start:] for info in fs.get_file_info(selector) if info.type == pafs.FileType.File
    )


@_guarded("remove files of")
def remove_files(path: str, names: list[str]) -> None:
    """Remove files of a folder; one that is already gone is no error."""
    fs, inner = filesystem(path)
    for name in names:
        try:
            fs.delete_file(f"{inner}/{name}")
        except FileNotFoundError:
            continue


def fingerprint(*parts: Any) -> str:
    """Twelve hex digits of plain values."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Done:
    """What a finished stage left: the contents of its `_DONE.json`."""

    stage: str
    fingerprint: str
    files: list[str]
    facts: dict[str, Any]
    seconds: float


def published(out: str) -> Done | None:
    """What the folder's `_DONE.json` says, or None when there is none."""
    path = join(out, DONE)
    if not exists(path):
        return None
    raw = read_json(path)
    return Done(
        stage=str(raw.get("stage", "")),
        fingerprint=str(raw.get("fingerprint", "")),
        files=[str(name) for name in raw.get("files", [])],
        facts={str(k): v for k, v in raw.get("facts", {}).items()},
        seconds=float(raw.get("seconds", 0.0)),
    )


def already(out: str, fingerprint: str) -> Done | None:
    """What was published, if it was made from just these inputs."""
    done = published(out)
    return done if done is not None and done.fingerprint == fingerprint else None


def publish(
    out: str,
    *,
    stage: str,
    fingerprint: str,
    files: list[str],
    facts: Mapping[str, Any],
    inputs: Mapping[str, Any],
    seconds: float,
) -> Done:
    """Write `_DONE.json`, then remove the files of an earlier publication that it doesn't list."""
    earlier = published(out)
    write_json(
        join(out, DONE),
        {
            "stage": stage,
            "fingerprint": fingerprint,
            "files": files,
            "facts": dict(facts),
            "inputs": dict(inputs),
            "seconds": round(seconds, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": versions(),
        },
    )
    if earlier is not None:
        remove_files(out, sorted(set(earlier.files) - set(files)))
    return Done(stage, fingerprint, files, dict(facts), seconds)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a result."""
    found = {"python": platform.python_version()}
    for name in ("ns-ray", "torch", "timm", "ray", "numpy", "pillow", "pyarrow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_sha(folder: str | None = None) -> str | None:
    """Commit of the checkout this package lies in; None when it is installed elsewhere, or there
    is no `git` to ask."""
    here = Path(folder) if folder else Path(__file__).resolve().parent
    if not any((parent / ".git").exists() for parent in (here, *here.parents)):
        return None
    try:
        told = subprocess.run(
            # Whoever owns the checkout: in a container that is often another user.
            ["git", "-c", "safe.directory=*", "-C", str(here), "rev-parse", "--verify", "HEAD"],
            env={k: v for k, v in os.environ.items() if not k.startswith("GIT_")},
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):  # no git here, or no commit yet
        return None
    return told.stdout.strip()
