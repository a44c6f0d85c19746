"""Offsets of boxes against mmdetection's DeltaXYWHBBoxCoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax.detection.box_coder import decode, encode
from tests import reference_data
from tests.detection import rcnn_golden

STDS = {
    "rpn": (1.0, 1.0, 1.0, 1.0),
    "stage0": (0.1, 0.1, 0.2, 0.2),
    "stage1": (0.05, 0.05, 0.1, 0.1),
    "stage2": (0.033, 0.033, 0.067, 0.067),
}
ENCODE = jax.jit(encode, static_argnums=2)
DECODE = jax.jit(decode, static_argnums=2)
SIZE = jnp.asarray([120.0, 180.0])


@reference_data.required
@pytest.mark.parametrize("name", STDS)
def test_golden(name):
    """To float32 rounding; coordinates are up to 2,400."""
    arrays, stds = rcnn_golden.load("boxes_and_deltas"), STDS[name]
    boxes, truth = (jnp.asarray(arrays[key]) for key in ("boxes", "truth"))
    deltas = jnp.asarray(arrays[f"{name}/deltas"])
    actual = {
        "encoded": ENCODE(boxes, truth, stds),
        "roundtrip": DECODE(boxes, jnp.asarray(arrays[f"{name}/encoded"]), stds),
        "decoded": DECODE(boxes, deltas, stds),
        "decoded_clipped_120x180": DECODE(boxes, deltas, stds, SIZE),
    }
    for key, value in actual.items():
        np.testing.assert_allclose(value, arrays[f"{name}/{key}"], rtol=1e-6, atol=2e-5)


@reference_data.required
def test_deltas_per_class():
    arrays = rcnn_golden.load("boxes_and_deltas")
    deltas = jnp.asarray(arrays["stage2/deltas_5_classes"]).reshape(30, 5, 4)
    boxes = jnp.asarray(arrays["boxes"])[:, None]
    decoded = DECODE(boxes, deltas, STDS["stage2"], SIZE)
    expected = arrays["stage2/decoded_5_classes"]
    np.testing.assert_allclose(decoded.reshape(30, 20), expected, rtol=1e-6, atol=2e-5)


def test_decoding_inverts_encoding():
    """Also far away, as long as the sizes differ by less than the limit of 62.5."""
    generator = np.random.default_rng(0)
    low = generator.uniform(-500, 500, (2, 200, 2))
    boxes, targets = np.concatenate([low, low + generator.uniform(10, 300, low.shape)], axis=-1)
    boxes, targets = jnp.asarray(boxes, jnp.float32), jnp.asarray(targets, jnp.float32)
    for stds in STDS.values():
        decoded = DECODE(boxes, ENCODE(boxes, targets, stds), stds)
        np.testing.assert_allclose(decoded, targets, atol=2e-3)


def test_sizes_are_limited_and_gradients_finite():
    box, deltas = jnp.asarray([0.0, 0.0, 16.0, 16.0]), jnp.asarray([0.0, 0.0, 1e4, -1e4])
    decoded = DECODE(box, deltas, (1.0,) * 4)
    np.testing.assert_allclose(decoded[2:] - decoded[:2], [1000.0, 0.256], rtol=1e-5)
    for each in (box, jnp.zeros(4)):
        gradient = jax.grad(lambda deltas, box=each: DECODE(box, deltas, (1.0,) * 4).sum())(deltas)
        assert np.all(np.isfinite(gradient))
