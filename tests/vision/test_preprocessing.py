"""The preprocessing that checkpoints are evaluated with."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from replk_jax.vision.base_preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BasePreprocessing,
    normalize,
)
from replk_jax.vision.images import ImageError
from replk_jax.vision.preprocessing import Preprocessing
from tests.vision.test_images import picture


def torchvision(image, size, crop_fraction):
    """Resize and CenterCrop, with sizes in floating point as torchvision computes them."""
    if crop_fraction is None:
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    short, long = sorted(image.size)
    new_short = int(size / crop_fraction)
    new_long = int(new_short * long / short)
    portrait = image.width <= image.height
    width, height = (new_short, new_long) if portrait else (new_long, new_short)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    return pixels[top : top + size, left : left + size]


RELEASED = [(224, 0.875), (384, None), (320, 0.875), (33, 0.9), (32, 1.0)]


@pytest.mark.parametrize(("size", "crop_fraction"), RELEASED)
def test_pixels_equal_those_of_pillow_to_the_bit(size, crop_fraction):
    """Random sizes: odd, tall, wide, tiny, and those that need no resizing."""
    rng = np.random.default_rng(size)
    sizes = [(1, 1), (1, 9), (7, 2), (500, 375), (375, 500), (size, size), (size, 3 * size)]
    sizes += [(256, 257), (341, 256), *rng.integers(2, 700, (8, 2)).tolist()]
    preprocessing = Preprocessing(size, crop_fraction)
    for seed, (width, height) in enumerate(sizes):
        image = Image.fromarray(picture(width, height, seed=seed))
        expected = torchvision(image, size, crop_fraction)
        actual = preprocessing.pixels(image)
        assert actual.shape == (size, size, 3)
        np.testing.assert_array_equal(actual, expected, err_msg=f"{width} x {height}")


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((500, 375), (341, 256)),
        ((375, 500), (256, 341)),
        ((64, 64), (256, 256)),
        ((49, 98), (256, 512)),
    ],
)
def test_the_shorter_side_is_resized_and_the_centre_cropped(size, resized):
    """224 / 0.875 = 256; the longer side is cut to whole pixels."""
    image = Image.fromarray(picture(*size))
    big = np.asarray(image.resize(resized, Image.Resampling.BICUBIC))
    top, left = round((resized[1] - 224) / 2), round((resized[0] - 224) / 2)
    expected = big[top : top + 224, left : left + 224]
    np.testing.assert_array_equal(Preprocessing(224, 0.875).pixels(image), expected)


def test_other_filters_and_grey():
    image = Image.fromarray(picture(50, 30))
    grey = Preprocessing(16, None, "bilinear", mean=(0.5,), std=(0.25,))
    expected = np.asarray(image.convert("L").resize((16, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(grey.pixels(image), expected[..., None])
    assert grey.channels == 1
    assert grey(image).shape == (16, 16, 1)


def test_normalisation():
    """Against double precision: float32's rounding, a few of 6e-8 of values up to 255 / 255."""
    image = picture(40, 40)
    preprocessing = Preprocessing(40, None)
    mean, std = np.float64(IMAGENET_MEAN), np.float64(IMAGENET_STD)
    expected = (image / 255 - mean) / std
    result = preprocessing(image)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)
    on_device = jax.jit(lambda pixels: normalize(pixels, IMAGENET_MEAN, IMAGENET_STD))
    assert on_device(image).dtype == jnp.float32
    np.testing.assert_allclose(on_device(image), expected, rtol=1e-6, atol=1e-6)


def test_paths_bytes_images_and_arrays_are_the_same(tmp_path):
    pixels = picture(60, 45)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    preprocessing = Preprocessing(32, 0.8)
    wanted = preprocessing.pixels(pixels)
    for source in (path, str(path), path.read_bytes(), Image.open(path), jnp.asarray(pixels)):
        np.testing.assert_array_equal(preprocessing.pixels(source), wanted)


def test_an_image_that_would_fill_the_memory_is_named():
    """One pixel by 40,000: at a shorter side of 256 it would be 256 x 10,240,000."""
    strip = np.zeros((40_000, 1, 3), np.uint8)
    with pytest.raises(ImageError, match=r"the image strip\.png, 1 x 40000 .*256 x 10240000"):
        Preprocessing(224, 0.875).pixels(strip, "strip.png")
    assert Preprocessing(224, None).pixels(strip).shape == (224, 224, 3)


def test_as_json():
    for preprocessing in (
        Preprocessing(),
        Preprocessing(384, None, "lanczos", mean=(0.5,), std=(0.25,)),
    ):
        text = json.dumps(preprocessing.as_dict())
        assert Preprocessing.from_dict(json.loads(text)) == preprocessing
    given = {"image_size": np.int64(224), "mean": [0.5, 0, 1], "std": np.float32([1, 1, 0.25])}
    preprocessing = Preprocessing(**given)
    assert preprocessing == Preprocessing(224, mean=(0.5, 0.0, 1.0), std=(1.0, 1.0, 0.25))
    assert hash(preprocessing)
    json.dumps(preprocessing.as_dict())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("image_size", value) for value in (0, -1, 224.0, "224", None, True)),
        *(("crop_fraction", value) for value in (0, -0.5, 1.1, float("nan"), "0.875", [0.5])),
        *(("interpolation", value) for value in ("cubic", None, 3, ["bicubic"])),
        *(("mean", value) for value in ((0.5, 0.5), (), 0.5, "0.5", (0.5, None, 0.5), (10**400,))),
        *(("std", value) for value in ((0, 1, 1), (-1,), (float("inf"),) * 3, "1", (True,))),
    ],
)
def test_fields_that_make_no_sense(field, value):
    with pytest.raises(ValueError, match=f"^{field} of a preprocessing must be"):
        Preprocessing(**{field: value})
    with pytest.raises(ValueError, match=f"^{field} of a preprocessing must be"):
        Preprocessing.from_dict({**Preprocessing().as_dict(), field: value})


def test_fields_that_do_not_belong_together():
    with pytest.raises(ValueError, match="a value for each channel"):
        Preprocessing(mean=(0.5,), std=(0.5, 0.5, 0.5))
    good = Preprocessing().as_dict()
    for wrong in ({**good, "crop": 1}, {"image_size": 224}, [], None, "bicubic"):
        with pytest.raises(ValueError, match="has the fields"):
            Preprocessing.from_dict(wrong)


def test_fields_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Preprocessing().image_size = 384


@dataclasses.dataclass(frozen=True)
class Padded(BasePreprocessing):
    """Images as they are, padded to a multiple."""

    kind = "padded for a test"

    multiple: int
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)

    @property
    def size(self):
        return None

    def pixels(self, image, name=None):
        padding = [(0, -side % self.multiple) for side in image.shape[:2]]
        return np.pad(image, [*padding, (0, 0)])

    def fields(self):
        return {"multiple": self.multiple}

    @classmethod
    def from_fields(cls, fields):
        return cls(fields["multiple"])


def test_a_preprocessing_of_another_kind():
    """It is described, and found again, beside the one of classification."""
    padded = Padded(4)
    description = json.loads(json.dumps(padded.as_dict()))
    assert description["kind"] == "padded for a test"
    for cls in (BasePreprocessing, Preprocessing):
        assert cls.from_dict(description) == padded
    assert BasePreprocessing.from_dict(Preprocessing(96).as_dict()) == Preprocessing(96)
    image = np.full((3, 5, 1), 255, np.uint8)
    assert padded(image).shape == (4, 8, 1)
    assert padded(image)[0, 0, 0] == 2.0
    assert Preprocessing(96).size == (96, 96)


def test_resized():
    assert Preprocessing(96, mean=(0.5,), std=(0.5,)).resized(32).size == (32, 32)
    assert Padded(4).resized(32) == Padded(4)
    fixed = type("Fixed", (Padded,), {"size": (32, 48)})(4)
    with pytest.raises(ValueError, match=r"gives images of \(height, width\) \(32, 48\); got"):
        fixed.resized(32)


def test_in_words():
    assert Padded(4).in_words() == "kind padded for a test, multiple 4"
    words = Preprocessing(224, mean=(0.5,), std=(0.25,)).in_words()
    assert words == "224 x 224, the centre of 256, bicubic, mean (0.5,), std (0.25,)"


def test_kinds_that_are_not_known():
    for kind in ("spherical", 3, None):
        with pytest.raises(ValueError, match=r"kinds of preprocessing are .*square"):
            BasePreprocessing.from_dict({"kind": kind, "mean": [0.5]})
