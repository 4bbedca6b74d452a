"""What a finished stage leaves: its files, and a `_DONE.json` that lists them.

A stage writes its files under names that carry its fingerprint, lists them in `_DONE.json`, writes
that last, and only then removes what an earlier publication left. Readers look at the listed files
only. Rerun with the same fingerprint, the stage returns what it published.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ns_ray.store.files import exists, read_json, remove_files, write_json
from ns_ray.store.paths import DONE, join
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
