"""FCOS's targets and detections by their definitions, in NumPy and float64, point by point."""

import numpy as np

from tests.ops.detection_reference import overlap


def points_of(sizes, strides):
    """(x, y, stride, level) of every point, level by level, row by row."""
    return [
        ((column + 0.5) * stride, (row + 0.5) * stride, stride, level)
        for level, ((rows, columns), stride) in enumerate(zip(sizes, strides, strict=True))
        for row in range(rows)
        for column in range(columns)
    ]


def targets(sizes, strides, boxes, classes, num_classes, limits, radius=None):
    """Of one image: classes (P,), distances (P, 4) and centerness (P,)."""
    ranges = list(zip([-1, *limits], [*limits, np.inf], strict=True))
    labels, distances, centerness = [], [], []
    for x, y, stride, level in points_of(sizes, strides):
        least, most = ranges[level]
        found = []
        for index, (x1, y1, x2, y2) in enumerate(np.asarray(boxes, np.float64)):
            sides = (x - x1, y - y1, x2 - x, y2 - y)
            box = (x1, y1, x2, y2)
            if radius is not None:
                middle_x, middle_y, reach = (x1 + x2) / 2, (y1 + y2) / 2, radius * stride
                box = (
                    max(x1, middle_x - reach),
                    max(y1, middle_y - reach),
                    min(x2, middle_x + reach),
                    min(y2, middle_y + reach),
                )
            inside = box[0] < x < box[2] and box[1] < y < box[3]
            if inside and least <= max(sides) <= most:
                found.append(((x2 - x1) * (y2 - y1), index, sides))
        if not found:
            labels.append(num_classes)
            distances.append((0, 0, 0, 0))
            centerness.append(0)
            continue
        _, index, sides = min(found)
        left, top, right, bottom = sides
        labels.append(classes[index])
        distances.append(sides)
        ratio = min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)
        centerness.append(np.sqrt(ratio))
    return np.array(labels), np.array(distances), np.array(centerness)


def detections(levels, strides, size, scale, *, threshold, per_level, nms, most, in_strides):
    """Of one image: a list of (score, class, box), the best first.

    Args:
      levels: (logits (H, W, K), distances (H, W, 4), centerness (H, W, 1)) of each level.
      strides: of the levels.
      size: (height, width) of the image.
      scale: (vertical, horizontal).
      threshold, per_level, nms, most: the settings of the head.
      in_strides: whether the distances are.
    """
    found = []
    for (logits, distances, centerness), stride in zip(levels, strides, strict=True):
        probabilities = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
        pairs = [
            (probabilities[row, column, k], row, column, k)
            for row, column, k in np.ndindex(*probabilities.shape)
            if probabilities[row, column, k] > threshold
        ]
        pairs.sort(key=lambda pair: -pair[0])
        for probability, row, column, k in pairs[:per_level]:
            left, top, right, bottom = np.float64(distances[row, column]) * (
                stride if in_strides else 1
            )
            x, y = (column + 0.5) * stride, (row + 0.5) * stride
            box = np.array([x - left, y - top, x + right, y + bottom])
            box = np.clip(box, 0, [size[1], size[0], size[1], size[0]])
            box /= [scale[1], scale[0], scale[1], scale[0]]
            factor = 1 / (1 + np.exp(-np.float64(centerness[row, column, 0])))
            found.append((probability * factor, k, box))
    found.sort(key=lambda each: -each[0])
    kept = []
    for score, k, box in found:
        if all(other != k or overlap(box, seen) <= nms for _, other, seen in kept):
            kept.append((score, k, box))
    return kept[:most]
