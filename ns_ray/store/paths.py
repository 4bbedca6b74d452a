"""Paths: local ones, or URIs (s3://, gs://) that pyarrow understands."""

import os
import re
from functools import lru_cache

import pyarrow as pa
import pyarrow.fs as pafs

from ns_ray.errors import ConfigError

DONE = "_DONE.json"
"""The file of a folder whose stage has finished."""


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
