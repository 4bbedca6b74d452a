"""Whether all nodes of a cluster keep files in the same place as the driver."""

import uuid

from ns_ray import store
from ns_ray.compute import Machine, on_other_nodes
from ns_ray.errors import ConfigError, NsRayError


def check_shared(machine: Machine, folder: str, setting: str) -> None:
    """Let every other node read a small file of the driver's, and write one beside it. On this
    machine alone, and on a cluster of one node, nothing is done.

    Args:
        machine: what the run has.
        folder: where stages write, absolute.
        setting: what names it, for the message: `storage`.

    Raises:
        ConfigError: names the nodes that do not see the file, or cannot write there.
        StorageError: the driver itself cannot write there.
    """
    if machine.local:
        return
    name = f".check-{uuid.uuid4().hex[:8]}"
    place = store.join(folder, name)
    store.write_bytes(place, name.encode())
    try:
        failed = on_other_nodes(_try, place, name, doing=f"read and write {folder}")
    finally:
        beside = [file for file in store.list_files(folder) if file.startswith(name)]
        store.remove_files(folder, beside)
    told = [f"{node}: {reason}" for node, reason in sorted(failed.items()) if reason]
    if told:
        more = f"; and {len(told) - 3} nodes more" if len(told) > 3 else ""
        raise ConfigError(
            f"{setting}={folder!r} is not the same place on every node ({'; '.join(told[:3])}"
            f"{more}); set {setting} to a folder that is mounted on all of them, or to an s3:// or "
            "gs:// URI"
        )


def _try(place: str, written: str) -> str | None:
    """What keeps this node from using a place; None when nothing does."""
    try:
        if not store.exists(place):
            return "the driver's file is not there"
        if store.read_bytes(place) != written.encode():
            return "the driver's file has other bytes"
        store.write_bytes(f"{place}-{uuid.uuid4().hex[:8]}", b"")
    except NsRayError as error:
        return str(error)
    return None
