"""What a stage alone needs before it can begin: Ray, and its images as a packed corpus."""

import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeVar

from ns_ray import store
from ns_ray.api.words import COMMAND, Words
from ns_ray.compute import Machine, Pool, done_here, resources
from ns_ray.config import DataConfig, ResourcesConfig
from ns_ray.errors import DamagedFileError
from ns_ray.log import say
from ns_ray.store import Corpus, Mending

if TYPE_CHECKING:
    from ns_ray.data import Listing

T = TypeVar("T")


def mended(work: Callable[[], T], out: object) -> T:
    """Do some work; again, where a file in the folder it makes turns out damaged.

    Args:
        work: writes into the folder.
        out: the folder; where it is none, the work is done once.
    """
    if not isinstance(out, str) or not out:
        return work()
    mending = Mending(store.absolute(out))
    while True:
        try:
            return work()
        except DamagedFileError as error:
            mending.mend(error)


@contextmanager
def owning(out: str, last: str = store.DONE) -> Iterator[None]:
    """Own the output of a command that has not ended there before. One that has may find nothing
    to do: where it does, its stages own what they make again.

    Args:
        out: the folder.
        last: the file that the command writes last.

    Raises:
        StageError: another process works there.
    """
    with nullcontext() if store.exists(store.join(out, last)) else store.owned(out):
        yield


@contextmanager
def ray_running(
    config: ResourcesConfig, out: str, *, models: bool = True, words: Words = COMMAND
) -> Iterator[Machine]:
    """Ray, with its messages in a file among its own, and an output that all of its nodes see.

    Args:
        config: what the machine must have room for.
        out: the output.
        models: whether there will be any in this process.
        words: what messages call the output.

    Raises:
        ConfigError: a node does not see it, or cannot write there.
    """
    from ns_ray.compute import cluster, prepare

    prepare(models=models)
    with (
        tempfile.NamedTemporaryFile(prefix="ns-ray-", suffix=".log") as log,
        cluster(config, log.name) as machine,
    ):
        from ns_ray.planning import check_shared

        check_shared(machine, out, words.out)
        yield machine


def listed(data: DataConfig, words: Words = COMMAND) -> "Listing":
    """The images that a model is to see, listed while this process begins to import models."""
    from ns_ray.compute import prepare

    prepare()
    return listing_of(data, words)()


@contextmanager
def ready_to_infer(
    listing: "Listing",
    data: DataConfig,
    config: ResourcesConfig,
    out: str,
    *,
    labeled: bool,
    ray: bool = False,
    models: int = 1,
    words: Words = COMMAND,
) -> Iterator[tuple[Corpus, Pool]]:
    """What is `listed` as a packed corpus, itself where it is one, and the actors for it. Ray,
    which takes seconds to start, is started where `ray` says so, or there is work for it: images
    that go through so many models at a time; `words` is what messages call the arguments."""
    from ns_ray.compute import local_machine
    from ns_ray.data import adopt
    from ns_ray.labeling import seconds

    place = store.join(out, "corpus")
    adopted = adopt(listing, out=place, classes=(), excluded=frozenset())
    here = local_machine()
    if adopted and here and not ray:
        pool = resources.pool(config, here)
        if done_here(seconds(adopted.rows, models), pool):
            yield adopted, pool
            return
    with ray_running(config, out, words=words) as machine:
        corpus = adopted or packed(data, listing, place, labeled=labeled, words=words)
        yield corpus, resources.pool(config, machine)


def begun(work: Callable[[], T]) -> Future[T]:
    """A call that goes on beside what follows, and ends with this process at the latest."""
    made: Future[T] = Future()

    def call() -> None:
        try:
            made.set_result(work())
        except BaseException as error:
            made.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return made


def listing_of(data: DataConfig, words: Words = COMMAND) -> "Callable[[], Listing]":
    """What lists the images; see `data.id_column`. Its imports are made here: threads that import
    one package from two ends can meet it half-initialized."""
    from ns_ray.data import list_sources, staying

    def work() -> "Listing":
        listing = list_sources(data.labeled, setting=words.images)
        for note in listing.notes:
            say(f"{words.images}: {note}")
        return listing if data.id_column is None else staying(listing, data.id_column)

    return work


def packed(
    config: DataConfig,
    source: "str | Listing",
    out: str,
    *,
    labeled: bool,
    words: Words = COMMAND,
) -> Corpus:
    """A source as a packed corpus, with its labels or without."""
    from ns_ray.data import pack

    return pack(
        source,
        out=out,
        classes=None if labeled else (),
        rows_per_shard=config.rows_per_shard,
        max_pixels=config.max_pixels,
        max_rejected=config.max_rejected,
        setting=words.images,
    )
