"""Pictures of segmentation: inputs of the network, and truth beside prediction."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from replk_jax.vision import label_drawing
from replk_jax.vision.label_sets import IGNORED, LabelSet
from train.engine.task import Rows
from train.tasks.panels import shown, side_by_side

_OPACITY = 0.7  # of colours over truth and prediction


def draw_predictions(labels: LabelSet, rows: Rows, predictions: Any) -> Iterator[np.ndarray]:
    """Pictures of image, truth and prediction side by side, with a legend of their classes.

    Args:
      labels: the classes.
      rows: of a batch of `SizedEvaluation`, with the images.
      predictions: of the metrics, for these rows first; `classes` are class maps.

    Yields:
      uint8 (H, W, 3).
    """
    for i in np.flatnonzero(rows["mask"]):
        height, width = map(int, rows["size"][i])
        arrays = rows["image"][i], rows["label"][i], np.asarray(predictions["classes"])[i]
        image, truth, predicted = (shown(array[:height, :width]) for array in arrays)
        panels = {
            "image": image,
            "truth": label_drawing.overlay(image, truth, labels.palette, _OPACITY),
            "prediction": label_drawing.overlay(image, predicted, labels.palette, _OPACITY),
        }
        seen = class_names_in(np.stack([truth, predicted]), labels)
        yield label_drawing.with_legend(side_by_side(panels), seen, labels.palette)


def draw_inputs(rows: Rows, labels: LabelSet) -> tuple[np.ndarray, list[list[str]]]:
    """Training images beside their masks in colours, and captions.

    Args:
      rows: with `image`, uint8 (N, H, W, 3), and `mask`, uint8 (N, H, W).
      labels: the classes.

    Returns:
      Pictures, uint8 (N, H, 2 W, 3); and for each the names of its two most frequent classes, with
      their shares.
    """
    pictures, captions = [], []
    for image, mask in zip(rows["image"], rows["mask"], strict=True):
        overlaid = label_drawing.overlay(image, mask, labels.palette)
        pictures.append(np.concatenate([image, overlaid], axis=1))
        shares = list(label_drawing.shares(mask).items())[:2]
        captions.append([f"{_name(value, labels)} {share:.2f}" for value, share in shares])
    return np.stack(pictures), captions


def class_names_in(class_maps: np.ndarray, labels: LabelSet) -> dict[int, str]:
    """The names of the classes that occur in class maps, by class."""
    return {int(value): _name(int(value), labels) for value in np.unique(class_maps)}


def _name(value: int, labels: LabelSet) -> str:
    return "ignored" if value == IGNORED else labels.class_names[value]
