"""How a convolution is cut, and what the kernels do not support."""

import dataclasses
import subprocess
import sys

import jax.numpy as jnp
import pytest
from jax import lax

from replk_jax.ops.depthwise import mosaic_gpu
from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.mosaic_gpu.plan import Plan, Window, choose_plan
from tests.ops.depthwise.mosaic_gpu.cases import GRID, REPLKNET, same

LARGE = same(56, 31)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("batch", [16, 64, 100, 128])
def test_every_production_shape_has_a_plan_within_the_limits(batch, dtype):
    for size, taps, channels in REPLKNET + GRID:
        convolution = same(size, taps)
        plan = choose_plan(convolution, batch, channels, dtype)
        assert plan.shared_memory(convolution, dtype) <= 227 * 1024
        assert plan.accumulator_registers(convolution) <= 128
        assert plan.resident_blocks(convolution, dtype) >= 1


@pytest.mark.parametrize(
    ("plan", "dtype", "fits"),
    [
        (Plan("A", 4, "columns", 128, 4), jnp.bfloat16, True),
        (Plan("A", 6, "columns", 64, 4), jnp.bfloat16, False),  # 96 rows: 64 are a wgmma
        (Plan("A", 4, "columns", 128, 16), jnp.bfloat16, False),  # memory
        (Plan("A", 8, "columns", 128, 2), jnp.bfloat16, False),  # registers
        (Plan("B", 7, "columns", 64, 4), jnp.bfloat16, True),
        (Plan("B", 7, "columns", 64, 4), jnp.float32, False),  # no transposed store
        (Plan("B", 4, "columns", 32, 4), jnp.bfloat16, False),  # 64 images are a wgmma
    ],
)
def test_what_fits(plan, dtype, fits):
    assert plan.fits(LARGE, dtype) == fits


def test_shared_memory_is_that_of_the_buffers():
    """By hand: a bank of 37 slots, 4 rows of 64 columns, two tiles of results, 9 barriers."""
    plan = Plan("A", rows=4, split="columns", batch_tile=128, stages=4)
    bank, x, out = 37 * 16 * 48 * 2, 4 * 64 * 128 * 2, 2 * 64 * 128 * 2
    rounded = 56 * 1024  # the bank, 55.5 KB
    assert bank <= rounded < bank + 1024
    assert plan.shared_memory(LARGE, jnp.bfloat16) == rounded + x + out + 1024
    # As much again for the second parts, and results of 4 bytes.
    twice = plan.shared_memory(LARGE, jnp.float32)
    assert twice == 111 * 1024 + 2 * x + 2 * out + 1024


def test_windows():
    """The numbers of the 56 x 56 layer: 32, 48, 48 and 32 columns, of a window of 48."""
    window = Window.of(LARGE)
    assert (window.reach, window.depth, window.columns, window.margins) == (16, 48, 64, (56,))
    assert window.spans == ((16, 48), (0, 48), (0, 48), (0, 32))
    # A padding of 6 columns is reached from a multiple of 8, so a margin of 8 has to be zero.
    window = Window.of(same(16, 13))
    assert (window.reach, window.depth, window.columns, window.margins) == (8, 32, 32, (0, 24))


def test_batches_that_are_no_multiple_of_the_large_tiles():
    """48 images fill one tile of 64 sooner than three of 16, unless they are packed already."""
    assert choose_plan(LARGE, 16, 128, jnp.bfloat16).batch_tile == 16
    assert choose_plan(LARGE, 48, 128, jnp.bfloat16).batch_tile == 64
    assert choose_plan(LARGE, 48, 128, jnp.bfloat16, packed=True).batch_tile == 16


@pytest.mark.parametrize(
    ("changes", "batch", "dtype", "message"),
    [
        ({}, 64, jnp.float64, "not float64"),
        ({"precision": lax.Precision.HIGHEST}, 64, jnp.float32, "less exactly than HIGHEST"),
        ({"stride": (2, 2)}, 64, jnp.bfloat16, "stride 1"),
        ({"dilation": (1, 2)}, 64, jnp.bfloat16, "dilation 1"),
        ({}, None, jnp.bfloat16, "a fixed batch size"),
        ({"padding": ((0, 0), (0, 0)), "size": (30, 56)}, 64, jnp.bfloat16, "is empty"),
        ({"size": (8, 8)}, 64, jnp.bfloat16, "9 to 96 pixels"),
        ({"size": (56, 97)}, 64, jnp.bfloat16, "9 to 96 pixels"),
        ({"padding": ((30, 30), (21, 21))}, 64, jnp.bfloat16, None),
        ({"padding": ((31, 15), (15, 15))}, 64, jnp.bfloat16, "paddings below"),
        ({"padding": ((15, 15), (15, -1))}, 64, jnp.bfloat16, "paddings below"),
        ({"kernel_size": (5, 5), "padding": ((2, 2), (2, 2))}, 64, jnp.bfloat16, "sizes from 7"),
        ({}, 15, jnp.bfloat16, "not 15"),
        (
            {"kernel_size": (95, 95), "padding": ((47, 47), (47, 47)), "size": (96, 96)},
            64, jnp.float32, "exceeds the shared memory",
        ),
    ],
)  # fmt: skip
def test_unsupported(changes, batch, dtype, message):
    convolution = dataclasses.replace(LARGE, **changes)
    reason = mosaic_gpu.unsupported_reason(convolution, batch, 128, dtype)
    if message is None:
        assert reason is None
    else:
        assert message in reason
        assert not reason.endswith("."), "a part of other sentences"
        if batch is not None:
            with pytest.raises(ValueError, match="cannot compute this"):
                choose_plan(convolution, batch, 128, dtype)


def test_the_gradients_may_be_unsupported_where_the_result_is_not():
    """A map of 60 with a kernel of 55 leaves 6 x 6: too small to be convolved back."""
    convolution = Convolution((60, 60), (55, 55))
    assert choose_plan(convolution, 64, 8, jnp.bfloat16)
    assert "9 to 96 pixels, not (6, 6)" in mosaic_gpu.unsupported_reason(
        convolution, 64, 8, jnp.bfloat16
    )


@pytest.mark.parametrize("taps", [(51, 5), (5, 51), (31, 31), (30, 8)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_other_kernels_are_supported(taps, dtype):
    assert mosaic_gpu.unsupported_reason(same(56, taps), 64, 128, dtype) is None


def test_the_reason_needs_no_backend_and_no_pallas():
    """So that the package can be imported, and asked, where there is no Mosaic GPU."""
    program = """
import sys
sys.modules["jax.experimental.pallas.mosaic_gpu"] = None  # importing it is an error
import jax.numpy as jnp
from jax._src import xla_bridge
import replk_jax
from replk_jax.ops.depthwise import mosaic_gpu
from tests.ops.depthwise.mosaic_gpu.cases import same
assert mosaic_gpu.unsupported_reason(same(56, 31), 64, 128, jnp.bfloat16) is None
assert not xla_bridge._backends
"""
    subprocess.run([sys.executable, "-c", program], check=True)
