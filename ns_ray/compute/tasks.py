"""Where work is done, here or in Ray tasks.

    done_here       whether it is so little that others are not started for it
    each            calls made here or in Ray tasks, a bounded number at a time
    stream          the rows of a Ray Data pipeline

Ray is imported inside functions: little work does without. Knows nothing about what the work is.
"""

import errno
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from ns_ray.compute.resources import Pool
from ns_ray.errors import NsRayError, StageError

if TYPE_CHECKING:
    from ray.data import Dataset
from ns_ray.compute import capacity
from ns_ray.compute.failures import translated

RAY, TASK, ALONE = 5.0, 0.5, 60.0
"""Seconds of work that this process does itself rather than start others for it. A local Ray takes
5 to 7 s to start, the first worker processes of a running one 0.3 to 0.6 s, and then they share
the work. A model is another matter: one process uses all CPUs of a machine, or its GPU, and an
actor would only import for 4 to 6 s what this process has imported already. It works alone as long
as an accident costs little; longer work gets an actor, which may die without taking the run with
it. Measured on two cores; see docs/decisions/0026-little-work-in-seconds.md."""

QUEUED = 8
"""Tasks that wait beside the two for each CPU, so that no CPU waits for the driver."""

LONGEST = 1800.0
"""Seconds that tasks are waited for which no node has room for: as long as Ray Data waits."""

WAITS = 0.2, 1.0, 3.0
"""Seconds before a call is made again that failed at a bad moment of the storage."""

LASTING = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""With these, what waiting does not mend."""

T = TypeVar("T")


def done_here(seconds: float, pool: Pool | None = None) -> bool:
    """Whether so little work is done in this process, without Ray.

    Args:
        seconds: what it takes here, estimated.
        pool: where a model works; None where none does.
    """
    if pool is not None:
        return pool.in_process and seconds <= ALONE
    return seconds <= (TASK if ray_runs() else RAY)


def ray_runs() -> bool:
    """Whether this process is part of a Ray cluster, as its driver or as a worker."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def each(
    work: Callable[..., T],
    calls: Iterable[tuple[Any, ...]],
    *,
    here: bool,
    doing: str,
    cpus: float = 1,
    gpus: float = 0,
) -> Generator[tuple[int, T]]:
    """Call `work` with each of the arguments; (number of the call, its result) as they finish.

    A call is made again when its process or node was lost, or at a bad moment of the storage. When
    one fails, or the caller stops asking, no further one is begun; those that wait or run go on to
    their end, or to that of the driver's process. They are not cancelled: Ray 2.60 aborts the
    process that cancels a task while its worker reports the result ("task that was not pending").

    Args:
        work: travels to the tasks once.
        calls: arguments; a few more are taken than can run at a time.
        here: in this process, in order. Otherwise in Ray tasks; Ray runs already.
        doing: what this is, for messages: `packing /out`.
        cpus, gpus: of each task.

    Raises:
        NsRayError: of ours, as a call raised it.
        StageError: anything else that went wrong in a task, or with a file.
    """
    if here:
        for number, call in enumerate(calls):
            with translated(doing, OSError):
                result = patiently(work, *call)
            yield number, result
        return
    import ray

    with (
        capacity.watched(doing, cpus, gpus),
        translated(doing, OSError, ray.exceptions.RayError),
    ):
        yield from _in_tasks(work, calls, cpus, gpus)


def _in_tasks(
    work: Callable[..., T], calls: Iterable[tuple[Any, ...]], cpus: float, gpus: float
) -> Iterator[tuple[int, T]]:
    import ray

    assert ray.is_initialized()  # or Ray would start one by itself
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=3)(patiently)
    shared = ray.put(work)
    most = QUEUED + 2 * int(ray.cluster_resources().get("CPU", 1))
    coming = zip(count(), calls, strict=False)
    running: dict[Any, int] = {}
    while True:
        while len(running) < most and (following := next(coming, None)) is not None:
            number, call = following
            running[task.remote(shared, *call)] = number
        if not running:
            return
        finished = ray.wait(list(running), timeout=LONGEST)[0]
        if not finished and not capacity.present().holds(cpus, gpus):
            raise StageError(
                f"no node has room for a task with {cpus:g} CPUs and {gpus:g} GPUs; the same "
                "command continues when there is one"
            )
        for done in finished:
            yield running.pop(done), ray.get(done)


def patiently(work: Callable[..., T], *arguments: Any) -> T:
    """The result of a call that is made again after bad moments of the storage. An error of ours is
    final: whoever raised it has tried."""
    for seconds in WAITS:
        try:
            return work(*arguments)
        except OSError as error:
            if not _passes(error):
                raise
            time.sleep(seconds)
    return work(*arguments)


def _passes(error: OSError) -> bool:
    return not isinstance(error, (NsRayError, *LASTING)) and error.errno not in FULL


def stream(
    dataset: "Dataset", doing: str, *, cpus: float, gpus: float = 0
) -> Iterator[dict[str, Any]]:
    """The rows of a Ray Data job, as they are made. Without one for half an hour, it fails.

    Args:
        dataset: the job.
        doing: what this is, for messages.
        cpus, gpus: of each actor or task.

    Raises:
        NsRayError: of ours, as a task or an actor raised it.
        StageError: anything else that went wrong.
    """
    # Otherwise an error of Ray Data comes out, and the one that was raised stays in the worker.
    dataset.context.raise_original_map_exception = True
    _kill_actors_of_failed_jobs()
    with capacity.watched(doing, cpus, gpus), translated(doing, Exception):
        yield from dataset.iter_rows()


def _kill_actors_of_failed_jobs() -> None:
    """Ray 2.60 kills the actors of a job whose rows are no longer asked for, and only forgets those
    of one that fails. They keep their CPUs as long as anything else knows of them, such as the
    frames of the error, and a later job waits for these CPUs for ever."""
    try:
        from ray.data._internal.execution.streaming_executor import StreamingExecutor
    except ImportError:  # of a later Ray, which can label all the same
        return
    forget = StreamingExecutor.shutdown
    if forget.__name__ == "kill":
        return

    def kill(self: Any, force: bool, exception: BaseException | None = None) -> None:
        forget(self, force or exception is not None, exception)

    StreamingExecutor.shutdown = kill
