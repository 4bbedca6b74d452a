"""Where the images of a labeling are decoded: beside the model, or apart from it.

Beside it, threads of the model's process decode. Python lets one of them at a time do what is not C
code: a thousand images/s, however many CPUs there are, a twentieth of what a GPU takes
(docs/gpu.md). Apart, Ray tasks on any CPU of the cluster decode, and the model's process only
predicts. The pixels are the same.

The shard stays the unit of work: it is the actor that asks for its batches, a few at a time, so
memory does not grow, and whatever dies, only decoded pixels are lost.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from ns_ray.compute import tasks
from ns_ray.config import Decode
from ns_ray.data import Decoded, decode_batch

if TYPE_CHECKING:
    from ns_ray.model import Predictor

AHEAD = 2
"""Batches that are asked for, for each CPU that decodes: one that it works on, one that waits."""
AHEAD_BYTES = 256 * 2**20
"""Most bytes of pixels that are asked for, as far as two batches at least are."""
FETCHED = 3
"""Batches that are on their way from other nodes at a time: one comes when it is asked for."""
PATIENCE = 60.0
"""Seconds after which the model's process decodes a batch that no other has."""
MEASURED = 2.0
"""Seconds that either way is measured for."""
SETTLED = 10.0
"""Seconds of decoding apart that are not measured: processes start, and import, on each node."""
WAITING = 0.1
"""Share of its time that a model must wait for pixels before the other way is tried."""
BETTER = 1.05
"""Times the images/s that decoding apart must bring: it costs CPUs and a network."""


@cache
def _task() -> Any:
    """`decode_batch` in a process of its own, on the nodes in turn."""
    import ray

    return ray.remote(num_cpus=1, scheduling_strategy="SPREAD", max_retries=3)(decode_batch)


class Apart:
    """The batches of one shard, decoded in Ray tasks that are begun at once."""

    def __init__(self, predictor: "Predictor", images: Sequence[bytes], cpus: int) -> None:
        """
        Args:
            predictor: whose images these become.
            images: encoded.
            cpus: about how many of them decode for this process.
        """
        size, batch = predictor.preprocess.size, predictor.batch_size
        self._most = max(2, min(AHEAD * cpus, AHEAD_BYTES // (batch * size * size * 3)))
        self._how = (predictor.preprocess, predictor.config.fast_decode)
        self._coming = (images[at : at + batch] for at in range(0, len(images), batch))
        self._pending: deque[tuple[Any, Sequence[bytes]]] = deque()
        self._fill()

    def _fill(self) -> None:
        while len(self._pending) < self._most and (images := next(self._coming, None)) is not None:
            self._pending.append((_task().remote(images, *self._how), images))

    def __iter__(self) -> Iterator[Decoded]:
        fetched: deque[Future[Decoded]] = deque()
        with ThreadPoolExecutor(FETCHED, thread_name_prefix="fetch") as pool:
            while self._pending or fetched:
                while self._pending and len(fetched) < FETCHED:
                    fetched.append(pool.submit(self._result, *self._pending.popleft()))
                    self._fill()
                yield fetched.popleft().result()

    def _result(self, task: Any, images: Sequence[bytes]) -> Decoded:
        """Decoded here where no CPU does it in time, or those that did are lost too often."""
        import ray

        try:
            decoded: Decoded = ray.get(task, timeout=PATIENCE)
        except ray.exceptions.RayTaskError:  # a fault of ours
            raise
        except ray.exceptions.RayError:
            decoded = decode_batch(images, *self._how)
        return decoded


Begun = Apart | Iterator[Decoded]
"""Decoding that has begun, apart or beside the model."""


@dataclass
class Measured:
    """What one way of decoding has brought so far."""

    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    @property
    def rate(self) -> float:
        """Images/s."""
        return self.images / max(self.seconds, 1e-9)


class Decoder:
    """Brings the images of one shard after the other to a model; where it may choose, the way that
    brings more of them, by measuring both.

    Attributes:
        waited: seconds that the model has waited for pixels so far.
        apart: whether images are decoded apart.
        said: one line about the choice; empty before it is made.
    """

    def __init__(self, predictor: "Predictor", how: Decode, spare: int) -> None:
        """
        Args:
            predictor: whose images these become.
            how: auto, with_model or apart; see `label.decode`.
            spare: CPUs of the cluster that neither this actor nor another has, for each of them.
        """
        self._predictor, self._spare = predictor, spare
        self.apart = how == "apart" and tasks.ray_runs()
        self.said, self.waited = "", 0.0
        self._open = how == "auto" and spare >= 1 and tasks.ray_runs()
        self._beside, self._elsewhere = Measured(), Measured()
        self._warm, self._settling = False, SETTLED

    def begin(self, images: Sequence[bytes]) -> Begun:
        """Decoding the images of a shard; what is decoded apart begins at once."""
        self._choose()
        if self.apart:
            return Apart(self._predictor, images, self._spare)
        return self._predictor.decoded(images)

    def batches(self, begun: Begun) -> Iterator[Decoded]:
        """The batches of what `begin` returned, measured."""
        measured = self._elsewhere if isinstance(begun, Apart) else self._beside
        coming = iter(begun)
        asked = time.monotonic()
        while (batch := next(coming, None)) is not None:
            came = time.monotonic()
            self.waited += came - asked
            yield batch
            now = time.monotonic()
            if isinstance(begun, Apart) and self._settling > 0.0:
                self._settling -= now - asked
            elif self._warm:  # the first batch chooses what runs the model
                measured.images += batch.images
                measured.seconds += now - asked
                measured.waited += came - asked
            self._warm, asked = True, now

    def _choose(self) -> None:
        """Look at what has been measured, where the choice is open."""
        if not self._open:
            return
        beside, elsewhere = self._beside, self._elsewhere
        if not self.apart:
            if beside.seconds < MEASURED:
                return
            share = beside.waited / beside.seconds
            if share < WAITING:
                self._open = False
                self.said = f"decoding beside the model, which waits {share:.0%} of its time for it"
            self.apart = share >= WAITING
        elif elsewhere.seconds >= MEASURED:
            self._open = False
            self.apart = elsewhere.rate >= BETTER * beside.rate
            where = "apart from" if self.apart else "beside"
            self.said = (
                f"decoding {where} the model: {beside.rate:,.0f} images/s beside it, "
                f"{elsewhere.rate:,.0f} apart, on {self._spare} more CPUs"
            )
