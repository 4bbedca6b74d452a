"""What a body is made of, counted while it comes: before a parser sees what it would choke on."""

from collections.abc import Sequence

from starlette.exceptions import HTTPException

from ns_ray.serving.forms import boundary_of
from ns_ray.serving.settings import ServeConfig

JSON, FORM = "application/json", "multipart/form-data"
VALUES, PARTS = 1000, 16
"""Commas of a JSON body beside two per image, lists and objects in it (a few microseconds each),
and parts of a form beside its images."""
ESCAPED = 32
"""Beside VALUES backslashes a JSON body may have one in so many bytes of `max_bytes`; where every /
of a base64 text is written as \\/, one in 64 is. White space costs its parser little."""


class Count:
    """How often a body holds a text, counted while it comes. A parser takes up to a thousand times
    as long for these as for an image, and lets no other thread run meanwhile."""

    def __init__(self, text: bytes, most: int, what: str) -> None:
        self._text, self._most, self._what = text, most, what
        self._found = 0
        self._end = b""

    def add(self, chunk: bytes) -> None:
        """
        Raises:
            HTTPException: 413 when there are too many by now.
        """
        if len(self._text) > 1:
            chunk = self._end + chunk
            self._end = chunk[1 - len(self._text) :]
        # Images hold none, and looking is much faster than counting.
        if self._text in chunk:
            self._found += chunk.count(self._text)
        if self._found > self._most:
            text = f"more than {self._most:,} {self._what}"
            raise HTTPException(413, text, {"Connection": "close"})


def counts_of(kind: str, content_type: str, config: ServeConfig) -> Sequence[Count]:
    """What is counted of a body of this kind."""
    if kind == JSON:
        base64_only = "in the JSON body; send images as base64 text, not as lists of numbers"
        escapes = VALUES + config.max_bytes // ESCAPED
        return [
            Count(b",", 2 * config.max_images + VALUES, f"commas {base64_only}"),
            Count(b"[", VALUES, f"lists {base64_only}"),
            Count(b"{", VALUES, f"objects {base64_only}"),
            Count(b"\\", escapes, "backslashes in the JSON body; base64 text needs none"),
        ]
    boundary = boundary_of(content_type) if kind == FORM else b""
    parts = Count(b"\r\n--" + boundary, config.max_images + PARTS, "parts in a form; send fewer")
    return [parts] if boundary else []
