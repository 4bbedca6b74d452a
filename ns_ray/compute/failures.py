"""Errors of Ray and of the storage as ours.

    translated      inside, such errors become ours
    enough_memory   inside, a device without room is a wrong setting
    ours, lost      what is behind an error of Ray

Ray is imported inside functions: who has none of its errors does without.
"""

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ns_ray.errors import ConfigError, NsRayError, StageError, first_line

if TYPE_CHECKING:
    pass


@contextlib.contextmanager
def translated(doing: str, *kinds: type[Exception]) -> Iterator[None]:
    """Inside, errors of these kinds become ours.

    Args:
        doing: what failed, for the message: `packing /out`.
        kinds: of what is caught.
    """
    try:
        yield
    except kinds as error:
        found = ours(error, doing)
        if found is error:
            raise
        raise found from error


@contextlib.contextmanager
def enough_memory(doing: str, advice: str) -> Iterator[None]:
    """Inside, torch's errors of a device that has no more memory become a ConfigError: the same
    command would meet them again.

    Args:
        doing: what needs it, for the message: `a batch of 64 images`.
        advice: which setting to change.
    """
    try:
        yield
    except RuntimeError as error:
        if not no_memory(error):
            raise
        asked = _ASKED.search(str(error))
        more = f"{asked[1]} more" if asked else "it"
        raise ConfigError(f"{doing}: the device has no memory for {more}; {advice}") from error


_ASKED = re.compile(r"tried to allocate (\d[\d.]* \w+)", re.IGNORECASE)


def no_memory(error: RuntimeError) -> bool:
    """Whether a device of torch had no more memory: its own class for GPUs, a text on CPUs."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def ours(error: BaseException, doing: str) -> NsRayError:
    """The error of ours that is behind one of Ray, as it was raised; where there is none, a
    StageError that quotes what is behind it.

    Args:
        error: what was caught.
        doing: what failed, for the message: `packing /out`.
    """
    found = list(_behind(error))
    for cause in found:
        if isinstance(cause, NsRayError):
            return cause
    name, says = type(found[0]).__name__, _said(found[0])
    reason = name if says == name else f"{name}: {says}"
    return StageError(f"{doing} failed: {reason}; the same command continues")


def _said(error: BaseException) -> str:
    """The first line of what an error says. Where an actor has died, with its class and Ray's
    reason, which stand below, among other names of the actor."""
    told = str(error).strip().splitlines()[1:]
    kinds = [line.split(": ")[1] for line in told if line.startswith("\tclass_name: ")]
    reasons = [line for line in told if not line.startswith("\t")]
    if type(error).__name__ == "ActorDiedError" and kinds and reasons:
        return f"{kinds[0]}: {reasons[0]}"
    return first_line(error)


_GONE = {
    "CollectiveTimeoutError",
    "PreemptionError",
    "WorkerGroupStartupFailedError",
    "WorkerGroupStartupTimeoutError",
    "WorkerHealthCheckTimeoutError",
}
"""Ray Train's own for workers that do not answer, or could not be started. They are not public."""
_SEVERED = re.compile(r"Connection (closed|reset|refused)|Broken pipe|Timed out waiting|NCCL|gloo")
"""In what torch's collectives say where another worker has gone: plain RuntimeErrors, mostly."""


def lost(error: BaseException) -> bool:
    """Whether a process or a node went away, rather than that code failed on it. The others notice
    first, often: their collectives fail."""
    from ray import exceptions

    gone = (
        exceptions.RayActorError,
        exceptions.WorkerCrashedError,
        exceptions.NodeDiedError,
        exceptions.LocalRayletDiedError,
        exceptions.ObjectLostError,
        exceptions.OutOfMemoryError,
        exceptions.ActorPlacementGroupRemoved,
        exceptions.TaskPlacementGroupRemoved,
    )
    causes = list(_behind(error))
    if any(isinstance(cause, ConfigError) for cause in causes):
        return False  # one worker's mistake, for which the others lost it
    return any(
        isinstance(cause, gone)
        or any(kind.__name__ in _GONE for kind in type(cause).__mro__)
        or (isinstance(cause, RuntimeError) and _SEVERED.search(str(cause)))
        for cause in causes
    )


def _behind(error: BaseException) -> Iterator[BaseException]:
    """What was raised in the first place: several errors where several workers failed."""
    inner = _wrapped(error)
    if not inner:
        yield error
    for cause in inner:
        yield from _behind(cause)


def _wrapped(error: BaseException) -> list[BaseException]:
    if "ray" not in sys.modules:
        return []
    from ray import exceptions
    from ray.train import ControllerError, WorkerGroupError

    # First: `ray.get` raises it as a subclass of what it wraps too, with a traceback for a text.
    if isinstance(error, exceptions.RayTaskError):
        return [error.cause]
    if isinstance(error, exceptions.ActorDiedError):
        return [cause for cause in error.args if isinstance(cause, exceptions.RayTaskError)]
    if isinstance(error, WorkerGroupError):
        return list(error.worker_failures.values())
    if isinstance(error, ControllerError):
        return [error.controller_failure]
    # Ray Train's for a worker that does not answer; its class is not public.
    failure = getattr(error, "health_check_failure", None)
    return [failure] if isinstance(failure, BaseException) else []
