"""From logits to classes at the original size of an image: whole or sliding test, several views.

A test resizes the image, runs the network on the whole of it or on overlapping windows, resizes
the logits of each window to its size, averages them where windows overlap, and resizes the result
to the original size of the image. All of it is linear and acts on rows and columns separately: so
the class scores at the original size are `rows @ logits @ columns.T` for each class, where `logits`
are those of all windows side by side, and the two matrices are products of all resizing matrices
and averages (`score_matrices`). They are computed in float64 on the host.

A view is one size of the image, plain or flipped. With one view the predicted class is the largest
score; with several, that of the largest mean of the views' softmaxes. Scores exist only for some
rows or columns at a time: memory grows with the number of pixels, not with that times the classes.

This is the test of mmsegmentation (`EncoderDecoder.inference`, `MultiScaleFlipAug`).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.ops.resize import linear_taps

Size = tuple[int, int]  # (height, width) in pixels

LARGEST_NUMBER_OF_CLASSES = 255  # of a class map in uint8, in which 255 are the ignored pixels
_CHUNK_BYTES = 1 << 26


@dataclasses.dataclass(frozen=True)
class Windows:
    """The parts of a resized image that the network sees: a grid of windows of one size.

    Attributes:
      size: (height, width) of each.
      tops: the first row of each row of windows.
      lefts: the first column of each column of windows.
    """

    size: Size
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @property
    def grid(self) -> Size:
        """Number of windows in a column and in a row."""
        return len(self.tops), len(self.lefts)

    @property
    def count(self) -> int:
        """Number of windows, n."""
        return len(self.tops) * len(self.lefts)

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The windows of an image (H', W', C), row by row: (n, h, w, C)."""
        return np.stack([image[part] for part in self._parts()])

    def cut_batch(self, images: jax.Array) -> jax.Array:
        """The windows of images (N, H', W', C), one image after the other: (N n, h, w, C)."""
        cut = jnp.stack([images[:, *part] for part in self._parts()], 1)
        return cut.reshape(-1, *cut.shape[2:])

    def _parts(self) -> list[tuple[slice, slice]]:
        height, width = self.size
        return [(slice(y, y + height), slice(x, x + width)) for y in self.tops for x in self.lefts]


def place_windows(image_size: Size, window: int | None = None, stride: int = 0) -> Windows:
    """The windows of an image.

    They are at multiples of the stride. One that would not fit into the image is moved back into
    it, so overlaps can differ. A side shorter than the window is used as it is.

    Args:
      image_size: of the resized image.
      window: side of the windows; None for the whole image.
      stride: distance of neighbours; only with `window`.
    """
    if window is None:
        return Windows(image_size, (0,), (0,))
    tops, lefts = (_positions(side, window, stride) for side in image_size)
    return Windows((min(image_size[0], window), min(image_size[1], window)), tops, lefts)


def _positions(side: int, window: int, stride: int) -> tuple[int, ...]:
    last = max(side - window, 0)
    return tuple(min(i * stride, last) for i in range(-(-last // stride) + 1))


def score_matrices(
    windows: Windows,
    logits_size: Size,
    image_size: Size,
    original_size: Size,
    align_corners: bool,
    *,
    flipped: bool = False,
    padded_size: Size | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The matrices that give the class scores at the original size.

    Args:
      windows: of the resized image.
      logits_size: (h, w) of the network's logits for one window.
      image_size: (height, width) of the resized image. What windows have beyond it on the right
        or at the bottom is padding, and is cut off.
      original_size: (H, W) of the image.
      align_corners: of all resizing; see `ops.resize.bilinear_matrix`.
      flipped: whether the network saw the mirrored image. The scores are those of the original.
      padded_size: at least `original_size`: rows of zeros are added to the matrices up to it, so
        that images of different sizes have matrices of one shape.

    Returns:
      Float32 (H, n h) and (W, m w), where (n, m) is the grid of windows.

    Raises:
      ValueError: a size below 1.
    """
    matrices = []
    for axis, starts in enumerate((windows.tops, windows.lefts)):
        average = _window_average(
            starts, windows.size[axis], logits_size[axis], image_size[axis], align_corners
        )
        lower, upper, fraction = linear_taps(original_size[axis], image_size[axis], align_corners)
        fraction = fraction[:, None]
        matrix = (1 - fraction) * average[lower] + fraction * average[upper]
        if axis == 1 and flipped:
            matrix = matrix[::-1]
        if padded_size is not None:
            matrix = np.pad(matrix, ((0, padded_size[axis] - original_size[axis]), (0, 0)))
        matrices.append(matrix.astype(np.float32))
    return matrices[0], matrices[1]


def _window_average(
    starts: Sequence[int], window: int, size: int, side: int, align_corners: bool
) -> np.ndarray:
    """Resizes the logits of the windows of an axis, and averages them: float64 (side, n size).

    The number of windows over a pixel is the product of the numbers over its row and its column,
    so the average of windows is the average by rows of that by columns.
    """
    lower, upper, fraction = linear_taps(window, size, align_corners)
    matrix = np.zeros((side, len(starts) * size))
    counts = np.zeros((side, 1))
    for i, start in enumerate(starts):
        rows = np.arange(min(window, side - start))
        matrix[start + rows, i * size + lower[rows]] += 1 - fraction[rows]
        matrix[start + rows, i * size + upper[rows]] += fraction[rows]
        counts[start + rows] += 1
    return matrix / counts


class View(NamedTuple):
    """The logits of images in one view, and the matrices that give the scores.

    Attributes:
      logits: of all windows side by side, float32 (N, r, c, K), from `side_by_side`.
      rows: (N, H, r).
      columns: (N, W, c), from `score_matrices`.
    """

    logits: jax.Array
    rows: jax.Array | np.ndarray
    columns: jax.Array | np.ndarray


def side_by_side(logits: jax.Array, grid: Size) -> jax.Array:
    """Puts the logits of windows side by side.

    Args:
      logits: (N n m, h, w, K), in the order of the images and `Windows.cut`.
      grid: (n, m) of the windows.

    Returns:
      (N, n h, m w, K).
    """
    (n, m), (h, w, classes) = grid, logits.shape[1:]
    split = logits.reshape(-1, n, m, h, w, classes)
    return split.swapaxes(2, 3).reshape(-1, n * h, m * w, classes)


def class_maps(views: Sequence[View]) -> jax.Array:
    """The predicted class of each pixel: the first of those with the largest score.

    Args:
      views: of the same images.

    Returns:
      uint8 (N, H, W). Scores that are NaN give no error: see `finite_logits`.

    Raises:
      ValueError: more than 255 classes.
    """
    classes = views[0].logits.shape[-1]
    if classes > LARGEST_NUMBER_OF_CLASSES:
        raise ValueError(
            f"A class map has at most {LARGEST_NUMBER_OF_CLASSES} classes; got {classes}."
        )

    def predict(scores: Sequence[jax.Array]) -> jax.Array:
        best = scores[0] if len(scores) == 1 else _mean_softmax(scores)
        return best.argmax(-1).astype(jnp.uint8)

    return _in_chunks(predict, views)


def class_probabilities(views: Sequence[View]) -> jax.Array:
    """The probabilities of the classes: the mean of the softmaxes of the views.

    Args:
      views: of the same images.

    Returns:
      Float32 (N, H, W, K).
    """
    return _in_chunks(_mean_softmax, views)


def class_scores(view: View) -> jax.Array:
    """The class scores at the original size, before the softmax: float32 (N, H, W, K)."""
    return _in_chunks(lambda scores: scores[0], [view])


def finite_logits(views: Sequence[View]) -> jax.Array:
    """Whether all logits of an image are finite: bool (N,)."""
    return jnp.stack([jnp.isfinite(view.logits).all((1, 2, 3)) for view in views]).all(0)


def _mean_softmax(scores: Sequence[jax.Array]) -> jax.Array:
    total = sum(jax.nn.softmax(score) for score in scores[1:])
    return (jax.nn.softmax(scores[0]) + total) / len(scores)


def _in_chunks(
    function: Callable[[Sequence[jax.Array]], jax.Array], views: Sequence[View]
) -> jax.Array:
    """Applies a function of the views' scores (..., K) to those of some rows at a time.

    Or of some columns, where that takes fewer multiplications.

    Args:
      function: maps arrays (..., K) to an array (...) or (..., K).
      views: of the same images.

    Returns:
      (N, H, W) or (N, H, W, K).
    """
    transposed = [View(v.logits.swapaxes(1, 2), v.columns, v.rows) for v in views]
    if _multiplications(transposed) < _multiplications(views):
        return _in_chunks_of_rows(function, transposed).swapaxes(1, 2)
    return _in_chunks_of_rows(function, views)


def _multiplications(views: Sequence[View]) -> int:
    """In a row of scores of each image, for each class."""
    rows = views[0].rows.shape[1]
    return sum(rows * v.columns.shape[2] * (v.rows.shape[2] + v.columns.shape[1]) for v in views)


def _in_chunks_of_rows(
    function: Callable[[Sequence[jax.Array]], jax.Array], views: Sequence[View]
) -> jax.Array:
    count, height, _ = views[0].rows.shape
    row_bytes = 4 * len(views) * views[0].columns.shape[1] * views[0].logits.shape[-1]
    if isinstance(count, int):  # not symbolic, as in an exported program
        row_bytes *= max(1, count)
    chunks = math.ceil(height / max(1, _CHUNK_BYTES // row_bytes))
    size = -(-height // chunks)  # of a chunk
    chunks = -(-height // size)

    def chunk(rows: Sequence[jax.Array]) -> jax.Array:
        scores = []
        for view, some in zip(views, rows, strict=True):
            product = jnp.einsum("nhr,nrck->nchk", some, view.logits, precision="highest")
            # In this order of axes, the product for all rows and classes is one of two matrices.
            scores.append(jnp.einsum("nwc,nchk->nwhk", view.columns, product, precision="highest"))
        return function(scores)

    def split(rows: jax.Array | np.ndarray) -> jax.Array:
        padded = jnp.pad(rows, ((0, 0), (0, chunks * size - height), (0, 0)))
        return padded.reshape(count, chunks, size, -1).swapaxes(0, 1)

    parts = jax.lax.map(chunk, [split(view.rows) for view in views])  # (chunks, N, W, h, ...)
    joined = jnp.moveaxis(parts, 2, 3).swapaxes(0, 1)  # (N, chunks, h, W, ...)
    return joined.reshape(count, chunks * size, *joined.shape[3:])[:, :height]
