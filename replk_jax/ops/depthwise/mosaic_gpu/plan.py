"""Plans: how the row-Toeplitz kernel divides a convolution into blocks, with estimated times."""

import dataclasses
import functools
from typing import Literal

import jax.numpy as jnp
from jax import lax

from replk_jax.ops.depthwise.convolution import Convolution

BLOCK = 16
"""Output columns of one accumulator, and the depth of one `wgmma` in 16-bit types."""

CONSUMERS = 2
"""Warpgroups that multiply; one more warpgroup copies."""

SHARED_MEMORY = 227 * 1024
"""Bytes that a thread block may use on Hopper."""

ACCUMULATOR_REGISTERS = 128
"""Registers of a thread that may hold accumulators; with three warpgroups, it has 168 in total."""

# Parameters of the estimated times, for an H200. The rates are those of one multiprocessor.
_MULTIPROCESSORS = 132
_PRODUCTS_PER_CLOCK = 2048
_SHARED_BYTES_PER_CLOCK = 112  # 128 minus the share of the copies
_L2_BYTES_PER_CLOCK = 24
_COPY_LATENCY_CLOCKS = 1000  # of an input row
_LAUNCH_CLOCKS = 2000
_REGISTERS = 65536
_OTHER_REGISTERS = 28  # of a thread, besides the accumulators, as ptxas reports


Arrangement = Literal["A", "B"]
Split = Literal["rows", "columns"]


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def num_terms(dtype) -> int:
    """The number of 16-bit terms that an operand of `dtype` is split into (`packing.split`)."""
    return 2 if dtype == jnp.float32 else 1


@dataclasses.dataclass(frozen=True)
class Window:
    """The input columns that a block of 16 output columns reads.

    Output block b reads `depth` columns, starting at column 16 b - reach. Both numbers are the same
    for all blocks, so all share one Toeplitz matrix.

    Attributes:
      reach: columns from the start of the window to the start of its block; a multiple of 8, the
        height of a tile in shared memory.
      depth: columns of the window; a multiple of 16, the depth of one `wgmma`.
      spans: for every block, the range (start, stop) of the window that overlaps the input; both
        are multiples of 16.
      width: W', the columns of the packed input.
    """

    reach: int
    depth: int
    spans: tuple[tuple[int, int], ...]
    width: int

    @classmethod
    def of(cls, convolution: Convolution) -> "Window":
        before, taps = convolution.padding[1][0], convolution.kernel_size[1]
        nearest = round_up(before, 8)

        def depth(reach):
            return round_up(reach - before + BLOCK - 1 + taps, BLOCK)

        # A window that starts on a multiple of 16 needs no margin, so it wins a tie.
        reach = min((nearest, nearest + 8), key=lambda reach: (depth(reach), reach % BLOCK))
        spans = []
        for first in range(0, convolution.output_size[1], BLOCK):
            start = max(0, (reach - first) // BLOCK * BLOCK)
            stop = min(depth(reach), round_up(convolution.size[1] - first + reach, BLOCK))
            spans.append((start, stop))
        return cls(reach, depth(reach), tuple(spans), round_up(convolution.size[1], 8))

    @property
    def left_margin(self) -> int:
        """Columns of zeros to the left of the input, 0 or 8."""
        return self.reach % BLOCK

    def offset(self, block: int) -> int:
        """The start of the span of a block, relative to the first column of the left margin."""
        return self.left_margin + BLOCK * block - self.reach + self.spans[block][0]

    @property
    def columns(self) -> int:
        """Columns of one input row in shared memory, including its margins."""
        return max(self.offset(b) + stop - start for b, (start, stop) in enumerate(self.spans))

    @property
    def margins(self) -> tuple[int, ...]:
        """The first columns, in shared memory, of the margins of 8 zeros next to the input."""
        left, right = 0, self.left_margin + self.width
        return (left,) * bool(self.left_margin) + (right,) * (right < self.columns)


@dataclasses.dataclass(frozen=True)
class Plan:
    """One way to divide a convolution into blocks.

    Attributes:
      arrangement: the dimension of `wgmma` that holds the batch. "A": N; then the Toeplitz matrix
        is the left operand, and 16 `rows` must be a multiple of 64. "B": M, always 64 images; then
        16 `rows` is N.
      rows: output rows of one accumulator.
      split: how the two consumers share the work. "rows": each has `rows` rows and all blocks of
        columns. "columns": both have the same rows and every other block.
      batch_tile: images of one thread block.
      stages: input rows in flight.
    """

    arrangement: Arrangement
    rows: int
    split: Split
    batch_tile: int
    stages: int

    @property
    def group_rows(self) -> int:
        """Output rows that one pass over their input rows computes."""
        return self.rows * (CONSUMERS if self.split == "rows" else 1)

    def blocks(self, consumer: int, total: int) -> range:
        """The indices of the column blocks, out of `total`, that a consumer computes."""
        return range(total) if self.split == "rows" else range(consumer, total, CONSUMERS)

    def first_row(self, consumer: int) -> int:
        """A consumer's first output row within its group."""
        return self.rows * consumer if self.split == "rows" else 0

    def slots(self, convolution: Convolution) -> int:
        """Kernel rows of the bank, including the rows of zeros at both ends."""
        return convolution.kernel_size[0] + 2 * (self.rows - 1)

    def accumulator_registers(self, convolution: Convolution) -> int:
        """Registers of one thread that hold accumulators."""
        blocks = self.blocks(0, len(Window.of(convolution).spans))
        return len(blocks) * self.rows * BLOCK * self.batch_tile // 128

    def shared_memory(self, convolution: Convolution, dtype) -> int:
        """Bytes of shared memory, with every buffer aligned to 1024 bytes."""
        window = Window.of(convolution)
        itemsize = jnp.dtype(dtype).itemsize
        buffers = (
            2 * num_terms(dtype) * self.slots(convolution) * BLOCK * window.depth,
            2 * num_terms(dtype) * self.stages * window.columns * self.batch_tile,
            itemsize * CONSUMERS * self.rows * BLOCK * self.batch_tile,
            8 * (1 + 2 * self.stages),
        )
        return sum(round_up(size, 1024) for size in buffers)

    def fits(self, convolution: Convolution, dtype) -> bool:
        """Whether `wgmma` supports these products, and a thread block has the memory for them."""
        rows_fit = self.rows % 4 == 0 if self.arrangement == "A" else self.rows <= 16
        return (
            rows_fit
            # Only 16-bit results can be stored transposed.
            and (
                self.arrangement == "A"
                or (self.batch_tile == 64 and jnp.dtype(dtype).itemsize == 2)
            )
            and self.accumulator_registers(convolution) <= ACCUMULATOR_REGISTERS
            and self.shared_memory(convolution, dtype) <= SHARED_MEMORY
        )

    def group_input_rows(self, convolution: Convolution, group: int) -> range:
        """The input rows that a group of output rows reads."""
        return _input_rows(convolution, group * self.group_rows, self.group_rows)

    def groups(self, convolution: Convolution) -> int:
        return -(-convolution.output_size[0] // self.group_rows)

    def clocks(self, convolution: Convolution, batch: int, channels: int, dtype) -> float:
        """The estimated time of a launch on an H200, in clocks."""
        window, itemsize = Window.of(convolution), jnp.dtype(dtype).itemsize
        m, n = (
            (BLOCK * self.rows, self.batch_tile)
            if self.arrangement == "A"
            else (64, BLOCK * self.rows)
        )
        step = max(
            m * n * BLOCK / _PRODUCTS_PER_CLOCK,
            m // 64 * (64 + n) * BLOCK * 2 / _SHARED_BYTES_PER_CLOCK,
        )
        copied_rows = steps = 0
        for group in range(self.groups(convolution)):
            copied_rows += len(self.group_input_rows(convolution, group))
            for consumer in range(CONSUMERS):
                first = group * self.group_rows + self.first_row(consumer)
                if first < convolution.output_size[0]:
                    spans = [window.spans[b] for b in self.blocks(consumer, len(window.spans))]
                    steps_per_row = sum(stop - start for start, stop in spans) // BLOCK
                    steps += steps_per_row * len(_input_rows(convolution, first, self.rows))
        tensor = steps * step * (3 if num_terms(dtype) == 2 else 1)
        row = 2 * num_terms(dtype) * window.width * self.batch_tile
        height, width = convolution.output_size
        output = height * round_up(width, 8) * self.batch_tile * itemsize
        bank = 2 * num_terms(dtype) * self.slots(convolution) * BLOCK * window.depth
        bank, traffic = (size / _L2_BYTES_PER_CLOCK for size in (bank, copied_rows * row + output))
        stall = copied_rows * _COPY_LATENCY_CLOCKS / self.stages
        alone = _LAUNCH_CLOCKS + bank + max(tensor, traffic, stall)
        blocks = -(-channels * -(-batch // self.batch_tile) // _MULTIPROCESSORS)
        rounds = -(-blocks // self.resident_blocks(convolution, dtype))
        return max(blocks * tensor, blocks * (bank + traffic), rounds * alone)

    def resident_blocks(self, convolution: Convolution, dtype) -> int:
        """The number of thread blocks that fit on one multiprocessor."""
        registers = round_up(self.accumulator_registers(convolution) + _OTHER_REGISTERS, 8)
        return min(
            _REGISTERS // (registers * 128 * (CONSUMERS + 1)),
            (SHARED_MEMORY + 1024) // (self.shared_memory(convolution, dtype) + 1024),
        )


def _input_rows(convolution: Convolution, first: int, count: int) -> range:
    """The input rows that the output rows first, ..., first + count - 1 read."""
    (height, _), (taps, _) = convolution.size, convolution.kernel_size
    top = convolution.padding[0][0]
    return range(max(0, first - top), min(height, first + count - 1 + taps - top))


def always_unsupported_reason(
    convolution: Convolution, batch: int | None, channels: int, dtype
) -> str | None:
    """Why neither this kernel nor the one for the kernel gradient supports a convolution."""
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        return f"its kernels take bfloat16, float16 and float32, not {dtype}"
    if dtype == jnp.float32 and convolution.precision == lax.Precision.HIGHEST:
        return "its kernels multiply float32 as sums of bfloat16, less exactly than HIGHEST"
    if not convolution.is_dense:
        return "its kernels support only stride 1 and dilation 1"
    if batch is None:
        return "its kernels need a fixed batch size"
    if 0 in (batch, channels, *convolution.size, *convolution.output_size):
        return "the result is empty"
    return None


def unsupported_reason(
    convolution: Convolution, batch: int | None, channels: int, dtype
) -> str | None:
    """Why the kernel does not support this convolution; None if it does.

    Args:
      convolution: the convolution.
      batch: N; None if it is symbolic.
      channels: C.
      dtype: of all arrays.
    """
    if reason := always_unsupported_reason(convolution, batch, channels, dtype):
        return reason
    assert batch is not None, "always_unsupported_reason requires a known batch"
    kernel, padding = convolution.kernel_size, convolution.padding
    if not 8 < max(convolution.size) <= 96:
        return f"its kernels support sizes from 9 to 96 pixels, not {convolution.size}"
    if max(kernel) < 7:
        return f"its kernels support kernel sizes from 7, not {kernel}"
    if not all(0 <= side < k for k, sides in zip(kernel, padding, strict=True) for side in sides):
        return f"its kernels need paddings below the kernel size {kernel}, not {padding}"
    if batch < 16:
        return f"its kernels support batches from 16 images, not {batch}"
    if not plans(convolution, jnp.dtype(dtype)):
        return f"kernel size {kernel} at {convolution.size} pixels exceeds the shared memory"
    return None


def check(convolution: Convolution, batch: int, channels: int, dtype) -> None:
    """Checks that the kernel supports a convolution.

    Raises:
      ValueError: with the reason that `unsupported_reason` returns.
    """
    if reason := unsupported_reason(convolution, batch, channels, dtype):
        raise ValueError(f"The Hopper kernel cannot compute this: {reason}.")


def choose_plan(
    convolution: Convolution, batch: int, channels: int, dtype, *, packed: bool = False
) -> Plan:
    """The plan with the shortest estimated time.

    Args:
      convolution, batch, channels, dtype: as in `unsupported_reason`.
      packed: whether the images are already packed; then the batch, a multiple of 16, must be
        divisible by the batch tile. Otherwise packing pads the batch.

    Raises:
      ValueError: with the reason that `unsupported_reason` returns.
    """
    check(convolution, batch, channels, dtype)
    candidates = plans(convolution, dtype)
    if packed:
        candidates = [plan for plan in candidates if batch % plan.batch_tile == 0]
    return min(candidates, key=lambda plan: plan.clocks(convolution, batch, channels, dtype))


@functools.lru_cache(maxsize=256)
def plans(convolution: Convolution, dtype) -> tuple[Plan, ...]:
    """All plans that fit on the hardware."""
    shapes: list[tuple[Arrangement, int, int]] = [
        *(("A", rows, tile) for rows in (4, 8, 12, 16) for tile in (128, 64, 32, 16)),
        *(("B", rows, 64) for rows in range(1, 17)),
    ]
    several_blocks = convolution.output_size[1] > BLOCK
    splits: tuple[Split, ...] = ("rows", "columns") if several_blocks else ("rows",)
    every = (
        Plan(arrangement, rows, split, tile, stages)
        for arrangement, rows, tile in shapes
        for split in splits
        for stages in (8, 6, 4, 3, 2)
    )
    return tuple(plan for plan in every if plan.fits(convolution, dtype))
