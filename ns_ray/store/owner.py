"""Who works in a folder: one process at a time.

While a process works in a folder, its `owner.json` lies there and changes with each heartbeat. A
second process is refused, or takes over from an owner that has ended without removing its file.

A local disk creates a file for one process only. Where nothing is that sure, in an object store and
in taking over, a process writes its token and looks a moment later whose is there; a heartbeat that
finds another's ends the work.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ns_ray.errors import DataError, StageError
from ns_ray.log import say
from ns_ray.store.contents import holding
from ns_ray.store.faults import guarded
from ns_ray.store.files import exists, read_json, remove_files, write_json
from ns_ray.store.paths import OWNER, absolute, is_uri, join

HEARTBEAT_SECONDS = 10.0
"""As often as growing files are copied to a store (mirror.py): a read and a write more."""
STALE_SECONDS = 60.0
"""How long an owner elsewhere must stand still to count as ended: six heartbeats, of which a store
that fails for a while may cost some."""
SETTLE_SECONDS = 1.0
"""From writing a token to looking whose is there: a small object is written in a fraction of it."""

_held: dict[str, "_Claim"] = {}
"""What this process owns, by folder."""


@contextmanager
def owned(out: str) -> Iterator[None]:
    """Own a folder, and those in it, while a block runs. Nothing is done where this process owns it
    already, as that of the run whose stage this is.

    Args:
        out: a folder or URI; it need not be there.

    Raises:
        StageError: another process works there, or has taken over while the block ran.
        StorageError: the place cannot be read or written.
    """
    out = absolute(out)
    if _claim_on(out) is not None:
        yield
        return
    _held[out] = claim = _Claim(out)
    try:
        claim.begin()
        yield
        claim.check()
    except KeyboardInterrupt:
        claim.check()
        raise
    finally:
        del _held[out]
        claim.end()


def has_owner(out: str) -> bool:
    """Whether an owner's file lies there, be it that of a process killed at its very end."""
    return exists(join(absolute(out), OWNER))


def heartbeat(out: str) -> tuple[str, int] | None:
    """The token and the count of heartbeats of the process that works in a folder; None without
    one. Of one that was killed on another machine the count stands still (STALE_SECONDS).

    Raises:
        StorageError: its owner's file can't be read.
    """
    there = _read(absolute(out))
    if there is None or _has_ended(there):
        return None
    return str(there.get("token", "")), int(there.get("beats", 0))


def check_owned(out: str) -> None:
    """Fail where another process has taken over a folder that this one owned.

    Raises:
        StageError: it has.
    """
    claim = _claim_on(absolute(out))
    if claim is not None:
        claim.check()


def _claim_on(out: str) -> "_Claim | None":
    held = [claim for folder, claim in list(_held.items()) if f"{out}/".startswith(f"{folder}/")]
    return held[0] if held else None


class _Claim:
    """This process as the owner of a folder; a thread keeps its file moving."""

    def __init__(self, out: str) -> None:
        self._out = out
        self._beats = 0
        self._new_folder = not is_uri(out) and not os.path.isdir(out)
        self._facts = {
            "host": platform.node(),
            "pid": os.getpid(),
            "machine": _machine(),
            "born": _born(os.getpid()),
            "token": uuid.uuid4().hex,
            "started": _now(),
        }
        self._lost: str | None = None
        self._interrupts = threading.current_thread() is threading.main_thread()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, name="owner", daemon=True)

    def begin(self) -> None:
        """Take the folder.

        Raises:
            StageError: it belongs to another process.
        """
        _take(self._out, self._said())
        self._thread.start()

    def check(self) -> None:
        """Fail where the folder was lost."""
        if self._lost is not None:
            raise StageError(self._lost)

    def end(self) -> None:
        """Leave the folder to whoever comes next."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        with suppress(OSError):  # what stays there stands still
            if self._is_ours(_read(self._out)):
                remove_files(self._out, [OWNER])
                if self._new_folder:
                    os.rmdir(self._out)  # fails unless it is empty

    def _keep_up(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # the next one may go better
                found = _read(self._out)
                if not self._is_ours(found):
                    self._lose(found)
                    return
                write_json(join(self._out, OWNER), self._said())

    def _is_ours(self, found: dict[str, Any] | None) -> bool:
        return found is not None and found.get("token") == self._facts["token"]

    def _lose(self, found: dict[str, Any] | None) -> None:
        """End the work, for which nothing is published any more (see `check_owned`)."""
        who = "its owner.json was removed" if found is None else f"{_name(found)} has taken it over"
        self._lost = (
            f"{self._out} is no longer ours: {who}, so this process has ended; see that one "
            "works there at a time, and run the same command again, which goes on"
        )
        main = threading.main_thread().ident
        if self._interrupts and main and callable(signal.getsignal(signal.SIGINT)):
            signal.pthread_kill(main, signal.SIGINT)

    def _said(self) -> dict[str, Any]:
        self._beats += 1
        return {**self._facts, "heartbeat": _now(), "beats": self._beats}


def _take(out: str, mine: dict[str, Any]) -> None:
    """Make the file of a folder ours.

    Raises:
        StageError: its owner is at work.
    """
    path = join(out, OWNER)
    while True:
        there = _read(out)
        if there is None and not is_uri(out):
            if _created(path, mine):
                return
            continue
        if there is not None:
            if not _has_ended(there):
                _watch(out, there)
            if _read(out) != there:
                continue
            say(f"{out}: taking over from {_name(there)}, which has ended")
        write_json(path, mine)
        time.sleep(SETTLE_SECONDS)
        now = _read(out)
        if now is not None and now.get("token") == mine["token"]:
            return


@guarded("write")
def _created(path: str, mine: dict[str, Any]) -> bool:
    """Whether a file that wasn't there is there now, as ours: a link, which appears whole."""
    temporary = f"{path}.{mine['token'][:8]}.tmp"
    write_json(temporary, mine)
    try:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            try:
                with open(path, "x", encoding="utf-8") as file:
                    json.dump(mine, file, indent=2)
            except FileExistsError:
                return False
    finally:
        os.unlink(temporary)
    return True


def _watch(out: str, there: dict[str, Any]) -> None:
    """Return when an owner has ended or stood still for long. Not its clock, which may differ, but
    a change of its file tells that it is at work.

    Raises:
        StageError: it is.
    """
    if there.get("machine") == _machine():
        raise _refusal(out, there)
    say(
        f"{out}: {_name(there)} was at work here; waiting up to {STALE_SECONDS:.0f} s "
        "to see whether it still is"
    )
    end = time.monotonic() + STALE_SECONDS
    while time.monotonic() < end:
        time.sleep(HEARTBEAT_SECONDS / 5)
        now = _read(out)
        if now is None:
            return
        if now != there:
            raise _refusal(out, now)


def _refusal(out: str, there: dict[str, Any]) -> StageError:
    return StageError(
        f"{out}: {_name(there)} is at work here; wait until it has ended, or end it, and run the "
        "same command again, which goes on; or choose another `name` or output"
    )


def _name(there: dict[str, Any]) -> str:
    pid, host, beat = (there.get(name, "?") for name in ("pid", "host", "heartbeat"))
    return f"process {pid} on {host} (last heartbeat {beat})"


@dataclass(frozen=True)
class _Owner:
    """What another process needs of an owner's file."""

    pid: Annotated[int, Field(gt=0, lt=2**31)]
    machine: str
    token: str
    born: str = ""
    host: str = "?"
    heartbeat: str = "?"


def _read(out: str) -> dict[str, Any] | None:
    """What the owner's file says; None without one, empty where it is being written, or says
    something else."""
    path = join(out, OWNER)
    try:
        found = read_json(path)
        holding(_Owner, found, path)
        return found
    except FileNotFoundError:
        return None
    except DataError:
        return {}


def _has_ended(there: dict[str, Any]) -> bool:
    """Whether an owner is known to have ended: its process, on this machine, is gone."""
    if there.get("machine") != _machine():
        return False
    pid, born = int(there["pid"]), there.get("born", "")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it is another user's
    return bool(born) and _born(pid) not in ("", born)


def _born(pid: int) -> str:
    """When a process was started, which tells it from a later one with its id; empty if unknown."""
    if sys.platform != "linux":
        asked = ["ps", "-o", "lstart=", "-p", str(pid)]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "ended" if state in ("Z", "X") else numbers[18]  # a zombie; proc_pid_stat(5), starttime


@cache
def _machine() -> str:
    """Names all processes among which an id names one: those of a boot and a container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{platform.node()} {uuid.getnode():012x}"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
