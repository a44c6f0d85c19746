"""The test protocol of segmentation networks."""

import json

import numpy as np
import pytest
from PIL import Image

from replk_jax import SegmentationProtocol
from replk_jax.segmentation.prediction import Windows
from replk_jax.vision.base_preprocessing import BasePreprocessing
from replk_jax.vision.images import ImageError
from replk_jax.vision.keep_ratio import KeepRatio
from tests.vision.test_images import picture


def test_it_is_stored_and_found_again():
    for protocol in (
        SegmentationProtocol(),
        SegmentationProtocol(
            (2048, 1024), 32, (0.5,), (0.25,), 1024, 683, ratios=(0.5, 1.75), flip=True
        ),
    ):
        stored = json.loads(json.dumps(protocol.as_dict()))
        assert stored["kind"] == "segmentation"
        found = BasePreprocessing.from_dict(stored)
        assert found == protocol
        assert type(found) is SegmentationProtocol
        assert hash(found) == hash(protocol)
    assert SegmentationProtocol().fields() == {
        **KeepRatio().fields(), "window": None, "stride": None, "ratios": [1.0], "flip": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "resize to at most 2048 x 512, whole, single scale"),
        (
            {"window": 640, "stride": 426},
            "resize to at most 2048 x 512, slide 640 stride 426, single scale",
        ),
        (
            {"multiple": 32, "ratios": (0.5, 1, 1.75), "flip": True},
            "resize to at most 2048 x 512, multiples of 32, whole, scales 0.5 1 1.75, flip",
        ),
        (
            {"ratios": (1.5,), "mean": (0.5,), "std": (0.5,)},
            "resize to at most 2048 x 512, whole, scales 1.5, mean (0.5,), std (0.5,)",
        ),
    ],
)
def test_in_words(fields, words):
    assert SegmentationProtocol(**fields).in_words() == words


def test_views():
    assert SegmentationProtocol().views == ((1.0, False),)
    views = SegmentationProtocol(ratios=(0.5, 1), flip=True).views
    assert views == ((0.5, False), (0.5, True), (1, False), (1, True))


def test_windows():
    assert SegmentationProtocol().windows((7, 9)) == Windows((7, 9), (0,), (0,))
    windows = SegmentationProtocol(window=5, stride=3).windows((4, 9))
    assert windows == Windows((4, 5), (0,), (0, 3, 4))


def test_scales():
    """One decoded image, at both limits times each ratio, cut to whole pixels."""
    protocol = SegmentationProtocol((85, 35), ratios=(0.5, 1, 1.5))
    image = picture(40, 60)
    scales = protocol.scales(Image.fromarray(image))
    # The limits are (42, 17), (85, 35) and (127, 52).
    assert [scale.shape[:2] for scale in scales] == [(26, 17), (53, 35), (78, 52)]
    np.testing.assert_array_equal(scales[1], KeepRatio((85, 35)).pixels(image))
    np.testing.assert_array_equal(scales[2], KeepRatio((127, 52)).pixels(image))
    with pytest.raises(ImageError, match=r"Cannot read the image a\.png"):
        protocol.scales(b"none", "a.png")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 0, "stride": 1}, "window of a preprocessing must be a whole number from 1"),
        ({"window": 4.5, "stride": 1}, "window of a preprocessing must be"),
        ({"window": 4, "stride": True}, "stride of a preprocessing must be"),
        ({"window": 512}, "given together, or neither; got window=512 and stride=None"),
        ({"stride": 512}, "given together, or neither"),
        ({"window": 512, "stride": 513}, "pixels between windows would have no class; got 513"),
        ({"ratios": ()}, "ratios of a preprocessing must be one or more numbers"),
        ({"ratios": (1, 0)}, "ratios of a preprocessing must be"),
        ({"ratios": (1, float("nan"))}, "ratios of a preprocessing must be"),
        ({"ratios": "1"}, "ratios of a preprocessing must be"),
        ({"flip": 1}, "flip of a preprocessing must be True or False"),
        ({"limits": (512, 2), "ratios": (1, 0.4)}, r"\(512, 2\) times the ratio 0.4 are no pixel"),
        ({"limits": (512, 2048)}, "limits of a preprocessing must be"),
    ],
)
def test_fields_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        SegmentationProtocol(**fields)
