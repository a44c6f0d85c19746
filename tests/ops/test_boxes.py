"""Overlaps against loops in float64, and against mmdetection's numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from replk_jax.ops.boxes import aligned_overlaps, box_areas, clip_boxes, pairwise_overlaps
from tests import reference_data
from tests.ops import detection_reference as reference

pytestmark = pytest.mark.usefixtures("strict_promotion")

KINDS = ("iou", "iof", "giou")
# Beside ordinary boxes: the same twice, one in another, touching, empty, without height, tiny, a
# point, inverted.
BOXES = np.float32(
    [
        [0, 0, 10, 20],
        [0, 0, 10, 20],
        [2, 3, 5, 6],
        [10, 20, 30, 30],
        [5, 5, 5, 5],
        [5, 5, 9, 5],
        [1, 1, 1.0005, 1.0005],
        [0, 0, 0, 0],
        [9, 9, 4, 12],
        [-7.5, 3.25, 40, 8],
    ]
)


@pytest.mark.parametrize("kind", KINDS)
def test_overlaps(kind):
    """In float32 within 1e-6, some roundings of numbers up to 1; without the inverted box there,
    whose overlap divides by almost nothing."""
    expected = [[reference.overlap(a, b, kind) for b in BOXES] for a in BOXES]
    with jax.enable_x64(True):
        wide = jnp.asarray(BOXES, jnp.float64)
        np.testing.assert_allclose(pairwise_overlaps(wide, wide, kind), expected, rtol=1e-12)
    proper = [i for i in range(len(BOXES)) if i != 8]
    narrow = pairwise_overlaps(BOXES[proper], BOXES[proper], kind)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, np.take(expected, proper, 0)[:, proper], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(
        aligned_overlaps(BOXES[proper], BOXES[proper], kind), np.diag(narrow)
    )


@reference_data.required
@pytest.mark.parametrize("kind", KINDS)
def test_mmdetection(kind):
    """Within some roundings of numbers up to 1."""
    arrays = reference_data.arrays("downstream/cascade_mask_rcnn/small/boxes_and_deltas.npz")
    boxes, truth = arrays["boxes"], arrays["truth"]
    pairs = arrays[f"overlaps_{kind}"]
    actual = pairwise_overlaps(boxes, truth[: pairs.shape[1]], kind)
    np.testing.assert_allclose(actual, pairs, rtol=0, atol=1e-6)
    actual = aligned_overlaps(boxes, truth, kind)
    np.testing.assert_allclose(actual, arrays[f"aligned_{kind}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    """By finite differences, of boxes whose sides do not coincide."""
    with jax.enable_x64(True):
        a = jnp.asarray([[0.0, 0.0, 10.0, 20.0], [0.0, 0.0, 4.0, 4.0]])
        b = jnp.asarray([[2.0, -3.0, 11.5, 6.0], [5.0, 6.0, 9.0, 8.0]])
        check_grads(
            jax.jit(partial(aligned_overlaps, kind=kind)), (a, b), 1, modes="rev", rtol=1e-6
        )


def test_areas_and_clipping():
    assert box_areas(BOXES[[0, 4, 8]]).tolist() == [200, 0, -15]
    assert box_areas(jnp.asarray(BOXES[:1], jnp.bfloat16)).dtype == jnp.float32
    clipped = clip_boxes(BOXES[[3, 9]], (25, 20))
    assert clipped.tolist() == [[10, 20, 20, 25], [0, 3.25, 20, 8]]
    several = jax.vmap(clip_boxes)(BOXES[None, [3, 9]], jnp.asarray([[25, 20]]))
    np.testing.assert_array_equal(several[0], clipped)


def test_no_boxes():
    assert pairwise_overlaps(np.zeros((0, 4)), BOXES).shape == (0, len(BOXES))
    assert pairwise_overlaps(BOXES, np.zeros((0, 4))).shape == (len(BOXES), 0)


def test_errors():
    with pytest.raises(ValueError, match="Unknown overlap 'ciou'; known: iou, iof, giou"):
        pairwise_overlaps(BOXES, BOXES, "ciou")
    with pytest.raises(ValueError, match=r"one shape; got \(2, 4\) and \(3, 4\)"):
        aligned_overlaps(BOXES[:2], BOXES[:3])
    with pytest.raises(ValueError, match=r"shape \(..., 4\).*got \(3, 5\)"):
        box_areas(np.zeros((3, 5)))
    with pytest.raises(ValueError, match=r"with jax.vmap for batches; got \(1, 10, 4\)"):
        pairwise_overlaps(BOXES[None], BOXES)
