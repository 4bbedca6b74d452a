"""What of a corpus is whole after it was published and has lost a file: a damaged shard costs the
packing of its own chunk, not that of all."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import xxhash

from ns_ray import store
from ns_ray.data.chunks import Chunk, Job, Part, read_copies
from ns_ray.data.sources.items import Item
from ns_ray.data.spans import Span
from ns_ray.errors import DamagedFileError
from ns_ray.store import Shard, part_name

Row = Mapping[str, str]


def kept(
    job: Job, chunks: Sequence[Chunk], present: set[str]
) -> dict[int, tuple[Part, tuple[list[str], str]]]:
    """What packing gave for the chunks whose files are all there, by chunk, with the files and the
    digest of their keys, which `holds` compares. Nothing of what is taken from packed corpora,
    whose keys are not listed here.

    Args:
        job, chunks: what is packed: the files of another packing have other names.
        present: names of the files in its folder.
    """
    if not {"manifest.json", "rejected.parquet"} <= present:
        return {}
    try:
        shards = store.listed_shards(job.out)
        rejected = store.read_table(store.join(job.out, "rejected.parquet"))
        copies = read_copies(job.out)
    except DamagedFileError:  # it is written anew
        return {}
    files: dict[int, list[Shard]] = {}
    for shard in shards:
        number = shard.name.split("-")[1:2]
        if number and number[0].isdigit() and shard.file == part_name(shard.name, job.fingerprint):
            files.setdefault(int(number[0]), []).append(shard)
    reasons = {row["key"]: row for row in rejected.to_pylist()}
    found = {}
    for i, chunk in enumerate(chunks):
        own = files.get(i, [])
        if own and not isinstance(chunk, Span) and {shard.file for shard in own} <= present:
            part = _part(job, chunk, own, reasons, copies)
            keys = {item.key for item in chunk} - {row["key"] for row in part.rejected}
            found[i] = part, ([store.join(job.out, s.file) for s in own], digest(keys))
    return found


def _part(
    job: Job,
    items: Sequence[Item],
    shards: list[Shard],
    reasons: Mapping[str, Row],
    copies: Mapping[str, dict[str, str]],
) -> Part:
    """The record of a chunk, as it was before the corpus was published."""
    bad = [dict(reasons[item.key]) for item in items if item.key in reasons]
    good = (item.label for item in items if item.key not in reasons)
    counts = Counter(label for label in good if label is not None and job.classes)
    also = [copies[item.key] for item in items if item.key in copies]
    return Part(job.fingerprint, shards, dict(counts), bad, also)


def holds(job: Job, files: Sequence[str], expected: str) -> bool:
    """Whether files of shards can be read, and have the rows with these keys."""
    try:
        tables = [store.read_table(file, ["key"]) for file in files]
    except DamagedFileError:
        return False
    return digest(key for table in tables for key in table["key"].to_pylist()) == expected


def digest(keys: Iterable[str]) -> str:
    """Of keys in any order."""
    return xxhash.xxh3_128_hexdigest("\n".join(sorted(keys)).encode())
