"""Partitioning over a mesh, with XLA's own convolution as the function, which runs anywhere."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from replk_jax.ops.depthwise import xla
from replk_jax.ops.depthwise.partitioning import partitioned
from replk_jax.ops.depthwise.shapes import Shape

CONVOLUTION = Shape("", (8, 7), (5, 5), 24).convolution


def draw(*shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X, G, KERNEL = draw(16, 8, 7, 24, seed=0), draw(16, 8, 7, 24, seed=1), draw(5, 5, 1, 24, seed=2)
OPERANDS = {"forward": (X, KERNEL), "input_gradient": (G, KERNEL), "kernel_gradient": (X, G)}


@pytest.mark.parametrize("direction", OPERANDS)
@pytest.mark.parametrize(
    ("images", "kernel"),
    [
        (P("data"), P()),
        (P(None, None, None, "model"), P(None, None, None, "model")),
        (P("data", None, None, "model"), P(None, None, None, "model")),
        (P(("data", "model")), P()),
        (P("data"), P(None, None, None, "data")),  # the kernel is gathered
        (P(None, "data"), P()),  # rows are gathered: every device needs whole feature maps
    ],
    ids=str,
)
def test_every_device_computes_its_shard(direction, images, kernel):
    mesh = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)
    shardings = NamedSharding(mesh, images), NamedSharding(mesh, kernel)
    if direction == "kernel_gradient":
        shardings = shardings[:1] * 2

    def operation(a, b):
        return getattr(xla, direction)(a, b, CONVOLUTION)

    compiled = (
        jax.jit(partitioned(direction, operation), in_shardings=shardings)
        .lower(*OPERANDS[direction])
        .compile()
    )
    actual = compiled(*jax.device_put(OPERANDS[direction], shardings))
    expected = operation(*OPERANDS[direction])
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())

    text = compiled.as_text()
    by_rows, by_batch = images == P(None, "data"), images[0] is not None
    gathered = by_rows or (kernel == P(None, None, None, "data") and direction != "kernel_gradient")
    assert (" all-gather(" in text) == gathered
    assert (" all-reduce(" in text) == (direction == "kernel_gradient" and by_batch)
    assert " all-to-all(" not in text
    assert " collective-permute(" not in text
