"""Anchors against mmdetection's."""

import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.detection.anchors import base_anchors, inside_image, level_anchors
from tests import reference_data
from tests.detection import rcnn_golden

RATIOS = (0.5, 1.0, 2.0)
INSIDE = jax.jit(inside_image)


@jax.jit
def pyramids():
    """The anchors of all levels for images of both sizes of the reference data."""
    return {
        f"{height}x{width}/anchors_{level}": level_anchors(
            (-(-height // stride), -(-width // stride)), stride, 8.0, RATIOS
        )
        for height, width in ((64, 96), (128, 192))
        for level, stride in enumerate((4, 8, 16, 32, 64))
    }


@reference_data.required
def test_the_levels_of_a_pyramid():
    """To the last bit: coordinates decide which anchors are inside an image."""
    arrays = rcnn_golden.load("anchors")
    for name, anchors in pyramids().items():
        np.testing.assert_array_equal(anchors, arrays[name])
    for level in range(5):
        expected = arrays[f"base_anchors_{level}"]
        np.testing.assert_array_equal(base_anchors(4 * 2**level, 8.0, RATIOS), expected)


@reference_data.required
def test_anchors_inside_an_image_are_at_positions_that_mmdetection_calls_valid():
    """Its flags exclude positions beyond the image, which no anchor within it has."""
    arrays = rcnn_golden.load("anchors")
    for level in range(5):
        inside = INSIDE(arrays[f"128x192/anchors_{level}"], np.asarray([120, 180]))
        assert np.all(arrays[f"valid_flags_120x180/{level}"][np.asarray(inside)] == 1)


def test_inside_an_image():
    anchors = jnp.asarray(
        [[0, 0, 9, 7], [-1, 0, 9, 7], [0, -1, 9, 7], [0, 0, 10, 7], [0, 0, 9, 8]], jnp.float32
    )
    assert INSIDE(anchors, jnp.asarray([8, 10])).tolist() == [True] + [False] * 4


def test_anchors_have_the_area_and_the_ratio():
    widths, heights = np.split(base_anchors(4, 8.0, RATIOS)[:, 2:] * 2, 2, axis=1)
    np.testing.assert_allclose(widths * heights, 32**2, rtol=1e-6)
    np.testing.assert_allclose((heights / widths)[:, 0], RATIOS, rtol=1e-6)
