"""Confusion matrices, and mIoU and accuracies from them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.vision.label_sets import IGNORED
from train.engine.task import Table


def confusion_matrix(
    predicted: jax.Array, labels: jax.Array, mask: jax.Array, num_classes: int
) -> jax.Array:
    """Counts pixels by class, on the devices.

    Args:
      predicted: classes, integers (N, H, W).
      labels: classes or `IGNORED`, integers (N, H, W).
      mask: bool (N,), False for examples that do not count.
      num_classes: K.

    Returns:
      Int32 (K, K): entry (i, j) is the number of pixels of class i that are predicted as class j.

    Raises:
      ValueError: 2**31 pixels or more, whose number may not fit in an int32. A batch has fewer: up
        to 1,023 images of 2048 x 1024 pixels.
    """
    if predicted.size >= 2**31:
        raise ValueError(
            f"A batch to evaluate has {predicted.size} pixels; lower --config.eval_batch_size so "
            "that it has less than 2**31."
        )
    labels, predicted = labels.astype(jnp.int32), predicted.astype(jnp.int32)
    counts = (labels != IGNORED) & mask[:, None, None]
    pairs = jnp.where(counts, labels * num_classes + predicted, num_classes**2)
    flat = jnp.zeros(num_classes**2, jnp.int32).at[pairs.ravel()].add(1, mode="drop")
    return flat.reshape(num_classes, num_classes)


def scores(confusion: np.ndarray) -> dict[str, float]:
    """The scores of a confusion matrix, between 0 and 1, as mmsegmentation computes them.

    Args:
      confusion: int64 (K, K), of the whole data set.

    Returns:
      `mIoU` and `mAcc`, the means over classes of what `by_class` has, without NaN; and `aAcc`, the
      share of pixels that are predicted correctly. All are NaN if no pixel has a class.
    """
    iou, accuracy = _by_class(confusion)
    total = confusion.sum()
    return {
        "mIoU": _mean(iou),
        "mAcc": _mean(accuracy),
        "aAcc": float(np.trace(confusion) / total) if total else float("nan"),
    }


def by_class(confusion: np.ndarray, class_names: Sequence[str]) -> Table:
    """The scores of each class, between 0 and 1.

    Args:
      confusion: see `scores`.
      class_names: K names.

    Returns:
      By class name, `IoU` (intersection over union), None if the class is neither in the labels nor
      predicted; and `Acc` (recall), None if it is not in the labels.
    """
    columns = dict(zip(("IoU", "Acc"), _by_class(confusion), strict=True))
    return {
        name: {column: _number(values[index]) for column, values in columns.items()}
        for index, name in enumerate(class_names)
    }


def _by_class(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU and accuracy, float64 (K,), with NaN."""
    correct, labelled = np.diag(confusion), confusion.sum(axis=1)
    union = labelled + confusion.sum(axis=0) - correct
    return _ratio(correct, union), _ratio(correct, labelled)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
