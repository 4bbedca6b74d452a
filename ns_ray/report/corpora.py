"""The images of a run: how many there are, and which could not be used."""

from typing import Any

from ns_ray import store
from ns_ray.report.facts import Run
from ns_ray.store import REJECTED_PREFIX

SPLITS = ("labeled", "unlabeled", "validation", "test")


def corpora(run: Run) -> list[dict[str, Any]]:
    """Images per corpus, how many could not be used, and how fast they were packed."""
    data = run.result["data"]
    rows = []
    for split in SPLITS:
        if data.get(split) is not None:
            done = store.published(run.layout.corpus(split))
            took = done.seconds if done else None
            rejected = sum((data["rejected"].get(split) or {}).values())
            rate = data[split] / took if took else None
            row = {"name": split, "rows": data[split], "rejected": rejected}
            rows.append({**row, "seconds": took, "rate": rate})
    return rows


def unreadable(run: Run) -> list[dict[str, Any]]:
    """Images that could not be used: {corpus, reason, rows, examples: [uri]}, most rows first.
    Examples are looked for among the first ones only."""
    found = []
    for split in SPLITS:
        corpus = run.corpus(split)
        for reason, rows in (corpus.rejected if corpus else {}).items():
            assert corpus is not None
            path = store.join(corpus.path, "rejected.parquet")
            examples = _examples([path]).get(reason, [])
            found.append({"corpus": split, "reason": reason, "rows": rows, "examples": examples})
    if run.lessons and run.lessons[0].labels.facts.get("rejected"):
        labels = run.lessons[0].labels
        done = store.published(labels.path)
        names = [n for n in done.files if n.startswith(REJECTED_PREFIX)] if done else []
        by_reason = _examples([store.join(labels.path, name) for name in names[:10]])
        found.append(
            {
                "corpus": "unlabeled",
                "reason": f"unreadable when labeled: {', '.join(by_reason)}",
                "rows": labels.rejected,
                "examples": [uri for uris in by_reason.values() for uri in uris][:3],
            }
        )
    return sorted(found, key=lambda row: -int(row["rows"]))


def left_out(run: Run) -> list[tuple[str, str]]:
    """Corpus, and what its source held besides in words: other files, links, images without a
    label."""
    if not store.exists(run.layout.sources):
        return []
    notes = store.read_json(run.layout.sources).get("notes", {})
    return [(split, note) for split in SPLITS for note in notes.get(split, [])]


def _examples(paths: list[str]) -> dict[str, list[str]]:
    """Up to three images per reason of rejection."""
    found: dict[str, list[str]] = {}
    for path in filter(store.exists, paths):
        for row in store.read_first(path, 10_000, ["uri", "reason"]).to_pylist():
            known = found.setdefault(row["reason"], [])
            if len(known) < 3:
                known.append(row["uri"])
    return found
