"""The row-Toeplitz kernel: interpreted on the CPU, and lowered for CUDA."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from replk_jax.compat import (
    mosaic_interpret_params,
    mosaic_races_found,
    reset_mosaic_interpreter,
)
from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.mosaic_gpu import forward, forward_packed, input_gradient
from replk_jax.ops.depthwise.mosaic_gpu.packing import pack, unpack
from replk_jax.ops.depthwise.mosaic_gpu.plan import Plan, plans
from tests.ops.depthwise.mosaic_gpu.cases import GRID, JAX, REPLKNET, assert_close, needs_0_11, same

exhaustive = pytest.mark.exhaustive
both = [needs_0_11, exhaustive]


def draw(convolution, batch, channels, dtype, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (batch, *convolution.size, channels), (*convolution.kernel_size, 1, channels)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def reference(x, kernel, convolution):
    return lax.conv_general_dilated(
        x.astype(jnp.float32),
        kernel.astype(jnp.float32),
        (1, 1),
        convolution.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
        precision="highest",
    )


def interpreted(function, *arguments, **options):
    """The result of a kernel on the interpreter, which must find no race in it."""
    try:
        result = function(*arguments, **options, interpret=mosaic_interpret_params())
        result.block_until_ready()
        assert not mosaic_races_found()
    finally:
        reset_mosaic_interpreter()
    return result


A, B = (
    lambda rows, split, tile, stages, arrangement=arrangement: Plan(
        arrangement, rows, split, tile, stages
    )
    for arrangement in "AB"
)
VALID = Convolution((26, 30), (7, 12))
LOPSIDED = Convolution((11, 21), (9, 8), padding=((1, 8), (7, 2)))
CASES = [
    # Arrangement A: both splits, margins, types and batch tiles; exhaustively, more of each.
    pytest.param(same(12, 13), 16, jnp.bfloat16, A(4, "rows", 16, 3)),
    pytest.param(same(14, 27), 16, jnp.float16, A(8, "rows", 16, 2), marks=exhaustive),
    pytest.param(same(20, 7), 32, jnp.bfloat16, A(4, "columns", 32, 2)),
    pytest.param(same((9, 33), (5, 31)), 16, jnp.bfloat16, A(4, "columns", 16, 4)),
    pytest.param(same((33, 9), (31, 5)), 20, jnp.bfloat16, A(4, "rows", 16, 3), marks=exhaustive),
    pytest.param(same(12, 13), 16, jnp.float32, A(4, "rows", 16, 3)),
    pytest.param(same((9, 18), (7, 17)), 16, jnp.float32, A(4, "columns", 16, 2), marks=exhaustive),
    pytest.param(VALID, 16, jnp.bfloat16, A(4, "columns", 16, 3), marks=exhaustive),
    pytest.param(LOPSIDED, 16, jnp.float16, A(4, "rows", 16, 3)),
    pytest.param(same(16, 7), 128, jnp.bfloat16, A(4, "rows", 128, 3), marks=exhaustive),
    pytest.param(same(32, 13), 64, jnp.bfloat16, A(8, "rows", 64, 4), marks=exhaustive),
    pytest.param(same(56, 31), 64, jnp.bfloat16, A(4, "columns", 64, 4), marks=exhaustive),
    pytest.param(same(56, 31), 16, jnp.float32, A(4, "rows", 16, 4), marks=exhaustive),
    pytest.param(same(56, (51, 5)), 16, jnp.bfloat16, A(4, "rows", 16, 6), marks=exhaustive),
    pytest.param(same(56, (5, 51)), 16, jnp.bfloat16, A(4, "rows", 16, 6), marks=exhaustive),
    # Arrangement B: any number of rows.
    pytest.param(same(12, 13), 64, jnp.bfloat16, B(3, "rows", 64, 3), marks=needs_0_11),
    pytest.param(same((9, 20), 7), 70, jnp.float16, B(1, "columns", 64, 2), marks=needs_0_11),
    pytest.param(LOPSIDED, 64, jnp.bfloat16, B(5, "columns", 64, 3), marks=needs_0_11),
    pytest.param(same(28, 29), 64, jnp.bfloat16, B(7, "rows", 64, 6), marks=both),
    pytest.param(same(56, 31), 64, jnp.bfloat16, B(8, "columns", 64, 6), marks=both),
]  # fmt: skip


def name(value):
    if isinstance(value, Convolution):
        return "x".join(map(str, value.size)) + "*" + "x".join(map(str, value.kernel_size))
    if isinstance(value, Plan):
        return f"{value.arrangement}{value.rows}-{value.split}-{value.batch_tile}"
    return getattr(value, "__name__", None)


@pytest.mark.parametrize(("convolution", "batch", "dtype", "plan"), CASES, ids=name)
def test_forward(convolution, batch, dtype, plan):
    x, kernel = draw(convolution, batch, 1, dtype)
    y = interpreted(forward, x, kernel, convolution, plan=plan)
    assert y.dtype == dtype
    assert_close(y, reference(x, kernel, convolution))


@pytest.mark.parametrize(
    "convolution", [pytest.param(same(12, 13), marks=exhaustive), LOPSIDED], ids=name
)
def test_input_gradient(convolution):
    """On a plan of its own, for the transposed convolution."""
    x, kernel = draw(convolution, 16, 1, jnp.bfloat16)
    y, transpose = jax.vjp(lambda x: reference(x, kernel, convolution), x.astype(jnp.float32))
    g = jnp.asarray(np.random.default_rng(1).standard_normal(y.shape), jnp.bfloat16)
    dx = interpreted(input_gradient, g, kernel, convolution)
    assert_close(dx, *transpose(g.astype(jnp.float32)))


# The interpreter multiplies in NumPy, which warns of infinity times 0. As an error in one of the
# interpreter's threads, the warning would leave the others waiting without end.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("bad", [np.nan, pytest.param(np.inf, marks=exhaustive)])
def test_what_a_value_that_is_not_finite_contaminates(bad):
    """The blocks of the same image and channel that contain what it belongs to."""
    convolution = same((12, 40), 7)
    x, kernel = draw(convolution, 16, 2, jnp.bfloat16)
    x = x.at[3, 10, 20, 1].set(bad)  # is read by the results 7:12, 17:24
    y = interpreted(forward, x, kernel, convolution, plan=A(4, "rows", 16, 3))
    contaminated = np.zeros(y.shape, bool)
    contaminated[3, 4:12, :32, 1] = True
    np.testing.assert_array_equal(~np.isfinite(np.float32(y)), contaminated)


def test_packed_layout():
    """Two channels, without the transpositions, on the plan of least estimated time."""
    convolution = same((9, 12), 7)
    x, kernel = draw(convolution, 16, 2, jnp.bfloat16)
    y = interpreted(forward_packed, pack(x), kernel, convolution)
    assert y.shape == (2, 9, 16, 16)
    assert_close(unpack(y, 16, 12), reference(x, kernel, convolution))


def test_plans_that_do_not_go_with_the_arrays():
    convolution = same(12, 13)
    x, kernel = draw(convolution, 32, 1, jnp.bfloat16)
    with pytest.raises(ValueError, match="not a multiple of the batch tile 64"):
        forward_packed(pack(x), kernel, convolution, plan=B(4, "rows", 64, 3))
    with pytest.raises(ValueError, match="does not fit"):
        forward(x, kernel, convolution, plan=A(3, "rows", 16, 3))
    dilated = dataclasses.replace(convolution, dilation=(2, 2))
    with pytest.raises(ValueError, match="dilation 1"):
        forward(x, kernel, dilated, plan=A(4, "rows", 16, 3))


def is_barrier(arrivals, barriers=3):
    """Whether a barrier is one of so many that wait for so many arrivals."""

    def test(ref):
        aval = getattr(ref, "ref", ref).aval
        return aval.shape == (barriers,) and aval.inner_aval.dtype.num_arrivals == arrivals

    return test


# A race, a barrier that nobody watches, a copy that nobody waits for: all errors, or found.
FAULTS = ("race", "RACE DETECTED", "observe", "Not all copy_smem_to_gmem")


@pytest.mark.skipif(JAX < (0, 11), reason="the interpreter of JAX 0.10 misses most races")
@pytest.mark.parametrize(
    ("primitive", "dropped"),
    [
        pytest.param("barrier_wait", is_barrier(arrivals=1), id="a consumer's wait for a row"),
        pytest.param("barrier_wait", is_barrier(arrivals=2), id="the producer's for a stage"),
        pytest.param("commit_smem", lambda: True, id="the commit before a result is copied"),
        pytest.param("wait_smem_to_gmem", lambda *_, **__: True, id="the wait for that copy"),
    ],
)
def test_the_interpreter_sees_what_is_missing(monkeypatch, primitive, dropped):
    """The tests above would fail if the kernel left out one of these."""
    convolution = same(12, 13)
    x, kernel = draw(convolution, 16, 1, jnp.bfloat16)
    original, count = getattr(plgpu, primitive), []

    def without(*arguments, **options):
        if dropped(*arguments, **options):
            return count.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(plgpu, primitive, without)
    try:
        y = forward(
            x, kernel, convolution, plan=A(4, "rows", 16, 3), interpret=mosaic_interpret_params()
        )
        y.block_until_ready()
        fault = "race" if mosaic_races_found() else "none"
    except jax.errors.JaxRuntimeError as error:
        fault = str(error)
    finally:
        reset_mosaic_interpreter()
    assert count
    assert any(words in fault for words in FAULTS), fault


def lower(convolution, batch, channels, dtype, plan):
    x = jax.ShapeDtypeStruct((batch, *convolution.size, channels), dtype)
    kernel = jax.ShapeDtypeStruct((*convolution.kernel_size, 1, channels), dtype)
    traced = jax.jit(lambda x, k: forward(x, k, convolution, plan=plan)).trace(x, kernel)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


QUICK = {(56, 31, 64), (96, 31, 128), (14, 27, 16)}  # size, taps and batch
PRODUCTION = [
    pytest.param(
        *shape, batch, dtype, arrangement, marks=[] if (*shape[:2], batch) in QUICK else exhaustive
    )
    for shape in [*REPLKNET, *GRID, (56, (51, 5), 128), (56, (5, 51), 128)]
    for batch in (16, 64, 128)
    for dtype in ("bfloat16", "float16", "float32")
    for arrangement in "AB"
    if (arrangement == "A" or (batch >= 64 and dtype != "float32"))
    and (dtype != "float16" or batch == 64)
]


@pytest.mark.parametrize(("size", "taps", "channels", "batch", "dtype", "arrangement"), PRODUCTION)
def test_lowers_for_cuda(size, taps, channels, batch, dtype, arrangement):
    """The interpreter does not know which tiles, swizzles and operands the hardware has."""
    convolution = same(size, taps)
    plan = min(
        (plan for plan in plans(convolution, jnp.dtype(dtype)) if plan.arrangement == arrangement),
        key=lambda plan: plan.clocks(convolution, batch, channels, dtype),
    )
    assert "mosaic_gpu" in lower(convolution, batch, channels, dtype, plan)
