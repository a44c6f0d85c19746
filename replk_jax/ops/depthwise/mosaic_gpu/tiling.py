"""Tilings of the gradient with respect to the kernel, and their costs.

The symbols are those of the formulas in `replk_jax.ops.depthwise.mosaic_gpu.kernel_gradient`.
"""

import dataclasses
import functools

from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.mosaic_gpu.plan import CONSUMERS, SHARED_MEMORY, round_up

TILE = 64
"""Rows of the result of `wgmma`: the maximum number of pixels of a tile of g."""

ACCUMULATOR_COLUMNS = 256
"""Columns of such results, in float32, that fit into the registers of a warpgroup."""


@dataclasses.dataclass(frozen=True)
class Tiling:
    """A division of the products into tiles.

    Attributes:
      rows: R.
      columns: B.
      lead: columns from the start of the window of a tile to the tile; a multiple of 8.
      window: the number of values of a; a multiple of 8.
      tiles: the number of values of b.
      width: W', the columns of the packed x.
      shifts: the number of values of s.
      accumulators: values of s that one warpgroup sums at a time.
      images: images that are multiplied at a time.
      ahead: the maximum number of stages that the copies are ahead of the products.
    """

    rows: int
    columns: int
    lead: int
    window: int
    tiles: int
    width: int
    shifts: int
    accumulators: int
    images: int
    ahead: int

    @property
    def group(self) -> int:
        """Values of s that one thread block sums."""
        return CONSUMERS * self.accumulators

    @property
    def groups(self) -> int:
        return -(-self.shifts // self.group)

    @property
    def overlap(self) -> int:
        """Stages of x that a tile of g needs, besides the newest. A stage has R rows."""
        return -(-self.group // self.rows) - 1

    @property
    def x_stages(self) -> int:
        return self.overlap + 1 + self.ahead

    @property
    def g_stages(self) -> int:
        return 1 + self.ahead

    @property
    def gap(self) -> int:
        """Columns of zeros that the windows need between two rows of x."""
        last = self.columns * (self.tiles - 1) - self.lead + self.window
        return max(0, self.lead, last - self.width)

    @property
    def ring_columns(self) -> int:
        """Columns of all stages of x: a gap, a row, a gap, ..., a gap."""
        return self.gap + self.x_stages * self.rows * (self.width + self.gap)

    @property
    def shared_memory(self) -> int:
        """Bytes of shared memory, including those for alignment."""
        operands = self.ring_columns + self.g_stages * self.tiles * TILE
        return 2 * operands * self.images + 4 * CONSUMERS * TILE * self.window + 4096

    @property
    def cost(self) -> float:
        """A measure proportional to the shared memory that `wgmma` reads per row of g."""
        return self.groups * self.group * self.tiles * (TILE + self.window) / self.rows


@functools.lru_cache(maxsize=256)
def choose_tiling(convolution: Convolution, batch: int) -> Tiling | None:
    """The cheapest tiling that fits, or None.

    Args:
      convolution: one of stride and dilation 1.
      batch: N', a multiple of 16.
    """
    (kernel_height, kernel_width), (_, (left, _)) = convolution.kernel_size, convolution.padding
    width = round_up(convolution.size[1], 8)
    output_width = round_up(convolution.output_size[1], 8)

    # Tiles of whole rows need no zeros next to the image. Small tiles skip products of columns at a
    # distance greater than the width of the kernel.
    lead = round_up(left, 8)
    shapes = [(4, 16, lead, round_up(16 - 1 + kernel_width - left + lead, 8))]
    if output_width <= TILE:
        shapes.append((TILE // output_width, output_width, 0, width))

    tilings = []
    for rows, columns, lead, window in shapes:
        shifts = kernel_height + rows - 1
        # Every group reads all of x and g, so the number of groups is the minimum.
        most = CONSUMERS * (ACCUMULATOR_COLUMNS // window)
        if most == 0:
            continue
        accumulators = -(-shifts // (CONSUMERS * -(-shifts // most)))
        tiles = -(-output_width // columns)
        choices = [
            Tiling(rows, columns, lead, window, tiles, width, shifts, accumulators, images, ahead)
            for images in (64, 32, 16)
            if batch % images == 0
            for ahead in (3, 2, 1)
        ]
        tilings += [choice for choice in choices if choice.shared_memory <= SHARED_MEMORY][:1]
    return min(tilings, key=lambda tiling: tiling.cost, default=None)
