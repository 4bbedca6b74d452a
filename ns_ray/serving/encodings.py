"""Image files as JSON carries them, in base64, and as clients of Triton send them, behind it."""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException

from ns_ray.errors import ImageError

PIECE = 2**20
"""Characters of base64 decoded at once. No other thread runs meanwhile."""
WHITE, URL_SAFE = b" \t\r\n", bytes.maketrans(b"-_", b"+/")
EXAMPLE = "data:image/png;base64,iVBORw0..., or what is behind the comma alone"
ALLOWED = "A-Z, a-z, 0-9, + and / (or - and _), with or without = at the end, in whole or in lines"
HEADER = "inference-header-content-length"
"""Of a request whose tensors follow its JSON as bytes: the length of the JSON."""
MAX_HEADER = 256 * 1024
"""Most bytes of JSON before binary tensors; nothing in it grows with the images."""


def from_base64(text: str) -> bytes | ImageError:
    """A file in base64 as people write it: with or without padding, line breaks and the head of a
    data URI, in either alphabet. What is none says what is allowed."""
    start = text[:12].lower()
    if start.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.lower().endswith(";base64"):
            return ImageError("bad_base64", f"a data URI must be in base64: {EXAMPLE}")
    elif start.startswith(("http:", "https:", "file:", "s3:", "gs:")):
        return ImageError("bad_base64", f"no URL is fetched; send the file itself: {EXAMPLE}")
    try:
        return _joined(text)
    except (binascii.Error, ValueError):
        return ImageError("bad_base64", f"the text is not base64: {ALLOWED}")


def _joined(text: str) -> bytes:
    """
    Raises:
        ValueError: a character is not of base64, or their number is none that it makes.
    """
    bare = text.rstrip("= \t\r\n")
    padding = text.count("=", len(bare))
    pieces, rest, length = [], b"", 0
    for start in range(0, len(bare), PIECE):
        found = bare[start : start + PIECE].encode("ascii").translate(URL_SAFE, WHITE)
        length += len(found)
        found = rest + found
        whole = len(found) - len(found) % 4
        rest = found[whole:]
        pieces.append(_decoded(found[:whole]))
    if padding and (length + padding) % 4:
        raise ValueError("too much padding, or too little")
    return b"".join([*pieces, _decoded(rest + b"=" * (-len(rest) % 4), padded=True)])


def _decoded(text: bytes, padded: bool = False) -> bytes:
    if b"=" in text and not padded:
        raise ValueError("padding inside")
    return base64.b64decode(text, validate=True)


def header_of(declared: str, body: bytes) -> int:
    """How many bytes of a body are its JSON, by the value of HEADER.

    Raises:
        HTTPException: 400 or 413.
    """
    if not (declared.isascii() and declared.isdigit()) or int(declared[:20]) > len(body):
        raise HTTPException(400, f"{HEADER} must be a number of bytes of the body")
    if int(declared) > MAX_HEADER:
        raise HTTPException(413, f"{HEADER} is {declared}; at most {MAX_HEADER:,}")
    return int(declared)


def binary_files(size: Any, data: bytes, most: int) -> Sequence[bytes]:
    """Elements of a BYTES tensor in its binary form: each behind its length, four bytes, little
    endian.

    Args:
        size: `binary_data_size` of the input in the JSON.
        data: what follows the JSON.
        most: images.

    Raises:
        HTTPException: 400, 413 or 422.
    """
    files: list[bytes] = []
    at = 0
    while at + 4 <= len(data) and len(files) <= most:
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        files.append(data[at + 4 : end])
        at = end
    if len(files) > most:
        raise HTTPException(413, f"more than {most} images in one request")
    if at != len(data) or size != len(data):
        raise HTTPException(400, "the bytes behind the JSON are not those of its one input")
    if not files:
        raise HTTPException(422, "the input holds no image")
    return files
