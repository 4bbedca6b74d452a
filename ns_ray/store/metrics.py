"""What metrics.jsonl tells of the stages of a run.

A row has a stage, a step of it, and values. A run that was killed repeats the steps since its last
checkpoint: where a stage's step goes back, its earlier rows from that step on are done again.
"""

import json

from ns_ray.store.files import exists, read_bytes


def last_steps(path: str) -> dict[str, int]:
    """The step that each stage has come to; a line that is being written is left out."""
    steps: dict[str, int] = {}
    if exists(path):
        for line in read_bytes(path).splitlines():
            try:
                row = json.loads(line)
                steps[str(row["stage"])] = int(row["step"])
            except (ValueError, KeyError, TypeError):
                continue
    return steps
