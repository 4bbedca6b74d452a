"""A pile of images as users have them: good ones of every awkward kind, and broken ones."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from ns_ray.data.images import encode_png


def picture(seed: int = 0, width: int = 48, height: int = 32) -> Image.Image:
    """A smooth RGB image with some texture; every seed gives another."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    big = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.integers(0, 16, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(np.asarray(big) // 17 * 16 + noise)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """An image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(seed: int = 0, **options: object) -> bytes:
    """A small JPEG photograph."""
    return encoded(picture(seed), "JPEG", quality=90, **options)


def rotated(orientation: int, kind: str = "JPEG") -> bytes:
    """48 x 32 pixels with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(1), kind, exif=exif.tobytes())


def bomb(width: int = 20_000, height: int = 20_000) -> bytes:
    """A valid PNG of a few hundred kB that decodes to more than a gigabyte."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    squeezer = zlib.compressobj(9)
    row = bytes(1 + 3 * width)
    pixels = b"".join(squeezer.compress(row) for _ in range(64)) + squeezer.flush()
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def heic(image: Image.Image) -> bytes:
    """As phones write photographs."""
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer)
    return buffer.getvalue()


def odd_but_good() -> dict[str, bytes]:
    """Files that must be packed, by name."""
    rgb = picture(2)
    gray16 = np.linspace(0, 65535, 48 * 32).reshape(32, 48).astype(np.uint16)
    frames = [picture(seed) for seed in (3, 4, 5)]
    return {
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG"),
        "gray.jpg": encoded(rgb.convert("L"), "JPEG"),
        "progressive.jpg": jpeg(6, progressive=True),
        "sixteen.png": encode_png(gray16),
        "sixteen.tif": encoded(Image.fromarray(gray16), "TIFF"),
        "float.tif": encoded(Image.fromarray((gray16 / 65535).astype(np.float32)), "TIFF"),
        "palette.png": encoded(rgb.quantize(16), "PNG"),
        "bilevel.png": encoded(rgb.convert("1"), "PNG"),
        "rgba.png": encoded(rgb.convert("RGBA"), "PNG"),
        "gray_alpha.png": encoded(rgb.convert("LA"), "PNG"),
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated.webp": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "rotated.jpg": rotated(6),
        "bitmap.bmp": encoded(rgb, "BMP"),
        "photo.avif": encoded(rgb, "AVIF"),
        "photo.ppm": encoded(rgb, "PPM"),
        "gray.pgm": encoded(rgb.convert("L"), "PPM"),
        "phone.heic": heic(rgb),
        "one_pixel.png": encode_png(np.zeros((1, 1, 3), np.uint8)),
        "UPPER.JPG": jpeg(7),
        "wrong_ending.png": jpeg(8),
    }


def broken() -> dict[str, tuple[bytes, str]]:
    """Files that must be rejected: name -> (contents, reason)."""
    return {
        "zero.jpg": (b"", "empty"),
        "text.jpg": (b"<html><body>404 Not Found</body></html>", "not_an_image"),
        "nulls.jpg": (bytes(5000), "not_an_image"),
        "cut.jpg": (jpeg(10)[: len(jpeg(10)) // 2], "truncated"),
        "cut_late.jpg": (jpeg(11)[:-10], "truncated"),
        "cut_header.jpg": (jpeg(12)[:20], "truncated"),
        "cut.png": (encoded(picture(13), "PNG")[:900], "truncated"),
        "cut.webp": (encoded(picture(14), "WEBP")[:100], "truncated"),
        "noise.png": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) + b"IEND\xaeB`\x82", "broken"),
        "bomb.png": (bomb(), "too_many_pixels"),
    }


def write_pile(folder: Path, good: int) -> tuple[set[str], dict[str, str]]:
    """Write `good` plain photographs, the odd ones and the broken ones below a folder.

    Returns:
        Names of the files that must be packed, and name -> reason of the others.
    """
    files = {f"plain/{i:04d}.jpg": jpeg(100 + i) for i in range(good)}
    files |= {f"odd/{name}": data for name, data in odd_but_good().items()}
    bad = {f"bad/{name}": entry for name, entry in broken().items()}
    for name, data in (files | {name: data for name, (data, _) in bad.items()}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return set(files), {name: reason for name, (_, reason) in bad.items()}
