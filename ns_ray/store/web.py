"""Files of web servers: whole, from their beginning, or by ranges. Nothing is written there.

What may pass by itself, such as a server that is too busy or a connection that breaks, is tried
again, and no waiting is endless. Errors say what the server answered: `HTTP 503 Service
Unavailable`; who asked names the URL. Those whose errno is None may have passed later.
"""

import errno
import io
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http import HTTPStatus
from typing import Any, ParamSpec, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import requests
import tenacity
import urllib3
from requests.adapters import HTTPAdapter

from ns_ray import __version__

TIMEOUT = (10, 30)
"""Seconds to connect, and between two pieces of an answer."""
LONGEST = 60
"""Seconds that a whole small file may take, tries included."""
MOST_BYTES = 2**28
"""Most bytes of one."""
TRIES = 4
LONGEST_PAUSE = 10
"""Seconds between two tries, whatever a server asks for."""
AT_ONCE = 32
"""Connections of a process that are kept."""
BUFFER = 2**20

P = ParamSpec("P")
T = TypeVar("T")
_BUSY = {408, 425, 429}
_ABSENT = {404, 410}
_FORBIDDEN = {401, 402, 403, 407, 451}


def fetch(url: str) -> bytes:
    """A whole file, such as an image.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be had, takes longer than LONGEST or has more than MOST_BYTES.
    """
    return _trying(LONGEST)(_fetch, url, time.monotonic() + LONGEST)


def _fetch(url: str, end: float) -> bytes:
    data = bytearray()
    with _answer(url) as answer, _our_errors():
        for piece in answer.iter_content(2**16):
            data += piece
            if len(data) > MOST_BYTES:
                raise _error(f"it has more than {MOST_BYTES:,} bytes", errno.EFBIG)
            if time.monotonic() > end:
                raise _error(f"it took more than {LONGEST} s", errno.ETIMEDOUT)
    return bytes(data)


def _error(said: str, number: int | None, pause: float = 0) -> OSError:
    """An error whose text is what is said, without the number."""
    error = FileNotFoundError(said) if number == errno.ENOENT else OSError(said)
    error.errno = number
    vars(error)["pause"] = pause
    return error


def _trying(seconds: float) -> tenacity.Retrying:
    """Try again what may pass, for so long."""
    backoff = tenacity.wait_random_exponential(multiplier=0.5, max=LONGEST_PAUSE)

    def pause(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return max(backoff(state), min(getattr(error, "pause", 0), LONGEST_PAUSE))

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda e: isinstance(e, OSError) and e.errno is None),
        stop=tenacity.stop_after_attempt(TRIES) | tenacity.stop_after_delay(seconds),
        wait=pause,
        reraise=True,
    )


def _patiently(url: str, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """
    Raises:
        OSError: also after trying again; it names the URL.
    """
    try:
        return _trying(LONGEST)(work, *args, **options)
    except OSError as error:
        raise _error(f"{url}: {error}", error.errno) from None


@lru_cache(maxsize=1)
def _session(process: int) -> requests.Session:
    """Connections of this process."""
    made = requests.Session()
    # As the files are: a .gz stays one.
    made.headers.update({"Accept-Encoding": "identity", "User-Agent": f"ns_ray/{__version__}"})
    for scheme in ("http://", "https://"):
        made.mount(scheme, HTTPAdapter(pool_connections=AT_ONCE, pool_maxsize=AT_ONCE))
    return made


@contextmanager
def _our_errors() -> Iterator[None]:
    """
    Raises:
        OSError: with a short text; its errno is None where trying again may help.
    """
    try:
        yield
    except requests.Timeout as error:
        connecting = isinstance(error, requests.ConnectTimeout)
        raise _error(
            f"no connection in {TIMEOUT[0]} s" if connecting else f"no answer in {TIMEOUT[1]} s",
            None,
        ) from None
    except (requests.exceptions.SSLError, requests.TooManyRedirects, ValueError) as error:
        raise _error(_reason(error), errno.EINVAL) from None
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _error(_reason(error), None) from None


def _reason(error: Exception) -> str:
    """The innermost reason, without the connection's representation."""
    inner: Any = error
    while (args := getattr(inner, "args", ())) and isinstance(args[-1], Exception):
        inner = getattr(args[-1], "reason", None) or args[-1]
    return re.sub(r"^.*?\): ", "", str(inner).partition("\n")[0]) or type(inner).__name__


def _answer(url: str, start: int = 0, stop: int | None = None) -> requests.Response:
    """What a server answers when it is asked for a file, or some bytes of it; to be closed."""
    headers = _of_hub(url)
    if start or stop is not None:
        headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
    with _our_errors():
        answer = _session(os.getpid()).get(url, headers=headers, stream=True, timeout=TIMEOUT)
    if answer.status_code not in (200, 206):
        answer.close()
        raise _refused(answer)
    return answer


def _of_hub(url: str) -> dict[str, str]:
    """What the Hugging Face Hub is to be told: who asks, for sets that are not open to all."""
    if "/resolve/" not in url:
        return {}
    from huggingface_hub import constants, get_token

    token = get_token() if url.startswith(f"{constants.ENDPOINT}/") else None
    return {"Authorization": f"Bearer {token}"} if token else {}


def _refused(answer: requests.Response) -> OSError:
    status = answer.status_code
    known = {one.value: one.phrase for one in HTTPStatus}
    said = f"HTTP {status} {known.get(status, answer.reason or '')}".rstrip()
    if status in _BUSY or status >= 500:
        asked = answer.headers.get("Retry-After", "")
        return _error(said, None, float(asked) if asked.isdigit() else 0)
    absent, forbidden = status in _ABSENT, status in _FORBIDDEN
    return _error(said, errno.ENOENT if absent else errno.EACCES if forbidden else errno.EINVAL)


def _mark(answer: requests.Response) -> tuple[str, ...]:
    """What changes with the file, as far as the server tells."""
    size = answer.headers.get("Content-Range", "").rpartition("/")[2]
    size = size or answer.headers.get("Content-Length", "")
    return (size, *(answer.headers.get(name, "") for name in ("ETag", "Last-Modified")))


class _Beginning(io.RawIOBase):
    """A file from its beginning. Where the connection breaks, it goes on from there."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url, self._at = url, 0
        self._mark: tuple[str, ...] | None = None
        self._answer: requests.Response | None = None
        _patiently(url, self._connect)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = _patiently(self._url, self._piece, len(buffer))
        self._at += len(data)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._disconnect()
        super().close()

    def _connect(self) -> None:
        self._answer = answer = _answer(self._url, self._at)
        if self._mark not in (None, _mark(answer)):
            raise _error("it changed while it was read", errno.EINVAL)
        self._mark = _mark(answer)
        left = self._at if answer.status_code == 200 else 0
        with _our_errors():
            while left:
                again = len(answer.raw.read(min(left, BUFFER)))
                if not again:
                    raise _error("it changed while it was read", errno.EINVAL)
                left -= again

    def _disconnect(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    def _piece(self, count: int) -> bytes:
        try:
            if self._answer is None:
                self._connect()
            assert self._answer is not None
            with _our_errors():
                return bytes(self._answer.raw.read(count))
        except OSError:
            self._disconnect()
            raise


class _Ranges(io.RawIOBase):
    """A file of which any bytes can be read. Where its server gives no ranges, it is downloaded
    into a temporary file."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url, self._at = url, 0
        self._here: _Download | None = None
        _patiently(url, self._begin)

    def _begin(self) -> None:
        with _answer(self._url, 0, 1) as answer:
            self._mark = _mark(answer)
            whole = answer.status_code == 200 or not self._mark[0].isdigit()
        if whole:
            known = any(self._mark)
            self._here = _downloaded(self._url, self._mark) if known else _Download(self._url)
            self._size = self._here.size
        else:
            self._size = int(self._mark[0])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = offset + {0: 0, 1: self._at, 2: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        count = min(len(buffer), self._size - self._at)
        if count <= 0:
            return 0
        if self._here is not None:
            data = os.pread(self._here.file.fileno(), count, self._at)
        else:
            data = _patiently(self._url, self._range, self._at + count)
        self._at += len(data)
        buffer[: len(data)] = data
        return len(data)

    def _range(self, stop: int) -> bytes:
        with _answer(self._url, self._at, stop) as answer, _our_errors():
            if answer.status_code != 206 or _mark(answer) != self._mark:
                raise _error("it changed while it was read", errno.EINVAL)
            return answer.content


class _Download:
    """A whole file, in one that the system removes with the process at the latest."""

    def __init__(self, url: str) -> None:
        self.file = tempfile.TemporaryFile(prefix="ns-ray-")  # noqa: SIM115
        with io.BufferedReader(_Beginning(url), BUFFER) as stream:
            while data := stream.read(BUFFER):
                self.file.write(data)
        self.file.flush()
        self.size = self.file.tell()

    def __del__(self) -> None:
        self.file.close()


@lru_cache(maxsize=2)
def _downloaded(url: str, mark: tuple[str, ...]) -> _Download:
    return _Download(url)


def from_beginning(url: str) -> pa.PythonFile:
    """A file as a stream."""
    return pa.PythonFile(io.BufferedReader(_Beginning(url), BUFFER), mode="r")


def by_ranges(url: str) -> pa.PythonFile:
    """A file of which any bytes can be read."""
    return pa.PythonFile(io.BufferedReader(_Ranges(url), BUFFER), mode="r")


class _Web(pafs.FileSystemHandler):  # type: ignore[misc]
    """Web servers for Arrow; paths are URLs."""

    def get_type_name(self) -> str:
        return "web"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return [_info(path) for path in paths]

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        raise _error("a web server lists no files; name the files themselves", errno.EINVAL)

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return from_beginning(path)

    def open_input_file(self, path: str) -> pa.PythonFile:
        return by_ranges(path)

    def _refuse(self, *args: object, **options: object) -> None:
        raise _error("a web server is only read from", errno.EROFS)

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _refuse
    delete_file = move = copy_file = open_output_stream = open_append_stream = _refuse


def _info(url: str) -> pafs.FileInfo:
    try:
        return _trying(LONGEST)(_asked, url)
    except FileNotFoundError:
        return pafs.FileInfo(url, pafs.FileType.NotFound)


def _asked(url: str) -> pafs.FileInfo:
    with _answer(url, 0, 1) as answer:  # not all servers know HEAD
        size, _, changed = _mark(answer)
    try:
        when = parsedate_to_datetime(changed).timestamp() if changed else None
    except ValueError:
        when = None
    known = int(size) if size.isdigit() else None
    return pafs.FileInfo(url, pafs.FileType.File, size=known, mtime=when)


@lru_cache(maxsize=1)
def web() -> pafs.FileSystem:
    """Web servers as a file system whose paths are URLs."""
    return pafs.PyFileSystem(_Web())
