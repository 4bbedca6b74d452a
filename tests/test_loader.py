"""Training batches: the right rows and targets, the same pixels for any workers, on the device.

CUDA's streams and events are stood in for by ones that write down what is asked of them: the order
is all that matters, and it can be wrong on a machine without a GPU just as well.
"""

import itertools
import threading
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from broken_files import encoded, picture
from PIL import Image

from ns_ray import store
from ns_ray.config.noise import NoiseConfig, NoiseName
from ns_ray.config.training import TrainConfig
from ns_ray.data import decode
from ns_ray.errors import DataError
from ns_ray.store import schema
from ns_ray.store.corpora import Corpus, Shard, corpus_manifest, open_corpus
from ns_ray.store.labels import PseudoLabels, Selection, open_labels, open_selection
from ns_ray.training import loader
from ns_ray.training.examples import Examples
from ns_ray.training.job import Job
from ns_ray.training.loader import (
    Batch,
    DeviceBatch,
    Loader,
    copied,
    copied_ahead,
    from_thread,
    make_batch,
)
from ns_ray.training.rows import BatchRows, Sizes, batches

# -------------------------------------------------------------------------- examples from disk

CLASSES = 3


def corpus(folder: Path, counts: list[int], labeled: bool = True) -> Corpus:
    """Numbered images; labels are the number modulo 3."""
    shards, number = [], itertools.count()
    for s, count in enumerate(counts):
        name = f"shard-{s:05d}"
        rows: list[dict[str, Any]] = []
        for _ in range(count):
            n = next(number)
            data = encoded(picture(n, 20, 16), "PNG")
            rows.append(
                {
                    "key": f"k{n:03d}",
                    "image": data,
                    "label": n % CLASSES if labeled else None,
                    "width": 20,
                    "height": 16,
                    "sha256": "",
                    "uri": "",
                }
            )
        file = schema.part_name(name, "aaaaaaaaaaaa")
        store.write_table(f"{folder}/{file}", pa.Table.from_pylist(rows, schema=schema.CORPUS))
        shards.append(Shard(name, file, count, sum(len(row["image"]) for row in rows)))
    classes = ["a", "b", "c"] if labeled else []
    manifest = corpus_manifest(shards, classes, [], {}, "test")
    store.write_json(f"{folder}/manifest.json", manifest)
    store.publish(
        str(folder), stage="pack", fingerprint="f" * 12, files=[], facts={}, inputs={}, seconds=0
    )
    return open_corpus(str(folder))


def probs_of(key: str) -> np.ndarray:
    n = int(key[1:])
    values = np.array([1.0 + n, 2.0, 3.0 * (n % 2)])
    found: np.ndarray = (values / values.sum()).astype(np.float32)
    return found


def pseudo_labels(folder: Path, images: Corpus, drop: str = "") -> PseudoLabels:
    """Labels in the reverse order of the images, so that joining by position fails."""
    files = []
    for shard, table in images.scan(["key"]):
        keys = [key for key in reversed(table["key"].to_pylist()) if key != drop]
        probs = np.stack([probs_of(key) for key in keys])
        file = schema.part_name(shard.name, "bbbbbbbbbbbb")
        labels = schema.labels_table(pa.array(keys), probs, shard.name, None)
        store.write_table(f"{folder}/{file}", labels)
        files.append(file)
    facts = {"corpus": images.path, "classes": ["a", "b", "c"], "rows": images.rows}
    publish(folder, "label", files, facts)
    return open_labels(str(folder))


def selection(
    folder: Path, labels: PseudoLabels, chosen: dict[str, dict[str, int]], **facts: Any
) -> Selection:
    """Selected keys and their copies, shard by shard; a key's hard label is its number mod 3. With
    the fact `weights` they have some."""
    kind = schema.WEIGHTED_SELECTION if "weights" in facts else schema.SELECTION
    files = []
    for shard, copies in chosen.items():
        rows = [
            {
                "key": key,
                "label": int(key[1:]) % CLASSES,
                "confidence": 0.9,
                "copies": count,
                "shard": shard,
                "weight": weight_of(key),
            }
            for key, count in copies.items()
        ]
        file = schema.part_name(shard, "cccccccccccc")
        store.write_table(f"{folder}/{file}", pa.Table.from_pylist(rows, kind))
        files.append(file)
    counts = {shard: sum(copies.values()) for shard, copies in chosen.items()}
    facts = {
        "labels": labels.path,
        "corpus": labels.corpus,
        "counts": counts,
        "kept": sum(len(copies) for copies in chosen.values()),
        "copies": sum(counts.values()),
        **facts,
    }
    publish(folder, "select", files, facts)
    return open_selection(str(folder))


def weight_of(key: str) -> float:
    return (int(key[1:]) + 1) / 16


def publish(folder: Path, stage: str, files: list[str], facts: dict[str, Any]) -> None:
    store.publish(
        str(folder),
        stage=stage,
        fingerprint="f" * 12,
        files=files,
        facts=facts,
        inputs={},
        seconds=0,
    )


CHOSEN = {
    "shard-00000": {"k002": 1, "k000": 3},
    "shard-00002": {"k011": 2, "k009": 1, "k010": 1},
}


@pytest.fixture
def pile(tmp_path: Path) -> tuple[Corpus, PseudoLabels, Selection]:
    images = corpus(tmp_path / "pile", [4, 4, 4], labeled=False)
    labels = pseudo_labels(tmp_path / "labels", images)
    return images, labels, selection(tmp_path / "selection", labels, CHOSEN)


def one_pass(source: Examples, lanes: int = 1) -> list[dict[str, Any]]:
    """Rows of the first pass over all lanes."""
    some = source.stream(lanes, seed=0)
    rows = []
    for lane in range(lanes):
        for batch in some.segments(lane, 1):
            segment = batch[0]
            if segment.chunk.seed[1] > 0:
                break
            rows.append(source.load(segment.chunk).slice(segment.start, 1).to_pylist()[0])
    return rows


@pytest.mark.parametrize("lanes", [1, 2, 7])
def test_a_pass_over_labeled_images(tmp_path: Path, lanes: int) -> None:
    images = corpus(tmp_path, [3, 5, 2])
    rows = one_pass(Examples(images), lanes)
    assert sorted(row["key"] for row in rows) == [f"k{n:03d}" for n in range(10)]
    originals = {
        row["key"]: row for shard in images.shards for row in images.read(shard).to_pylist()
    }
    for row in rows:
        assert row["image"] == originals[row["key"]]["image"]
        assert row["target"] == int(row["key"][1:]) % CLASSES


def test_rows_are_shuffled_anew_in_each_pass(tmp_path: Path) -> None:
    source = Examples(corpus(tmp_path, [30]))
    orders = [
        source.load(source.stream(1, 0).chunks(epoch)[0])["key"].to_pylist() for epoch in (0, 1, 0)
    ]
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("soft", [True, False])
def test_selected_rows_come_with_their_copies_and_their_own_targets(
    pile: tuple[Corpus, PseudoLabels, Selection], soft: bool, lanes: int
) -> None:
    images, labels, chosen = pile
    source = Examples(images, chosen, labels if soft else None, soft)
    rows = one_pass(source, lanes)
    copies = {key: count for keys in CHOSEN.values() for key, count in keys.items()}
    assert Counter(row["key"] for row in rows) == Counter(copies)
    originals = {
        row["key"]: row["image"]
        for shard in images.shards
        for row in images.read(shard).to_pylist()
    }
    for row in rows:
        assert row["image"] == originals[row["key"]]
        if soft:
            np.testing.assert_allclose(row["target"], probs_of(row["key"]), atol=1e-3)
        else:
            assert row["target"] == int(row["key"][1:]) % CLASSES


def test_a_selected_key_without_an_image_is_a_data_error(
    pile: tuple[Corpus, PseudoLabels, Selection], tmp_path: Path
) -> None:
    images, labels, _ = pile
    stray = selection(tmp_path / "stray", labels, {"shard-00001": {"k004": 1, "k099": 1}})
    with pytest.raises(DataError, match="'k099' is missing from the corpus shard shard-00001"):
        one_pass(Examples(images, stray, labels))


def test_a_selected_key_without_a_label_is_a_data_error(
    pile: tuple[Corpus, PseudoLabels, Selection], tmp_path: Path
) -> None:
    images, _, chosen = pile
    partial = pseudo_labels(tmp_path / "partial", images, drop="k011")
    with pytest.raises(DataError, match="'k011' is missing from the pseudo-labels of shard-00002"):
        one_pass(Examples(images, chosen, partial))
    assert len(one_pass(Examples(images, chosen, partial, soft=False))) == 8  # hard ones need none


# ------------------------------------------------------------------------------------- batches

NOISE = NoiseConfig(randaugment="rand-m9-mmax30-n2-p1.0", crop_scale=(0.3, 1.0), erase=0.3)


def batch_of(pile: tuple[Corpus, PseudoLabels, Selection], labeled: Corpus, **kind: Any) -> Batch:
    images, labels, chosen = pile
    examples = [Examples(labeled)]
    if kind.get("pseudo", True):
        examples.append(Examples(images, chosen, labels, kind.get("soft", True)))
    streams = [one.stream(1, 0) for one in examples]
    asked = batches(streams, Sizes(4, 6, 16), lane=0, start=0, seed=kind.get("seed", 0))
    with closing(from_thread(examples, asked, NOISE, 16)) as made:
        return next(made)


def test_a_batch_follows_from_its_seed(
    pile: tuple[Corpus, PseudoLabels, Selection], tmp_path: Path
) -> None:
    labeled = corpus(tmp_path / "labeled", [5])
    first, again, other = (batch_of(pile, labeled, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.images, again.images)
    assert (first.images != other.images).any()
    np.testing.assert_array_equal(first.labels, other.labels)
    assert first.images.shape == (10, 16, 16, 3)
    assert first.images.dtype == np.uint8


def test_targets_are_soft_hard_or_none(
    pile: tuple[Corpus, PseudoLabels, Selection], tmp_path: Path
) -> None:
    labeled = corpus(tmp_path / "labeled", [5])
    soft, hard = batch_of(pile, labeled), batch_of(pile, labeled, soft=False)
    none = batch_of(pile, labeled, pseudo=False)
    assert soft.targets is not None
    assert hard.targets is not None
    assert soft.targets.shape == (6, CLASSES)
    assert soft.targets.dtype == np.float32
    np.testing.assert_allclose(soft.targets.sum(axis=1), 1.0, rtol=1e-5)
    assert hard.targets.shape == (6,)
    assert hard.targets.dtype == soft.labels.dtype == np.int64
    assert none.targets is None
    assert none.images.shape == (4, 16, 16, 3)
    for batch in (soft, hard, none):
        assert batch.labels.shape == (4,)


def test_labeled_images_come_first_and_each_stream_has_its_noise(tmp_path: Path) -> None:
    labeled, other = corpus(tmp_path / "labeled", [6]), corpus(tmp_path / "other", [6])
    of_images: tuple[NoiseName, ...] = ("randaugment", "crop", "flip", "erase")
    segments, tables = [], []
    for images in (labeled, other):
        one = Examples(images)
        [segment] = next(one.stream(1, 0).segments(0, 6))
        segments.append((segment,))
        tables.append(one.load(segment.chunk))
    rows = BatchRows(segments[0], segments[1], seed=0)
    batch = make_batch(rows, tables, NoiseConfig(erase=1.0, off_labeled=of_images), 16)
    # The same images in the same order, but for the noise.
    np.testing.assert_array_equal(batch.labels, batch.targets)
    assert (batch.images[:6] != batch.images[6:]).any(axis=(1, 2, 3)).all()
    swapped = make_batch(rows, tables, NoiseConfig(erase=1.0, off_unlabeled=of_images), 16)
    np.testing.assert_array_equal(swapped.images[6:], batch.images[:6])


def test_small_images_are_decoded_once_and_large_ones_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Examples(corpus(tmp_path / "labeled", [6]))
    [segment] = next(one.stream(1, 0).segments(0, 6))
    rows, tables = BatchRows((segment,), (), seed=0), [one.load(segment.chunk)]
    decoded: list[bytes] = []

    def counted(data: bytes, shrink_to: int) -> Image.Image:
        decoded.append(data)
        return decode(data, shrink_to=shrink_to)

    def made(noise: NoiseConfig, size: int, times: int = 3) -> list[Any]:
        decoded.clear()
        return [make_batch(rows, tables, noise, size).images for _ in range(times)]

    whole = NoiseConfig(randaugment="rand-m9-n2-p1.0", crop_scale=None, crop_padding=0.1)
    kept: dict[tuple[bytes, int, int], Image.Image] = {}
    monkeypatch.setattr(loader, "decode", counted)
    monkeypatch.setattr(loader, "_small", kept)
    first, *others = made(whole, 16)
    assert len(decoded) == 6
    assert all(np.array_equal(first, other) for other in others), "noise leaves what is kept alone"
    assert made(whole, 24)[0].shape == (6, 24, 24, 3)
    assert len(decoded) == 6, "made anew for another size"
    made(NoiseConfig(crop_scale=(0.3, 1.0)), 16)
    assert len(decoded) == 18, "parts are drawn from the whole image"
    made(whole, 64)
    assert len(decoded) == 18
    kept.clear()
    monkeypatch.setattr(loader, "KEPT", 2)
    assert np.array_equal(made(whole, 16)[0], first)
    assert (len(decoded), len(kept)) == (2 + 3 * 4, 2)


def test_threads_do_not_disturb_each_other_s_pixels(
    pile: tuple[Corpus, PseudoLabels, Selection], tmp_path: Path
) -> None:
    labeled = corpus(tmp_path / "labeled", [5])
    expected = [batch_of(pile, labeled, seed=seed).images for seed in range(4)]
    found: dict[int, np.ndarray] = {}

    def work(seed: int) -> None:
        for _ in range(5):
            found[seed] = batch_of(pile, labeled, seed=seed).images
            if (found[seed] != expected[seed]).any():
                return

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        np.testing.assert_array_equal(found[seed], expected[seed])


def test_closing_ends_the_thread_and_an_error_in_it_is_raised(
    pile: tuple[Corpus, PseudoLabels, Selection], tmp_path: Path
) -> None:
    def begun(one: Examples) -> Generator[Batch, None, None]:
        asked = batches([one.stream(1, 0)], Sizes(2, 0, 16), lane=0, start=0, seed=0)
        return from_thread([one], asked, NOISE, 16)

    made = begun(Examples(corpus(tmp_path / "labeled", [5])))
    next(made)
    assert any(thread.name.startswith("loader") for thread in threading.enumerate())
    made.close()
    images, labels, _ = pile
    stray = selection(tmp_path / "stray", labels, {"shard-00001": {"k099": 1}})
    with pytest.raises(DataError, match="'k099' is missing"):
        next(begun(Examples(images, stray, labels)))
    assert not any(thread.name.startswith("loader") for thread in threading.enumerate())


# -------------------------------------------------------------------------- any number of workers


def loaders(
    pile: tuple[Corpus, PseudoLabels, Selection],
    labeled: Corpus,
    world: int,
    first: int = 0,
    soft: bool = True,
) -> list[Loader]:
    """What the workers of a training with four forward passes per step load."""
    train = TrainConfig(batch_size=4, unlabeled_ratio=2, accumulate=4 // world, noise=NOISE)
    job = Job(
        model={},
        train=train.model_dump(mode="json"),
        labeled=labeled.path,
        validation=None,
        selection=pile[2].path,
        soft=soft,
        temperature=1.0,
        start_from=None,
        seed=5,
        out="",
        checkpoint="",
        fingerprint="",
        steps=100,
        loaders=0,
        in_turn=False,
        threads=1,
        device="cpu",
        lanes=world * train.accumulate,
        trained_groups=0,
        provenance={},
    )
    cpu = torch.device("cpu")
    return [
        Loader(job, train, labeled, size=16, rank=rank, world=world, first=first, device=cpu)
        for rank in range(world)
    ]


def steps_of(workers: list[Loader], count: int) -> list[list[np.ndarray]]:
    """Pixels and targets of each pass of each step, in the order of the lanes."""
    steps = []
    try:
        for _ in range(count):
            shares = [list(one.step()) for one in workers]
            lanes = [share[i] for i in range(len(shares[0])) for share in shares]
            steps.append(
                [
                    np.concatenate([b.images.flatten(), b.labels, b.targets.flatten()])
                    for b in lanes
                    if b.targets is not None
                ]
            )
    finally:
        for one in workers:
            one.close()
    return steps


def test_any_number_of_workers_sees_the_same_batches(
    pile: tuple[Corpus, PseudoLabels, Selection], tmp_path: Path
) -> None:
    labeled = corpus(tmp_path / "labeled", [5, 4])
    alone = steps_of(loaders(pile, labeled, world=1), 4)
    assert len(alone[0]) == 4
    for world in (2, 4):
        shared = steps_of(loaders(pile, labeled, world), 4)
        for one, other in zip(alone, shared, strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)


def test_a_resumed_training_goes_on_with_the_very_next_batch(
    pile: tuple[Corpus, PseudoLabels, Selection], tmp_path: Path
) -> None:
    labeled = corpus(tmp_path / "labeled", [5, 4])
    whole = steps_of(loaders(pile, labeled, world=2), 5)
    rest = steps_of(loaders(pile, labeled, world=1, first=3), 2)
    for one, other in zip(whole[3:], rest, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("soft", [True, False])
def test_weights_are_those_of_the_images_and_go_into_their_targets(
    pile: tuple[Corpus, PseudoLabels, Selection], tmp_path: Path, soft: bool
) -> None:
    images, labels, _ = pile
    weighted = selection(tmp_path / "weighted", labels, CHOSEN, weights={})
    rows = one_pass(Examples(images, weighted, labels, soft))
    assert len(rows) == 8
    assert all(row["weight"] == weight_of(row["key"]) for row in rows)
    labeled = corpus(tmp_path / "labeled", [5, 4])
    batch = batch_of((images, labels, weighted), labeled, soft=soft)
    assert batch.weights is not None
    assert batch.weights.dtype == np.float32
    assert batch_of(pile, labeled, soft=soft).weights is None
    targets = []
    for of in (weighted, pile[2]):
        (worker,) = loaders((images, labels, of), labeled, world=1, soft=soft)
        with closing(worker):
            targets.append(torch.cat([b.targets for b in worker.step() if b.targets is not None]))
    plain = targets[1]
    if not soft:  # smoothed by 0.1, as the loss would
        plain = torch.nn.functional.one_hot(plain, CLASSES) * 0.9 + 0.1 / CLASSES
    weights = targets[0].sum(dim=1, keepdim=True)
    assert {round(16 * float(w), 3) for w in weights} <= {1, 3, 10, 11, 12}
    torch.testing.assert_close(targets[0], plain * weights)


# ---------------------------------------------------------------------------------- on a device

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def numbers(count: int) -> Iterator[Batch]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        images = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
        images.flags.writeable = False  # as Ray hands them over
        yield Batch(images, np.arange(2), rng.random((2, 5), dtype=np.float32))


def test_what_arrives_is_what_was_sent() -> None:
    for sent, found in zip(numbers(3), copied(numbers(3), CPU), strict=True):
        np.testing.assert_array_equal(found.images, sent.images)
        np.testing.assert_array_equal(found.labels, sent.labels)
        np.testing.assert_array_equal(found.targets, sent.targets)
        assert found.images.dtype == torch.uint8


class Recorded:
    """CUDA's streams and events, of which only the order of calls is kept."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.events = 0
        recorded = self

        class Stream:
            def __init__(self, name: Any = None) -> None:
                self.name = name if isinstance(name, str) else "copy"

            def wait_stream(self, other: Any) -> None:
                recorded.calls.append(f"{self.name} waits for {other.name}")

        class Event:
            def __init__(self) -> None:
                self.number = recorded.events
                recorded.events += 1

            def record(self, stream: Any) -> None:
                recorded.calls.append(f"event {self.number} after what {stream.name} has")

            def synchronize(self) -> None:
                recorded.calls.append(f"host waits for event {self.number}")

        self.stream_class, self.event_class = Stream, Event
        self.compute = Stream("compute")

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        self.calls.append(f"on {stream.name}:")
        yield


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    found = Recorded()
    monkeypatch.setattr(torch.cuda, "Stream", found.stream_class)
    monkeypatch.setattr(torch.cuda, "Event", found.event_class)
    monkeypatch.setattr(torch.cuda, "stream", found.on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: found.compute)
    return found


def test_a_copy_starts_while_the_batch_before_is_worked_on(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Moved:
        def record_stream(self, stream: Any) -> None:
            recorded.calls.append(f"kept for {stream.name}")

    def moved(_batch: Batch, _move: Any) -> Any:
        recorded.calls.append("copy")
        return DeviceBatch(Moved(), None, None)  # type: ignore[arg-type]

    monkeypatch.setattr(loader, "_moved", moved)
    for _ in copied_ahead(numbers(3), CUDA):
        recorded.calls.append("work")
    copying = ["on copy:", "copy", "compute waits for copy", "kept for compute", "work"]
    assert recorded.calls == [
        "event 0 after what compute has",
        *copying,
        # Nothing to wait for yet: the second copy overlaps with the work on the first batch.
        "host waits for event 0",
        "event 1 after what compute has",
        *copying,
        # The third needs the first batch to be done with.
        "host waits for event 1",
        "event 2 after what compute has",
        *copying,
    ]


@pytest.mark.usefixtures("recorded")
def test_copies_come_from_pinned_memory_and_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, bool]] = []
    empty, to = torch.empty, torch.Tensor.to
    pinned: list[bool] = []

    def fake_empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        pinned.append(pin_memory)
        return empty(*args, **kwargs)

    def fake_to(tensor: torch.Tensor, device: torch.device, non_blocking: bool) -> torch.Tensor:
        asked.append((device == CUDA, non_blocking))
        return to(tensor, CPU)

    monkeypatch.setattr(torch, "empty", fake_empty)
    monkeypatch.setattr(torch.Tensor, "to", fake_to)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _tensor, _stream: None)
    sent = next(numbers(1))
    found = next(copied_ahead(numbers(1), CUDA))
    assert pinned == [True] * 3
    assert asked == [(True, True)] * 3
    np.testing.assert_array_equal(found.images, sent.images)
    np.testing.assert_array_equal(found.targets, sent.targets)
