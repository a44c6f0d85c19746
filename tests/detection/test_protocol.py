"""The preprocessing of detectors."""

import json

import numpy as np
import pytest
from PIL import Image

from replk_jax.detection.protocol import DetectionProtocol
from replk_jax.vision.base_preprocessing import BasePreprocessing
from replk_jax.vision.keep_ratio import KeepRatio
from tests.reference_data import ROOT, required


def test_it_is_stored_and_found_again():
    for protocol in (
        DetectionProtocol(),
        DetectionProtocol((640, 480), 2, (0.5,), (0.25,), pad_multiple=64),
    ):
        stored = json.loads(json.dumps(protocol.as_dict()))
        assert stored["kind"] == "detection"
        found = BasePreprocessing.from_dict(stored)
        assert found == protocol
        assert type(found) is DetectionProtocol
    assert DetectionProtocol().fields() == {
        **KeepRatio().fields(), "limits": [1333, 800], "pad_multiple": 32
    }  # fmt: skip


@required
def test_sizes_and_factors_of_the_reference():
    cases = json.loads((ROOT / "downstream/image_sizes.json").read_text())
    cases = [case for case in cases if "padded_to_32" in case]
    assert len(cases) > 20
    for case in cases:
        protocol = DetectionProtocol((case["long_limit"], case["short_limit"]))
        size = case["height"], case["width"]
        assert protocol.resized_size(*size) == (case["new_height"], case["new_width"])
        assert protocol.padded_size(*size) == tuple(case["padded_to_32"][::-1])
        across, down = case["scale_factor"][:2]
        factors = protocol.scale_factors(*size)
        assert factors.dtype == np.float32
        np.testing.assert_array_equal(factors, np.array((down, across)).astype(np.float32))


def test_pixels_are_resized_and_not_padded():
    image = Image.new("RGB", (90, 60), (10, 20, 30))
    protocol = DetectionProtocol((50, 25))
    assert protocol.pixels(image).shape == (25, 38, 3)
    assert protocol.padded_size(60, 90) == (32, 64)
    np.testing.assert_array_equal(protocol.scale_factors(60, 90), np.float32((25 / 60, 38 / 90)))


def test_padding_to_multiples_of_one_is_none():
    assert DetectionProtocol((50, 25), pad_multiple=1).padded_size(60, 90) == (25, 38)


def test_in_words():
    assert DetectionProtocol().in_words() == "resize to at most 1333 x 800, pad to multiples of 32"
    other = DetectionProtocol((64, 32), 2, (0.5,), (0.5,), pad_multiple=1)
    assert other.in_words() == (
        "resize to at most 64 x 32, resize to multiples of 2, mean (0.5,), std (0.5,)"
    )


@pytest.mark.parametrize("value", [0, -32, 1.5, True, "32", None])
def test_impossible_multiples(value):
    with pytest.raises(ValueError, match=r"pad_multiple of a preprocessing must be a whole number"):
        DetectionProtocol(pad_multiple=value)
