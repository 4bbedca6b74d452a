"""The memory that a side of a benchmark takes: the peaks of it and of all that it starts."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ACTORS, DRIVER, RAY = "actors", "driver", "Ray"
"""Parts of a side: Ray's workers that do something, the command itself with what it starts beside
Ray (all of it, where a side has no Ray), and Ray's own processes, idle workers among them."""
OF_RAY = ("gcs_server", "raylet", "dashboard", "ray::IDLE", "Agent", "log_monitor", "monitor.py")

Peaks = dict[str, float]
"""MiB of `all`, and of each part at its own highest moment."""


def memory(root: int) -> Peaks:
    """MiB of a process and of all that it started, now: of each what is its own (anonymous pages),
    and once what is shared (the largest share of any), such as Ray's object store. Libraries,
    which are pages of files, count as nothing. Reading this takes a few ms; proportional set
    sizes, which would also know of libraries, take 20 times as long."""
    found, shared = {"all": 0.0}, 0.0
    with suppress(psutil.NoSuchProcess):
        for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, OSError):
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                sizes = {line.split(":")[0]: line.split()[1] for line in lines if "kB" in line}
                size, part = int(sizes.get("RssAnon", 0)) / 1024, _part(process.cmdline())
                shared = max(shared, int(sizes.get("RssShmem", 0)) / 1024)
                found["all"] += size
                found[part] = found.get(part, 0.0) + size
    return {**found, "all": found["all"] + shared}


def _part(command: list[str]) -> str:
    """What a process is, by how it calls itself."""
    title = " ".join(command[:2])
    if any(word in title for word in OF_RAY):
        return RAY
    return ACTORS if title.startswith("ray::") else DRIVER


@contextmanager
def watched(root: int, every: float = 0.5) -> Iterator[Peaks]:
    """The peaks of a process and of all that it starts, while the block runs.

    Args:
        root: process id.
        every: seconds between two looks.
    """
    peaks: Peaks = {"all": 0.0}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every):
            for part, size in memory(root).items():
                peaks[part] = max(peaks.get(part, 0.0), size)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def cells(peaks: Peaks) -> str:
    """The peaks for a cell of a table, such as "2,036 (actors 1,100, driver 400, Ray 500)"."""
    parts = [f"{part} {peaks[part]:,.0f}" for part in (ACTORS, DRIVER, RAY) if part in peaks]
    return f"{peaks['all']:,.0f}" + (f" ({', '.join(parts)})" if len(parts) > 1 else "")
