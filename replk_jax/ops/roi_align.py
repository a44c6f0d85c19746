"""RoIAlign: features of a fixed size for boxes of any size, differentiable in the feature maps.

The rules are in `roi_tiles`. Boxes are computed in chunks of tiles of the feature map, so that no
array grows with both the number of boxes and the size of the feature map. Each tile is multiplied
by a matrix of weights for its rows and one for its columns.

Memory, beside the operands and the results: the tiles of one chunk and their products,
`roi_tiles.CHUNK_ELEMENTS` values (8 MiB in float32). With 16-bit feature maps also what is
accumulated, in float32: the results, or backward the gradients of the feature maps; and on CPUs
the other operand, since they have no 16-bit arithmetic. For 1,000 boxes, 7 x 7 bins and a feature
map of 200 x 336 pixels and 256 channels, XLA for CPUs takes 10 MiB in float32 and 115 MiB in
bfloat16, in either direction.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.ops.boxes import box_areas
from replk_jax.ops.dtypes import accumulation_dtype
from replk_jax.ops.roi_tiles import Chunk, Extent, Sampling, Tiles

# Pixels of a tile's side.
TILE = 24
_MASK_TILE = 128


def roi_align(
    feature_map: jax.Array,
    boxes: jax.Array,
    *,
    output_size: int,
    scale: float,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> jax.Array:
    """Averages bilinear samples of a feature map in a grid of bins over each box.

    Computed in at least float32 and rounded once. The gradient with respect to the feature map is
    that of PyTorch's operator; none goes to the boxes. On GPUs, gradients are summed in no fixed
    order. For several images, use `jax.vmap`.

    Args:
      feature_map: (H, W, C), floating point.
      boxes: (R, 4): x1, y1, x2, y2. Any part may be outside the feature map.
      output_size: bins per axis, s.
      scale: of the feature map relative to the boxes' coordinates: 1 / stride.
      sampling_ratio: samples per bin and axis; 0 for the size of the bin in pixels of the feature
        map, rounded up.
      aligned: whether pixel i is at i + 0.5. Otherwise it is at i, and boxes have at least the size
        of a pixel.

    Returns:
      (R, s, s, C) in the dtype of the feature map. A box without area has no samples and gives 0,
      unless `sampling_ratio` gives it some. A box with a coordinate that is not finite gives NaN.

    Raises:
      ValueError: shapes that do not fit, or a setting out of range.
    """
    boxes = jnp.asarray(boxes)
    sampling = Sampling(output_size, float(scale), sampling_ratio, aligned)
    _check((feature_map,), boxes)
    levels = jnp.zeros(len(boxes), jnp.int32)
    return _align((feature_map,), jax.lax.stop_gradient(boxes), levels, (sampling,))


def levels_roi_align(
    feature_maps: Sequence[jax.Array],
    boxes: jax.Array,
    *,
    output_size: int,
    scales: Sequence[float],
    sampling_ratio: int = 0,
    aligned: bool = True,
    finest_size: float = 56.0,
) -> jax.Array:
    """`roi_align` of each box on the level of a pyramid that fits its size; see `box_levels`.

    A box takes time on its own level only.

    Args:
      feature_maps: (H, W, C) each, the finest first, of one dtype.
      boxes: (R, 4): x1, y1, x2, y2.
      scales: of the feature maps, as for `roi_align`.
      output_size, sampling_ratio, aligned: see `roi_align`.
      finest_size: see `box_levels`.

    Returns:
      (R, s, s, C) in the dtype of the feature maps.

    Raises:
      ValueError: shapes or numbers of levels that do not fit, or a setting out of range.
    """
    boxes = jnp.asarray(boxes)
    if len(feature_maps) != len(scales) or not scales:
        raise ValueError(
            f"Each feature map needs a scale; got {len(feature_maps)} and {len(scales)}."
        )
    samplings = tuple(Sampling(output_size, float(s), sampling_ratio, aligned) for s in scales)
    _check(feature_maps, boxes)
    boxes = jax.lax.stop_gradient(boxes)
    levels = box_levels(boxes, len(scales), finest_size)
    return _align(tuple(feature_maps), boxes, levels, samplings)


def box_levels(boxes: jax.Array, levels: int, finest_size: float = 56.0) -> jax.Array:
    """The level of a pyramid for each box: floor(log2(sqrt(area) / finest_size + 1e-6)), in range.

    Equation 1 of "Feature Pyramid Networks", https://arxiv.org/abs/1612.03144, as in mmdetection.

    Args:
      boxes: (..., 4).
      levels: the number of levels.
      finest_size: level 0 has the boxes of less than twice this size.

    Returns:
      int32 (...), from 0 to `levels` - 1; 0 for a box whose area is not a number.
    """
    size = jnp.sqrt(jnp.maximum(box_areas(boxes), 0)) / finest_size + 1e-6
    # Comparisons, since logarithms round.
    return sum(
        ((size >= 2**level).astype(jnp.int32) for level in range(1, levels)),
        start=jnp.zeros(size.shape, jnp.int32),
    )


def mask_targets(
    masks: jax.Array,
    boxes: jax.Array,
    objects: jax.Array,
    *,
    width: int | None = None,
    size: int = 28,
) -> jax.Array:
    """The mask of a box's object within the box, as a mask head learns it.

    `roi_align` (adaptive, aligned) of the mask, cut at 0.5. Masks stay packed, but for the tiles
    that are read.

    Args:
      masks: uint8 (M, H, ceil(W / 8)), as by `numpy.packbits(..., axis=-1)`; see `Truths`.
      boxes: (R, 4) in pixels of the masks.
      objects: int (R,), the mask of each box.
      width: W; without it, all bits are pixels. It matters at the right border only.
      size: bins per axis.

    Returns:
      bool (R, size, size).

    Raises:
      ValueError: shapes or dtypes that do not fit.
    """
    masks, boxes, objects = jnp.asarray(masks), jnp.asarray(boxes), jnp.asarray(objects)
    if masks.ndim != 3 or masks.dtype != jnp.uint8 or 0 in masks.shape:
        raise ValueError(
            "Masks are packed: uint8 (M, H, ceil(W / 8)), at least one; got "
            f"{masks.dtype} {masks.shape}."
        )
    if boxes.ndim != 2 or boxes.shape[1] != 4 or objects.shape != boxes.shape[:1]:
        raise ValueError(
            f"mask_targets takes boxes (R, 4) and objects (R,); got {boxes.shape} and "
            f"{objects.shape}."
        )
    _, height, in_bytes = masks.shape
    width = 8 * in_bytes if width is None else width
    if -(-width // 8) != in_bytes:
        raise ValueError(f"{width} pixels are {-(-width // 8)} bytes; the masks have {in_bytes}.")
    if not len(boxes):
        return jnp.zeros((0, size, size), bool)
    boxes = jax.lax.stop_gradient(boxes.astype(accumulation_dtype(boxes.dtype)))
    rows = Extent(height, min(_MASK_TILE, height), height)
    columns = Extent(width, min(_MASK_TILE, 8 * in_bytes), 8 * in_bytes, multiple=8)
    everything = jnp.ones(len(boxes), bool)
    tiles = Tiles.of(boxes, everything, (rows, columns), Sampling(size, 1.0, 0, True), 1)
    objects = objects.astype(jnp.int32)

    def read(chunk: Chunk) -> jax.Array:
        """(P, rows, columns, 1) of 0 and 1."""

        def packed(number, top, left):
            shape = (1, rows.tile, columns.tile // 8)
            return jax.lax.dynamic_slice(masks, (number, top, left // 8), shape)[0]

        whose = objects[jnp.minimum(chunk.box, len(boxes) - 1)]
        found = jnp.unpackbits(jax.vmap(packed)(whose, chunk.top, chunk.left), axis=-1)
        return found[..., None].astype(boxes.dtype)

    means = jnp.zeros((len(boxes), size, size, 1), boxes.dtype)
    means = tiles.fold(lambda chunk, total: _add_means(total, chunk, read(chunk)), means)
    return means[..., 0] >= 0.5


def _check(feature_maps: Sequence[jax.Array], boxes: jax.Array) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"Boxes have shape (R, 4), with jax.vmap for batches; got {boxes.shape}.")
    for each in feature_maps:
        if each.ndim != 3 or 0 in each.shape or not jnp.issubdtype(each.dtype, np.floating):
            raise ValueError(
                "A feature map is floating point (H, W, C), with jax.vmap for batches; got "
                f"{each.dtype} {each.shape}."
            )
    kinds = {(each.dtype, each.shape[-1]) for each in feature_maps}
    if len(kinds) > 1:
        raise ValueError(
            "The feature maps of a pyramid have one dtype and one number of channels; got "
            + " and ".join(sorted(f"{dtype} of {channels}" for dtype, channels in kinds))
        )


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _align(
    feature_maps: tuple[jax.Array, ...],
    boxes: jax.Array,
    levels: jax.Array,
    samplings: tuple[Sampling, ...],
) -> jax.Array:
    """RoIAlign of each box on its level.

    Args:
      feature_maps: (H, W, C) each.
      boxes: (R, 4).
      levels: int32 (R,), the feature map of each box.
      samplings: on each feature map.
    """
    channels, dtype = feature_maps[0].shape[-1], feature_maps[0].dtype
    wide, size = accumulation_dtype(dtype), samplings[0].output_size
    means = jnp.zeros((len(boxes), size, size, channels), wide)
    for level, (feature_map, sampling) in enumerate(zip(feature_maps, samplings, strict=True)):

        def add(chunk, total, feature_map=feature_map):
            return _add_means(total, chunk, _windows(feature_map, chunk).astype(wide))

        tiles = _tiles(feature_map.shape, boxes, levels == level, sampling)
        means = tiles.fold(add, means) if tiles else means
    finite = jnp.isfinite(boxes).all(axis=-1)[:, None, None, None]
    return jnp.where(finite, means, jnp.nan).astype(dtype)


def _align_forward(feature_maps, boxes, levels, samplings):
    # Arrays of no size carry the shapes: numbers would be traced.
    shapes = [jnp.zeros((*each.shape[:2], 0), each.dtype) for each in feature_maps]
    return _align(feature_maps, boxes, levels, samplings), (shapes, boxes, levels)


def _align_backward(samplings, saved, cotangent):
    shapes, boxes, levels = saved
    channels, dtype = cotangent.shape[-1], cotangent.dtype
    wide = accumulation_dtype(dtype)
    gradients = []
    for level, (empty, sampling) in enumerate(zip(shapes, samplings, strict=True)):

        def add(chunk, total):
            means = cotangent[jnp.minimum(chunk.box, len(cotangent) - 1)].astype(wide)
            return _add_windows(total, chunk, _spread(means, chunk))

        shape = (*empty.shape[:2], channels)
        gradient = jnp.zeros(shape, wide)
        tiles = _tiles(shape, boxes, levels == level, sampling)
        gradients.append((tiles.fold(add, gradient) if tiles else gradient).astype(dtype))
    return tuple(gradients), None, None


_align.defvjp(_align_forward, _align_backward)


def _tiles(
    shape: tuple[int, ...], boxes: jax.Array, selected: jax.Array, sampling: Sampling
) -> Tiles | None:
    """The tiles of the selected boxes on a feature map of this shape; None without boxes."""
    if not len(boxes):
        return None
    height, width, channels = shape
    extents = Extent(height, min(TILE, height), height), Extent(width, min(TILE, width), width)
    boxes = boxes.astype(accumulation_dtype(boxes.dtype))
    return Tiles.of(boxes, selected, extents, sampling, channels)


def _windows(feature_map: jax.Array, chunk: Chunk) -> jax.Array:
    """The tiles of a chunk: (P, T, T, C)."""
    shape = (chunk.down.shape[-1], chunk.across.shape[-1], feature_map.shape[-1])

    def window(top, left):
        return jax.lax.dynamic_slice(feature_map, (top, left, jnp.zeros_like(top)), shape)

    return jax.vmap(window)(chunk.top, chunk.left)


def _add_windows(feature_map: jax.Array, chunk: Chunk, windows: jax.Array) -> jax.Array:
    """Adds to a feature map what `_windows` would read: its transpose."""
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2, 3),
        inserted_window_dims=(),
        scatter_dims_to_operand_dims=(0, 1),
    )
    starts = jnp.stack([chunk.top, chunk.left], axis=-1)
    mode = jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS
    return jax.lax.scatter_add(feature_map, starts, windows, numbers, mode=mode)


_einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _add_means(means: jax.Array, chunk: Chunk, windows: jax.Array) -> jax.Array:
    """Adds the part of the windows to the means (R, s, s, C) of their boxes."""
    down, across = _matrices(chunk, windows.dtype)
    part = _einsum("pijw,piwc->pijc", across, _einsum("pih,phwc->piwc", down, windows))
    return means.at[chunk.box].add(part, mode="drop")


def _spread(means: jax.Array, chunk: Chunk) -> jax.Array:
    """The transpose of `_add_means` for each tile: from (P, s, s, C) to (P, T, T, C)."""
    down, across = _matrices(chunk, means.dtype)
    return _einsum("pih,piwc->phwc", down, _einsum("pijw,pijc->piwc", across, means))


def _matrices(chunk: Chunk, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The weights of the rows (P, s, T), and of the columns for each row of bins (P, s, s, T).

    With the row of bins as another batch axis, a product needs no transposition: on two CPU cores
    it takes a sixth of the time.
    """
    down, across = chunk.down.astype(dtype), chunk.across.astype(dtype)
    bins = down.shape[1]
    return down, jnp.broadcast_to(across[:, None], (len(down), bins, *across.shape[1:]))
