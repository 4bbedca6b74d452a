"""What a caller calls its arguments: errors name them so."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """Of one kind of caller: where its models are given, its images, its output, and how it says
    that what other settings left may be made again."""

    bundle: str
    images: str
    out: str
    overwrite: str


COMMAND = Words("--bundle", "--data", "--out", "--overwrite")
PYTHON = Words("bundle", "images", "out", "overwrite=True")
