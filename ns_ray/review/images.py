"""Images of a corpus that are read by their keys."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TypeVar

from ns_ray import store
from ns_ray.errors import ImageError
from ns_ray.store import Corpus

T = TypeVar("T")


def each_image(
    wanted: Iterable[tuple[str, str]], corpus: Corpus, make: Callable[[bytes, str], T]
) -> dict[str, T]:
    """What is made of images, by key; those that cannot be decoded are left out. A shard at a time
    is in memory.

    Args:
        wanted: keys, and the shards that hold them.
        corpus: where they are.
        make: takes an encoded image and its URI.
    """
    files = {shard.name: shard.file for shard in corpus.shards}
    keys = defaultdict(list)
    for key, shard in wanted:
        keys[str(shard)].append(str(key))
    made = {}
    for shard, some in sorted(keys.items()):
        path = store.join(corpus.path, files[shard])
        table = store.read_rows(path, "key", some, ["key", "image", "uri"])
        for key, data, uri in zip(*(table[n] for n in ("key", "image", "uri")), strict=True):
            try:
                made[key.as_py()] = make(data.as_buffer().to_pybytes(), uri.as_py())
            except ImageError:
                continue
    return made
