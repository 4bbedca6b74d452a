"""Work in Ray tasks or here, and what becomes of errors on their way through Ray."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

from ns_ray.compute import capacity, failures, tasks
from ns_ray.compute.resources import Pool, Workers
from ns_ray.config import ResourcesConfig
from ns_ray.errors import ConfigError, DataError, ImageError, NsRayError, StageError

ALL_CPUS = 6
"""Of `ray_local`."""


@pytest.fixture(autouse=True, scope="module")
def by_value() -> Iterator[None]:
    """Workers cannot import this file."""
    here = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(here)
    yield
    cloudpickle.unregister_pickle_by_value(here)


class PlaceError(StageError):
    """An error of ours that says more than its text."""

    def __init__(self, path: str, *, rows: int) -> None:
        super().__init__(f"{path} has {rows} rows")
        self.path, self.rows = path, rows


# ---------------------------------------------------------------------------- where work is done


def test_little_work_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "ray_runs", lambda: False)
    assert tasks.done_here(tasks.RAY)
    assert not tasks.done_here(tasks.RAY + 0.1)
    monkeypatch.setattr(tasks, "ray_runs", lambda: True)
    assert tasks.done_here(tasks.TASK)
    assert not tasks.done_here(tasks.RAY)
    here = Pool(actors=1, cpus=2.0, gpus=0.0, in_process=True)
    assert tasks.done_here(tasks.ALONE, here)
    assert not tasks.done_here(tasks.ALONE + 1, here)
    assert not tasks.done_here(0.0, Pool(actors=1, cpus=2.0, gpus=0.0))


# --------------------------------------------------------------------------------- running calls


def test_calls_are_made_here_in_order() -> None:
    made = list(tasks.each(lambda a, b: a * b, [(2, 3), (4, 5)], here=True, doing="x"))
    assert made == [(0, 6), (1, 20)]


@pytest.mark.ray
def test_results_come_with_the_number_of_their_call(ray_local: Any) -> None:
    calls = ((n, 1) for n in range(50))
    made = dict(tasks.each(lambda a, b: a + b, calls, here=False, doing="x"))
    assert made == {n: n + 1 for n in range(50)}


@pytest.mark.ray
def test_a_bounded_number_of_calls_waits(ray_local: Any) -> None:
    asked: list[int] = []

    def calls() -> Iterator[tuple[int]]:
        for n in range(10_000):
            asked.append(n)
            yield (n,)

    running = tasks.each(abs, calls(), here=False, doing="x")
    next(running)
    assert len(asked) <= 4 * ALL_CPUS
    running.close()


def dies_once(grave: str) -> str:
    if not Path(grave).exists():
        Path(grave).write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


@pytest.mark.ray
def test_a_call_whose_process_dies_is_made_again(ray_local: Any, tmp_path: Path) -> None:
    calls = [(f"{tmp_path}/grave",)]
    assert list(tasks.each(dies_once, calls, here=False, doing="x")) == [(0, "alive")]


def fails_twice(folder: str) -> int:
    tries = len(list(Path(folder).iterdir()))
    (Path(folder) / str(tries)).touch()
    if tries < 2:
        raise TimeoutError("the storage does not answer")
    return tries


@pytest.mark.ray
@pytest.mark.parametrize("here", [True, False])
def test_a_bad_moment_of_the_storage_passes(here: bool, ray_local: Any, tmp_path: Path) -> None:
    assert list(tasks.each(fails_twice, [(str(tmp_path),)], here=here, doing="x")) == [(0, 2)]


def is_missing(folder: str) -> None:
    (Path(folder) / str(len(list(Path(folder).iterdir())))).touch()
    raise FileNotFoundError(2, "no such file", "image.png")


@pytest.mark.ray
@pytest.mark.parametrize("here", [True, False])
def test_what_stays_wrong_is_said_at_once(here: bool, ray_local: Any, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"counting failed: .*'image\.png'; the same command"):
        list(tasks.each(is_missing, [(str(tmp_path),)], here=here, doing="counting"))
    assert len(list(tmp_path.iterdir())) == 1


class DiskError(StageError, OSError):
    """An error of ours about files: all that could help has been tried."""


def is_broken(folder: str) -> None:
    (Path(folder) / str(len(list(Path(folder).iterdir())))).touch()
    raise DiskError("cannot write /out: get the permission")


@pytest.mark.ray
@pytest.mark.parametrize("here", [True, False])
def test_an_error_of_ours_is_final(here: bool, ray_local: Any, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"^cannot write /out: get the permission$") as caught:
        list(tasks.each(is_broken, [(str(tmp_path),)], here=here, doing="counting"))
    assert len(list(tmp_path.iterdir())) == 1
    assert caught.value.__cause__ is not caught.value


SECONDS = 0.5


def sleeps(folder: str, n: int) -> None:
    (Path(folder) / str(n)).touch()
    time.sleep(SECONDS)


def until_begun(folder: str, tasks: int) -> None:
    while len(list(Path(folder).iterdir())) < tasks:
        time.sleep(0.05)


INTERRUPTED = """
import os, signal, sys, time
from pathlib import Path
import ray
from starting import in_time
from ns_ray.compute import tasks

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
folder, asked = Path(sys.argv[1]), []

def work(n):
    (folder / str(n)).touch()
    time.sleep(0.5)

def calls():
    for n in range(100):
        asked.append(n)
        yield (n,)

in_time(ray.init, address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
try:
    for _ in tasks.each(work, calls(), here=False, doing="x"):
        pass
except KeyboardInterrupt:
    print(len(asked))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_after_an_interrupt_nothing_more_is_begun(tmp_path: Path) -> None:
    """In a process of its own: within Ray's code a signal may end one that has done much else."""
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    until_begun(str(tmp_path), 2)
    process.send_signal(signal.SIGINT)
    asked, _ = process.communicate(timeout=120)
    assert int(asked) <= 20


def first_fails(folder: str, n: int) -> None:
    if n:
        sleeps(folder, n)
    until_begun(folder, ALL_CPUS - 1)
    raise PlaceError("shard-00007", rows=3)


@pytest.mark.ray
def test_a_failed_call_is_not_kept_waiting_by_the_others(ray_local: Any, tmp_path: Path) -> None:
    calls = [(str(tmp_path), n) for n in range(10 * ALL_CPUS)]  # more than wait at a time
    with pytest.raises(PlaceError, match=r"^shard-00007 has 3 rows$"):
        list(tasks.each(first_fails, calls, here=False, doing="x"))
    assert len(list(tmp_path.iterdir())) < len(calls) - 1


@pytest.mark.ray
def test_whoever_stops_asking_stays_alive(ray_local: Any) -> None:
    """Ray aborts the process that cancels a task while its worker reports the result."""
    for _ in range(100):
        running = tasks.each(abs, ((n,) for n in range(100)), here=False, doing="x")
        number, value = next(running)
        assert number == value
        running.close()


@pytest.mark.ray
def test_a_bug_in_a_task_is_quoted_in_one_line(ray_local: Any) -> None:
    with pytest.raises(
        StageError, match=r"^sums failed: ZeroDivisionError: integer division or modulo by zero;"
    ):
        list(tasks.each(lambda n: 1 // n, [(0,)], here=False, doing="sums"))


# ---------------------------------------------------------------------------------- errors of ours


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("a.b=3 is wrong"),
        DataError("two\nlines"),
        ImageError("truncated", "at 7"),
        ImageError("empty"),
        PlaceError("here", rows=2),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_ours_travel_whole(error: NsRayError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def bad_image(*_: Any) -> Any:
    raise ImageError("truncated", "at 7")


class CannotStart:
    def __init__(self) -> None:
        bad_image()

    def __call__(self, batch: Any) -> Any:
        return batch


class FailsAtWork:
    def __call__(self, batch: Any) -> Any:
        return bad_image()


def from_task(ray: Any) -> Any:
    return ray.get(ray.remote(bad_image).remote())


def from_task_of_a_task(ray: Any) -> Any:
    inner = ray.remote(bad_image)
    return ray.get(ray.remote(lambda: ray.get(inner.remote())).remote())


def from_argument(ray: Any) -> Any:
    return ray.get(ray.remote(bad_image).remote(ray.remote(bad_image).remote()))


def from_actor(ray: Any) -> Any:
    return ray.get(ray.remote(FailsAtWork).remote().__call__.remote({}))


def from_actor_that_cannot_start(ray: Any) -> Any:
    return ray.get(ray.remote(CannotStart).remote().__call__.remote({}))


@pytest.mark.ray
@pytest.mark.parametrize(
    "fail",
    [from_task, from_task_of_a_task, from_argument, from_actor, from_actor_that_cannot_start],
)
def test_an_error_of_ours_comes_out_as_it_was(fail: Callable[[Any], Any], ray_local: Any) -> None:
    with pytest.raises(ray_local.exceptions.RayError) as caught:
        fail(ray_local)
    found = failures.ours(caught.value, "labeling")
    assert type(found) is ImageError
    assert str(found) == "truncated: at 7"
    assert (found.reason, found.detail) == ("truncated", "at 7")


@pytest.mark.ray
@pytest.mark.parametrize("actor", [CannotStart, FailsAtWork])
def test_an_error_of_ours_comes_out_of_a_data_job(actor: type, ray_local: Any) -> None:
    import ray.data

    job = ray.data.from_items([{"shard": "a"}]).map_batches(
        actor, batch_size=1, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=1
    )
    with pytest.raises(ImageError, match=r"^truncated: at 7$") as caught:
        list(tasks.stream(job, "labeling", cpus=1))
    assert (caught.value.reason, caught.value.detail) == ("truncated", "at 7")


class FailsAtThree:
    def __call__(self, batch: Any) -> Any:
        if batch["n"][0] == 3:
            raise ImageError("truncated", "at 3")
        return batch


@pytest.mark.ray
def test_the_actors_of_a_failed_job_give_their_cpus_back_while_its_error_is_kept(
    ray_local: Any,
) -> None:
    """They kept them, and what came next waited for ever."""
    import ray.data

    job = ray.data.from_items([{"n": n} for n in range(6)], override_num_blocks=6).map_batches(
        FailsAtThree, batch_size=1, compute=ray.data.ActorPoolStrategy(size=2), num_cpus=1
    )
    with pytest.raises(ImageError) as caught:
        list(tasks.stream(job, "labeling", cpus=1))
    for _ in range(100):
        free = ray_local.available_resources().get("CPU")
        if free == ALL_CPUS:
            break
        time.sleep(0.2)
    assert free == ALL_CPUS
    assert caught.value.detail == "at 3"


class RaisesConfigError:
    """Ray Data appends advice of its own to the text of what a worker raises."""

    def __call__(self, batch: Any) -> Any:
        raise ConfigError("a.b=3 is wrong; set a.b")


@pytest.mark.ray
def test_nothing_is_added_to_the_text_of_an_error_of_ours(ray_local: Any) -> None:
    import ray.data

    job = ray.data.from_items([{"shard": "a"}]).map_batches(RaisesConfigError, batch_size=1)
    with pytest.raises(ConfigError, match=r"^a\.b=3 is wrong; set a\.b$"):
        list(tasks.stream(job, "labeling", cpus=1))


@pytest.mark.ray
def test_tasks_that_no_node_has_room_for_are_not_waited_for_for_ever(
    ray_local: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(capacity, "SAID_AGAIN", 0.2)
    monkeypatch.setattr(tasks, "LONGEST", 1.0)
    calls = tasks.each(abs, [(-1,)], here=False, doing="packing /out", cpus=ALL_CPUS + 1)
    with pytest.raises(StageError, match=r"room for a task with 7 CPUs.*same command continues"):
        list(calls)
    assert "s no node has had room for a process with 7 CPUs and 0 GPUs" in capsys.readouterr().out


@pytest.mark.ray
def test_a_lost_node_is_waited_for_where_no_other_one_would_do(ray_local: Any) -> None:
    """The only node that is large enough has gone, and nothing but its return can help."""
    lost = Workers(count=1, cpus=ALL_CPUS + 1.0, gpus=0.0, loaders=1)
    with pytest.raises(ConfigError, match=r"room for 0; .* s were waited .*max_wait=1s"):
        capacity.left_for(lost, "1s", 0.0)


@pytest.mark.ray
def test_a_ray_that_this_process_has_started_is_not_waited_for_to_grow(ray_local: Any) -> None:
    """As a notebook with `ray.init(num_cpus=1)` has it: one more worker would fit on a node."""
    asked = ResourcesConfig(num_workers=ALL_CPUS, cpus_per_worker=1, max_wait="1s")
    with pytest.raises(ConfigError, match=r"no room in this cluster.*ray\.init\(num_cpus=") as told:
        capacity.enough(asked)
    assert "waited" not in str(told.value)


@pytest.mark.parametrize(
    "says",
    [
        "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.7]:4711",
        "NCCL error in: ProcessGroupNCCL.cpp:77, remote process exited",
        "Broken pipe",
    ],
)
def test_a_collective_that_fails_tells_of_a_lost_worker(says: str) -> None:
    from ray.train import WorkerGroupError

    error = WorkerGroupError("rank 0", {0: RuntimeError(says)})
    assert failures.lost(error)
    assert not failures.lost(WorkerGroupError("rank 0", {0: RuntimeError("a tensor is odd")}))
    assert not failures.lost(WorkerGroupError("rank 0", {0: ValueError(says)}))
    no_room = {0: RuntimeError(says), 1: ConfigError("no room")}
    assert not failures.lost(WorkerGroupError("rank 0", no_room))


@pytest.mark.ray
def test_a_lost_process_is_told_from_a_failure(ray_local: Any) -> None:
    killed = ray_local.remote(max_retries=0)(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ray_local.exceptions.WorkerCrashedError) as caught:
        ray_local.get(killed.remote())
    assert failures.lost(caught.value)
    found = failures.ours(caught.value, "labeling")
    assert type(found) is StageError
    assert str(found).startswith("labeling failed: WorkerCrashedError: The worker died")
    with pytest.raises(ray_local.exceptions.RayError) as other:
        from_actor_that_cannot_start(ray_local)
    assert not failures.lost(other.value)
    actor = ray_local.remote(FailsAtWork).options(num_cpus=0).remote()
    ray_local.kill(actor)
    with pytest.raises(ray_local.exceptions.ActorDiedError) as died:
        ray_local.get(actor.__call__.remote({}))
    assert failures.lost(died.value)
    assert str(failures.ours(died.value, "starting the server")) == (
        "starting the server failed: ActorDiedError: FailsAtWork: The actor is dead because it was "
        "killed by `ray.kill`.; the same command continues"
    )


def test_what_ray_train_wraps_is_found() -> None:
    from ray.exceptions import ActorDiedError, RayTaskError
    from ray.train import ControllerError, WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    error = PlaceError("here", rows=2)
    task = RayTaskError("load", "Traceback ...", error)
    for failure in (error, task, task.as_instanceof_cause(), ActorDiedError(task)):
        for wrapped in (
            WorkerGroupError("text", {0: RuntimeError("another rank stopped"), 1: failure}),
            ControllerError(failure),
        ):
            assert failures.ours(wrapped, "training") is error
            assert not failures.lost(wrapped)
    gone = WorkerHealthCheckFailedError("text", ActorDiedError())
    assert failures.lost(WorkerGroupError("text", {0: gone}))
    plain = WorkerGroupError("text", {1: ValueError("no\nsuch thing")})
    assert str(failures.ours(plain, "training /out")) == (
        "training /out failed: ValueError: no; the same command continues"
    )


@pytest.mark.slow
def test_a_task_does_not_count_what_it_holds_itself(ray_local: Any) -> None:
    """A run inside it would wait for that for ever."""

    @ray_local.remote(num_cpus=2)  # type: ignore[untyped-decorator]
    def inside() -> tuple[int, int]:
        from ns_ray.compute.capacity import present

        machine = present()
        return machine.cpus, sum(node.cpus for node in machine.each)

    from ns_ray.compute.capacity import present

    assert present().cpus == 6
    assert ray_local.get(inside.remote()) == (4, 4)


@pytest.mark.slow
def test_a_worker_of_too_few_makes_room_for_all_and_counts_itself(ray_local: Any) -> None:
    @ray_local.remote(num_cpus=2)  # type: ignore[untyped-decorator]
    def leaves(count: int) -> bool:
        import torch

        from ns_ray.compute.resources import Workers
        from ns_ray.training.loop import Moving

        workers = Workers(count, cpus=2, gpus=0, loaders=0)
        return Moving(workers, rank=0, world=1, device=torch.device("cpu")).due(True)

    asked = [leaves.remote(count) for count in (1, 3, 4)]  # of six CPUs
    assert ray_local.get(asked) == [False, True, False]
