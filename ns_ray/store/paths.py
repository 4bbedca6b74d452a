"""Paths: local ones, or URIs: s3:// and gs:// of object stores, and hf://, https:// and http://,
which are read from only.

Options of a URI, such as s3://bucket/runs?region=eu-west-1, are moved behind the bucket, with %2F
for slashes in their values: what is joined or cut at the end of a path leaves them alone.
"""

import os
import re
from functools import lru_cache
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs

from ns_ray.errors import ConfigError, nearest

DONE = "_DONE.json"
"""The file of a folder whose stage has finished."""
OWNER = "owner.json"
"""The file of a folder in which a process works (see owner.py)."""

IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""What Ray has in the environment of a submitted job's program, and of nothing else."""

_GCS = ("endpoint_override", "scheme", "project_id", "retry_limit_seconds")
OPTIONS = {
    "s3": (
        *("endpoint_override", "scheme", "region", "tls_ca_file_path", "tls_verify_certificates"),
        *("allow_bucket_creation", "allow_bucket_deletion", "allow_delayed_open"),
        "smart_defaults",
    ),
    "gs": _GCS,
    "gcs": _GCS,
}
"""Options that URIs of object stores may have: those of pyarrow.fs.FileSystem.from_uri."""

READ_ONLY = ("http://", "https://", "hf://")

_IN_HUB = re.compile(r"hf://datasets(/[^/]+){2}(/.*)?")
_BEHIND_BUCKET = re.compile(r"([^/?]*)\?((?:://|/(?=&|$)|[^/])*)(.*)", re.DOTALL)
_AT_END = re.compile(r"\?(?=\w+=)")


def is_uri(path: str) -> bool:
    """Whether a path names an object store rather than the local disk."""
    return "://" in path


def is_read_only(path: str) -> bool:
    """Whether nothing can be written to a path: of a web server or the Hugging Face Hub."""
    return path.startswith(READ_ONLY)


def is_web(path: str) -> bool:
    """Whether a path is a file of a web server, by its URL."""
    return path.startswith(("http://", "https://"))


def bare(path: str) -> str:
    """A path as far as it names a file: a URL without its query and fragment."""
    return re.split("[?#]", path, maxsplit=1)[0] if is_web(path) else path


def absolute(path: str | os.PathLike[str]) -> str:
    """The same place, whatever the working directory of the process that reads it.

    Raises:
        ConfigError: a URI has an option that its store does not know.
    """
    text = os.fspath(path)
    if not is_uri(text):
        return os.path.abspath(os.path.expanduser(text))
    if is_web(text):
        return text
    store, inner = _parts(text)
    return f"{store}{inner}".rstrip("/")


def kept(path: str | os.PathLike[str], setting: str) -> str:
    """The absolute path of a place to write to.

    Args:
        path: the place.
        setting: what names it, for the message: `storage`.

    Raises:
        ConfigError: it is relative, in a Ray job, which runs in a copy of the folder that was
            submitted; or it is empty, a URI with an unknown option, or of what is only read from.
    """
    text = os.path.expanduser(os.fspath(path))
    if not text.strip():
        raise ConfigError(f"{setting}={text!r} is empty; name a folder, such as '.'")
    if is_read_only(text):
        raise ConfigError(
            f"{setting}={text!r} is only read from; set {setting} to a folder, or to an s3:// or "
            "gs:// URI"
        )
    if IN_JOB in os.environ and not is_uri(text) and not os.path.isabs(text):
        raise ConfigError(
            f"{setting}={text!r} is relative: it would be lost with the folder of this Ray job "
            f"({os.getcwd()}); set {setting} to an absolute path that every node has, or to an "
            "s3:// or gs:// URI"
        )
    return absolute(path)


def kept_folder(path: str | os.PathLike[str], setting: str) -> str:
    """The absolute path of a folder to write to; see `kept`.

    Raises:
        ConfigError: as there; or it is a file, or in one.
    """
    place = kept(path, setting)
    _check_folder(place, f"{setting}={os.fspath(path)!r}")
    return place


def kept_file(path: str | os.PathLike[str], setting: str) -> str:
    """The absolute path of a file to write; see `kept`.

    Raises:
        ConfigError: as there; or it is a folder, or in a file.
    """
    place = kept(path, setting)
    where = f"{setting}={os.fspath(path)!r}"
    if not is_uri(place) and os.path.isdir(place):
        raise ConfigError(f"{where} is a folder; name a file")
    _check_folder(os.path.dirname(place), where)
    return place


def _check_folder(there: str, where: str) -> None:
    while not is_uri(there) and not os.path.lexists(there):
        there = os.path.dirname(there)
    if not is_uri(there) and not os.path.isdir(there):
        raise ConfigError(f"{where}: {there} is no folder; name another")


def join(path: str, *parts: str) -> str:
    """Path of a file or folder inside another."""
    if is_uri(path) and "?" in path:
        path = absolute(path)
    return "/".join([path.rstrip("/"), *parts])


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path, and the path within it.

    Raises:
        ConfigError: the scheme is unknown, or an option.
    """
    if not is_uri(path):
        return pafs.LocalFileSystem(), absolute(path)
    if is_web(path):
        from ns_ray.store.web import web

        return web(), path
    if path.startswith("hf://"):
        from ns_ray.store.hub import hub

        if not _IN_HUB.fullmatch(path):
            raise ConfigError(f"{path!r}: a set of the Hub is named hf://datasets/OWNER/NAME")
        return hub(), path.removeprefix("hf://").rstrip("/")
    store, inner = _parts(path)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if store.startswith("s3://") and endpoint and "endpoint_override=" not in store:
        store += f"{'&' if '?' in store else '?'}endpoint_override={quote(endpoint, safe='')}"
    try:
        # Arrow parses only what comes before the path: names may hold spaces, braces and hashes.
        fs, root = _from_uri(f"{store}/" if store.endswith("://") else store)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(
            f"{path!r}: {error}; use a folder, or an s3://, gs://, hf:// or https:// URI"
        ) from None
    return fs, f"{root.rstrip('/')}{inner}"


def _parts(uri: str) -> tuple[str, str]:
    """The store of a URI with its options, and the path within it, which begins with a slash
    unless it is empty.

    Raises:
        ConfigError: an option is not known.
    """
    scheme, _, rest = uri.partition("://")
    if found := _BEHIND_BUCKET.fullmatch(rest):
        bucket, options, inner = found.groups()
    else:
        before, *after = _AT_END.split(rest, maxsplit=1)
        if not before.partition("/")[0]:  # file:///a?b=c
            return f"{scheme}://", rest
        bucket, slash, inner = before.partition("/")
        options, inner = "".join(after), f"{slash}{inner}"
    if not options:
        return f"{scheme}://{bucket}", inner
    _check(uri, scheme, options)
    return f"{scheme}://{bucket}?{options.replace('/', '%2F')}", inner


def _check(uri: str, scheme: str, options: str) -> None:
    """Refuse options that the store does not know.

    Raises:
        ConfigError: names the option and those that are allowed.
    """
    known = OPTIONS.get(scheme)
    if known is None:  # a store that only pyarrow knows
        return
    allowed = f"{scheme}:// has {', '.join(known)}"
    for option in options.split("&"):
        name, _, value = option.partition("=")
        if name not in known:
            raise ConfigError(
                f"{uri!r}: there is no option {name!r}{nearest(name, known)}; {allowed}"
            )
        if not value:
            raise ConfigError(
                f"{uri!r}: the option {name!r} is empty; write %2F for / in its value"
            )
        if name == "scheme" and value not in ("http", "https"):
            raise ConfigError(f"{uri!r}: the option 'scheme' is http or https, not {value!r}")


@lru_cache(maxsize=64)
def _from_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """Connecting costs a request or more, so it is done once for each store."""
    fs, inner = pafs.FileSystem.from_uri(uri)
    return fs, str(inner)
