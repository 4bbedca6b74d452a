"""Everything that can go wrong, and the exit code that says so.

    NsRayError
    |-- ConfigError         exit 2: a setting is wrong; nothing was started
    |-- DataError           exit 3: the images or labels cannot be used
    |   |-- ImageError      one image cannot be used (a row in rejected.parquet, not an exit)
    |   |-- MissingSourceError    there are no images where a setting says
    |   `-- DamagedFileError  a file of ours is not as it was written
    |-- StageError          exit 4: a stage failed; running the same command again continues
    |   `-- StorageError    a disk, a permission or an object store failed it
    `-- FaultError          exit 70: a mistake of ours; the traceback is in a file

A message names the value, what is allowed, and the setting to change.
"""

import difflib
from collections.abc import Iterable
from typing import Any


class NsRayError(Exception):
    """Base of all errors a user can cause or meet. They travel between processes whole: with their
    attributes, and without what Ray adds to the texts of those who pass through it."""

    exit_code = 70

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (type(self), self.args, vars(self))


def _arrived(kind: type[NsRayError], args: tuple[Any, ...], said: dict[str, Any]) -> NsRayError:
    """An error as it was, whatever its class asks for to make a new one."""
    error = kind.__new__(kind, *args)
    vars(error).update(said)
    return error


class ConfigError(NsRayError):
    """A setting is wrong. Nothing was started."""

    exit_code = 2


class DataError(NsRayError):
    """The images or labels cannot be used."""

    exit_code = 3


class ImageError(DataError):
    """One image cannot be used. `reason` is a short, countable word; `detail` says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class MissingSourceError(DataError):
    """There are no images where a setting says. `source` names both: `data.test='photos'`."""

    def __init__(self, source: str, message: str) -> None:
        super().__init__(message)
        self.source = source


class DamagedFileError(DataError):
    """A file of ours is not as it was written.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} is damaged: {reason}")
        self.path = path


class StageError(NsRayError):
    """A stage failed half-way. What it published stays valid; the same command continues."""

    exit_code = 4


class StorageError(StageError, OSError):
    """Files cannot be read or written. Where trying again could help, that has been done.

    It is an `OSError` too, for those who handle files of any kind.

    Attributes:
        errno: of the system's error; None where a store or a library gave none.
    """

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno

    def __reduce__(self) -> tuple[type["StorageError"], tuple[str, int | None]]:
        return type(self), (str(self), self.errno)


class MissingFileError(StorageError, FileNotFoundError):
    """There is no such file."""


class FaultError(NsRayError):
    """A mistake of ours: what no other class of this file covers. 70 is the usual code for it."""

    exit_code = 70


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' for the closest of the known words, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
