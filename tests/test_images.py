import io
import resource
import struct

import numpy as np
import pytest
import torch
from broken_files import bomb, broken, encoded, heic, jpeg, odd_but_good, picture, rotated
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from ns_ray.data.images import (
    Interpolation,
    Normalize,
    Preprocess,
    decode,
    encode_png,
    eval_pixels,
    image_size,
)
from ns_ray.errors import ImageError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def gray_ramp(top: int, dtype: str) -> np.ndarray:
    return np.linspace(0, top, 256).reshape(16, 16).astype(dtype)


# --------------------------------------------------------------------------------------- kinds


@pytest.mark.parametrize("name", sorted(odd_but_good()))
def test_every_awkward_but_good_file_becomes_rgb(name: str) -> None:
    image = decode(odd_but_good()[name])
    assert image.mode == "RGB"
    assert image.size == image_size(odd_but_good()[name])


@pytest.mark.parametrize("name", sorted(broken()))
def test_every_broken_file_has_its_reason(name: str) -> None:
    data, reason = broken()[name]
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert caught.value.reason == reason
    assert caught.value.detail


@pytest.mark.parametrize(
    ("pixels", "kind"),
    [
        (gray_ramp(65535, "uint16"), "PNG"),
        (gray_ramp(65535, "uint16"), "TIFF"),
        (gray_ramp(65535, ">u2"), "TIFF"),
        (gray_ramp(65535, "int32"), "TIFF"),
        (gray_ramp(255, "float32"), "TIFF"),
        (gray_ramp(255, "float32") / 255, "TIFF"),
        (gray_ramp(255, "float32") * 1000 - 500, "TIFF"),
    ],
)
def test_deep_gray_is_scaled_to_8_bits_and_not_clipped(pixels: np.ndarray, kind: str) -> None:
    if pixels.dtype == ">u2":
        image = Image.frombytes("I;16B", (16, 16), pixels.tobytes())
    else:
        image = Image.fromarray(pixels)
    values = np.asarray(decode(encoded(image, kind)))[..., 0].reshape(-1).astype(int)
    assert np.abs(values - np.arange(256)).max() <= 1


@pytest.mark.parametrize(
    ("kind", "white"), [("uint16", 0), ("uint16", 1), ("uint32", 1), ("float32", 0), ("float32", 1)]
)
def test_gray_of_a_tiff_is_what_its_tags_say(kind: str, white: int) -> None:
    """Pillow doesn't turn deep gray around whose white is 0, and has no unsigned 32 bits."""
    top = {"uint16": 65535, "uint32": 2**32 - 1, "float32": 1}[kind]
    pixels = (np.arange(256).reshape(16, 16) / 255 * top).astype(kind)
    image = Image.fromarray(pixels.view(np.int32) if kind == "uint32" else pixels)
    signed, unsigned = (struct.pack("<HHIHH", 339, 3, 1, sign, 0) for sign in (2, 1))
    data = encoded(image, "TIFF", tiffinfo={262: white}).replace(signed, unsigned)
    values = np.asarray(decode(data))[..., 0].reshape(-1).astype(int)
    assert np.abs(values - np.arange(256)[:: 1 if white else -1]).max() <= 1


@pytest.mark.parametrize("value", [300.0, -1.0])
def test_gray_of_one_value_is_an_image(value: float) -> None:
    for kind in ("float32", "int32"):
        image = Image.fromarray(np.full((4, 4), value * 1000, kind))
        assert len(np.unique(np.asarray(decode(encoded(image, "TIFF"))))) == 1


def test_what_no_reader_knows_is_said_in_words() -> None:
    raw = b"II*\0\x10\0\0\0CR\2\0" + bytes(200)  # of a camera: TIFF by its first bytes
    with pytest.raises(ImageError, match=r"^broken: damaged, or of a kind that is not read$"):
        decode(raw)


def test_floats_that_are_not_finite_become_black() -> None:
    pixels = np.array([[0.0, 1.0], [np.nan, np.inf]], np.float32)
    values = np.asarray(decode(encoded(Image.fromarray(pixels), "TIFF")))[..., 0]
    assert values.tolist() == [[0, 255], [0, 0]]


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    half = Image.new("LA", (4, 4), (0, 128))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([200, 0, 0] + [0] * 9)
    assert decode(encoded(clear, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    assert decode(encoded(half, "PNG")).getpixel((0, 0)) == (127, 127, 127)
    assert decode(encoded(palette, "PNG", transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert decode(encoded(palette, "PNG")).getpixel((0, 0)) == (200, 0, 0)


def test_cmyk_keeps_its_colors() -> None:
    red = Image.new("RGB", (32, 32), (220, 20, 20)).convert("CMYK")
    r, g, b = np.asarray(decode(encoded(red, "JPEG")))[16, 16]
    assert r > 190
    assert max(g, b) < 60


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        r, g, b = np.asarray(decode(data))[4, 4]
        assert r > 200, kind
        assert max(g, b) < 60, kind


# --------------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    data = rotated(orientation, kind)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(np.asarray(decode(data)), np.asarray(upright))
    assert image_size(data) == upright.size == ((48, 32) if orientation < 5 else (32, 48))


def test_broken_exif_data_does_not_make_an_image_unusable() -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert decode(data).size == image_size(data) == (48, 32)


# -------------------------------------------------------------------------------------- limits


def test_pixel_limits_are_checked_before_pixels_are_decoded() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for limit in (178_956_970, 10**9):  # a larger limit doesn't lift Pillow's
        with pytest.raises(ImageError, match="too_many_pixels"):
            decode(bomb(), max_pixels=limit)
        with pytest.raises(ImageError, match="too_many_pixels"):
            image_size(bomb(), max_pixels=limit)
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kb < 200_000


def test_the_limit_is_the_last_allowed_number() -> None:
    assert decode(jpeg(), max_pixels=48 * 32).size == (48, 32)
    with pytest.raises(ImageError, match=r"48 x 32, at most 1,535 are allowed"):
        decode(jpeg(), max_pixels=48 * 32 - 1)


def test_formats_nobody_asked_for_are_not_opened() -> None:
    for kind in ("ICO", "PCX", "TGA", "JPEG2000"):
        with pytest.raises(ImageError) as caught:
            decode(encoded(picture(), kind))
        assert caught.value.reason == "not_an_image", kind


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
        ("AVIF", {}),
    ],
)
def test_a_cut_file_is_never_half_an_image(kind: str, options: dict[str, object]) -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    data = encoded(picture(3, 96, 64), kind, **options)
    for part in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        for shrink_to in (None, 16):
            with pytest.raises(ImageError) as caught:
                decode(data[: int(len(data) * part)], shrink_to=shrink_to)
            assert caught.value.reason in ("truncated", "not_an_image"), part


# ------------------------------------------------------------------------------------ shrinking


@pytest.mark.parametrize("shrink_to", [10, 64, 100, 128, 255, 256, 257, 1000])
def test_shrinking_never_goes_below_the_asked_for_side(shrink_to: int) -> None:
    data = encoded(picture(0, 512, 256), "JPEG")
    image = decode(data, shrink_to=shrink_to)
    assert min(image.size) >= min(shrink_to, 256)
    assert image.width == 2 * image.height
    assert (image.height < 256) == (shrink_to <= 128)


# --------------------------------------------------------------------------- the evaluation crop


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    ("width", "height", "side", "crop_pct"),
    [
        (500, 375, 224, 0.875),
        (375, 500, 224, 0.875),
        (333, 517, 240, 0.882),
        (28, 28, 32, 1.0),
        (8, 8, 32, 1.0),
        (640, 97, 64, 0.95),
        (300, 401, 64, 1.0),
        (401, 300, 64, 1.0),
        (321, 200, 65, 0.9),
    ],
)
def test_exact_crop_is_timms_and_the_fast_one_is_close(
    width: int, height: int, side: int, crop_pct: float, interpolation: Interpolation
) -> None:
    from timm.data import create_transform

    image = picture(5, width, height)
    spec = Preprocess(side, crop_pct, interpolation, MEAN, STD)
    transform = create_transform(
        side, is_training=False, interpolation=interpolation, crop_pct=crop_pct, normalize=False
    )
    expected = transform(image).permute(1, 2, 0).numpy()
    exact = eval_pixels(image, spec, fast=False)
    fast = eval_pixels(image, spec)
    assert exact.dtype == fast.dtype == np.uint8
    assert exact.shape == fast.shape == (side, side, 3)
    assert np.array_equal(exact, expected)
    assert np.abs(fast.astype(int) - exact).max() <= 2
    assert fast.flags.writeable


def test_fast_crop_from_a_large_jpeg_stays_close() -> None:
    spec = Preprocess(64, 0.875, "bicubic", MEAN, STD)
    data = encoded(picture(9, 900, 700), "JPEG", quality=95)
    exact, fast = eval_pixels(data, spec, fast=False), eval_pixels(data, spec)
    assert np.abs(fast.astype(int) - exact).mean() < 3


def test_encode_png_keeps_every_value() -> None:
    rng = np.random.default_rng(0)
    for shape in ((8, 8), (5, 7, 3)):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        back = np.asarray(decode(encode_png(pixels)))
        assert np.array_equal(back if len(shape) == 3 else back[..., 0], pixels)


# ------------------------------------------------------------------------------- hostile bytes

KINDS = ("PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
SEEDS = [jpeg(1), heic(picture(1)), *(encoded(picture(1), kind) for kind in KINDS)]


REASONS = {"empty", "not_an_image", "truncated", "too_many_pixels", "broken"}


def only_image_errors(data: bytes) -> None:
    seen = set()
    for attempt in (decode, image_size):
        try:
            attempt(data, max_pixels=1_000_000)
        except ImageError as error:
            seen.add(error.reason)
    assert seen <= REASONS


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_image_errors(data: bytes) -> None:
    only_image_errors(data)
    only_image_errors(b"\xff\xd8\xff" + data)
    only_image_errors(b"\x89PNG\r\n\x1a\n" + data)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=200)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=6),
    st.floats(0.05, 1),
)
def test_mutated_files_raise_nothing_but_image_errors(
    data: bytes, edits: list[tuple[float, bytes]], keep: float
) -> None:
    mutated = bytearray(data)
    for place, value in edits:
        # Half of the edits hit the header, where they hurt most.
        at = int(place * (len(mutated) - 1)) if place > 0.5 else int(place * 200)
        mutated[at : at + len(value)] = value
    only_image_errors(bytes(mutated[: int(len(mutated) * keep)]))


# --------------------------------------------------------------------------------- normalization


def test_pixels_are_normalized_as_timm_does_it() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    normalize = Normalize(Preprocess(8, 1.0, "bicubic", MEAN, STD), torch.device("cpu"))
    found = normalize(torch.from_numpy(pixels))
    expected = ((pixels / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)
