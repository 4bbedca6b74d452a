"""What a finished stage leaves: its files, and a `_DONE.json` that lists them.

A stage writes its files under names that carry its fingerprint, lists them in `_DONE.json`, writes
that last, and only then removes what an earlier publication left. Readers look at the listed files
only. Rerun with the same fingerprint, the stage returns what it published. It owns its folder while
it works (see owner.py), not to look.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import xxhash

from ns_ray.errors import DamagedFileError
from ns_ray.store.contents import FileName, Seconds, holding
from ns_ray.store.damage import give_up, read_intact
from ns_ray.store.files import read_bytes, remove_files, write_json
from ns_ray.store.owner import check_owned, owned
from ns_ray.store.paths import DONE, join
from ns_ray.store.places import facts_from_here, facts_seen_from
from ns_ray.store.software import versions

Facts = Mapping[str, object]
"""What a stage has to say of its work, for `_DONE.json` and its kind."""


def fingerprint(*parts: Any) -> str:
    """Twelve hex digits of plain values."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Done:
    """What a finished stage left: the contents of its `_DONE.json`."""

    stage: str
    fingerprint: str
    files: list[FileName]
    facts: dict[str, Any]
    seconds: Seconds
    checksums: dict[str, str] = field(default_factory=dict)
    """XXH3 of the listed JSON files. Tables carry theirs (see tables.py), weights have a sha256."""
    inputs: dict[str, Any] = field(default_factory=dict)
    finished: str = ""
    """When, in UTC."""


_UNSAID = {"stage": "", "fingerprint": "", "files": [], "facts": {}, "seconds": 0.0}


def published(out: str) -> Done | None:
    """What the folder's `_DONE.json` says, or None when there is none. A damaged one is none."""
    path = join(out, DONE)
    raw = read_intact(path)
    if raw is None:
        return None
    try:
        if raw.pop("checksum", None) not in (None, _own(raw)):
            raise DamagedFileError(path, "its checksum differs")
        done = holding(Done, _UNSAID | raw, path)
    except DamagedFileError as error:
        give_up(error)
        return None
    return replace(done, facts=facts_seen_from(out, done.facts))


def already(out: str, fingerprint: str) -> Done | None:
    """What was published, if it was made from just these inputs."""
    done = published(out)
    return done if done is not None and done.fingerprint == fingerprint else None


@contextmanager
def claimed(out: str, fingerprint: str) -> Iterator[Done | None]:
    """What was published, made from just these inputs; None where it is still to be made, by this
    process, which owns the folder while the block runs.

    Raises:
        StageError: another process works there.
    """
    done = already(out, fingerprint)
    if done is not None:
        yield done
        return
    with owned(out):
        yield already(out, fingerprint)  # by now, another process may have made it


def _own(raw: Mapping[str, Any]) -> str:
    """Of the contents of a `_DONE.json`, as they come back from JSON."""
    return fingerprint(json.loads(json.dumps(raw)))


def check_listed(out: str, done: Done, names: Sequence[str]) -> None:
    """Compare JSON files with their checksums; earlier versions have written none.

    Raises:
        DamagedFileError: one differs.
        MissingFileError: one is gone.
    """
    for name in names:
        path = join(out, name)
        if done.checksums.get(name, "") not in ("", checksum(read_bytes(path))):
            raise DamagedFileError(path, f"its checksum is not that of {DONE}")


def checksum(data: bytes) -> str:
    """XXH3 of a file, 16 hex digits."""
    return xxhash.xxh3_64_hexdigest(data)


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
    """Write `_DONE.json`, then remove the files of an earlier publication that it doesn't list.

    Returns:
        What `published` will read, so that a run that is repeated says the same.

    Raises:
        StageError: another process has taken over the folder.
    """
    check_owned(out)
    earlier = published(out)
    done = Done(
        stage=stage,
        fingerprint=fingerprint,
        files=files,
        facts=dict(facts),
        seconds=round(seconds, 3),
        checksums={
            name: checksum(read_bytes(join(out, name))) for name in files if name.endswith(".json")
        },
        inputs=dict(inputs),
        finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    raw = {**asdict(done), "facts": facts_from_here(out, facts), "versions": versions()}
    write_json(join(out, DONE), {**raw, "checksum": _own(raw)})
    if earlier is not None:
        remove_files(out, sorted(set(earlier.files) - set(files)))
    return done
