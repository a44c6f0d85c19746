"""Masks in files of all kinds: values as they are stored, or a clear error."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from replk_jax.vision import label_sets
from replk_jax.vision.images import ImageError
from replk_jax.vision.label_sets import LabelSet
from train.data.masks import decode_mask, mask_values

TEN = LabelSet.of([f"class {i}" for i in range(10)])


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def values(largest=9, shape=(13, 11), seed=0):
    mask = np.random.default_rng(seed).integers(0, largest + 1, shape, np.uint8)
    mask[0, 0] = largest
    return mask


def grey_png(mask, bits):
    """A grey PNG of 1, 2, 4 or 8 bits, which Pillow does not write."""
    height, width = mask.shape
    rows = b"".join(
        b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel()).tobytes()
        for row in mask
    )
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_pngs_of_few_bits(bits):
    """Pillow and OpenCV spread their values over 0 to 255."""
    mask = values((1 << bits) - 1)
    np.testing.assert_array_equal(mask_values(grey_png(mask, bits), "a.png"), mask)


@pytest.mark.parametrize("classes", [2, 4, 16, 200])
def test_palette_pngs_are_read_as_indices(classes):
    mask = values(classes - 1)
    image = Image.fromarray(mask)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 3 * classes, np.uint8).tolist())
    data = encoded(image)
    label_set = LabelSet.of([str(i) for i in range(classes)])
    result = decode_mask(data, "a.png", label_set)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, mask)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_and_binary_images(kind):
    mask = values()
    np.testing.assert_array_equal(decode_mask(encoded(Image.fromarray(mask), kind), "a", TEN), mask)
    if kind == "PNG":
        binary = Image.fromarray(255 * values(1)).convert("1")
        np.testing.assert_array_equal(decode_mask(encoded(binary), "a", TEN), values(1))


def test_values_become_classes():
    ids = np.arange(34, dtype=np.uint8).reshape(2, 17)
    classes = decode_mask(encoded(Image.fromarray(ids)), "a", label_sets.find("cityscapes"))
    assert classes[0].tolist() == [255] * 7 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255]
    assert classes[1].tolist() == [5, 255, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 255, 255, 16, 17, 18]
    ade20k = decode_mask(
        encoded(Image.fromarray(np.array([[0, 1, 150, 255]], np.uint8))),
        "a",
        label_sets.find("ade20k"),
    )
    assert ade20k.tolist() == [[255, 0, 149, 255]]


def test_masks_of_the_most_classes():
    label_set = LabelSet.of([str(i) for i in range(255)])
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(decode_mask(encoded(Image.fromarray(mask)), "a", label_set), mask)


MASK = values()
COLOURS = np.random.default_rng(0).integers(0, 256, (13, 11, 3), np.uint8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded(Image.fromarray(MASK.astype(np.uint16))), r"more than 8 bits \(mode I;16\)"),
        (
            encoded(Image.fromarray(COLOURS)),
            r"in colours \(mode RGB\).*8 bits.*number of the class in place of each colour",
        ),
        (encoded(Image.fromarray(COLOURS).convert("RGBA")), r"in colours \(mode RGBA\)"),
        (encoded(Image.fromarray(np.dstack([MASK] * 3))), "3 channels, .*Save one of these"),
        (encoded(Image.fromarray(MASK).convert("LA")), r"has transparency .*\(mode LA\).*first"),
        (encoded(Image.fromarray(MASK), "JPEG"), "is a JPEG, a format that may change values"),
        (encoded(Image.fromarray(MASK), "WEBP"), "is a WebP"),
        (encoded(Image.fromarray(MASK), "BMP"), "is no PNG, nor a TIFF"),
        (encoded(Image.fromarray(MASK).convert("1"), "TIFF"), "is a TIFF not of 8 bits"),
        (encoded(Image.fromarray(MASK), "TIFF", tiffinfo={274: 6}), "is a TIFF .* not upright"),
        (encoded(Image.fromarray(MASK), "TIFF", compression="jpeg"), "compression that changes"),
        (encoded(Image.fromarray(MASK.astype(np.float32)), "TIFF"), "more than 8 bits"),
        (b"", "is no PNG"),
        (encoded(Image.fromarray(values(9, (300, 300))))[:-2000], "truncated"),
    ],
    ids=[
        "16 bits", "colours", "transparent", "grey in three channels", "grey with alpha", "JPEG",
        "WebP", "BMP", "binary TIFF", "rotated TIFF", "JPEG in a TIFF", "float", "empty", "cut off",
    ],
)  # fmt: skip
def test_what_is_no_mask(data, message):
    with pytest.raises(ImageError, match=f"a_mask.png.*{message}"):
        decode_mask(data, "a_mask.png", TEN)


def test_values_beyond_the_classes():
    mask = np.full((4, 5), 12, np.uint8)
    mask[0, :2] = 3
    with pytest.raises(
        ImageError,
        match=r"no class: 12 \(18 pixels\)\. Values are 0 to 9 and 255.*antialiasing",
    ):
        decode_mask(encoded(Image.fromarray(mask)), "a.png", TEN)
    mask[mask == 12] = 10
    with pytest.raises(ImageError, match=r"no class: 10 .*set config\.data\.reduce_zero_label"):
        decode_mask(encoded(Image.fromarray(mask)), "a.png", TEN)


def test_an_antialiased_mask():
    """A mask of two classes, far apart, that was resized like a photograph."""
    rows, columns = np.mgrid[:40, :40]
    mask = np.where((rows - 20) ** 2 + (columns - 20) ** 2 < 200, 200, 0).astype(np.uint8)
    small = Image.fromarray(mask).resize((17, 17), Image.Resampling.BILINEAR)
    with pytest.raises(ImageError, match=r"and \d+ more\. .*the nearest value"):
        decode_mask(encoded(small), "a.png", TEN)
