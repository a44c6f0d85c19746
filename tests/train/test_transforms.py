"""What happens to an image before it reaches the device."""

import io

import numpy as np
import pytest
from PIL import Image

from replk_jax.preprocessing import Preprocessing
from train.data.transforms import Prepare, RandomResizedCropAndFlip
from train.errors import RunError


def example(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "PNG"), **options)
    return {"image": buffer.getvalue(), "label": 3, "origin": "cat.png"}


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def test_evaluation_prepares_as_the_preprocessing_says():
    """Which tests/test_preprocessing.py compares with Pillow."""
    image = picture(50, 30)
    for preprocessing in (Preprocessing(32, 0.8), Preprocessing(32, None, mean=(0,), std=(1,))):
        result = Prepare(preprocessing).map({**example(image), "mask": np.bool_(True)})
        np.testing.assert_array_equal(result["image"], preprocessing.pixels(image))
        assert result["label"] == 3
        assert result["label"].dtype == np.int32
        assert sorted(result) == ["image", "label", "mask"]


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


def test_bytes_that_are_no_image_are_named():
    training = RandomResizedCropAndFlip(8, 3, (1.0, 1.0), (1.0, 1.0), False)
    evaluation = Prepare(Preprocessing(8))
    good = example(picture(40, 30))
    message = r"Cannot read the image cat\.png: .* Mend it"
    for broken in (b"", b"no image", good["image"][: len(good["image"]) // 2]):
        bad = {**good, "image": broken}
        with pytest.raises(RunError, match=message):
            training.random_map(bad, np.random.default_rng(0))
        with pytest.raises(RunError, match=message):
            evaluation.map(bad)
