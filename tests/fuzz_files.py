"""Opens files that are wrong, as users meet them, and looks what comes of it.

    python tests/fuzz_files.py --rounds 1000 --seed 1 [--kind checkpoint]

Each round mutates one file of a finished run, drawn from the seed (mutations.py), and opens it as
the program does. The file must count as it was, or end in an error of ours that names it; nothing
else may be raised, take long, or take memory. Where damage goes unnoticed, what was read must be
what was written. Ends with 1 where that does not hold, and a line for each way in which it doesn't.
"""

import argparse
import collections
import contextlib
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mutations import DAMAGE
from opened import KINDS, Kind, make_world

from ns_ray import store
from ns_ray.errors import NsRayError
from ns_ray.store import owner as owners

SECONDS = 20
"""A file that takes longer to open hangs."""
BYTES = 300 * 2**20
"""Memory that opening a file may take, all of them being small."""


def seal(path: Path) -> None:
    """Put the right checksums into what names a file that was written anew."""
    done, facts = path.parent / store.DONE, path.parent / store.PROVENANCE
    with contextlib.suppress(
        ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError
    ):
        if path.name == store.WEIGHTS:
            plain = json.loads(facts.read_text())
            plain["weights_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
            facts.write_text(json.dumps(plain))
        plain = json.loads(done.read_bytes())
        plain.pop("checksum", None)
        if path.name != store.DONE:
            for name in plain["checksums"]:
                data = (path.parent / name).read_bytes()
                plain["checksums"][name] = store.publication.checksum(data)
        text = json.dumps(plain)
        own = store.fingerprint(json.loads(text))
        done.write_text(
            text[:-1] + f', "checksum": "{own}"}}' if plain else f'{{"checksum": "{own}"}}'
        )


# ---------------------------------------------------------------------------------------- the judge


class Hangs(BaseException):
    """Opening a file takes too long."""


def _too_long(*_: object) -> None:
    raise Hangs


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """An alarm, no waiting for owners, and less memory than would hurt the machine."""
    with Path("/proc/self/statm").open() as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 6 * 2**30, hard))
    before = signal.signal(signal.SIGALRM, _too_long)
    with mock.patch.multiple(
        owners, HEARTBEAT_SECONDS=0.01, STALE_SECONDS=0.01, SETTLE_SECONDS=0.0
    ):
        try:
            yield
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def judged(kind: Kind, root: Path, damage: bool, expected: Any) -> tuple[str, str]:
    """What opening a file came to: used, refused; or what must not be, with where it comes from."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            found = kind.open(root)
    except NsRayError as error:
        outcome = _refused(kind, root, error)
    except Hangs:
        outcome = "hangs", f"more than {SECONDS} s"
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/ns_ray/" in f.filename]
        at = (
            f"{frames[-1].filename.rpartition('/ns_ray/')[2]}:{frames[-1].lineno}" if frames else ""
        )
        outcome = type(error).__name__, f"{at}: {str(error)[:120]}"
    else:
        outcome = "used", ""
        if not found:
            outcome = "absent", ""
        elif damage and kind.checked and repr(found) != repr(expected):
            outcome = "differs", f"{str(found)[:100]}"
    finally:
        signal.alarm(0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return outcome if grown < BYTES else ("memory", f"{grown / 2**20:,.0f} MB, {outcome}")


def _refused(kind: Kind, root: Path, error: NsRayError) -> tuple[str, str]:
    text = str(error)
    if error.exit_code == 70:
        return "fault", text[:200]
    if "\n" in text.strip():
        return "several lines", text[:200]
    if len(text) > 3000:
        return "long", text[:200]
    named = str(root), "config.yaml", "is not a packed corpus"  # a place that a file names
    if not any(one in text for one in named):
        return "names no file", text[:200]
    return "refused", ""


def rounds(
    root: Path, name: str, count: int, seed: int, kept: Path
) -> Iterator[tuple[int, str, str, str]]:
    """(round, mutation, outcome, what is to be said of it).

    Args:
        root: the world, changed while this works and restored after each round.
        name: of the kind.
        count, seed: how many rounds, of which sequence.
        kept: a copy of the world.
    """
    kind = KINDS[name]
    original = next(kept.glob(kind.file))
    path, data = root / original.relative_to(kept), original.read_bytes()
    expected = kind.open(root)
    restore(kept, root)
    for i in range(count):
        rng = random.Random(f"{name} {seed} {i}")
        damage = rng.random() < 0.3
        mutation = rng.choice(DAMAGE if damage else kind.forged)
        changed = mutation(rng, data)
        path.write_bytes(changed)
        if not damage:
            seal(path)
        try:
            yield i, mutation.__name__, *judged(kind, root, damage, expected)
        finally:
            restore(kept, root)


def restore(kept: Path, root: Path) -> None:
    """Put back what a round has changed, added and removed."""
    there = {path.relative_to(root): path.stat() for path in root.rglob("*") if path.is_file()}
    for original in kept.rglob("*"):
        path = original.relative_to(kept)
        found, right = there.pop(path, None), original.stat()
        if original.is_dir():
            (root / path).mkdir(exist_ok=True)
        elif found is None or (found.st_mtime_ns, found.st_size) != (
            right.st_mtime_ns,
            right.st_size,
        ):
            shutil.copy2(original, root / path)
    for path in there:
        (root / path).unlink()


FINE = ("used", "refused", "absent")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, action="append")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="nsr-fuzz-"))
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        root = make_world(folder / "world")
        kept = Path(shutil.copytree(root, folder / "kept", copy_function=shutil.copy2))
    bad = 0
    with limits():
        for name in options.kind or KINDS:
            said: collections.Counter[str] = collections.Counter()
            first: dict[tuple[str, str, str], list[int]] = {}
            with contextlib.redirect_stdout(io.StringIO()):
                found = list(rounds(root, name, options.rounds, options.seed, kept))
            for i, mutation, outcome, detail in found:
                said[outcome] += 1
                if outcome not in FINE:
                    first.setdefault((outcome, mutation, detail), []).append(i)
            bad += sum(count for outcome, count in said.items() if outcome not in FINE)
            lines = [f"{name}: {dict(said)}"]
            for (outcome, mutation, detail), at in first.items():
                where = f"{mutation}, round {at[0]} and {len(at) - 1} more"
                lines.append(f"    {outcome} after {where}: {detail!a}")
            sys.stdout.write("\n".join(lines) + "\n")
            sys.stdout.flush()
    shutil.rmtree(folder)
    return 1 if bad else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
