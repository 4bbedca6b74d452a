"""FixMatch (Sohn et al. 2020) as a rival of a run: its network, noise, optimizer and images.

One network, no teacher. Each step sees n labeled images under the weak view (shift and flip), and m
of the pile twice: under the weak view, and under the strong one, which is the noise of the run's
student. Where the probabilities of the weak view are at least 0.95 for a class, the strong view
learns that class. All three parts are one batch, so BatchNorm counts them together; where a run
keeps the statistics of pretraining, so does this.

    loss = CE(labeled, weak) + 1.0 * mean over all m of [sure] CE(strong, class of weak)

Probabilities are first aligned with the labeled classes (ReMixMatch, Berthelot et al. 2020):
divided by their running average and multiplied by the shares of the labeled images. There is no
label smoothing: with it no network would be sure by 0.95. Dropout and stochastic depth act on
labeled images and the strong view. What is kept are the averaged weights, as in a run, with a
temperature fitted on the validation images.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from ns_ray import store
from ns_ray.config import ModelConfig, NoiseConfig, TrainConfig
from ns_ray.data import Augment, Normalize, decode, seeded
from ns_ray.errors import StageError
from ns_ray.log import progress
from ns_ray.model import (
    batch_norms,
    build_noised,
    load_weights,
    precision_for,
    preprocessing,
    save,
)
from ns_ray.store import Bundle, Corpus, open_bundle
from ns_ray.training import total_steps
from ns_ray.training.calibration import calibrate
from ns_ray.training.examples import Examples
from ns_ray.training.head import start_head
from ns_ray.training.learner import average_of, make_optimizer, make_schedule
from ns_ray.training.loader import AHEAD, CHUNKS
from ns_ray.training.rows import BatchRows, Chunk, Segment, Sizes, batches

SURE = 0.95
"""Least probability of a class that is learnt."""
WEIGHT = 1.0
"""Of the loss of the pile."""
MEMORY = 0.99
"""Decay of the running average of the probabilities."""
SHIFT = 0.125
"""Of the weak view, as a share of the width, where the run's noise has no shift of its own."""

Load = Callable[[Chunk], pa.Table]


@dataclass(frozen=True)
class Batch:
    """One step.

    Attributes:
        images: uint8 [n + 2 m, size, size, 3]: labeled, weak and strong views of the pile.
        labels: int64 [n].
    """

    images: torch.Tensor
    labels: torch.Tensor


def weak(noise: NoiseConfig) -> NoiseConfig:
    """Shift and flip alone."""
    shift = noise.crop_padding or SHIFT
    off = {"randaugment": None, "erase": 0.0, "crop_scale": None, "crop_padding": shift}
    return noise.model_copy(update=off)


def made(
    labeled: Corpus, pile: Corpus, sizes: Sizes, noise: NoiseConfig, seed: int
) -> Iterator[Batch]:
    """The batches of all steps, made in a thread ahead of need, in the order of a run's loader."""
    examples = [Examples(labeled), Examples(pile, labeled=False)]
    load = [lru_cache(CHUNKS)(one.load) for one in examples]
    streams = [one.stream(1, seed + which) for which, one in enumerate(examples)]
    asked = batches(streams, sizes, lane=0, start=0, seed=seed)
    views = (
        Augment(weak(noise), sizes.image),
        Augment(noise, sizes.image, noise.off_unlabeled),
    )
    pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
    try:
        pending = deque(
            pool.submit(_batch, rows, load, views, sizes.image) for rows in islice(asked, AHEAD)
        )
        while True:
            batch = pending.popleft().result()
            pending.append(pool.submit(_batch, next(asked), load, views, sizes.image))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def _batch(
    rows: BatchRows, load: Sequence[Load], views: tuple[Augment, Augment], size: int
) -> Batch:
    labeled = [_taken(segment, load[0]) for segment in rows.labeled]
    pile = [_taken(segment, load[1]) for segment in rows.pseudo]
    of_labeled, of_pile = (
        [decode(i.as_buffer().to_pybytes(), shrink_to=2 * size) for t in part for i in t["image"]]
        for part in (labeled, pile)
    )
    with seeded(rows.seed):
        images = [views[0](image) for image in (*of_labeled, *of_pile)]
        images += [views[1](image) for image in of_pile]
    labels = np.concatenate([table["target"].to_numpy() for table in labeled]).astype(np.int64)
    return Batch(torch.from_numpy(np.stack(images)), torch.from_numpy(labels))


def _taken(segment: Segment, load: Load) -> pa.Table:
    stop = segment.start + segment.stride * segment.count
    return load(segment.chunk).take(pa.array(np.arange(segment.start, stop, segment.stride)))


class Alignment:
    """Moves probabilities towards the shares of the labeled classes.

    Attributes:
        average: running average of what the network says, float32 [classes].
    """

    def __init__(self, shares: torch.Tensor) -> None:
        self._shares = shares
        self.average = shares.clone()

    def __call__(self, probs: torch.Tensor) -> torch.Tensor:
        """Probabilities [m, classes] -> the same, aligned; they count in the average first."""
        self.average = MEMORY * self.average + (1 - MEMORY) * probs.mean(dim=0)
        scaled = probs * self._shares / self.average.clamp(min=1e-6)
        return scaled / scaled.sum(dim=1, keepdim=True)


def pile_loss(strong: torch.Tensor, probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the strong views learn from the weak ones.

    Args:
        strong: logits [m, classes].
        probs: aligned probabilities of the weak views [m, classes].

    Returns:
        The loss, a mean over all m, and the mask: bool [m], those that are learnt from.
    """
    confidence, guessed = probs.max(dim=1)
    sure = confidence >= SURE
    return (F.cross_entropy(strong, guessed, reduction="none") * sure).mean(), sure


class FixMatch:
    """The network, its averaged weights, the optimizer and the schedule: those of a run's student.

    Attributes:
        ema: the averaged weights.
        sure: share of the pile's images that were learnt from, of all steps so far.
    """

    def __init__(
        self, model: ModelConfig, train: TrainConfig, labeled: Corpus, device: torch.device
    ) -> None:
        self._train, self._device = train, device
        folder = model.pretrained if model.pretrained and "/" in model.pretrained else None
        if folder:
            model = model.model_copy(update={"pretrained": None})
        network, self._live = build_noised(model, train.noise, len(labeled.classes))
        if folder:
            load_weights(network, folder)
        self._kept = batch_norms(network) if train.batch_norm == "kept" else []
        self.network = network.to(device).to(memory_format=torch.channels_last)
        if model.pretrained:
            start_head(self.network, labeled, device)
        self._normalize = Normalize(preprocessing(network), device)
        self._precision = precision_for(train.precision, self.network, device)
        counts = torch.tensor(labeled.class_counts, dtype=torch.float32, device=device)
        self._align = Alignment(counts / counts.sum())
        self._optimizer = make_optimizer(self.network, train, device)
        self._schedule = make_schedule(self._optimizer, train, labeled.rows)
        self.ema = average_of(self.network, train)
        self._sure = torch.zeros((), device=device)
        self._steps = 0

    @property
    def sure(self) -> float:
        """Share of the pile's images that were sure, over all steps."""
        return float(self._sure) / max(self._steps, 1)

    def step(self, step: int, batch: Batch) -> torch.Tensor:
        """Learn from one batch; the loss."""
        n = len(batch.labels)
        m = (len(batch.images) - n) // 2
        self.network.train()
        for norm in self._kept:
            norm.eval()
        noised = torch.ones(len(batch.images), dtype=torch.bool, device=self._device)
        noised[n : n + m] = False
        self._live.dropout = self._live.depth = noised
        self._schedule.step_update(step)
        self._optimizer.zero_grad(set_to_none=True)
        bf16 = self._precision == "bf16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            logits = self.network(self._normalize(batch.images.to(self._device)))
        of_labeled, of_weak, of_strong = logits.float().split([n, m, m])
        supervised = F.cross_entropy(of_labeled, batch.labels.to(self._device))
        unsupervised, sure = pile_loss(of_strong, self._align(of_weak.detach().softmax(dim=1)))
        loss = supervised + WEIGHT * unsupervised
        torch.autograd.backward(loss)
        if self._train.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self._train.clip_grad)
        self._optimizer.step()
        self.ema.update(self.network, step=step)
        self._sure += sure.float().mean()
        self._steps += 1
        return loss.detach()


def fixmatch(
    model: ModelConfig,
    train: TrainConfig,
    *,
    labeled: Corpus,
    pile: Corpus,
    validation: Corpus,
    seed: int,
    device: torch.device,
    out: str,
    provenance: Mapping[str, Any],
) -> Bundle:
    """Train a network and publish its averaged weights; what was published is returned at once.

    Args:
        model: architecture and start weights.
        train: of a student; `unlabeled_ratio` is that of pile to labeled images, and as many steps
            are taken as `epochs` ask for.
        labeled, pile: what it learns from.
        validation: what the temperature is fitted on.
        seed: decides weights, order, noise and dropout.
        device: where it learns.
        out: folder of the bundle.
        provenance: facts for the bundle.

    Raises:
        StageError: the loss is not finite.
    """
    corpora = [corpus.fingerprint for corpus in (labeled, pile, validation)]
    settings = [config.model_dump(mode="json") for config in (model, train)]
    mark = store.fingerprint("fixmatch", settings, corpora, seed)
    if store.already(out, mark) is not None:
        return open_bundle(out)
    start, steps = time.monotonic(), total_steps(train, labeled.rows)
    torch.manual_seed(seed)
    learner = FixMatch(model, train, labeled, device)
    size = preprocessing(learner.network).size
    sizes = Sizes(train.batch_size, round(train.batch_size * train.unlabeled_ratio), size)
    loss = torch.zeros(())
    with progress("fixmatch", steps, "steps") as meter:
        for step, batch in enumerate(islice(made(labeled, pile, sizes, train.noise, seed), steps)):
            torch.manual_seed(hash((seed, step)) % 2**63)
            loss = learner.step(step, batch)
            meter.add(1)
    if not math.isfinite(float(loss)):
        raise StageError(f"fixmatch: the loss became {float(loss)}; lower the rate ({train.lr})")
    temperature = calibrate(
        learner.ema.module, validation, device, pretrained=model.pretrained is not None
    )
    learner.ema.module.pretrained_cfg = learner.network.pretrained_cfg
    facts = {"temperature": temperature or 1.0, "sure": learner.sure, "steps": steps}
    return save(
        learner.ema.module,
        out,
        classes=labeled.classes,
        fingerprint=mark,
        provenance={**provenance, **facts, "seconds": time.monotonic() - start},
    )
