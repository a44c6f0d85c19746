"""Pasted masks against mmdetection's and a definition in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax.detection.pasting import paste_mask, paste_masks
from tests import reference_data
from tests.detection import rcnn_golden


@reference_data.required
def test_golden():
    arrays = rcnn_golden.load("paste")
    masks, boxes = arrays["masks"][..., 0], arrays["boxes"]
    expected = arrays["binary_60x80"].astype(bool)
    for mask, box, pixels in zip(masks, boxes, expected, strict=True):
        np.testing.assert_array_equal(paste_mask(mask, box, (60, 80)), pixels)
    compiled = paste_masks(jnp.asarray(masks), jnp.asarray(boxes), (60, 80))
    np.testing.assert_array_equal(compiled, expected)


def value(mask, box, row, column):
    """Bilinear interpolation between the centres of the cells, 0 beyond."""
    x1, y1, x2, y2 = box
    height, width = mask.shape
    y = (row + 0.5 - y1) / (y2 - y1) * height - 0.5
    x = (column + 0.5 - x1) / (x2 - x1) * width - 0.5
    total = 0.0
    for i in (int(np.floor(y)), int(np.floor(y)) + 1):
        for j in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= i < height and 0 <= j < width:
                total += mask[i, j] * (1 - abs(y - i)) * (1 - abs(x - j))
    return total


@pytest.mark.parametrize(
    "box", [(3.2, 4.1, 15.7, 11.9), (-6.0, -3.0, 9.5, 30.0), (8.3, 5.2, 9.1, 5.9)]
)
def test_definition(box):
    """Values within 1e-5 of the threshold may differ: there are none."""
    mask = np.random.default_rng(1).random((5, 7)).astype(np.float32)
    box = np.asarray(box, np.float32)
    values = np.asarray([[value(mask, box, i, j) for j in range(20)] for i in range(16)])
    assert np.abs(values - 0.5).min() > 1e-5
    np.testing.assert_array_equal(paste_mask(mask, box, (16, 20)), values >= 0.5)
    compiled = paste_masks(jnp.asarray(mask)[None], jnp.asarray(box)[None], (16, 20))
    np.testing.assert_array_equal(compiled[0], values >= 0.5)


@pytest.mark.parametrize(
    "box", [(0, 0, 0, 0), (5, 5, 5, 9), (30, 2, 40, 9), (-9, -9, -2, -2), (9, 9, 4, 4)]
)
def test_boxes_without_pixels(box):
    mask, box = np.ones((28, 28), np.float32), np.asarray(box, np.float32)
    assert not paste_mask(mask, box, (16, 20)).any()
    assert not paste_masks(jnp.asarray(mask)[None], jnp.asarray(box)[None], (16, 20)).any()
