"""The row-Toeplitz convolution on Hopper's tensor cores, as a Mosaic GPU kernel.

A thread block convolves one channel of `batch_tile` images. Its Toeplitz bank is in shared memory.
One warpgroup, the producer, copies input rows into a ring of stages. Two consumers multiply each
row with the rows of the bank for their output rows. For the next input row, these move by one slot.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.mosaic_gpu.plan import BLOCK, CONSUMERS, Plan, Window, round_up

_SWIZZLE = 32
"""Bytes. `wgmma` advances by a whole swizzle, so a wider one would make the band coarser."""

_PRODUCTS = {1: ((0, 0),), 2: ((0, 0), (0, 1), (1, 0))}
"""The products of (term of the bank, term of the input), by the number of terms."""


def row_toeplitz(
    xs: tuple[jax.Array, ...],
    banks: tuple[jax.Array, ...],
    convolution: Convolution,
    plan: Plan,
    dtype,
    interpret=None,
) -> jax.Array:
    """Convolves packed images with the kernel whose Toeplitz bank is given.

    Args:
      xs: the terms of the images, one or two arrays (C, H, W', N') of a 16-bit dtype; the padding
        columns are zero, and N' is a multiple of the batch tile.
      banks: the terms of the bank of `toeplitz_bank` for `plan.rows`, of the same number and dtype.
      convolution: the convolution.
      plan: its division into blocks.
      dtype: of the result.
      interpret: parameters of the interpreter, or None to compile.

    Returns:
      (C, OH, OW', N'); its padding columns are undefined.
    """
    channels, _, _, batch = xs[0].shape
    height, width = convolution.output_size
    dtype = jnp.dtype(dtype)
    num_terms, window = len(xs), Window.of(convolution)
    zeros = jnp.zeros((8, plan.batch_tile), xs[0].dtype)
    first_copies = num_terms * (1 + plan.stages * len(window.margins))

    def row_toeplitz_kernel(*refs, **scratch):
        operands = refs[:num_terms], refs[num_terms : 2 * num_terms], *refs[2 * num_terms :]
        _Block(convolution, plan, *operands, **scratch).run()

    kernel = plgpu.kernel(
        row_toeplitz_kernel,
        out_type=jax.ShapeDtypeStruct((channels, height, round_up(width, 8), batch), dtype),
        scratch_types=dict(
            bank_smem=_shared((num_terms, *banks[0].shape[1:]), banks[0].dtype, _SWIZZLE),
            x_smem=_shared(
                (num_terms, plan.stages, window.columns, plan.batch_tile), xs[0].dtype, _SWIZZLE
            ),
            out_smem=_shared(
                (CONSUMERS, plan.rows * BLOCK, plan.batch_tile),
                dtype,
                min(128, plan.batch_tile * dtype.itemsize),
            ),
            ready=plgpu.Barrier(num_arrivals=first_copies),
            full=plgpu.Barrier(num_arrivals=num_terms, num_barriers=plan.stages),
            empty=plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=plan.stages),
        ),
        # The batch tiles of a channel run concurrently and read the same bank from the L2 cache.
        grid=(batch // plan.batch_tile, channels),
        grid_names=("tile", "channel"),
        num_threads=CONSUMERS + 1,
        thread_name="warpgroup",
        interpret=interpret,
    )
    return kernel(*xs, *banks, zeros)


def _shared(shape, dtype, swizzle):
    """Shared memory in the tiles of 8 rows that `wgmma` and the TMA's swizzles are made for."""
    tile = (8, swizzle // jnp.dtype(dtype).itemsize)
    transforms = (plgpu.TilingTransform(tile), plgpu.SwizzleTransform(swizzle))
    return plgpu.SMEM(shape, dtype, transforms=transforms)


@dataclasses.dataclass
class _Block:
    """The program of one thread block.

    All warpgroups count the input rows; row number t is in stage t mod `plan.stages`.
    """

    convolution: Convolution
    plan: Plan
    xs: Sequence[Any]
    banks: Sequence[Any]
    zeros: Any
    out: Any
    bank_smem: Any  # (terms, 16 slots, depth)
    x_smem: Any  # (terms, stages, columns, batch tile)
    out_smem: Any  # (consumers, 16 rows, batch tile)
    ready: Any  # the bank and the margins are in shared memory
    full: Any  # (stages,): an input row is in shared memory
    empty: Any  # (stages,): the row has been multiplied

    def run(self):
        warpgroup = lax.axis_index("warpgroup")
        for consumer in range(CONSUMERS):
            pl.when(warpgroup == consumer)(functools.partial(self.consume, consumer))
        pl.when(warpgroup == CONSUMERS)(self.produce)

    @property
    def window(self):
        return Window.of(self.convolution)

    @property
    def channel(self):
        return lax.axis_index("channel")

    @property
    def images(self):
        tile = self.plan.batch_tile
        return pl.ds(lax.axis_index("tile") * tile, tile)

    def stage(self, t):
        return lax.rem(t, jnp.int32(self.plan.stages))

    def input_rows(self, first, count):
        """The range (start, stop) of input rows that the `count` output rows from `first` read."""
        taps, top = self.convolution.kernel_size[0], self.convolution.padding[0][0]
        start = lax.max(first - top, 0)
        return start, lax.min(first + count - 1 + taps - top, self.convolution.size[0])

    def for_groups(self, body):
        """Runs body(group, t) -> t for every group of output rows."""
        lax.fori_loop(0, self.plan.groups(self.convolution), body, jnp.int32(0))

    def produce(self):
        plan = self.plan
        for term, bank in enumerate(self.banks):
            plgpu.copy_gmem_to_smem(bank.at[self.channel], self.bank_smem.at[term], self.ready)
        for term in range(len(self.xs)):
            for stage in range(plan.stages):
                for margin in self.window.margins:
                    plgpu.copy_gmem_to_smem(
                        self.zeros, self.x_smem.at[term, stage, pl.ds(margin, 8)], self.ready
                    )

        def copy_row(row, t):
            stage = self.stage(t)

            @pl.when(t >= plan.stages)
            def _():
                plgpu.barrier_wait(self.empty.at[stage])

            for term, x in enumerate(self.xs):
                plgpu.copy_gmem_to_smem(
                    x.at[self.channel, row, :, self.images],
                    self.x_smem.at[term, stage, pl.ds(self.window.left_margin, x.shape[2])],
                    self.full.at[stage],
                )
            return t + 1

        def copy_group(group, t):
            start, stop = self.input_rows(group * plan.group_rows, plan.group_rows)
            return lax.fori_loop(start, stop, copy_row, t)

        self.for_groups(copy_group)
        total = sum(
            len(plan.group_input_rows(self.convolution, group))
            for group in range(plan.groups(self.convolution))
        )
        # Waits for all copies, so that no barrier ends in a phase that no warpgroup waited for.
        for t in range(max(0, total - plan.stages), total):
            plgpu.barrier_wait(self.empty.at[t % plan.stages])

    def consume(self, consumer):
        m, n = BLOCK * self.plan.rows, self.plan.batch_tile
        shape = (m, n) if self.plan.arrangement == "A" else (n, m)
        sums = [plgpu.WGMMAAccumulatorRef(shape, jnp.float32)] * len(self.blocks(consumer))
        plgpu.barrier_wait(self.ready)

        def compute_group(group, t):
            return pl.run_scoped(functools.partial(self.compute, consumer, group, t), *sums)

        self.for_groups(compute_group)
        plgpu.wait_smem_to_gmem(0)

    def blocks(self, consumer):
        return self.plan.blocks(consumer, len(self.window.spans))

    def compute(self, consumer, group, t, *sums):
        """Computes a consumer's rows of a group of output rows; `sums`: one accumulator a block."""
        plan = self.plan
        first = group * plan.group_rows + plan.first_row(consumer)
        group_start, group_stop = self.input_rows(group * plan.group_rows, plan.group_rows)
        start, stop = self.input_rows(first, plan.rows)
        # The second consumer may have no output row in the last group.
        start = lax.min(start, group_stop)
        stop = lax.select(first < self.convolution.output_size[0], stop, start)

        def skip_row(_, t):
            plgpu.barrier_wait(self.full.at[self.stage(t)])
            plgpu.barrier_arrive(self.empty.at[self.stage(t)])
            return t + 1

        def multiply_row(row, t):
            plgpu.barrier_wait(self.full.at[self.stage(t)])
            self.multiply(sums, self.blocks(consumer), first - row, self.stage(t))

            # The tensor cores compute this row while the stage of the previous one is released.
            @pl.when(row > start)
            def _():
                plgpu.barrier_arrive(self.empty.at[self.stage(t - 1)])

            return t + 1

        t = lax.fori_loop(group_start, start, skip_row, t)
        t = lax.fori_loop(start, stop, multiply_row, t)
        plgpu.wgmma_wait(0)

        @pl.when(stop > start)
        def _():
            plgpu.barrier_arrive(self.empty.at[self.stage(t - 1)])

        t = lax.fori_loop(stop, group_stop, skip_row, t)
        for block, total in zip(self.blocks(consumer), sums, strict=True):
            self.store(total[...], consumer, block, first)
        return t

    def multiply(self, sums, blocks, distance, stage):
        """Adds the contribution of an input row to the output rows `distance` below it.

        Waits for the products of the previous row, not for those of this one.
        """
        plan, window = self.plan, self.window
        bottom = self.convolution.kernel_size[0] - 1 - self.convolution.padding[0][0]
        slot = distance + bottom + plan.rows - 1
        rows = pl.ds(pl.multiple_of(BLOCK * slot, BLOCK), BLOCK * plan.rows)
        products = _PRODUCTS[len(self.xs)]
        for block, total in zip(blocks, sums, strict=True):
            start, stop = window.spans[block]
            for bank_term, x_term in products:
                bank = self.bank_smem.at[bank_term, rows, pl.ds(start, stop - start)]
                x = self.x_smem.at[x_term, stage, pl.ds(window.offset(block), stop - start)]
                if plan.arrangement == "A":
                    plgpu.wgmma(total, bank, x)
                else:
                    plgpu.wgmma(total, x.transpose((1, 0)), bank.transpose((1, 0)))
        plgpu.wgmma_wait(len(sums) * len(products))

    def store(self, values, consumer, block, first):
        """Writes one accumulator: 16 columns of `plan.rows` rows."""
        tile = self.out_smem.at[consumer]
        values = values.astype(tile.dtype)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        if self.plan.arrangement == "A":
            tile[...] = values
        else:
            tile.transpose((1, 0))[...] = plgpu.layout_cast(values, plgpu.Layout.WGMMA_TRANSPOSED)
        plgpu.commit_smem()
        columns = min(BLOCK, self.out.shape[2] - BLOCK * block)
        for row in range(self.plan.rows):

            @pl.when(first + row < self.convolution.output_size[0])
            def _(row=row):
                plgpu.copy_smem_to_gmem(
                    tile.at[pl.ds(BLOCK * row, columns)],
                    self.out.at[
                        self.channel, first + row, pl.ds(BLOCK * block, columns), self.images
                    ],
                )
