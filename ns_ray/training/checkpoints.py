"""Checkpoints of a training: the last two, so that one that is damaged costs minutes.

They take turns with two files. Each is torch's archive, whose entries carry their own checksums.
"""

import io
import os
import zipfile
from collections.abc import Callable
from typing import Any

import torch

from ns_ray import store
from ns_ray.errors import DamagedFileError, first_line

Check = Callable[[dict[str, Any], str], object]


class Checkpoints:
    """The checkpoints of one training.

    Args:
        path: of one of the two files, `.../last.pt`; the other is `.../last-2.pt` beside it.
    """

    def __init__(self, path: str) -> None:
        self._paths = [path, f"{path.removesuffix('.pt')}-2.pt"]
        self._newest: str | None = None

    def read(
        self, device: torch.device, check: Check | None = None
    ) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest state that is as it was written, None where there is none; and a line for
        people about each file that is not, which is set aside.

        Args:
            device: where its tensors go.
            check: raises an error for a state that cannot be gone on from; also gets its path.
        """
        said = []
        there = [(changed, path) for path in self._paths if (changed := store.written(path))]
        for _, path in sorted(there, reverse=True):
            data = store.read_bytes(path)
            try:
                state = _loaded(path, data, device, check)
            except DamagedFileError as error:
                store.set_aside(path)
                said.append(f"{error}; going on from the checkpoint before it, or from the start")
                continue
            self._newest = path
            return state, said
        return None, said

    def write(self, state: dict[str, Any]) -> None:
        """Save a state in place of the older one."""
        first, second = self._paths
        path, other = (second, first) if self._newest == first else (first, second)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        store.write_bytes(path, buffer.getvalue())
        _follow(path, other)
        self._newest = path


def _follow(path: str, other: str) -> None:
    """Let a file be the later one of two, where the clock of the node that wrote the other is ahead
    and the file system keeps what nodes tell it. An object store has one clock."""
    fs, inner = store.filesystem(path)
    before, now = store.written(other), store.written(path)
    if fs.type_name == "local" and before is not None and now is not None and now <= before:
        os.utime(inner, (before + 1, before + 1))


def _loaded(
    path: str,
    data: bytes,
    device: torch.device,
    check: Check | None,
) -> dict[str, Any]:
    """
    Raises:
        DamagedFileError: the file is not as it was written.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            broken = archive.testzip()
        if broken is None:
            state: dict[str, Any] = torch.load(
                io.BytesIO(data), map_location=device, weights_only=True
            )
            if check is not None:
                check(state, path)
            return state
    except DamagedFileError:
        raise
    except Exception as error:  # of all kinds, and all of what is in memory already
        raise DamagedFileError(path, f"it is no checkpoint: {first_line(error)}") from error
    raise DamagedFileError(path, f"the checksum of its entry {broken} differs")
