"""The same image with two labels in a corpus, as sources that were put together may have it."""

import pyarrow as pa
import pyarrow.compute as pc

from ns_ray.store import Corpus


def contradictions(corpus: Corpus) -> str | None:
    """What a person should know of images that are, byte for byte, in the corpus with several
    labels; None where there are none. Two of them are named."""
    found = pa.concat_tables(table for _, table in corpus.scan(["sha256", "label"]))
    ranges = found.group_by("sha256").aggregate([("label", "min"), ("label", "max")])
    several = ranges.filter(pc.not_equal(ranges["label_min"], ranges["label_max"]))
    if not several.num_rows:
        return None
    first = several["sha256"][0]
    rows = [
        row
        for _, table in corpus.scan(["sha256", "label", "uri"])
        for row in table.filter(pc.equal(table["sha256"], first)).to_pylist()
    ]
    a = rows[0]
    b = next(row for row in rows if row["label"] != a["label"])
    named = " and ".join(f"{row['uri']} as {corpus.classes[row['label']]!r}" for row in (a, b))
    return (
        f"{several.num_rows:,} images have several labels, such as {named}, which are the same "
        "image; it is trained with all of them"
    )
