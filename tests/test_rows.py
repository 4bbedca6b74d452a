"""Which rows make which batch: each row once per pass, resumable anywhere, from a seed alone."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ns_ray.errors import DataError
from ns_ray.training import rows
from ns_ray.training.rows import BatchRows, Chunk, Segment, Sizes, Stream, batches

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
    taken = itertools.islice(stream.segments(lane, size, start), batches)
    return [row for batch in taken for row in rows_of(batch)]


def lane_rows(some: Stream, epochs: int) -> list[list[Row]]:
    """All rows of the first passes, lane by lane."""
    total = sum(some.rows)
    lanes = []
    for lane in range(some.lanes):
        taken = []
        for batch in some.segments(lane, 1):
            row = rows_of(batch)[0]
            if row[0][1] >= epochs:  # the pass of the chunk
                break
            taken.append(row)
            assert len(taken) <= epochs * total
        lanes.append(taken)
    return lanes


# ------------------------------------------------------------------------------------- streams


@settings(max_examples=120)
@given(some=streams, limit=chunk_rows)
def test_every_row_comes_once_in_each_pass(some: Stream, limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "CHUNK_ROWS", limit)
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


@settings(max_examples=80)
@given(some=streams, limit=chunk_rows, size=st.integers(1, 10), start=st.integers(0, 12))
def test_resuming_anywhere_is_skipping(some: Stream, limit: int, size: int, start: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "CHUNK_ROWS", limit)
        for lane in range(some.lanes):
            whole = first_rows(some, lane, size, start + 3)
            assert first_rows(some, lane, size, 3, start) == whole[start * size :]


@settings(max_examples=40)
@given(some=streams, size=st.integers(1, 30))
def test_batches_are_full(some: Stream, size: int) -> None:
    for batch in itertools.islice(some.segments(some.lanes - 1, size), 4):
        assert sum(segment.count for segment in batch) == size


def test_more_lanes_than_rows_leaves_no_lane_waiting() -> None:
    some = Bounded(rows=(2,), bytes=(1,), lanes=5, seed=0)
    for lane in range(5):
        assert len(first_rows(some, lane, size=3, batches=2)) == 6


def test_orders_differ_between_passes_and_seeds() -> None:
    some = Stream(rows=(5,) * 20, bytes=(1,) * 20, lanes=1, seed=0)
    other = Stream(rows=(5,) * 20, bytes=(1,) * 20, lanes=1, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "CHUNK_ROWS", 10)
        orders = [[c.shards for c in s.chunks(e)] for s, e in ((some, 0), (some, 1), (other, 0))]
        assert len({tuple(order) for order in orders}) == 3
        assert [c.shards for c in some.chunks(0)] == orders[0]
    seeds = {chunk.seed for epoch in range(3) for chunk in some.chunks(epoch)}
    assert len(seeds) == 3


def test_a_chunk_has_at_most_so_many_rows_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CHUNK_ROWS", 25)
    monkeypatch.setattr(rows, "CHUNK_BYTES", 100)
    few = Stream(rows=(10,) * 9, bytes=(1,) * 9, lanes=1, seed=0)
    assert [chunk.rows for chunk in few.chunks(0)] == [20, 20, 20, 20, 10]
    heavy = Stream(rows=(1,) * 4, bytes=(60,) * 4, lanes=1, seed=0)
    assert [len(chunk.shards) for chunk in heavy.chunks(0)] == [1, 1, 1, 1]


def test_an_empty_source_is_a_data_error() -> None:
    with pytest.raises(DataError, match=r"select\.threshold"):
        next(Stream(rows=(0, 0), bytes=(1, 1), lanes=1, seed=0).segments(0, 4))


# ------------------------------------------------------------------------------------- batches


def first_batches(lane: int, start: int, count: int, seed: int = 7) -> list[BatchRows]:
    streams = [
        Stream(rows=(5, 4), bytes=(1, 1), lanes=2, seed=0),
        Stream(rows=(9,), bytes=(1,), lanes=2, seed=1),
    ]
    found = batches(streams, Sizes(2, 3, 16), lane=lane, start=start, seed=seed)
    return list(itertools.islice(found, count))


def test_a_batch_has_rows_of_both_streams_and_a_seed_of_its_own() -> None:
    found = [*first_batches(0, 0, 6), *first_batches(1, 0, 6)]
    assert all(len(rows_of(list(one.labeled))) == 2 for one in found)
    assert all(len(rows_of(list(one.pseudo))) == 3 for one in found)
    assert len({one.seed for one in found}) == 12
    assert {one.seed for one in first_batches(0, 0, 6, seed=8)}.isdisjoint(o.seed for o in found)


def test_the_rows_of_a_step_do_not_depend_on_where_a_training_began() -> None:
    assert first_batches(1, 4, 3) == first_batches(1, 0, 7)[4:]


def test_a_batch_without_pseudo_labels() -> None:
    stream = Stream(rows=(5,), bytes=(1,), lanes=1, seed=0)
    one = next(batches([stream], Sizes(4, 0, 16), lane=0, start=0, seed=0))
    assert one.pseudo == ()
    assert len(rows_of(list(one.labeled))) == 4
