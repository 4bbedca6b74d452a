"""Encoded bytes to RGB pixels, the same way for packing, training, labeling and serving.

Knows nothing about ray or files. An image either decodes whole or is an `ImageError` with
one of a few countable reasons: empty, not_an_image, truncated, too_many_pixels, broken.
"""

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features

from ns_ray.errors import ImageError

if TYPE_CHECKING:
    import torch

HEIC = find_spec("pillow_heif") is not None
"""Whether photos of phones can be read: `pip install 'ns_ray[heic]'`."""

FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"),
    *(("AVIF",) if features.check("avif") else ()),  # not every build of Pillow has it
    *(("HEIF",) if HEIC else ()),
)
"""What is opened. Pillow's other readers are never offered a byte."""

PNG = b"\x89PNG\r\n\x1a\n"
"""How every PNG file begins."""

HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")
"""Of ISO 23008-12, as phones write them."""

ENDINGS = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "HEIF": ".heic"}
"""Of names of files, by Pillow's name of their format, where they differ."""

PHOTOMETRIC, SAMPLE_FORMAT = 262, 339
"""Tags of TIFF: 0 is white if the first is 0, and whole numbers have no sign if the second is 1."""

LARGE = 2**24
"""Pixels of a whole resized image, 48 MiB, above which only its crop is made. A picture of one
pixel by 60,000 would become one of 224 by 13 million."""

MAX_PIXELS = 178_956_970
"""Pillow's own limit against decompression bombs; a larger `max_pixels` doesn't lift it."""

Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]

_RESAMPLING: Mapping[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}

_UPRIGHT: Mapping[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Preprocess:
    """How a model wants its input: timm's evaluation transform in five values."""

    size: int
    """Side of the square input in pixels."""
    crop_pct: float
    """Share of the short side that the center crop keeps, above 0, at most 1."""
    interpolation: Interpolation
    mean: tuple[float, float, float]
    """Per channel, on the 0-1 scale."""
    std: tuple[float, float, float]

    @property
    def short_side(self) -> int:
        """Short side of the resized image that the crop is cut from, in pixels."""
        return math.floor(self.size / self.crop_pct)


class Normalize:
    """Pixels as a model takes them, made on the device where they are."""

    def __init__(self, spec: Preprocess, device: "torch.device") -> None:
        # Here: packing and loader processes do without torch, which takes seconds to import.
        import torch

        self._mean, self._std = (
            torch.tensor(v, device=device).view(1, 3, 1, 1) * 255.0 for v in (spec.mean, spec.std)
        )

    def __call__(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """uint8 [n, size, size, 3] -> normalized float32 [n, 3, size, size], channels last in
        memory."""
        return self.scaled(self.planes(pixels))

    @staticmethod
    def planes(pixels: "torch.Tensor") -> "torch.Tensor":
        """uint8 [n, size, size, 3] -> float32 [n, 3, size, size] on the same scale, 0 to 255."""
        import torch

        return pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)

    def scaled(self, planes: "torch.Tensor") -> "torch.Tensor":
        """float32 [n, 3, size, size] on the scale 0 to 255 -> normalized."""
        return (planes - self._mean) / self._std


def decode(
    data: bytes, *, max_pixels: int = MAX_PIXELS, shrink_to: int | None = None
) -> Image.Image:
    """The first frame as upright RGB: 16-bit and float values scaled to 8 bits, transparency laid
    on white, EXIF orientation applied.

    Args:
        data: a whole encoded file.
        max_pixels: refuse more pixels than this; read from the header, before any is decoded.
        shrink_to: a JPEG may come back smaller by 2, 4 or 8, its short side never below this many
            pixels. Several times faster for large photographs.

    Raises:
        ImageError: empty, not_an_image, truncated, too_many_pixels or broken.
    """
    return _without_metadata_at_last(data, lambda file: _decoded(file, max_pixels, shrink_to))


def _decoded(data: bytes, max_pixels: int, shrink_to: int | None) -> Image.Image:
    image = _open(data, max_pixels)
    turn = _turn(image)
    try:
        if shrink_to is not None and image.format in ("JPEG", "MPO"):
            image.draft(None, (shrink_to, shrink_to))
        image.load()
        rgb = to_rgb(image)
    except Exception as error:
        raise _failure(data, error) from None
    return rgb if turn is None else rgb.transpose(turn)


def image_size(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height after EXIF orientation, from the header alone.

    Raises:
        ImageError: the header cannot be read, or names too many pixels.
    """
    image = _without_metadata_at_last(data, lambda file: _open(file, max_pixels))
    sideways = _turn(image) in (_UPRIGHT[5], _UPRIGHT[6], _UPRIGHT[7], _UPRIGHT[8])
    return (image.height, image.width) if sideways else (image.width, image.height)


def image_format(data: bytes, *, max_pixels: int = MAX_PIXELS) -> str:
    """JPEG, PNG and so on, by the contents.

    Raises:
        ImageError: as `image_size`.
    """
    return str(_without_metadata_at_last(data, lambda file: _open(file, max_pixels)).format)


def file_ending(data: bytes) -> str:
    """How the name of such a file ends, such as `.jpg`, whatever its name was.

    Raises:
        ImageError: the header cannot be read.
    """
    kind = image_format(data)
    return ENDINGS.get(kind, f".{kind.lower()}")


def eval_pixels(
    image: Image.Image | bytes,
    spec: Preprocess,
    fast: bool = True,
    *,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray[Any, Any]:
    """The center crop a model is evaluated on, uint8 [size, size, 3], not normalized.

    Args:
        image: an RGB image, or an encoded file.
        spec: the model's preprocessing.
        fast: a faster resize, from a JPEG decoded at reduced size. False repeats timm's resize and
            crop to the bit, but for very long images (above `LARGE`).
        max_pixels: see `decode`.

    Raises:
        ImageError: the bytes cannot be decoded.
    """
    if isinstance(image, bytes):
        shrink_to = spec.short_side if fast else None
        image = decode(image, max_pixels=max_pixels, shrink_to=shrink_to)
    width, height = _resized(image.width, image.height, spec.short_side)
    left, top = round((width - spec.size) / 2), round((height - spec.size) / 2)
    crop = (left, top, left + spec.size, top + spec.size)
    how = _RESAMPLING[spec.interpolation]
    if not fast and width * height <= LARGE:
        return np.array(image.resize((width, height), how).crop(crop))
    if width < image.width and spec.interpolation in ("bilinear", "bicubic"):
        pixels = _shrunk(np.array(image), width, height, spec.interpolation)
        return pixels[top : top + spec.size, left : left + spec.size].copy()
    x, y = image.width / width, image.height / height
    box = (crop[0] * x, crop[1] * y, crop[2] * x, crop[3] * y)
    return np.array(image.resize((spec.size, spec.size), how, box=box))


def _shrunk(
    pixels: np.ndarray[Any, Any], width: int, height: int, interpolation: str
) -> np.ndarray[Any, Any]:
    """What Pillow's resize makes of uint8 [h, w, 3], but for single levels, in half the time:
    torch's port of it uses the CPU's vector instructions."""
    # Here, because packing and loader processes do without torch, which takes seconds to import.
    import torch
    from torch.nn.functional import interpolate

    images = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    small = interpolate(images, size=(height, width), mode=interpolation, antialias=True)
    result: np.ndarray[Any, Any] = small[0].permute(1, 2, 0).numpy()
    return result


def resampling(name: Interpolation) -> Image.Resampling:
    """Pillow's filter of this name."""
    return _RESAMPLING[name]


def encode_png(pixels: np.ndarray[Any, Any]) -> bytes:
    """A PNG file of uint8 pixels [height, width] (gray) or [height, width, 3] (RGB)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def smooth_pixels(count: int, side: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Picture-like images to warm a model up and to compare runtimes on, where there are no real
    ones: smooth random colors, uint8 [count, side, side, 3]."""
    small = np.random.default_rng(0).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    how = Image.Resampling.BICUBIC
    return np.stack([np.array(Image.fromarray(i).resize((side, side), how)) for i in small])


def _without_metadata_at_last(data: bytes, read: Callable[[bytes], Image.Image]) -> Image.Image:
    """What `read` makes of a file, or else of a PNG without its texts and color profile: Pillow
    refuses a whole image for megabytes of them, and no pixel depends on them."""
    try:
        return read(data)
    except ImageError as error:
        if error.reason != "broken" or (lean := _lean_png(data)) == data:
            raise
        return read(lean)


def _lean_png(data: bytes) -> bytes:
    """A PNG without the chunks that hold texts and the color profile; others as they are."""
    if not data.startswith(PNG):
        return data
    kept, at = [PNG], len(PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")  # length, type, content, checksum
        if data[at + 4 : at + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise ImageError("empty", "the file has no bytes")
    if HEIC and "HEIF" not in Image.OPEN:
        import pillow_heif

        pillow_heif.register_heif_opener()
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # Pillow's readers raise almost anything on hostile bytes
        raise _failure(data, error) from None
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            "too_many_pixels", f"{width} x {height}, at most {max_pixels:,} are allowed"
        )
    return image


def _turn(image: Image.Image) -> Image.Transpose | None:
    if image.format == "TIFF":  # Pillow turns TIFFs itself
        return None
    try:
        # The base class's method: PNG's own would decode the pixels to look for a late EXIF chunk.
        return _UPRIGHT.get(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF data doesn't make the pixels unusable
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes as RGB; see `decode`."""
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_gray(image)).convert("RGB")
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _gray(image: Image.Image) -> np.ndarray[Any, Any]:
    """Gray of more than 8 bits as uint8. Of a TIFF, Pillow takes 32 bits for a signed number, and
    turns white around that is the smallest for 8 bits only."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    if tags and values.dtype == np.int32 and tags.get(SAMPLE_FORMAT) in (None, 1, (1,)):
        values = values.view(np.uint32)
    gray = _eight_bits(values)
    return 255 - gray if tags.get(PHOTOMETRIC) == 0 else gray


def _eight_bits(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Gray values of any depth as uint8. Integers use the 16-bit scale and floats 0-1 or 0-255;
    what lies outside is stretched from its own smallest to its own largest value."""
    if values.dtype == np.uint16 or values.dtype.newbyteorder("=") == np.uint16:
        return np.asarray((values.astype(np.uint32) * 255 + 32767) // 65535, dtype=np.uint8)
    finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = 0.0, 65535.0 if values.dtype.kind in "iu" else 255.0
    if values.dtype.kind == "f" and finite.max() <= 1.0:
        high = 1.0
    if finite.min() < low or finite.max() > high:
        low, high = float(finite.min()), float(finite.max())
    scale = 255.0 / ((high - low) or 1.0)  # all may have one value
    return np.asarray(np.rint((finite - low) * scale), dtype=np.uint8)


def _resized(width: int, height: int, short_side: int) -> tuple[int, int]:
    """torchvision's size rule: the long side is truncated, not rounded."""
    if width <= height:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def _failure(data: bytes, error: Exception) -> ImageError:
    detail = str(error) if not isinstance(error, UnidentifiedImageError) else ""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return ImageError("too_many_pixels", detail)
    if data.startswith(b"version https://git-lfs.github.com/"):
        return ImageError("not_an_image", "a pointer of Git LFS; `git lfs pull` fetches the image")
    if _kind_of_boxes(data) in HEIC_BRANDS and not HEIC:
        return ImageError("not_an_image", "HEIC; `pip install 'ns_ray[heic]'` reads it")
    if not _has_signature(data):
        return ImageError("not_an_image", f"no {', '.join(FORMATS)} signature")
    if "truncated" in detail.lower() or _cut_short(data):
        return ImageError("truncated", detail or "the file ends early")
    return ImageError("broken", detail or "damaged, or of a kind that is not read")


def _has_signature(data: bytes) -> bool:
    starts = (b"\xff\xd8\xff", PNG, b"GIF8", b"BM", b"II*\0", b"MM\0*")
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace():  # PPM, PGM, PBM
        return True
    known = _kind_of_boxes(data) in (b"avif", b"avis", *HEIC_BRANDS)
    return known or data.startswith(starts) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _kind_of_boxes(data: bytes) -> bytes | None:
    """The brand of a file of boxes (ISO 14496-12), as AVIF and HEIC are."""
    return data[8:12] if data[4:8] == b"ftyp" else None


def _cut_short(data: bytes) -> bool:
    """Whether the end of a file that failed to decode is missing. Only names the reason."""
    body = data.rstrip(b"\0")
    if data.startswith(b"\xff\xd8"):
        return not body.endswith(b"\xff\xd9")
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in body
    if data.startswith(b"GIF8"):
        return not body.endswith(b";")
    if data[4:8] == b"ftyp":
        at, size = 0, 1
        while at + 8 <= len(data) and size:
            size = int.from_bytes(data[at : at + 4], "big")
            at += size
        return at > len(data)
    if data.startswith(b"P"):
        return False  # Pillow says it
    if data.startswith((b"RIFF", b"BM")):
        at, extra = (4, 8) if data.startswith(b"RIFF") else (2, 0)
        return len(data) < int.from_bytes(data[at : at + 4], "little") + extra
    return len(data) < int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big") + 2
