"""Copies of validation and test images that were left out, each beside what it is a copy of."""

from collections.abc import Sequence

from ns_ray import store
from ns_ray.errors import ImageError
from ns_ray.report.facts import Run
from ns_ray.report.pictures import SHOWN, Gallery, Thumbnail, Wanted, thumbnail

REMOVED = "copies"
"""What `Wanted` names the corpus of pictures that are in none."""

Shown = dict[tuple[str, str], Thumbnail]


def copies(run: Run) -> tuple[list[Gallery], Shown]:
    """A gallery for the labeled images and one for the pile, and their thumbnails; those that most
    look alike last."""
    galleries, thumbs = [], {}
    for split in ("labeled", "unlabeled"):
        corpus = run.corpus(split)
        path = store.join(run.layout.corpus(split), "copies.parquet")
        if corpus is None or not corpus.rejected.get("near_leak") or not store.exists(path):
            continue
        table = store.read_table(path, store.COPIES.names)
        rows = [row for row in table.to_pylist() if row["picture"]]
        rows = sorted(rows, key=lambda row: (row["correlation"], row["key"]))[: SHOWN // 2]
        pairs: list[Wanted] = []
        for row in rows:
            name, _, key = row["of"].partition("/")
            words = f"{row['key']}, left out as a copy of {name} image {key}"
            pairs.append(Wanted(f"{REMOVED} {split}", "", row["key"], ("left out",), words))
            alike = f"{row['correlation']:.4f}"
            pairs.append(Wanted(name, "", key, (f"is in {name}", alike), f"{name} image {key}"))
            thumbs[f"{REMOVED} {split}", row["key"]] = thumbnail(row["picture"])
        for name in ("validation", "test"):
            thumbs |= _held(run, name, [p.key for p in pairs if p.corpus == name])
        title = "Of the labeled images" if split == "labeled" else "Of the pile"
        note = "Those that look least alike, beside what they are copies of, and the correlation."
        total = corpus.rejected["near_leak"]
        galleries.append(Gallery(title, note, tuple(pairs), total, each=2))
    return galleries, thumbs


def _held(run: Run, name: str, keys: Sequence[str]) -> Shown:
    """Thumbnails of validation or test images."""
    corpus, found = run.corpus(name), {}
    left = {*keys}
    for shard in corpus.shards if corpus else ():
        if not left:
            break
        path = store.join(corpus.path, shard.file) if corpus else ""
        table = store.read_rows(path, "key", sorted(left), ["key", "image"])
        for key, data in zip(table["key"].to_pylist(), table["image"], strict=True):
            left.discard(key)
            try:
                found[name, str(key)] = thumbnail(data.as_buffer().to_pybytes())
            except ImageError:
                continue
    return found
