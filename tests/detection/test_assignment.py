"""Assignment of truths to boxes, against mmdetection and a loop over pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax.detection.assignment import BACKGROUND, IGNORED, assign, in_crowd
from tests import reference_data
from tests.detection import rcnn_golden, rcnn_reference

# The settings of the cases: positive, negative and least positive IoU.
CASES = {
    "rpn": (0.7, 0.3, 0.3),
    "rpn_low": (0.7, 0.3, 0.0),
    "rcnn5": (0.5, 0.5, None),
    "rcnn6": (0.6, 0.6, None),
    "rcnn7": (0.7, 0.7, None),
    "with_ignore": (0.5, 0.4, 0.0),
    "no_gt": (0.7, 0.3, 0.3),
}


ASSIGN = jax.jit(assign, static_argnames="least_positive")


def from_mmdetection(indices):
    """0 is background there, -1 ignored."""
    return np.where(indices > 0, indices - 1, np.where(indices == 0, BACKGROUND, IGNORED))


@reference_data.required
@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    arrays = rcnn_golden.load("assignment")
    boxes, truths = jnp.asarray(arrays["boxes"]), jnp.asarray(arrays["gt_boxes"])
    positive, negative, least = CASES[name]
    truths = truths[:0] if name == "no_gt" else truths
    outside = jnp.ones(len(boxes), bool)
    if name == "with_ignore":
        outside = ~in_crowd(boxes, jnp.asarray(arrays["ignore_boxes"]), 0.5)
    assigned = ASSIGN(
        boxes,
        truths,
        jnp.ones(len(truths), bool),
        positive=positive,
        negative=negative,
        least_positive=least,
        valid_boxes=outside,
    )
    np.testing.assert_array_equal(assigned.truths, from_mmdetection(arrays[f"{name}/gt_inds"]))
    expected = arrays[f"{name}/max_overlaps"]
    np.testing.assert_allclose(assigned.overlaps, expected, atol=1e-7)


@pytest.mark.parametrize("least", [None, 0.3])
@pytest.mark.parametrize("objects", [1, 8, 19])
def test_random_boxes(objects, least):
    """Corners are multiples of 8, so that there are many ties, and float32 is exact enough."""
    generator = np.random.default_rng(objects)

    def boxes(count):
        low = generator.integers(0, 8, (count, 2)) * 8
        return np.concatenate([low, low + generator.integers(1, 5, (count, 2)) * 8], axis=1)

    some, truths = boxes(150), boxes(20)
    some[:5] = truths[generator.integers(0, objects, 5)]
    valid_truths = (generator.random(20) < 0.8) & (np.arange(20) < objects)
    valid_boxes = generator.random(150) < 0.8
    thresholds = (0.55, 0.35)
    actual = ASSIGN(
        jnp.asarray(some, jnp.float32),
        jnp.asarray(truths, jnp.float32),
        jnp.asarray(valid_truths),
        positive=thresholds[0],
        negative=thresholds[1],
        least_positive=least,
        valid_boxes=jnp.asarray(valid_boxes),
    )
    chosen = np.flatnonzero(valid_truths)
    of_valid = rcnn_reference.assign(some[valid_boxes], truths[chosen], *thresholds, least)
    expected = np.full(150, IGNORED)
    expected[valid_boxes] = np.append(chosen, [IGNORED, BACKGROUND])[of_valid]
    np.testing.assert_array_equal(actual.truths, expected)


def test_padding_changes_nothing():
    arrays = np.asarray([[0, 0, 8, 8], [4, 4, 12, 12], [20, 20, 28, 28]], np.float32)
    boxes, truths = jnp.asarray(arrays), jnp.asarray(arrays[:2])
    settings = dict(positive=0.5, negative=0.4, least_positive=0.1)
    alone = ASSIGN(boxes, truths, jnp.ones(2, bool), **settings)
    padded = ASSIGN(boxes, jnp.pad(truths, [(0, 9), (0, 0)]), jnp.arange(11) < 2, **settings)
    jax.tree.map(np.testing.assert_array_equal, alone, padded)
    assert alone.truths.tolist() == [0, 1, BACKGROUND]


def test_boxes_of_float64():
    """Those of a network in float64, and truths in float32."""
    box = np.asarray([[0, 0, 8, 8.0]])
    with jax.enable_x64(True):
        settings = dict(positive=0.5, negative=0.4, least_positive=0.1)
        assigned, overlaps = ASSIGN(box, np.float32(box), np.ones(1, bool), **settings)
    assert (assigned.dtype, overlaps.dtype) == (jnp.int32, jnp.float64)
    assert (assigned.tolist(), overlaps.tolist()) == ([0], [1.0])


def test_memory_does_not_grow_with_boxes_times_truths():
    """Of 20,000 boxes and 100 truths, one array with all pairs alone would have 8 MB."""
    shapes = ((20_000, 4), jnp.float32), ((100, 4), jnp.float32), ((100,), bool)
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    compiled = ASSIGN.lower(*arguments, positive=0.7, negative=0.3, least_positive=0.3).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 3_000_000
