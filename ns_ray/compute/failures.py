"""Errors of Ray and of the storage as ours.

    translated      inside, such errors become ours
    ours, lost      what is behind an error of Ray

Ray is imported inside functions: who has none of its errors does without.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ns_ray.errors import NsRayError, StageError, first_line

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
    name, says = type(found[0]).__name__, first_line(found[0])
    reason = name if says == name else f"{name}: {says}"
    return StageError(f"{doing} failed: {reason}; the same command continues")


def lost(error: BaseException) -> bool:
    """Whether a process or a node went away, rather than that code failed on it."""
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
    return any(isinstance(cause, gone) for cause in _behind(error))


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
