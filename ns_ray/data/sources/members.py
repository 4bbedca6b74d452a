"""Files in zip archives as they lie there: a header, a name, and the bytes, maybe deflated."""

import struct
import zlib
from typing import NamedTuple

from ns_ray.errors import ImageError

STORED, DEFLATED = 0, 8
METHODS = (STORED, DEFLATED)
"""How files are packed that are read: as all programs do it unless told otherwise."""

HEADER = struct.Struct("<4s4xH16xHH")
"""Of a member: its signature, method, and the lengths of the name and of what follows that."""
LONGEST_HEADER = HEADER.size + 2 * 0xFFFF

LARGE, TIMES = 2**24, 100
"""An image of more bytes than this is refused if it was packed to less than a hundredth. Photos
hardly become smaller, drawings as bitmaps do; zeros become a thousandth, and 64 are read ahead."""


class Member(NamedTuple):
    """What the list of an archive says of one file."""

    size: int
    crc: int


def unpacked(data: bytes, member: Member | None) -> bytes:
    """The file of a member.

    Args:
        data: the member from its header on, and maybe more.
        member: None: `data` is the file itself.

    Raises:
        ImageError: it is damaged, or would become far too large.
    """
    if member is None:
        return data
    if member.size > max(LARGE, TIMES * len(data)):
        detail = f"{member.size:,} bytes, packed into less than {len(data):,}"
        raise ImageError("too_many_bytes", detail)
    if len(data) < HEADER.size or not data.startswith(b"PK\3\4"):
        raise ImageError("broken", "it is not where the list of its archive says")
    _, method, name, more = HEADER.unpack_from(data)
    file = data[HEADER.size + name + more :]
    try:
        if method == DEFLATED:
            file = zlib.decompressobj(-zlib.MAX_WBITS).decompress(file, member.size + 1)
    except zlib.error as error:
        raise ImageError("broken", f"it cannot be unpacked: {error}") from None
    file = file if method == DEFLATED else file[: member.size]
    if len(file) != member.size or zlib.crc32(file) != member.crc:
        raise ImageError("broken", "it is another file than the list of its archive says")
    return file
