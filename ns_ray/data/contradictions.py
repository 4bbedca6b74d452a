"""The same image several times in a corpus, with one label or with two."""

import pyarrow as pa
import pyarrow.compute as pc

from ns_ray.store import Corpus


def contradictions(corpus: Corpus) -> list[str]:
    """What a person should know of images that are, byte for byte, in the corpus several times. Two
    of them are named."""
    found = pa.concat_tables(table for _, table in corpus.scan(["sha256", "label"]))
    kinds = [("label", "min"), ("label", "max"), ("label", "count")]
    grouped = found.group_by("sha256").aggregate(kinds)
    differ = pc.not_equal(grouped["label_min"], grouped["label_max"])
    several = grouped.filter(differ)
    again = grouped.filter(pc.and_(pc.invert(differ), pc.greater(grouped["label_count"], 1)))
    said = []
    if several.num_rows:
        said.append(
            f"{several.num_rows:,} images have several labels, such as "
            f"{_two(corpus, several['sha256'][0])}, which are the same image; it is trained with "
            "all of them"
        )
    if again.num_rows:
        said.append(
            f"{again.num_rows:,} images are there several times, such as "
            f"{_two(corpus, again['sha256'][0])}; each counts as often"
        )
    return said


def _two(corpus: Corpus, sha256: pa.StringScalar) -> str:
    """Two rows of an image, of two labels where it has them."""
    rows = [
        row
        for _, table in corpus.scan(["sha256", "label", "uri"])
        for row in table.filter(pc.equal(table["sha256"], sha256)).to_pylist()
    ]
    first = rows[0]
    other = next((row for row in rows if row["label"] != first["label"]), rows[-1])
    return " and ".join(f"{r['uri']} as {corpus.classes[r['label']]!r}" for r in (first, other))
