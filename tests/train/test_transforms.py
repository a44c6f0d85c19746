"""What happens to an image before it reaches the device."""

import io

import numpy as np
import pytest
from PIL import Image

from train.data.transforms import RandomResizedCropAndFlip, ResizeAndCentreCrop, decode
from train.errors import RunError


def example(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "PNG"), **options)
    return {"image": buffer.getvalue(), "label": 3, "origin": "cat.png"}


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((500, 375), (341, 256)),
        ((375, 500), (256, 341)),
        ((64, 64), (256, 256)),
        ((49, 98), (256, 512)),
    ],
)
def test_evaluation_resizes_the_shorter_side_and_crops_the_centre(size, resized):
    """224 / 0.875 = 256; the longer side is cut to whole pixels as torchvision does."""
    image = picture(*size)
    result = ResizeAndCentreCrop(224, 3, 0.875).map({**example(image), "mask": np.bool_(True)})
    big = np.asarray(image.resize(resized, Image.Resampling.BICUBIC))
    top, left = round((resized[1] - 224) / 2), round((resized[0] - 224) / 2)
    np.testing.assert_array_equal(result["image"], big[top : top + 224, left : left + 224])
    assert result["label"] == 3
    assert result["label"].dtype == np.int32
    assert sorted(result) == ["image", "label", "mask"]


def test_evaluation_without_crop_warps():
    image = picture(50, 30)
    result = ResizeAndCentreCrop(32, 3, None).map(example(image))
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(result["image"], expected)


def test_training_crops_lie_inside_and_keep_to_scale_and_ratio():
    transform = RandomResizedCropAndFlip(8, 3, (0.2, 0.5), (3 / 4, 4 / 3), True)
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(500):
        left, top, right, bottom = transform._box((60, 40), rng)
        assert 0 <= left < right <= 60
        assert 0 <= top < bottom <= 40
        width, height = right - left, bottom - top
        assert 0.7 < width / height < 1.45  # rounded to whole pixels
        shares.append(width * height / (60 * 40))
    assert 0.18 < min(shares) < 0.22
    assert 0.48 < max(shares) < 0.52
    assert abs(np.mean(shares) - 0.35) < 0.02  # uniform in area


def test_training_falls_back_to_the_centre():
    """A strip that no draw fits: the largest centred part with an allowed ratio."""
    transform = RandomResizedCropAndFlip(8, 3, (0.9, 1.0), (3 / 4, 4 / 3), False)
    assert transform._box((100, 10), np.random.default_rng(0)) == (43, 0, 56, 10)
    assert transform._box((10, 100), np.random.default_rng(0)) == (0, 43, 10, 56)


def test_training_crop_is_resized_and_flipped():
    image = picture(40, 40)
    whole = RandomResizedCropAndFlip(20, 3, (1.0, 1.0), (1.0, 1.0), True)
    straight = np.asarray(image.resize((20, 20), Image.Resampling.BICUBIC))
    seen = set()
    for seed in range(20):
        result = whole.random_map(example(image), np.random.default_rng(seed))["image"]
        flipped = np.array_equal(result, straight[:, ::-1])
        assert flipped or np.array_equal(result, straight)
        seen.add(flipped)
    assert seen == {False, True}


def test_training_depends_on_the_generator_alone():
    transform = RandomResizedCropAndFlip(16, 3, (0.1, 1.0), (3 / 4, 4 / 3), True)
    one, two, other = (
        transform.random_map(example(picture(40, 30)), np.random.default_rng(seed))["image"]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_every_colour_mode_becomes_colour_or_grey(mode):
    image = picture(9, 7).convert(mode)
    encoded = example(image, format="TIFF" if mode == "CMYK" else "PNG")
    assert np.asarray(decode(encoded, 3)).shape == (7, 9, 3)
    result = ResizeAndCentreCrop(4, 1, None).map(encoded)
    assert result["image"].shape == (4, 4, 1)


def test_sixteen_bits_are_scaled_and_not_cut():
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    grey = np.asarray(decode(example(Image.fromarray(ramp)), 1))
    np.testing.assert_array_equal(grey, ramp >> 8)


def test_values_without_a_range_are_refused():
    image = Image.fromarray(np.ones((4, 4), np.float32))
    with pytest.raises(RunError, match=r"cat\.png.*no known range"):
        decode(example(image, format="TIFF"), 1)


def test_bytes_that_are_no_image_are_named():
    good = example(picture(40, 30))
    for broken in (b"", b"no image", good["image"][: len(good["image"]) // 2]):
        with pytest.raises(RunError, match=r"cat\.png"):
            decode({**good, "image": broken}, 3)
