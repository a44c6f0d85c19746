"""Products of all pairs of columns of x and g, summed over the batch, as a Mosaic GPU kernel.

A thread block computes one channel and a group of shifts. Its producer copies tiles of g, and the
rows of x that they are multiplied with, to shared memory. Its two consumers multiply, each for half
of the shifts. Consecutive tiles of g need overlapping ranges of rows of x, so these rows are stored
in a ring buffer.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from replk_jax.ops.depthwise.mosaic_gpu.plan import CONSUMERS
from replk_jax.ops.depthwise.mosaic_gpu.tiling import TILE, Tiling


def pair_products(
    x: jax.Array, g: jax.Array, padding: int, tiling: Tiling, *, interpret: Any = False
) -> jax.Array:
    """The array Q of `replk_jax.ops.depthwise.mosaic_gpu.kernel_gradient`.

    Args:
      x: (C, H, W', N'), bfloat16 or float16, W' more than 8.
      g: (C, OH, OW', N'), likewise.
      padding: p, rows of zeros above x.
      tiling: one for these shapes.
      interpret: False, or parameters of Pallas' GPU interpreter.

    Returns:
      (C, shifts, rows * columns, window), float32.
    """
    channels = len(x)

    def shared(shape, dtype, swizzle):
        tile = (8, swizzle // jnp.dtype(dtype).itemsize)
        transforms = (plgpu.TilingTransform(tile), plgpu.SwizzleTransform(swizzle))
        return plgpu.SMEM(shape, dtype, transforms=transforms)

    # Both operands have the same swizzle: the bytes of the images that are multiplied at a time.
    swizzle = tiling.images * x.dtype.itemsize
    copies = tiling.tiles * tiling.rows
    kernel = plgpu.kernel(
        functools.partial(_block, padding=padding, tiling=tiling),
        out_type=jax.ShapeDtypeStruct(
            (channels, tiling.shifts, tiling.rows * tiling.columns, tiling.window), jnp.float32
        ),
        scratch_types=dict(
            x_ring=shared((tiling.ring_columns, tiling.images), x.dtype, swizzle),
            g_ring=shared((tiling.g_stages, tiling.tiles, TILE, tiling.images), g.dtype, swizzle),
            # The window may be an odd multiple of 8 columns, the width of this swizzle.
            q_tiles=shared((CONSUMERS, TILE, tiling.window), jnp.float32, 32),
            gaps_full=plgpu.Barrier(num_arrivals=tiling.x_stages * tiling.rows + 1),
            x_full=plgpu.Barrier(num_arrivals=tiling.rows, num_barriers=tiling.x_stages),
            x_empty=plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=tiling.x_stages),
            g_full=plgpu.Barrier(num_arrivals=copies, num_barriers=tiling.g_stages),
            g_empty=plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=tiling.g_stages),
        ),
        # The groups of a channel run concurrently and read the same data from the L2 cache.
        grid=(tiling.groups, channels),
        grid_names=("group", "channel"),
        num_threads=CONSUMERS + 1,
        thread_name="warpgroup",
        interpret=interpret or None,
    )
    return kernel(x, g)


def _block(
    x,
    g,
    q,
    x_ring,
    g_ring,
    q_tiles,
    gaps_full,
    x_full,
    x_empty,
    g_full,
    g_empty,
    *,
    padding,
    tiling,
):
    """The program of one thread block.

    Step t multiplies the rows of g that start at R t with the rows of x that start at R t + offset.
    The counters of steps (for g) and of stages (for x) continue from one batch tile to the next.
    """
    _, height, width, batch = x.shape
    _, output_height, _, _ = g.shape
    rows, columns, gap, overlap = tiling.rows, tiling.columns, tiling.gap, tiling.overlap
    x_stages, g_stages = tiling.x_stages, tiling.g_stages
    channel, warpgroup = lax.axis_index("channel"), lax.axis_index("warpgroup")
    first_shift = lax.axis_index("group") * tiling.group
    offset = first_shift - padding

    # Only the steps that read a row of x.
    start = lax.div(lax.max(rows - tiling.group - offset, 0), rows)
    stop = lax.div(lax.max(height - 1 - offset + rows, 0), rows)
    steps = lax.max(lax.min(stop, pl.cdiv(output_height, rows)) - start, 0)
    stages = steps + overlap
    batch_tiles = batch // tiling.images

    outside = jnp.int32(-1)

    def ring_column(row, column):
        """The position of a column of a row in the ring."""
        return pl.multiple_of(gap + row * (width + gap) + column, 8)

    def copy_row(source, row, column, size, batch_tile, target, barrier):
        # The hardware returns zeros for columns beyond the end of a row, so a row outside the image
        # is read there. Beyond the last row it need not return zeros: it may address rows and
        # channels as one dimension.
        _, limit, end, _ = source.shape
        inside = (row >= 0) & (row < limit)
        column = pl.multiple_of(jnp.where(inside, column, end), 8)
        images = pl.ds(pl.multiple_of(batch_tile * tiling.images, tiling.images), tiling.images)
        row = lax.clamp(0, row, limit - 1)
        plgpu.copy_gmem_to_smem(
            source.at[channel, row, pl.ds(column, size), images], target, barrier
        )

    @pl.when(warpgroup == CONSUMERS)
    def _produce():
        if gap:
            for row in range(x_stages * rows + 1):
                target = x_ring.at[pl.ds(row * (width + gap), gap)]
                copy_row(x, outside, 0, gap, jnp.int32(0), target, gaps_full)

        def load_g(batch_tile, step):
            count = batch_tile * steps + step
            slot = lax.rem(count, g_stages)

            @pl.when(count >= g_stages)
            def _wait():
                plgpu.barrier_wait(g_empty.at[slot])

            for b in range(tiling.tiles):
                for r in range(rows):
                    row, column = (start + step) * rows + r, b * columns
                    target = g_ring.at[slot, b, pl.ds(r * columns, columns)]
                    copy_row(g, row, column, columns, batch_tile, target, g_full.at[slot])

        def load(count, _):
            batch_tile, stage = lax.div(count, stages), lax.rem(count, stages)
            slot = lax.rem(count, x_stages)

            @pl.when(count >= x_stages)
            def _wait():
                plgpu.barrier_wait(x_empty.at[slot])

            for r in range(rows):
                row = (start + stage) * rows + offset + r
                target = x_ring.at[pl.ds(ring_column(slot * rows + r, 0), width)]
                copy_row(x, row, 0, width, batch_tile, target, x_full.at[slot])

            pl.when(stage >= overlap)(lambda: load_g(batch_tile, stage - overlap))
            return ()

        def drain(count, empty, slots):
            def wait(i, _):
                plgpu.barrier_wait(empty.at[lax.rem(i, slots)])
                return ()

            lax.fori_loop(lax.max(count - slots, 0), count, wait, ())

        lax.fori_loop(0, batch_tiles * stages, load, ())
        drain(batch_tiles * stages, x_empty, x_stages)
        drain(batch_tiles * steps, g_empty, g_stages)

    def consume(*accumulators):
        own = warpgroup * tiling.accumulators

        def multiply(step, batch_tile):
            oldest = batch_tile * stages + step
            slot = lax.rem(batch_tile * steps + step, g_stages)
            plgpu.barrier_wait(x_full.at[lax.rem(oldest + overlap, x_stages)])
            plgpu.barrier_wait(g_full.at[slot])
            for n, accumulator in enumerate(accumulators):
                row = lax.rem(oldest * rows + own + n, x_stages * rows)
                for b in range(tiling.tiles):
                    column = ring_column(row, b * columns - tiling.lead)
                    window = x_ring.at[pl.ds(column, tiling.window)]
                    plgpu.wgmma(accumulator, g_ring.at[slot, b], window.transpose((1, 0)))
            plgpu.wgmma_wait(0)
            plgpu.barrier_arrive(x_empty.at[lax.rem(oldest, x_stages)])
            plgpu.barrier_arrive(g_empty.at[slot])
            return batch_tile

        def multiply_batch_tile(batch_tile, _):
            first = batch_tile * stages
            for stage in range(overlap):
                plgpu.barrier_wait(x_full.at[lax.rem(first + stage, x_stages)])
            lax.fori_loop(0, steps, multiply, batch_tile)
            for stage in range(overlap):
                plgpu.barrier_arrive(x_empty.at[lax.rem(first + steps + stage, x_stages)])
            return ()

        if gap:
            plgpu.barrier_wait(gaps_full)
        lax.fori_loop(0, batch_tiles, multiply_batch_tile, ())

        for n, accumulator in enumerate(accumulators):
            shift = first_shift + own + n
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            q_tiles[warpgroup] = accumulator[...]
            plgpu.commit_smem()

            @pl.when(shift < tiling.shifts)
            def _store(shift=shift):
                source = q_tiles.at[warpgroup, pl.ds(0, rows * columns)]
                plgpu.copy_smem_to_gmem(source, q.at[channel, shift])

        plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup < CONSUMERS)
    def _consume():
        accumulator = plgpu.WGMMAAccumulatorRef((TILE, tiling.window), jnp.float32)
        pl.run_scoped(consume, *[accumulator] * tiling.accumulators)
