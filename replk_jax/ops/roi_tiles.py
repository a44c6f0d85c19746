"""The samples of RoIAlign on the two axes of a feature map, and the tiles that cover them.

RoIAlign (He et al., "Mask R-CNN", https://arxiv.org/abs/1703.06870) divides a box into bins,
samples each bin at regular positions by bilinear interpolation, and takes the mean. The rules are
those of mmcv's `roi_align` with `pool_mode="avg"`: a sample less than -1 or beyond the size of the
axis is 0, and others are moved into the feature map. Samples form a grid, so that a bin's mean is a
product of weights of the rows and weights of the columns, `Axis.weights`.

A box may cover any part of the feature map. `Tiles` lists tiles of one fixed size that together
cover the samples of all boxes, in chunks of a fixed number: most boxes have one, long ones several.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from replk_jax.ops.batch_loops import largest_of_batch

# Elements of the tiles of one chunk.
CHUNK_ELEMENTS = 1 << 21
# Adaptive samples are more than half a pixel apart if a bin has several. Fewer than six of them are
# within a pixel of a row, also after rounding.
_NEAR = 6

State = TypeVar("State")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How boxes are sampled.

    Attributes:
      output_size: bins per axis.
      scale: pixels of the feature map per unit of the boxes' coordinates.
      ratio: samples per bin and axis; 0 for the size of the bin in pixels, rounded up.
      aligned: whether pixel i is at i + 0.5. Otherwise it is at i, and boxes have at least the size
        of a pixel.
    """

    output_size: int
    scale: float
    ratio: int
    aligned: bool

    def __post_init__(self):
        if self.output_size < 1:
            raise ValueError(f"output_size must be at least 1; got {self.output_size}.")
        if not self.scale > 0:
            raise ValueError(f"The scale of a feature map must be positive; got {self.scale}.")
        if self.ratio < 0:
            raise ValueError(
                "sampling_ratio must be a number of samples, or 0 for as many as a bin has pixels; "
                f"got {self.ratio}."
            )


@dataclasses.dataclass(frozen=True)
class Extent:
    """An axis of a feature map, and how it is read.

    Attributes:
      size: positions of the feature map.
      tile: positions of a tile, at most `stored`.
      stored: positions of the array, at least `size`.
      multiple: tiles start at a multiple of it; divides `tile` and `stored`.
    """

    size: int
    tile: int
    stored: int
    multiple: int = 1


class Axis(NamedTuple):
    """The samples of R boxes on one axis; all arrays are (R,).

    Attributes:
      start: where the first bin begins, in pixels of the feature map.
      bin: size of a bin.
      samples: number per bin, floating point.
      first: int32, the first position that is read.
      tiles: int32, the number of tiles from there; 0 if no sample counts.
    """

    start: jax.Array
    bin: jax.Array
    samples: jax.Array
    first: jax.Array
    tiles: jax.Array

    @classmethod
    def of(cls, low: jax.Array, high: jax.Array, extent: Extent, sampling: Sampling) -> "Axis":
        """The samples of boxes from `low` to `high`, (R,), floating point."""
        offset = 0.5 if sampling.aligned else 0.0
        start = low * sampling.scale - offset
        size = high * sampling.scale - offset - start
        if not sampling.aligned:
            size = jnp.maximum(size, 1)
        finite = jnp.isfinite(start) & jnp.isfinite(size)
        # XLA would multiply by the reciprocal of a constant. The rounding of the product makes
        # whole quotients larger, and adds a sample.
        bin = size / jnp.where(finite, float(sampling.output_size), 1.0).astype(size.dtype)
        if sampling.ratio:
            samples = jnp.full_like(bin, sampling.ratio)
        else:
            samples = jnp.maximum(jnp.ceil(bin), 0)
        half_step = 0.5 * bin / jnp.maximum(samples, 1)
        ends = start + half_step, start + sampling.output_size * bin - half_step
        lowest, highest = jnp.minimum(*ends), jnp.maximum(*ends)
        read = finite & (samples > 0) & (highest >= -1) & (lowest <= extent.size)
        first, last = (
            jnp.clip(jnp.where(read, end, 0), 0, extent.size - 1).astype(jnp.int32)
            for end in (lowest, highest)
        )
        first -= first % extent.multiple
        last = jnp.minimum(last + 1, extent.size - 1)
        tiles = jnp.where(read, (last - first) // extent.tile + 1, 0)
        return cls(start, bin, samples, first, tiles)

    def weights(self, positions: jax.Array, extent: Extent, sampling: Sampling) -> jax.Array:
        """The weight of each position in the mean of each bin.

        Args:
          positions: int32 (R, T), of the feature map.
          extent, sampling: as in `of`.

        Returns:
          (R, output_size, T) in the dtype of the boxes.
        """
        start, size, samples = (
            each[:, None, None] for each in (self.start, self.bin, self.samples)
        )
        shape = (len(positions), sampling.output_size, positions.shape[1])
        bins = jnp.arange(sampling.output_size, dtype=start.dtype)[None, :, None]
        near = jnp.broadcast_to(positions[:, None].astype(start.dtype), shape)
        corner = jnp.broadcast_to(start + bins * size, shape)
        if sampling.ratio:
            first, number = jnp.zeros(shape, start.dtype), sampling.ratio
        else:
            step = size / jnp.maximum(samples, 1)
            first = jnp.floor((near - 1 - corner) / jnp.where(step > 0, step, 1) - 0.5)
            first = jnp.clip(first, 0, jnp.maximum(samples - _NEAR, 0))
            number = _NEAR
        total = jnp.zeros(shape, start.dtype)
        for k in range(number):
            y = corner + (first + k + 0.5) * size / jnp.maximum(samples, 1)
            counts = (first + k < samples) & (y >= -1) & (y <= extent.size)
            distance = jnp.abs(jnp.clip(y, 0, extent.size - 1) - near)
            total += jnp.where(counts, jnp.maximum(1 - distance, 0), 0)
        return total / jnp.maximum(samples, 1)


class Chunk(NamedTuple):
    """P tiles.

    Attributes:
      box: int32 (P,), the box of each; R for none.
      top, left: int32 (P,), where it starts.
      down: (P, output_size, T), the weights of its rows in the means of the box.
      across: the same for its columns.
    """

    box: jax.Array
    top: jax.Array
    left: jax.Array
    down: jax.Array
    across: jax.Array


@dataclasses.dataclass(frozen=True)
class Tiles:
    """The tiles of R boxes on a feature map.

    Attributes:
      rows, columns: the samples of all boxes.
      ends: int32 (R,), the number of tiles of each box and those before it.
      extents: of the rows and the columns.
      sampling: of the boxes.
      per_chunk: the number of tiles of a chunk.
    """

    rows: Axis
    columns: Axis
    ends: jax.Array
    extents: tuple[Extent, Extent]
    sampling: Sampling
    per_chunk: int

    @classmethod
    def of(
        cls,
        boxes: jax.Array,
        selected: jax.Array,
        extents: tuple[Extent, Extent],
        sampling: Sampling,
        channels: int,
    ) -> "Tiles":
        """The tiles of the selected boxes.

        Args:
          boxes: (R, 4), floating point.
          selected: bool (R,).
          extents: of the rows and the columns.
          sampling: of the boxes.
          channels: of the feature map, by which chunks have more or fewer tiles.
        """
        rows = Axis.of(boxes[:, 1], boxes[:, 3], extents[0], sampling)
        columns = Axis.of(boxes[:, 0], boxes[:, 2], extents[1], sampling)
        ends = jnp.cumsum(jnp.where(selected, rows.tiles * columns.tiles, 0), dtype=jnp.int32)
        elements = extents[0].tile * extents[1].tile * channels
        per_chunk = max(1, min(len(boxes), CHUNK_ELEMENTS // elements))
        return cls(rows, columns, ends, extents, sampling, per_chunk)

    def fold(self, step: Callable[[Chunk, State], State], state: State) -> State:
        """Calls `step` with all chunks in turn and with what it returned for the one before.

        A chunk without tiles, which the shorter of a batch get, has weights of 0 only.
        """
        chunks = largest_of_batch((self.ends[-1] + self.per_chunk - 1) // self.per_chunk)
        return jax.lax.fori_loop(0, chunks, lambda i, state: step(self._chunk(i), state), state)

    def _chunk(self, index: Any) -> Chunk:
        tiles = index * self.per_chunk + jnp.arange(self.per_chunk, dtype=jnp.int32)
        box = jnp.sum(self.ends[None] <= tiles[:, None], axis=1, dtype=jnp.int32)
        there = box < len(self.ends)
        known = jnp.minimum(box, len(self.ends) - 1)
        rows, columns = (
            Axis(*(each[known] for each in axis)) for axis in (self.rows, self.columns)
        )
        # The last tile of a box is that before `ends`.
        within = tiles - self.ends[known] + rows.tiles * columns.tiles
        across = jnp.maximum(columns.tiles, 1)
        top, down = self._read(0, rows, within // across, there)
        left, across = self._read(1, columns, within % across, there)
        return Chunk(box, top, left, down, across)

    def _read(
        self, which: int, axis: Axis, tile: jax.Array, there: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Where tiles start on an axis, and their weights."""
        extent = self.extents[which]
        due = axis.first + tile * extent.tile
        # Moved into the array, a tile repeats positions of the one before it.
        start = jnp.clip(due, 0, extent.stored - extent.tile)
        positions = start[:, None] + jnp.arange(extent.tile, dtype=jnp.int32)[None]
        new = (positions >= due[:, None]) & (positions < extent.size) & there[:, None]
        weights = axis.weights(positions, extent, self.sampling)
        return start, jnp.where(new[:, None], weights, 0)
