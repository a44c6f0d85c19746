"""Pictures of detection: inputs of the network, and truth beside prediction."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np

from replk_jax.detection.pasting import paste_mask
from replk_jax.vision.box_drawing import draw_objects, object_palette
from train.data.annotated_images import DetectionSource
from train.engine.task import Rows
from train.tasks.panels import shown, shown_scale, side_by_side

_LEAST_SCORE = 0.3  # of detections that are drawn


class _Objects(NamedTuple):
    """Objects to draw.

    Attributes:
      boxes: float (n, 4): x1, y1, x2, y2 in pixels of the picture.
      classes: int (n,).
      labels: a text for each.
      masks: bool (n, H, W), or None.
    """

    boxes: np.ndarray
    classes: np.ndarray
    labels: list[str]
    masks: list[np.ndarray] | None


def draw_predictions(source: DetectionSource, rows: Rows, predictions: Any) -> Iterator[np.ndarray]:
    """Pictures of truth and prediction side by side, without detections of low scores.

    Args:
      source: the split.
      rows: of a batch of `DetectionEvaluation`.
      predictions: of the metrics, for these rows first.

    Yields:
      uint8 (H, W, 3).
    """
    positions = {int(number): i for i, number in enumerate(source.table.image_ids)}
    palette = object_palette(source.class_names)
    for i in np.flatnonzero(rows["mask"]):
        height, width = map(int, rows["size"][i])
        image = shown(rows["image"][i][:height, :width])
        # Of the picture over the original image, along x and y.
        scale = rows["scale"][i][::-1] * float(shown_scale(width))
        detections = jax.tree.map(lambda array, i=i: array[i], predictions["detections"])
        panels = {
            "truth": _truth(source, positions[int(rows["image_id"][i])], scale, image.shape[:2]),
            "prediction": _detected(source.class_names, detections, scale, image.shape[:2]),
        }
        yield side_by_side(
            {title: _draw(image, objects, palette) for title, objects in panels.items()}
        )


def draw_inputs(rows: Rows, class_names: tuple[str, ...]) -> tuple[np.ndarray, list[list[str]]]:
    """Training images with their objects, and captions.

    Args:
      rows: of a batch to train on.
      class_names: of the objects.

    Returns:
      Pictures, uint8 (N, H, W, 3); and for each the numbers of objects of its two most frequent
      classes.
    """
    palette = object_palette(class_names)
    pictures, captions = [], []
    for i, image in enumerate(rows["image"]):
        valid = rows["valid"][i]
        classes = rows["classes"][i][valid]
        labels = [class_names[number] for number in classes]
        masks = None
        if "masks" in rows:
            packed = rows["masks"][i][valid]
            masks = list(np.unpackbits(packed, axis=-1, count=image.shape[1]).astype(bool))
        objects = _Objects(rows["boxes"][i][valid], classes, labels, masks)
        pictures.append(_draw(image, objects, palette))
        frequent = Counter(labels).most_common(2)
        captions.append([f"{name} {count}" for name, count in frequent] or ["no objects 0"])
    return np.stack(pictures), captions


def _truth(
    source: DetectionSource, position: int, scale: np.ndarray, size: tuple[int, int]
) -> _Objects:
    """The annotated objects of an image; of crowds the names say so."""
    objects = source.table.objects(position)
    boxes = objects.boxes.copy()
    boxes[:, 2:] += boxes[:, :2]
    labels = [
        source.class_names[number] + (" (crowd)" if crowd else "")
        for number, crowd in zip(objects.classes, objects.crowd, strict=True)
    ]
    stored = source.reader.read_masks(position) if source.has_masks else None
    masks = None
    if stored is not None:
        bitmaps = [
            stored.bitmap(int(number), *source.table.size(position)) for number in objects.numbers
        ]
        masks = [
            cv2.resize(bitmap, size[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)
            for bitmap in bitmaps
        ]
    return _Objects(boxes * np.tile(scale, 2), objects.classes, labels, masks)


def _detected(
    class_names: tuple[str, ...], detections: Any, scale: np.ndarray, size: tuple[int, int]
) -> _Objects:
    """The detections of an image, a `Detections` of NumPy arrays (D, ...)."""
    kept = np.flatnonzero(
        (np.arange(len(detections.scores)) < detections.count) & (detections.scores >= _LEAST_SCORE)
    )
    boxes = detections.boxes[kept] * np.tile(scale, 2)
    labels = [f"{class_names[detections.classes[i]]} {detections.scores[i]:.2f}" for i in kept]
    masks = None
    if (probabilities := detections.masks) is not None:
        pairs = zip(probabilities[kept], boxes, strict=True)
        masks = [paste_mask(mask, box, size) for mask, box in pairs]
    return _Objects(boxes, detections.classes[kept], labels, masks)


def _draw(image: np.ndarray, objects: _Objects, palette: np.ndarray) -> np.ndarray:
    return draw_objects(
        image, objects.boxes, palette[objects.classes], objects.labels, objects.masks
    )
