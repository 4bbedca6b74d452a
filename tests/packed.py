"""Sources to pack, and what is in the corpora made of them."""

from pathlib import Path
from typing import Any

from broken_files import jpeg

from ns_ray import store
from ns_ray.config.run import DataConfig
from ns_ray.data.stage import ingest
from ns_ray.store import schema
from ns_ray.store.corpora import Corpora, Corpus
from ns_ray.store.layout import RunLayout


def fill(folder: Path, counts: dict[str, int], start: int = 0) -> Path:
    """A folder per class with so many different photographs; seeds from `start` on."""
    seed = start
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (folder / name / f"{i:03d}.jpg").write_bytes(jpeg(seed))
            seed += 1
    return folder


def rows(corpus: Corpus) -> list[dict[str, Any]]:
    return [row for shard in corpus.shards for row in corpus.read(shard).to_pylist()]


def keys(corpus: Corpus) -> set[str]:
    found = [row["key"] for row in rows(corpus)]
    assert len(found) == len(set(found)) == corpus.rows
    return set(found)


def rejected(corpus: Corpus) -> dict[str, str]:
    table = store.read_table(f"{corpus.path}/rejected.parquet")
    assert table.schema.equals(schema.REJECTED)
    return {row["key"]: row["reason"] for row in table.to_pylist()}


def config(**settings: Any) -> DataConfig:
    return DataConfig.model_validate(settings)


def run(tmp_path: Path, **settings: Any) -> Corpora:
    return ingest(config(**settings), seed=0, out=RunLayout(str(tmp_path / "run")))
