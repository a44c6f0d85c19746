"""The gradient for the kernel: interpreted on the CPU, and lowered for CUDA."""

import dataclasses
import sys

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
from replk_jax.ops.depthwise.mosaic_gpu.kernel_gradient import (
    _diagonal_sums,
    kernel_gradient,
    kernel_gradient_packed,
    unsupported_gradient_reason,
)
from replk_jax.ops.depthwise.mosaic_gpu.packing import pack, unpack
from replk_jax.ops.depthwise.mosaic_gpu.plan import SHARED_MEMORY
from replk_jax.ops.depthwise.mosaic_gpu.tiling import ACCUMULATOR_COLUMNS, TILE, choose_tiling
from tests.ops.depthwise.mosaic_gpu.cases import GRID, REPLKNET, assert_close, needs_0_11, same

exhaustive = pytest.mark.exhaustive

VALID = Convolution((26, 30), (7, 12))
LOPSIDED = Convolution((11, 21), (9, 8), padding=((1, 8), (7, 2)))
LOPSIDED_TILES = Convolution((10, 45), (8, 6), padding=((4, 5), (0, 7)))
CROPPED = Convolution((12, 50), (3, 5), padding=((-2, 1), (-9, 2)))
MANY_GROUPS = same((5, 40), (31, 3))


def draw(convolution, batch, channels, dtype, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(batch, *size, channels) for size in (convolution.size, convolution.output_size)]
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def shifted(x, convolution):
    """The part of x, (N, OH, OW, C), that each entry of the kernel is multiplied with."""
    sides = [(before, after, 0) for before, after in convolution.padding]
    x = np.asarray(lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *sides, (0, 0, 0)]))
    (height, width), (rows, columns) = convolution.output_size, convolution.kernel_size
    return [
        [np.float64(x[:, u : u + height, v : v + width]) for v in range(columns)]
        for u in range(rows)
    ]


def reference(x, g, convolution):
    g = np.float64(g)
    sums = [[(part * g).sum((0, 1, 2)) for part in row] for row in shifted(x, convolution)]
    return np.asarray(sums)[:, :, None]


@pytest.fixture
def tracked_wgmma(monkeypatch):
    """Lets the race detector see what `wgmma` reads, as it sees what other operations read.

    On its own it finds a race with `wgmma` only where the ring comes round and the copies
    race with one another.
    """
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

    untracked = gpu_callbacks.wgmma

    @gpu_callbacks.fail_on_exception  # or the other threads would wait for this one for ever
    def wgmma(*, thread, source_info=None, **arguments):
        memory = gpu_callbacks._get_shared_memory()
        for operand in "ab":
            key = gpu_callbacks.HostAllocationKey.from_array(
                arguments[f"{operand}_allocation_key_as_array"]
            )
            transforms = gpu_callbacks._remove_noop_transforms(arguments[f"{operand}_transforms"])
            access = memory.access(key, jax.tree.map(int, transforms))
            with memory.lock:
                memory.clocks[thread].inc(memory.thread_to_vc_position(thread))
                clock = memory.clocks[thread].async_smem_clock.copy()
            gpu_callbacks.get_races().check_read(thread, clock, key, access, source_info)
        return untracked(thread=thread, source_info=source_info, **arguments)

    monkeypatch.setattr(gpu_callbacks, "wgmma", wgmma)


def interpreted(function, *arguments):
    """The result of a kernel on the interpreter, and whether it found a race."""
    try:
        result = function(*arguments, interpret=mosaic_interpret_params())
        result.block_until_ready()
        return result, mosaic_races_found()
    finally:
        reset_mosaic_interpreter()


CASES = [
    # Whole rows, 4, 2 or 1 of them in a tile.
    pytest.param(same((9, 12), (5, 13)), 65, jnp.float16, (4, 16)),
    pytest.param(same(14, 27), 16, jnp.bfloat16, (4, 16)),
    pytest.param(same((9, 12), 5), 3, jnp.float32, (4, 16)),
    pytest.param(LOPSIDED, 20, jnp.bfloat16, (2, 24)),
    pytest.param(VALID, 16, jnp.float16, (2, 24)),
    pytest.param(same((11, 28), (9, 29)), 32, jnp.bfloat16, (2, 32)),
    pytest.param(same(28, 29), 64, jnp.bfloat16, (2, 32)),
    pytest.param(same((6, 36), (3, 31)), 16, jnp.bfloat16, (1, 40)),
    pytest.param(same(56, 31), 128, jnp.bfloat16, (1, 56), marks=exhaustive),
    # 16 columns of 4 rows.
    pytest.param(same((6, 40), 7), 16, jnp.bfloat16, (4, 16)),
    pytest.param(same((5, 72), (3, 31)), 16, jnp.bfloat16, (4, 16)),
    pytest.param(LOPSIDED_TILES, 16, jnp.float16, (4, 16)),
    pytest.param(CROPPED, 16, jnp.bfloat16, (4, 16)),
    pytest.param(MANY_GROUPS, 16, jnp.bfloat16, (4, 16)),
    pytest.param(same(48, 29), 16, jnp.float32, (4, 16), marks=exhaustive),
    pytest.param(same(96, 31), 32, jnp.bfloat16, (4, 16), marks=exhaustive),
]


@needs_0_11
@pytest.mark.parametrize(("convolution", "batch", "dtype", "tile"), CASES, ids=str)
def test_kernel_gradient(convolution, batch, dtype, tile, tracked_wgmma):
    tiling = choose_tiling(convolution, 16)
    assert (tiling.rows, tiling.columns) == tile
    x, g = draw(convolution, batch, 2 if batch > 64 else 1, dtype)
    dk, race = interpreted(kernel_gradient, x, g, convolution)
    assert dk.dtype == dtype
    assert not race
    assert_close(dk, reference(x, g, convolution))


@needs_0_11
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_a_value_that_is_not_finite_spoils(bad):
    """What it belongs to, here every entry, and nothing of another channel."""
    convolution = same((9, 12), 5)
    x, g = draw(convolution, 16, 2, jnp.bfloat16)
    dk, _ = interpreted(kernel_gradient, x.at[3, 4, 5, 1].set(bad), g, convolution)
    finite = np.isfinite(np.float32(dk))
    assert finite[..., 0].all()
    assert not finite[..., 1].any()


def many_stages():
    """Packed operands of three batch tiles, so that the rings come round several times."""
    convolution = same((9, 12), 5)
    return *(pack(array) for array in draw(convolution, 48, 1, jnp.bfloat16)), convolution


@needs_0_11
def test_packed_layout(tracked_wgmma):
    x, g, convolution = many_stages()
    tiling = choose_tiling(convolution, x.shape[-1])
    assert x.shape[-1] // tiling.images * convolution.size[0] // tiling.rows > tiling.x_stages
    dk, race = interpreted(kernel_gradient_packed, x, g, convolution)
    assert not race
    x, g = (unpack(array, 48, 12) for array in (x, g))
    assert_close(dk, reference(x, g, convolution))


def late_waits(monkeypatch):
    """The consumers wait for their operands after the products instead of before."""
    late = []
    wait, wait_for_products = plgpu.barrier_wait, plgpu.wgmma_wait

    def barrier_wait(barrier):
        if sys._getframe(1).f_code.co_name == "multiply":
            late.append(barrier)
        else:
            wait(barrier)

    def wgmma_wait(n):
        wait_for_products(n)
        while late:
            wait(late.pop(0))

    monkeypatch.setattr(plgpu, "barrier_wait", barrier_wait)
    monkeypatch.setattr(plgpu, "wgmma_wait", wgmma_wait)


def early_release(monkeypatch):
    """The consumers give a stage of x back and then multiply."""
    products = []
    arrive, wgmma = plgpu.barrier_arrive, plgpu.wgmma

    def barrier_arrive(barrier):
        arrive(barrier)
        while products:
            wgmma(*products.pop(0))

    monkeypatch.setattr(plgpu, "barrier_arrive", barrier_arrive)
    monkeypatch.setattr(plgpu, "wgmma", lambda *operands: products.append(operands))


def no_commit(monkeypatch):
    """The result is copied from shared memory without a fence after it is written."""
    monkeypatch.setattr(plgpu, "commit_smem", lambda: None)


def no_wait(monkeypatch):
    """The producer does not wait until a stage is free."""
    wait = plgpu.barrier_wait

    def barrier_wait(barrier):
        if sys._getframe(1).f_code.co_name != "_wait":
            wait(barrier)

    monkeypatch.setattr(plgpu, "barrier_wait", barrier_wait)


@needs_0_11
@pytest.mark.parametrize("break_kernel", [late_waits, early_release, no_commit, no_wait])
def test_the_interpreter_sees_a_fault(break_kernel, monkeypatch, tracked_wgmma):
    """The tests above would fail for a kernel that is wrong in one of these ways."""
    break_kernel(monkeypatch)
    try:
        _, race = interpreted(kernel_gradient_packed, *many_stages())
        fault = "RACE DETECTED" if race else "none"
    except jax.errors.JaxRuntimeError as error:  # JAX 0.12 raises races too
        fault = str(error)
    unobserved = "no threads observed phase"  # a barrier was completed twice and awaited once
    assert "RACE DETECTED" in fault or (break_kernel is no_wait and unobserved in fault)


def pair_products(x, g, convolution, tiling):
    """Q by its definition."""
    (top, _), _ = convolution.padding
    rows, columns = tiling.rows, tiling.columns
    steps = -(-convolution.output_size[0] // rows)
    q = np.zeros((x.shape[-1], tiling.shifts, rows, columns, tiling.window))

    def at(array, i, j):
        inside = 0 <= i < array.shape[1] and 0 <= j < array.shape[2]
        return array[:, i, j] if inside else np.zeros_like(array[:, 0, 0])

    def block(array, i, j, height, width):
        return np.stack(
            [np.stack([at(array, i + r, j + c) for c in range(width)]) for r in range(height)]
        )

    for t in range(steps):
        for b in range(tiling.tiles):
            tile = block(g, rows * t, columns * b, rows, columns)
            left = columns * b - tiling.lead
            strip = block(x, rows * t - top, left, tiling.shifts, tiling.window)
            q += np.einsum("rjnc,sanc->csrja", tile, strip)
    return q.reshape(len(q), tiling.shifts, rows * columns, tiling.window)


@pytest.mark.parametrize(
    "convolution",
    [same(14, 27), same((9, 12), (5, 13)), same((9, 40), 7), LOPSIDED, LOPSIDED_TILES, CROPPED],
    ids=str,
)
def test_diagonal_sums(convolution):
    """The part outside the kernel turns products of pairs of columns into the gradient."""
    x, g = (np.float64(array) for array in draw(convolution, 16, 2, jnp.float32))
    tiling = choose_tiling(convolution, 16)
    products = jnp.asarray(pair_products(x, g, convolution, tiling), jnp.float32)
    sums = np.transpose(_diagonal_sums(products, convolution, tiling), (1, 2, 0))[:, :, None]
    expected = reference(jnp.asarray(x), g, convolution)
    # Sums in float32 of up to 16 * 14 * 14 products.
    np.testing.assert_allclose(sums, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_tilings():
    """Every tiling covers the gradient, and what it needs is there."""
    sizes, taps = (9, 16, 17, 28, 33, 56, 64, 65, 96, 130), (1, 3, 4, 7, 13, 31, 51)
    for convolution in (same(size, k) for size in sizes for k in taps):
        for batch in (16, 48, 64, 192):
            tiling = choose_tiling(convolution, batch)
            assert batch % tiling.images == 0
            assert tiling.rows * tiling.columns <= TILE
            assert tiling.columns * tiling.tiles >= convolution.output_size[1]
            assert tiling.group * tiling.groups >= tiling.shifts
            assert tiling.accumulators * tiling.window <= ACCUMULATOR_COLUMNS
            assert tiling.shared_memory <= SHARED_MEMORY
            assert tiling.ahead >= 1


@pytest.mark.parametrize(
    ("size", "taps", "channels"),
    REPLKNET
    + [pytest.param(*shape, marks=[exhaustive] * (shape[1] not in (7, 31))) for shape in GRID],
)
def test_lowers_for_cuda(size, taps, channels):
    assert_lowers(same(size, taps), 64, channels, jnp.bfloat16)


@pytest.mark.parametrize(
    ("batch", "dtype"), [(1, jnp.bfloat16), (100, jnp.float16), (128, jnp.float32)], ids=str
)
def test_lowers_for_cuda_at_any_batch(batch, dtype):
    assert_lowers(same(56, 31), batch, 128, dtype)


def assert_lowers(convolution, batch, channels, dtype):
    """Lowering checks tiles, swizzles, layouts of registers and the ranks of copies."""
    x, g = (
        jax.ShapeDtypeStruct((batch, *size, channels), dtype)
        for size in (convolution.size, convolution.output_size)
    )
    traced = jax.jit(lambda x, g: kernel_gradient(x, g, convolution)).trace(x, g)
    assert traced.out_info.shape == (*convolution.kernel_size, 1, channels)
    assert traced.out_info.dtype == dtype
    assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()


SMALL = same(16, 7)
UNSUPPORTED = [
    (SMALL, 16, 1, jnp.float64, "not float64"),
    (dataclasses.replace(SMALL, precision=lax.Precision.HIGHEST), 16, 1, jnp.float32, "HIGHEST"),
    (dataclasses.replace(SMALL, stride=(2, 2)), 16, 1, jnp.bfloat16, "stride 1"),
    (dataclasses.replace(SMALL, dilation=(1, 2)), 16, 1, jnp.bfloat16, "dilation 1"),
    (SMALL, None, 1, jnp.bfloat16, "a fixed batch size"),
    (Convolution((16, 16), (17, 3)), 16, 1, jnp.bfloat16, "is empty"),
    (SMALL, 0, 1, jnp.bfloat16, "is empty"),
    (same((16, 8), 7), 16, 1, jnp.bfloat16, "from 9 columns"),
    (same((8, 1000), 7), 16, 1, jnp.bfloat16, "shared memory"),
    (same((8, 500), (3, 301)), 16, 1, jnp.bfloat16, "registers"),
]


@pytest.mark.parametrize(("convolution", "batch", "channels", "dtype", "reason"), UNSUPPORTED)
def test_unsupported(convolution, batch, channels, dtype, reason):
    assert reason in unsupported_gradient_reason(convolution, batch, channels, dtype)


def test_supported():
    """RepLKNet's layers and the benchmark's, in every type."""
    for size, taps, channels in REPLKNET + GRID:
        for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
            assert unsupported_gradient_reason(same(size, taps), 64, channels, dtype) is None


def test_errors():
    x, g = draw(SMALL, 16, 1, jnp.bfloat16)
    strided = dataclasses.replace(SMALL, stride=(2, 2))
    with pytest.raises(ValueError, match=r"does not support this gradient: .* stride 1"):
        kernel_gradient(x, g, strided)
    with pytest.raises(ValueError, match=r"packed g must have shape \(1, 16, 16, 16\)"):
        kernel_gradient_packed(pack(x), pack(g[:, :-1]), SMALL)
    with pytest.raises(ValueError, match=r"packed x must have shape \(1, 16, 16, 16\)"):
        kernel_gradient_packed(pack(x)[..., :8], pack(g), SMALL)
