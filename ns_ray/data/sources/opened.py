"""PIL images of a program, as images of a source."""

import io
from dataclasses import dataclass

from PIL import Image, ImageOps

from ns_ray.data.images import to_rgb
from ns_ray.errors import ImageError, first_line

IN_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""Pillow's modes that a PNG file can have; others become RGB."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An image that Pillow has opened; it becomes a PNG file when read."""

    image: Image.Image

    def read(self) -> bytes:
        """A PNG file of it, turned as its EXIF data says.

        Raises:
            ImageError: it is closed, has no pixels, or its file turns out broken.
        """
        buffer = io.BytesIO()
        try:
            upright = ImageOps.exif_transpose(self.image)
            plain = upright if upright.mode in IN_PNG else to_rgb(upright)
            plain.save(buffer, "PNG", compress_level=1, exif=b"")
        except Exception as error:  # Pillow reads the pixels only now, and raises almost anything
            cut = "truncated" in str(error)
            raise ImageError("truncated" if cut else "broken", first_line(error)) from None
        return buffer.getvalue()
