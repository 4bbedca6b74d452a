"""Files of ours that are not as they were written: set aside, so that they are made again."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ns_ray.errors import DamagedFileError, StorageError
from ns_ray.log import say
from ns_ray.store.files import exists, read_json, remove_files, rename
from ns_ray.store.paths import DONE

ENDING = ".damaged"
"""Ends the name of a file that was set aside."""


def set_aside(path: str) -> bool:
    """Rename a damaged file and take back that its stage has finished, which then makes it again.

    Returns:
        Whether that could be done.
    """
    folder, _, name = path.rpartition("/")
    try:
        if name != DONE:  # first: a stage that has not finished makes what is missing
            remove_files(folder, [DONE])
        if exists(path):
            rename(path, path + ENDING)
    except StorageError:  # somebody else's folder, or renamed by another process just now
        return False
    return True


def read_intact(
    path: str, read: Callable[[str], dict[str, Any]] = read_json
) -> dict[str, Any] | None:
    """A JSON object; None where there is none or the file is damaged, which is said, and set
    aside.

    Args:
        path: of the file.
        read: gives its content, or raises DamagedFileError.
    """
    if not exists(path):
        return None
    with suppress(FileNotFoundError):  # set aside by another process just now
        try:
            return read(path)
        except DamagedFileError as error:
            give_up(error)
    return None


def give_up(error: DamagedFileError) -> None:
    """Set a damaged file aside that counts as absent, and say so."""
    aside = set_aside(error.path)
    say(f"{error}; " + (f"it is {error.path}{ENDING} now" if aside else "it counts as absent"))


class Mending:
    """Which files of a folder were damaged, and are being made again.

    Args:
        root: of a run. What lies elsewhere is not ours to make.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._met: dict[str, DamagedFileError] = {}

    def mend(self, error: DamagedFileError) -> None:
        """Set a file aside: doing all of the work again makes it, and goes on.

        Raises:
            DamagedFileError: the file is not ours, or was made again before.
        """
        if not error.path.startswith(f"{self._root}/") or error.path in self._met:
            raise error
        if not set_aside(error.path) and exists(error.path):
            raise error
        # A run with a part missing has not finished.
        remove_files(self._root, ["result.json"])
        self._met[error.path] = error
        say(f"{error}; it is {error.path.rpartition('/')[2]}{ENDING} now, and made again")

    @property
    def last(self) -> DamagedFileError | None:
        """What was met last."""
        return next(reversed(self._met.values()), None)
