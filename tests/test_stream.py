"""Training streams: each row once per pass, resumable anywhere, the same for any workers."""

import itertools
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from broken_files import encoded, picture
from hypothesis import given, settings
from hypothesis import strategies as st

from ns_ray import schema, storage, stream
from ns_ray.augment import Augment
from ns_ray.config import NoiseConfig, TrainConfig
from ns_ray.errors import DataError
from ns_ray.loop import Feed, Job
from ns_ray.schema import Corpus, PseudoLabels, Selection, Shard
from ns_ray.stream import Batch, Chunk, Segment, Source, Stream, make_batch

Row = tuple[tuple[int, ...], int, int]
"""Seed of the chunk, shards of it as a number, and row of the permuted chunk."""


class Bounded(Stream):
    """A stream whose lanes fail, rather than wait for ever, when they get no rows."""

    def chunks(self, epoch: int) -> list[Chunk]:
        assert epoch < 1500
        return super().chunks(epoch)


streams = st.builds(
    Bounded,
    rows=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any).map(tuple),
    bytes=st.just((1,) * 12),
    lanes=st.integers(1, 9),
    seed=st.integers(0, 5),
)
chunk_rows = st.sampled_from([1, 20, 64, 10_000])


def rows_of(batch: list[Segment]) -> list[Row]:
    return [
        (segment.chunk.seed, hash(segment.chunk.shards), segment.start + i * segment.stride)
        for segment in batch
        for i in range(segment.count)
    ]


def first_rows(stream: Stream, lane: int, size: int, batches: int, start: int = 0) -> list[Row]:
    taken = itertools.islice(stream.batches(lane, size, start), batches)
    return [row for batch in taken for row in rows_of(batch)]


def lane_rows(some: Stream, epochs: int) -> list[list[Row]]:
    """All rows of the first passes, lane by lane."""
    total = sum(some.rows)
    lanes = []
    for lane in range(some.lanes):
        taken = []
        for batch in some.batches(lane, 1):
            row = rows_of(batch)[0]
            if row[0][1] >= epochs:  # the pass of the chunk
                break
            taken.append(row)
            assert len(taken) <= epochs * total
        lanes.append(taken)
    return lanes


# ------------------------------------------------------------------------------------- streams


@settings(max_examples=120, deadline=None)
@given(some=streams, limit=chunk_rows)
def test_every_row_comes_once_in_each_pass(some: Stream, limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "CHUNK_ROWS", limit)
        seen = Counter(row for lane in lane_rows(some, epochs=3) for row in lane)
        assert set(seen.values()) == {1}
        for epoch in range(3):
            chunks = some.chunks(epoch)
            shards = [shard for chunk in chunks for shard in chunk.shards]
            assert sorted(shards) == [i for i, rows in enumerate(some.rows) if rows]
            expected = {
                (chunk.seed, hash(chunk.shards), row)
                for chunk in chunks
                for row in range(sum(some.rows[i] for i in chunk.shards))
            }
            assert {row for row in seen if row[0][1] == epoch} == expected


@settings(max_examples=80, deadline=None)
@given(some=streams, limit=chunk_rows, size=st.integers(1, 10), start=st.integers(0, 12))
def test_resuming_anywhere_is_skipping(some: Stream, limit: int, size: int, start: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "CHUNK_ROWS", limit)
        for lane in range(some.lanes):
            whole = first_rows(some, lane, size, start + 3)
            assert first_rows(some, lane, size, 3, start) == whole[start * size :]


@settings(max_examples=40, deadline=None)
@given(some=streams, size=st.integers(1, 30))
def test_batches_are_full(some: Stream, size: int) -> None:
    for batch in itertools.islice(some.batches(some.lanes - 1, size), 4):
        assert sum(segment.count for segment in batch) == size


def test_more_lanes_than_rows_leaves_no_lane_waiting() -> None:
    some = Bounded(rows=(2,), bytes=(1,), lanes=5, seed=0)
    for lane in range(5):
        assert len(first_rows(some, lane, size=3, batches=2)) == 6


def test_orders_differ_between_passes_and_seeds() -> None:
    some = Stream(rows=(5,) * 20, bytes=(1,) * 20, lanes=1, seed=0)
    other = Stream(rows=(5,) * 20, bytes=(1,) * 20, lanes=1, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "CHUNK_ROWS", 10)
        orders = [[c.shards for c in s.chunks(e)] for s, e in ((some, 0), (some, 1), (other, 0))]
        assert len({tuple(order) for order in orders}) == 3
        assert [c.shards for c in some.chunks(0)] == orders[0]
    seeds = {chunk.seed for epoch in range(3) for chunk in some.chunks(epoch)}
    assert len(seeds) == 3


def test_a_chunk_has_at_most_so_many_rows_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK_ROWS", 25)
    monkeypatch.setattr(stream, "CHUNK_BYTES", 100)
    few = Stream(rows=(10,) * 9, bytes=(1,) * 9, lanes=1, seed=0)
    assert [chunk.rows for chunk in few.chunks(0)] == [20, 20, 20, 20, 10]
    heavy = Stream(rows=(1,) * 4, bytes=(60,) * 4, lanes=1, seed=0)
    assert [len(chunk.shards) for chunk in heavy.chunks(0)] == [1, 1, 1, 1]


def test_an_empty_source_is_a_data_error() -> None:
    with pytest.raises(DataError, match=r"select\.threshold"):
        next(Stream(rows=(0, 0), bytes=(1, 1), lanes=1, seed=0).batches(0, 4))


# ------------------------------------------------------------------------------- rows from disk

CLASSES = 3


def corpus(folder: Path, counts: list[int], labeled: bool = True) -> Corpus:
    """Numbered images; labels are the number modulo 3."""
    shards, number = [], itertools.count()
    for s, count in enumerate(counts):
        name = f"shard-{s:05d}"
        rows = []
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
        storage.write_table(f"{folder}/{file}", pa.Table.from_pylist(rows, schema=schema.CORPUS))
        shards.append(Shard(name, file, count, sum(len(row["image"]) for row in rows)))
    classes = ["a", "b", "c"] if labeled else []
    manifest = schema.corpus_manifest(shards, classes, [], {}, "test")
    storage.write_json(f"{folder}/manifest.json", manifest)
    storage.publish(
        str(folder), stage="pack", fingerprint="f" * 12, files=[], facts={}, inputs={}, seconds=0
    )
    return schema.open_corpus(str(folder))


def probs_of(key: str) -> np.ndarray:
    n = int(key[1:])
    values = np.array([1.0 + n, 2.0, 3.0 * (n % 2)])
    return (values / values.sum()).astype(np.float32)


def pseudo_labels(folder: Path, images: Corpus, drop: str = "") -> PseudoLabels:
    """Labels in the reverse order of the images, so that joining by position fails."""
    files = []
    for shard, table in images.scan(["key"]):
        keys = [key for key in reversed(table["key"].to_pylist()) if key != drop]
        probs = np.stack([probs_of(key) for key in keys])
        file = schema.part_name(shard.name, "bbbbbbbbbbbb")
        labels = schema.labels_table(pa.array(keys), probs, shard.name, None)
        storage.write_table(f"{folder}/{file}", labels)
        files.append(file)
    facts = {"corpus": images.path, "classes": ["a", "b", "c"], "rows": images.rows}
    publish(folder, "label", files, facts)
    return schema.open_labels(str(folder))


def selection(
    folder: Path, labels: PseudoLabels, chosen: dict[str, dict[str, int]], **facts: Any
) -> Selection:
    """Selected keys and their copies, shard by shard; a key's hard label is its number mod 3."""
    files = []
    for shard, copies in chosen.items():
        rows = [
            {
                "key": key,
                "label": int(key[1:]) % CLASSES,
                "confidence": 0.9,
                "copies": count,
                "shard": shard,
            }
            for key, count in copies.items()
        ]
        file = schema.part_name(shard, "cccccccccccc")
        storage.write_table(f"{folder}/{file}", pa.Table.from_pylist(rows, schema.SELECTION))
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
    return schema.open_selection(str(folder))


def publish(folder: Path, stage: str, files: list[str], facts: dict[str, Any]) -> None:
    storage.publish(
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


def one_pass(source: Source, lanes: int = 1) -> list[dict[str, Any]]:
    """Rows of the first pass over all lanes."""
    some = source.stream(lanes, seed=0)
    rows = []
    for lane in range(lanes):
        for batch in some.batches(lane, 1):
            segment = batch[0]
            if segment.chunk.seed[1] > 0:
                break
            rows.append(source.load(segment.chunk).slice(segment.start, 1).to_pylist()[0])
    return rows


@pytest.mark.parametrize("lanes", [1, 2, 7])
def test_a_pass_over_labeled_images(tmp_path: Path, lanes: int) -> None:
    images = corpus(tmp_path, [3, 5, 2])
    rows = one_pass(Source(images), lanes)
    assert sorted(row["key"] for row in rows) == [f"k{n:03d}" for n in range(10)]
    originals = {
        row["key"]: row for shard in images.shards for row in images.read(shard).to_pylist()
    }
    for row in rows:
        assert row["image"] == originals[row["key"]]["image"]
        assert row["target"] == int(row["key"][1:]) % CLASSES


def test_rows_are_shuffled_anew_in_each_pass(tmp_path: Path) -> None:
    source = Source(corpus(tmp_path, [30]))
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
    source = Source(images, chosen, labels if soft else None, soft)
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
        one_pass(Source(images, stray, labels))


def test_a_selected_key_without_a_label_is_a_data_error(
    pile: tuple[Corpus, PseudoLabels, Selection], tmp_path: Path
) -> None:
    images, _, chosen = pile
    partial = pseudo_labels(tmp_path / "partial", images, drop="k011")
    with pytest.raises(DataError, match="'k011' is missing from the pseudo-labels of shard-00002"):
        one_pass(Source(images, chosen, partial))
    assert len(one_pass(Source(images, chosen, partial, soft=False))) == 8  # hard ones need none


# ------------------------------------------------------------------------------------- batches

NOISE = NoiseConfig(randaugment="rand-m9-mmax30-n2-p1.0", crop_scale=(0.3, 1.0), erase=0.3)


def batch_of(pile: tuple[Corpus, PseudoLabels, Selection], labeled: Corpus, **kind: Any) -> Batch:
    images, labels, chosen = pile
    sources = [Source(labeled)]
    if kind.get("pseudo", True):
        sources.append(Source(images, chosen, labels, kind.get("soft", True)))
    parts = []
    for source, size in zip(sources, (4, 6), strict=False):
        segments = next(source.stream(1, 0).batches(0, size))
        parts.append([(source.load(segment.chunk), segment) for segment in segments])
    augment = Augment(NOISE, 16)
    pseudo = parts[1] if len(parts) > 1 else []
    return make_batch(parts[0], pseudo, augment, augment, kind.get("seed", 0))


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
    plain = Augment(NoiseConfig(randaugment=None, crop_scale=None, flip=0), 16)
    strong = Augment(NoiseConfig(erase=1.0), 16)
    part = []
    for images in (labeled, other):
        source = Source(images)
        [segment] = next(source.stream(1, 0).batches(0, 6))
        part.append([(source.load(segment.chunk), segment)])
    batch = make_batch(part[0], part[1], plain, strong, seed=0)
    # The same images in the same order, but for the noise.
    np.testing.assert_array_equal(batch.labels, batch.targets)
    assert (batch.images[:6] != batch.images[6:]).any(axis=(1, 2, 3)).all()
    swapped = make_batch(part[0], part[1], strong, plain, seed=0)
    np.testing.assert_array_equal(swapped.images[6:], batch.images[:6])


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


# -------------------------------------------------------------------------- any number of workers


def feeds(
    pile: tuple[Corpus, PseudoLabels, Selection], labeled: Corpus, world: int, first: int = 0
) -> list[Feed]:
    """What the workers of a training with four forward passes per step are fed with."""
    train = TrainConfig(batch_size=4, unlabeled_ratio=2, accumulate=4 // world, noise=NOISE)
    job = Job(
        model={},
        train=train.model_dump(mode="json"),
        labeled=labeled.path,
        selection=pile[2].path,
        soft=True,
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
        accumulate=train.accumulate,
        trained_groups=0,
        provenance={},
    )
    cpu = torch.device("cpu")
    return [Feed(job, train, labeled, 16, rank, world, first, cpu) for rank in range(world)]


def steps_of(workers: list[Feed], count: int) -> list[list[np.ndarray]]:
    """Pixels and targets of each pass of each step, in the order of the lanes."""
    steps = []
    try:
        for _ in range(count):
            shares = [list(feed.step()) for feed in workers]
            lanes = [share[i] for i in range(len(shares[0])) for share in shares]
            steps.append(
                [
                    np.concatenate([b.images.flatten(), b.labels, b.targets.flatten()])
                    for b in lanes
                    if b.targets is not None
                ]
            )
    finally:
        for feed in workers:
            feed.close()
    return steps


def test_any_number_of_workers_sees_the_same_batches(
    pile: tuple[Corpus, PseudoLabels, Selection], tmp_path: Path
) -> None:
    labeled = corpus(tmp_path / "labeled", [5, 4])
    alone = steps_of(feeds(pile, labeled, world=1), 4)
    assert len(alone[0]) == 4
    for world in (2, 4):
        shared = steps_of(feeds(pile, labeled, world), 4)
        for one, other in zip(alone, shared, strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)


def test_a_resumed_training_goes_on_with_the_very_next_batch(
    pile: tuple[Corpus, PseudoLabels, Selection], tmp_path: Path
) -> None:
    labeled = corpus(tmp_path / "labeled", [5, 4])
    whole = steps_of(feeds(pile, labeled, world=2), 5)
    rest = steps_of(feeds(pile, labeled, world=1, first=3), 2)
    for one, other in zip(whole[3:], rest, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
