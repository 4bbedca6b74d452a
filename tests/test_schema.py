"""The Parquet contracts: what is written is what a reader gets back, joined by key."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ns_ray import store
from ns_ray.errors import DataError
from ns_ray.store import schema
from ns_ray.store.corpora import Shard, corpus_manifest, open_corpus
from ns_ray.store.labels import open_labels, open_selection

Array = np.ndarray[Any, Any]


def distributions(seed: int, rows: int, classes: int) -> Array:
    rng = np.random.default_rng(seed)
    values = rng.random((rows, classes)) ** 6
    found: Array = (values / values.sum(axis=1, keepdims=True)).astype(np.float32)
    return found


def keys(rows: int) -> pa.Array:
    return pa.array([f"image-{i}" for i in range(rows)], pa.string())


def done(folder: Path, stage: str, files: list[str], facts: dict[str, Any]) -> None:
    store.publish(
        str(folder),
        stage=stage,
        fingerprint="abcdef123456",
        files=files,
        facts=facts,
        inputs={},
        seconds=2.0,
    )


# --------------------------------------------------------------------------------- probabilities


@given(st.integers(0, 2**32), st.integers(0, 9), st.integers(2, 30))
def test_whole_vectors_come_back(seed: int, rows: int, classes: int) -> None:
    probs = distributions(seed, rows, classes)
    table = schema.labels_table(keys(rows), probs, "shard-00000", None)
    assert table.schema.equals(schema.labels_schema(classes, None))
    dense = schema.dense_probs(table, classes)
    assert dense.dtype == np.float32
    assert dense.shape == (rows, classes)
    np.testing.assert_allclose(dense, probs, atol=1e-3)
    np.testing.assert_allclose(dense.sum(axis=1), 1.0, rtol=1e-5)


@given(st.integers(0, 2**32), st.integers(0, 9), st.integers(2, 30), st.integers(1, 40))
def test_the_best_come_back_and_the_rest_is_shared(
    seed: int, rows: int, classes: int, top_k: int
) -> None:
    probs = distributions(seed, rows, classes)
    table = schema.labels_table(keys(rows), probs, "shard-00000", top_k)
    k = min(top_k, classes)
    assert table.schema.equals(schema.labels_schema(classes, k))
    dense = schema.dense_probs(table, classes)
    assert dense.shape == (rows, classes)
    np.testing.assert_allclose(dense.sum(axis=1), 1.0, rtol=1e-5)
    for row, original in zip(dense, probs, strict=True):
        order = np.argsort(-original, kind="stable")
        np.testing.assert_allclose(row[order[:k]], original[order[:k]], atol=2e-3)
        if k < classes:
            left = original[order[k:]].sum() / (classes - k)
            np.testing.assert_allclose(row[order[k:]], left, atol=2e-3)


def test_label_and_confidence_are_those_of_the_full_precision() -> None:
    probs = np.array([[0.30001, 0.29999, 0.4], [0.5, 0.5, 0.0]], np.float32)
    for top_k in (None, 1, 2):
        table = schema.labels_table(keys(2), probs, "shard-00007", top_k)
        assert table["label"].to_pylist() == [2, 0]
        np.testing.assert_array_equal(table["confidence"].to_numpy(), probs.max(axis=1))
        assert table["key"].to_pylist() == ["image-0", "image-1"]
        assert table["shard"].to_pylist() == ["shard-00007"] * 2


def test_probabilities_survive_the_disk_and_any_order_of_rows(tmp_path: Path) -> None:
    probs = distributions(1, 50, 5)
    path = f"{tmp_path}/part.parquet"
    store.write_table(path, schema.labels_table(keys(50), probs, "s", None), row_group_size=7)
    order = np.random.default_rng(0).permutation(50)
    table = store.read_table(path).take(pa.array(order))
    np.testing.assert_allclose(schema.dense_probs(table, 5), probs[order], atol=1e-3)
    np.testing.assert_allclose(
        schema.dense_probs(store.read_table(path).slice(10, 5), 5), probs[10:15], atol=1e-3
    )


def test_hashes_depend_on_key_and_seed_only() -> None:
    some = keys(100)
    hashes = schema.hash_keys(some, 1)
    assert hashes.dtype == np.uint64
    assert len(set(hashes.tolist())) == 100
    backwards = schema.hash_keys(some.take(pa.array(np.arange(99, -1, -1))), 1)
    np.testing.assert_array_equal(backwards[::-1], hashes)
    chunks = pa.chunked_array([some[:30], some[30:]])
    np.testing.assert_array_equal(schema.hash_keys(chunks, 1), hashes)
    assert (schema.hash_keys(some, 2) != hashes).all()
    # Another machine, another year: the same rows are chosen.
    assert schema.hash_keys(pa.array(["key"]), 7).tolist() == [HASH_OF_KEY_WITH_SEED_7]


HASH_OF_KEY_WITH_SEED_7 = 2716753337528975820


def test_part_names() -> None:
    name = schema.part_name("shard-00012", "abcdef123456")
    assert name == "shard-00012.abcdef.parquet"
    assert schema.shard_of(name) == "shard-00012"


# ------------------------------------------------------------------------------------- folders


def write_corpus(folder: Path, **changes: Any) -> None:
    shards = [Shard("shard-00000", "shard-00000.abcdef.parquet", 3, 30)]
    manifest = corpus_manifest(shards, ["a", "b"], [2, 1], {"truncated": 4}, "src")
    store.write_json(f"{folder}/manifest.json", {**manifest, **changes})


def test_a_corpus_opens_once_it_is_done(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    with pytest.raises(DataError, match="is not a packed corpus"):
        open_corpus(str(tmp_path))
    done(tmp_path, "pack", ["shard-00000.abcdef.parquet"], {})
    corpus = open_corpus(str(tmp_path))
    assert corpus.rows == 3
    assert corpus.classes == ("a", "b")
    assert corpus.class_counts == (2, 1)
    assert corpus.rejected == {"truncated": 4}
    assert corpus.fingerprint == "abcdef123456"


def test_a_pointer_is_followed(tmp_path: Path) -> None:
    write_corpus(tmp_path / "real")
    done(tmp_path / "real", "pack", [], {})
    store.write_json(f"{tmp_path}/here/pointer.json", {"corpus": str(tmp_path / "real")})
    assert open_corpus(str(tmp_path / "here")).path == str(tmp_path / "real")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path, format=schema.FORMAT + 1)
    done(tmp_path, "pack", [], {})
    with pytest.raises(DataError, match=rf"format {schema.FORMAT + 1}.*up to {schema.FORMAT}"):
        open_corpus(str(tmp_path))


def test_labels_open_without_the_files_of_rejected_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished pseudo-labels"):
        open_labels(str(tmp_path))
    names = ["shard-00000.abcdef.parquet", "rejected-shard-00000.abcdef.parquet"]
    facts = {"corpus": "/c", "classes": ["a", "b"], "rows": 3, "rejected": 1}
    done(tmp_path, "label", names, facts)
    labels = open_labels(str(tmp_path))
    assert labels.files == {"shard-00000": "shard-00000.abcdef.parquet"}
    assert (labels.rows, labels.corpus, labels.classes) == (3, "/c", ("a", "b"))
    assert labels.seconds == 2.0


def test_a_folder_of_another_stage_is_refused(tmp_path: Path) -> None:
    done(tmp_path, "label", [], {"corpus": "/c", "classes": ["a"], "rows": 0})
    with pytest.raises(DataError, match="no finished selection"):
        open_selection(str(tmp_path))


def test_a_selection_opens(tmp_path: Path) -> None:
    facts = {
        "labels": "/labels",
        "corpus": "/corpus",
        "counts": {"shard-00000": 5},
        "kept": 3,
        "copies": 5,
        "targets": "soft",
    }
    done(tmp_path, "select", ["shard-00000.abcdef.parquet"], facts)
    selection = open_selection(str(tmp_path))
    assert selection.counts == {"shard-00000": 5}
    assert (selection.kept, selection.copies) == (3, 5)
    assert (selection.labels, selection.corpus) == ("/labels", "/corpus")
    assert selection.facts["targets"] == "soft"
