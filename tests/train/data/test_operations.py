"""Each operation against Pillow's, through train/data/pillow_reference.py."""

import cv2
import numpy as np
import pytest
from PIL import Image

from train.data.operations import AFFINE_MAPS, VALUE_OPERATIONS, warp
from train.data.pillow_reference import apply

FILL = (124, 116, 104)
# Of every operation, from one end of its range to the other, and the images' own.
ARGUMENTS = {
    "AutoContrast": [()],
    "Equalize": [()],
    "Invert": [()],
    "Posterize": [(bits,) for bits in range(5)],
    "Solarize": [(threshold,) for threshold in (0, 1, 26, 128, 255, 256)],
    "SolarizeAdd": [(addition,) for addition in (0, 1, 55, 110)],
    **{
        name: [(factor,) for factor in (0.0, 0.1, 0.19, 0.61, 1.0, 1.37, 1.81, 1.9)]
        for name in ("Color", "Contrast", "Brightness", "Sharpness")
    },
    "Rotate": [(degrees,) for degrees in (-30, -7.3, 0, 0.4, 27)],
    "ShearX": [(slope,) for slope in (-0.3, 0, 0.013, 0.27)],
    "ShearY": [(slope,) for slope in (-0.3, 0, 0.013, 0.27)],
    "TranslateXRel": [(share,) for share in (-0.45, 0, 0.013, 0.4)],
    "TranslateYRel": [(share,) for share in (-0.45, 0, 0.013, 0.4)],
}


def pillow(image, operation, resample=Image.Resampling.BICUBIC):
    picture = Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0])
    result = np.asarray(apply(picture, operation, FILL[: image.shape[2]], resample))
    return result.reshape(image.shape)


def test_every_operation_is_tested():
    assert set(ARGUMENTS) == {*VALUE_OPERATIONS, *AFFINE_MAPS}
    assert len(ARGUMENTS) == 15


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", VALUE_OPERATIONS)
def test_values_equal_pillows(name, channels):
    """To the bit; also of one value, of few, and where there is no inside."""
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (2, 7), (9, 2), (3, 3), (37, 53), (64, 31)]
    ranges = [(0, 256), (0, 256), (90, 141), (255, 256), (0, 2)]
    for shape in shapes:
        for low, high in ranges:
            image = rng.integers(low, high, (*shape, channels), np.uint8)
            for values in ARGUMENTS[name]:
                before = image.copy()
                result = VALUE_OPERATIONS[name](image, *values)
                np.testing.assert_array_equal(result, pillow(image, (name, values)))
                np.testing.assert_array_equal(image, before)
                assert result.dtype == np.uint8


def test_every_luminance_equals_pillows():
    """Which colour and contrast stand on: all reds and greens, with a fifth of the blues."""
    blue, green, red = np.mgrid[0:256:5, :256, :256].astype(np.uint8)
    image = np.stack([red, green, blue], axis=-1).reshape(-1, 1024, 3)
    grey = VALUE_OPERATIONS["Color"](image, 0.0)
    np.testing.assert_array_equal(grey[:, :, 0], np.asarray(Image.fromarray(image).convert("L")))


def smooth(height, width, channels):
    """Where filters agree: a change of a few steps from one pixel to the next."""
    coarse = np.random.default_rng(1).uniform(30, 225, (height // 10, width // 10, channels))
    fine = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return fine.clip(0, 255).astype(np.uint8).reshape(height, width, channels)


def places(matrix, height, width):
    """Where each pixel of the result comes from: how deep in the image, negative outside."""
    y, x = np.mgrid[:height, :width] + 0.5
    from_x, from_y = np.tensordot(matrix, np.stack([x, y, np.ones_like(x)]), axes=1)
    return np.minimum.reduce([from_x, width - from_x, from_y, height - from_y])


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("name", AFFINE_MAPS)
def test_pixels_move_as_in_pillow(name, interpolation):
    """Up to the filter inside, exactly outside; between, the fill blends in one and not the other.

    Pillow cuts the fractions of values, so its mean is half a step lower. Half a pixel's error in
    place would make ten steps.
    """
    largest = {"bilinear": 1, "bicubic": 3}[interpolation]
    resample = Image.Resampling[interpolation.upper()]
    for shape in ((61, 84, 3), (83, 60, 1)):
        height, width, _ = shape
        image, fill = smooth(*shape), FILL[: shape[2]]
        for values in ARGUMENTS[name]:
            matrix = AFFINE_MAPS[name](*values, width, height)
            result = warp(image, matrix, fill, interpolation)
            expected = pillow(image, (name, values), resample)
            depth = places(matrix, height, width)
            inside, outside = depth > 2, depth < -1
            difference = np.abs(result[inside].astype(int) - expected[inside])
            assert difference.max() <= largest
            assert difference.mean() < 0.7
            np.testing.assert_array_equal(result[outside], expected[outside])
            np.testing.assert_array_equal(result[outside], np.broadcast_to(fill, shape)[outside])
            assert inside.mean() > 0.3
            assert result.shape == shape
            assert result.dtype == np.uint8


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_translations_are_pillows(interpolation):
    """Everywhere, and of any image; but Pillow cuts the fractions of values, which are rounded
    here."""
    rng = np.random.default_rng(3)
    resample = Image.Resampling[interpolation.upper()]
    for shape in ((24, 31, 3), (40, 20, 1), (1, 2, 3)):
        image = rng.integers(0, 256, shape, np.uint8)
        for name in ("TranslateXRel", "TranslateYRel"):
            for share in (*rng.uniform(-0.45, 0.45, 50), 0.5 / shape[0], -0.5 / shape[1], 0.99, -1):
                matrix = AFFINE_MAPS[name](share, shape[1], shape[0])
                result = warp(image, matrix, FILL[: shape[2]], interpolation)
                expected = pillow(image, (name, (share,)), resample)
                assert set(np.unique(result.astype(int) - expected)) <= {0, 1}


def test_no_move_and_moves_by_whole_pixels_are_exact():
    image = np.random.default_rng(2).integers(0, 256, (20, 30, 3), np.uint8)
    for name, place in AFFINE_MAPS.items():
        for interpolation in ("bicubic", "bilinear"):
            still = warp(image, place(0, 30, 20), FILL, interpolation)
            np.testing.assert_array_equal(still, image, err_msg=name)
    left = warp(image, AFFINE_MAPS["TranslateXRel"](0.2, 30, 20), FILL, "bilinear")
    np.testing.assert_array_equal(left[:, :24], image[:, 6:])
    np.testing.assert_array_equal(left[:, 24:], np.broadcast_to(FILL, (20, 6, 3)))
    down = warp(image, AFFINE_MAPS["TranslateYRel"](-0.25, 30, 20), FILL, "bilinear")
    np.testing.assert_array_equal(down[5:], image[:15])
    np.testing.assert_array_equal(down[:5], np.broadcast_to(FILL, (5, 30, 3)))
