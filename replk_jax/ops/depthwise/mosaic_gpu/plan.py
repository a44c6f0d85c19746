"""How the row-Toeplitz kernel cuts a convolution into blocks, and what that costs."""

import dataclasses
import functools
from typing import Literal

import jax.numpy as jnp
from jax import lax

from replk_jax.ops.depthwise.convolution import Convolution

BLOCK = 16
"""Output columns of one accumulator, and the depth of one `wgmma` in 16-bit types."""

CONSUMERS = 2
"""Warpgroups that multiply; one more copies."""

SHARED_MEMORY = 227 * 1024
"""Bytes that one block of threads may use on Hopper."""

ACCUMULATOR_REGISTERS = 128
"""Registers of one thread that may hold sums: three warpgroups leave it 168 in all."""

# What the estimate of a plan's time takes for an H200, the rates those of one multiprocessor.
_MULTIPROCESSORS = 132
_PRODUCTS_PER_CLOCK = 2048
_SHARED_BYTES_PER_CLOCK = 112  # 128, less what the copies take
_L2_BYTES_PER_CLOCK = 24
_TRIP_CLOCKS = 1000  # from the wish for an input row to its arrival
_LAUNCH_CLOCKS = 2000
_REGISTERS = 65536
_OTHER_REGISTERS = 28  # of a thread, besides the sums: what ptxas comes to


Arrangement = Literal["A", "B"]
Split = Literal["rows", "columns"]


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def parts(dtype) -> int:
    """Arrays of a 16-bit type that an operand of `dtype` is split into."""
    return 2 if dtype == jnp.float32 else 1


@dataclasses.dataclass(frozen=True)
class Window:
    """The input columns that meet a block of 16 output columns.

    Output block b reads the columns from 16 b - reach on, `depth` of them. Both are the same for
    all blocks, so one Toeplitz matrix serves them all.

    Attributes:
      reach: columns by which the window starts before its block, a multiple of 8, the height of
        a tile in shared memory.
      depth: its width, a multiple of 16, the depth of one `wgmma`.
      spans: for every block the part (start, stop) of the window that meets the map, in steps
        of 16.
      width: W', the columns of the packed map.
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
        """Columns of zeros before the map, 0 or 8."""
        return self.reach % BLOCK

    def offset(self, block: int) -> int:
        """Where the span of a block starts, counted from the first column of the left margin."""
        return self.left_margin + BLOCK * block - self.reach + self.spans[block][0]

    @property
    def columns(self) -> int:
        """Columns of one input row in shared memory, its margins included."""
        return max(self.offset(b) + stop - start for b, (start, stop) in enumerate(self.spans))

    @property
    def margins(self) -> tuple[int, ...]:
        """The first columns, in shared memory, of the margins of 8 zeros next to the map."""
        left, right = 0, self.left_margin + self.width
        return (left,) * bool(self.left_margin) + (right,) * (right < self.columns)


@dataclasses.dataclass(frozen=True)
class Plan:
    """One way to cut a convolution.

    Attributes:
      arrangement: what the batch is to `wgmma`. "A": its N side, so the Toeplitz matrix is the left
        operand and 16 `rows` must be a multiple of 64; "B": its M side, always 64 images, and
        16 `rows` is the N side.
      rows: output rows of one accumulator.
      split: what the two consumers divide between them. "rows": each has `rows` rows and every
        block of columns; "columns": both have the same rows and every other block.
      batch_tile: images of one block of threads.
      stages: input rows in flight.
    """

    arrangement: Arrangement
    rows: int
    split: Split
    batch_tile: int
    stages: int

    @property
    def group_rows(self) -> int:
        """Output rows that are computed together from one pass over their input rows."""
        return self.rows * (CONSUMERS if self.split == "rows" else 1)

    def blocks(self, consumer: int, total: int) -> range:
        """The column blocks, of `total`, that a consumer computes."""
        return range(total) if self.split == "rows" else range(consumer, total, CONSUMERS)

    def first_row(self, consumer: int) -> int:
        """A consumer's first output row within its group."""
        return self.rows * consumer if self.split == "rows" else 0

    def slots(self, convolution: Convolution) -> int:
        """Kernel rows of the bank, with the rows of zeros before and behind."""
        return convolution.kernel_size[0] + 2 * (self.rows - 1)

    def accumulator_registers(self, convolution: Convolution) -> int:
        """Registers of one thread that hold sums."""
        blocks = self.blocks(0, len(Window.of(convolution).spans))
        return len(blocks) * self.rows * BLOCK * self.batch_tile // 128

    def shared_memory(self, convolution: Convolution, dtype) -> int:
        """Bytes of shared memory, every buffer on a boundary of 1024."""
        window = Window.of(convolution)
        itemsize = jnp.dtype(dtype).itemsize
        buffers = (
            2 * parts(dtype) * self.slots(convolution) * BLOCK * window.depth,
            2 * parts(dtype) * self.stages * window.columns * self.batch_tile,
            itemsize * CONSUMERS * self.rows * BLOCK * self.batch_tile,
            8 * (1 + 2 * self.stages),
        )
        return sum(round_up(size, 1024) for size in buffers)

    def fits(self, convolution: Convolution, dtype) -> bool:
        """Whether `wgmma` has these products, and a block of threads room for them."""
        rows_fit = self.rows % 4 == 0 if self.arrangement == "A" else self.rows <= 16
        return (
            rows_fit
            # Results of 16 bits can be stored transposed.
            and (
                self.arrangement == "A"
                or (self.batch_tile == 64 and jnp.dtype(dtype).itemsize == 2)
            )
            and self.accumulator_registers(convolution) <= ACCUMULATOR_REGISTERS
            and self.shared_memory(convolution, dtype) <= SHARED_MEMORY
        )

    def group_input_rows(self, convolution: Convolution, group: int) -> range:
        """The input rows that meet a group of output rows."""
        return _input_rows(convolution, group * self.group_rows, self.group_rows)

    def groups(self, convolution: Convolution) -> int:
        return -(-convolution.output_size[0] // self.group_rows)

    def clocks(self, convolution: Convolution, batch: int, channels: int, dtype) -> float:
        """A rough estimate of the time that a launch takes on an H200."""
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
                    steps_of_a_row = sum(stop - start for start, stop in spans) // BLOCK
                    steps += steps_of_a_row * len(_input_rows(convolution, first, self.rows))
        tensor = steps * step * (3 if parts(dtype) == 2 else 1)
        row = 2 * parts(dtype) * window.width * self.batch_tile
        height, width = convolution.output_size
        output = height * round_up(width, 8) * self.batch_tile * itemsize
        bank = 2 * parts(dtype) * self.slots(convolution) * BLOCK * window.depth
        bank, traffic = (size / _L2_BYTES_PER_CLOCK for size in (bank, copied_rows * row + output))
        stall = copied_rows * _TRIP_CLOCKS / self.stages
        alone = _LAUNCH_CLOCKS + bank + max(tensor, traffic, stall)
        blocks = -(-channels * -(-batch // self.batch_tile) // _MULTIPROCESSORS)
        rounds = -(-blocks // self.resident_blocks(convolution, dtype))
        return max(blocks * tensor, blocks * (bank + traffic), rounds * alone)

    def resident_blocks(self, convolution: Convolution, dtype) -> int:
        """Blocks of threads that one multiprocessor has room for."""
        registers = round_up(self.accumulator_registers(convolution) + _OTHER_REGISTERS, 8)
        return min(
            _REGISTERS // (registers * 128 * (CONSUMERS + 1)),
            (SHARED_MEMORY + 1024) // (self.shared_memory(convolution, dtype) + 1024),
        )


def _input_rows(convolution: Convolution, first: int, count: int) -> range:
    """The input rows that meet the output rows first, ..., first + count - 1."""
    (height, _), (taps, _) = convolution.size, convolution.kernel_size
    top = convolution.padding[0][0]
    return range(max(0, first - top), min(height, first + count - 1 + taps - top))


def always_unsupported_reason(
    convolution: Convolution, batch: int | None, channels: int, dtype
) -> str | None:
    """What neither this kernel nor that of the kernel's gradient can compute."""
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        return f"its kernels take bfloat16, float16 and float32, not {dtype}"
    if dtype == jnp.float32 and convolution.precision == lax.Precision.HIGHEST:
        return "its kernels multiply float32 in parts of bfloat16, less exactly than HIGHEST"
    if not convolution.is_dense:
        return "its kernels have stride 1 and dilation 1"
    if not isinstance(batch, int):
        return f"its kernels are cut for one batch size, and {batch} is not known"
    if 0 in (batch, channels, *convolution.size, *convolution.output_size):
        return "the result has no elements"
    return None


def unsupported_reason(
    convolution: Convolution, batch: int | None, channels: int, dtype
) -> str | None:
    """Why the kernel cannot compute this convolution, or None if it can.

    Args:
      convolution: the convolution.
      batch: N; None or a symbol where it is not known.
      channels: C.
      dtype: of all arrays.
    """
    if reason := always_unsupported_reason(convolution, batch, channels, dtype):
        return reason
    assert batch is not None, "always_unsupported_reason requires a known batch"
    kernel, padding = convolution.kernel_size, convolution.padding
    if not 8 < max(convolution.size) <= 96:
        return f"its kernels are for maps of 9 to 96 pixels, not of {convolution.size}"
    if max(kernel) < 7:
        return f"its kernels are for 7 and more taps, not for {kernel}"
    if not all(0 <= side < k for k, sides in zip(kernel, padding, strict=True) for side in sides):
        return f"its kernels need paddings below the kernel's size {kernel}, not {padding}"
    if batch < 16:
        return f"its kernels are for batches of 16 images and more, not of {batch}"
    if not plans(convolution, jnp.dtype(dtype)):
        return f"kernels of {kernel} for maps of {convolution.size} exceed the shared memory"
    return None


def check(convolution: Convolution, batch: int, channels: int, dtype) -> None:
    """Raises a ValueError with the reason that `unsupported_reason` gives, if it gives one."""
    if reason := unsupported_reason(convolution, batch, channels, dtype):
        raise ValueError(f"The Hopper kernel cannot compute this: {reason}.")


def choose_plan(
    convolution: Convolution, batch: int, channels: int, dtype, *, packed: bool = False
) -> Plan:
    """The plan with the least estimated time.

    Args:
      convolution, batch, channels, dtype: as in `unsupported_reason`.
      packed: whether the images are packed already, so that the batch tile must divide the
        batch, a multiple of 16; otherwise packing fills the batch up.

    Raises:
      ValueError: with the reason that `unsupported_reason` gives.
    """
    check(convolution, batch, channels, dtype)
    able = plans(convolution, dtype)
    if packed:
        able = [plan for plan in able if batch % plan.batch_tile == 0]
    return min(able, key=lambda plan: plan.clocks(convolution, batch, channels, dtype))


@functools.lru_cache(maxsize=256)
def plans(convolution: Convolution, dtype) -> tuple[Plan, ...]:
    """All plans that fit."""
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
