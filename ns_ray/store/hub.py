"""Data sets of the Hugging Face Hub, hf://datasets/OWNER/NAME[@REVISION]/...: listed by
huggingface_hub, with its HF_TOKEN and HF_ENDPOINT, and read as files of a web server."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from ns_ray.errors import first_line
from ns_ray.store.web import by_ranges, from_beginning


class _Hub(pafs.FSSpecHandler):  # type: ignore[misc]
    def get_file_info(self, paths: list[str]) -> Any:
        with _os_errors():
            return super().get_file_info(paths)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> Any:
        with _os_errors():
            return super().get_file_info_selector(selector)

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return from_beginning(self._url(path))

    def open_input_file(self, path: str) -> pa.PythonFile:
        return by_ranges(self._url(path))

    def _url(self, path: str) -> str:
        with _os_errors():
            return str(self.fs.url(path))


@contextmanager
def _os_errors() -> Iterator[None]:
    """What any HTTP client of huggingface_hub raises, as errors of files.

    Raises:
        OSError: in one line.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        found = OSError(f"{type(error).__name__}: {first_line(error)}")
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if status in (401, 403):
            found.errno = errno.EACCES  # lasts
        raise found from None


@lru_cache(maxsize=1)
def hub() -> pafs.FileSystem:
    """The Hub as a file system whose paths begin with datasets/OWNER/NAME."""
    from huggingface_hub import HfFileSystem

    return pafs.PyFileSystem(_Hub(HfFileSystem()))
