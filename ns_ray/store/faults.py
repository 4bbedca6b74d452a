"""A disk or store that fails: what is tried again first, and what its users are told.

What lasts is a `StorageError` that names the path, the reason and what to do. What may pass by
itself, such as a store that is too busy, is tried again before.
"""

import errno
import os
import re
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import pyarrow as pa
import tenacity

from ns_ray.errors import DamagedFileError, MissingFileError, StorageError, first_line
from ns_ray.store.paths import DONE, is_uri, is_web

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

_NO_SPACE = re.compile("No space left on device|No usable temporary directory|OutOfDiskError")
"""A full disk in the words of libraries that keep no error number, of `tempfile`, and of Ray."""


def guarded(
    action: str,
) -> Callable[[Callable[Concatenate[str, P], T]], Callable[Concatenate[str, P], T]]:
    """For functions of a path: try again what may pass, and raise what lasts as ours."""

    def guard(work: Callable[Concatenate[str, P], T]) -> Callable[Concatenate[str, P], T]:
        @wraps(work)
        def tried(path: str, /, *args: P.args, **options: P.kwargs) -> T:
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
                reason = f"it is no Parquet file: {first_line(error)}"
                raise DamagedFileError(path, reason) from error

        return tried

    return guard


def _may_pass(path: str, error: BaseException) -> bool:
    """Whether the same call could go well a little later."""
    if not isinstance(error, OSError) or is_web(path):  # web.py has tried again
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


def full_disk(error: BaseException) -> StorageError | None:
    """What a user is told where a full disk is behind an error, whoever met it: Python, Ray or
    another library. None where another thing is."""
    behind: BaseException | None = error
    while behind is not None:
        number = behind.errno if isinstance(behind, OSError) else None
        if number in _FULL or _NO_SPACE.search(str(behind)):
            place = getattr(behind, "filename", None) or "a file"
            return StorageError(
                f"cannot write {place}: {first_line(behind)}; free some space and run the "
                "same command again, which goes on",
                number,
            )
        behind = behind.__cause__ or behind.__context__
    return None


def may_be_mended(error: StorageError) -> bool:
    """Whether the same place may do later: it is full, or a store does not answer."""
    if error.errno is None:
        return not _REFUSED.search(str(error))
    return error.errno in _FULL or error.errno not in _LASTING


def failure(action: str, path: str, error: OSError) -> StorageError:
    """What a user is told when `action`, such as "write", failed."""
    if isinstance(error, StorageError):
        return error
    number = _number(error)
    reason = os.strerror(number) if number and not is_uri(path) else first_line(error)
    reason = reason.removeprefix(f"{path}: ")
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
