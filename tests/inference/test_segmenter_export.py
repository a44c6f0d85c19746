"""Segmentation networks as programs from pixels to class maps."""

import jax
import numpy as np
import pytest

import replk_jax
from replk_jax import SegmentationProtocol, Segmenter, export_segmenter
from tests.helpers import TINY, random_variables
from tests.vision.test_images import picture

pytestmark = pytest.mark.usefixtures("strict_promotion")

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
WHOLE = SegmentationProtocol((60, 40), mean=MEAN, std=STD)
SLIDING = SegmentationProtocol((60, 40), window=32, stride=20, mean=MEAN, std=STD)


def network(**fields):
    model = replk_jax.create_segmenter("fcn", TINY, 5, channels=8, auxiliary_channels=4, **fields)
    return model, random_variables(model)


def assert_same_classes(actual, expected):
    """Up to a pixel or two with two classes that are as good as equal."""
    assert actual.dtype == expected.dtype == np.uint8
    assert actual.shape == expected.shape
    assert (np.asarray(actual) != expected).sum() <= 2
    assert len(np.unique(expected)) > 2


@pytest.mark.parametrize(
    ("protocol", "align_corners"), [(WHOLE, False), (SLIDING, True)], ids=["whole", "sliding"]
)
def test_the_program_is_the_segmenter(protocol, align_corners):
    """For images that need no resizing, in a batch of any size."""
    model, variables = network(align_corners=align_corners)
    program = export_segmenter(model, variables, protocol, image_size=(40, 60))
    program = jax.export.deserialize(bytearray(program.serialize()))
    segmenter = Segmenter(model, variables, protocol)
    for count in (1, 3):
        images = np.stack([picture(60, 40, seed=seed) for seed in range(count)])
        assert images.shape == (count, 40, 60, 3)
        assert_same_classes(jax.jit(program.call)(images), np.stack(segmenter(images)))


def test_the_auxiliary_head_is_left_out():
    model, variables = network()
    without = {
        collection: {name: part for name, part in tree.items() if name != "auxiliary_head"}
        for collection, tree in variables.items()
    }
    # One call for both, because a program has the place of the call.
    programs = [
        export_segmenter(*each, WHOLE, image_size=32, batch_size=1)
        for each in ((model, variables), (model.clone(auxiliary_head=None), without))
    ]
    assert programs[0].mlir_module() == programs[1].mlir_module()
    assert programs[0].out_avals[0].shape == (1, 32, 32)


def test_mistakes():
    model, variables = network()
    with pytest.raises(ValueError, match="at least 1"):
        export_segmenter(model, variables, WHOLE, image_size=(0, 5))
    grey = SegmentationProtocol(mean=(0.5,), std=(0.5,))
    with pytest.raises(ValueError, match="3 channels; the normalisation is for 1"):
        export_segmenter(model, variables, grey, image_size=32)
