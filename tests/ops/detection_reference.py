"""Definitions of the operators of detection: loops in NumPy and float64."""

import math

import numpy as np


def overlap(a, b, kind="iou"):
    """Of two boxes."""
    a, b = np.float64(a), np.float64(b)
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    if kind == "iof":
        return common / max(area(a), 1e-6)
    union = max(area(a) + area(b) - common, 1e-6)
    if kind == "iou":
        return common / union
    width = max(a[2], b[2]) - min(a[0], b[0])
    height = max(a[3], b[3]) - min(a[1], b[1])
    enclosing = max(max(width, 0.0) * max(height, 0.0), 1e-6)
    return common / union - (enclosing - union) / enclosing


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def nms(boxes, scores, threshold, groups=None, valid=None):
    """All indices that are kept, in order; float32, as a threshold may be met exactly."""
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        if valid is not None and not valid[i]:
            continue
        better = [j for j in kept if groups is None or groups[j] == groups[i]]
        if not any(_exceeds(boxes[i], boxes[j], np.float32(threshold)) for j in better):
            kept.append(i)
    return kept


def _exceeds(a, b, threshold):
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    common = sides[0] * sides[1]
    union = area(a) + area(b) - common
    return union > 0 and common / union > threshold


def roi_align(feature_map, boxes, size, scale, ratio=0, aligned=True):
    """Sample by sample, of (H, W, C) and (R, 4)."""
    result = np.zeros((len(boxes), size, size, feature_map.shape[-1]))
    for r, box in enumerate(np.float64(boxes)):
        x1, y1, x2, y2 = box * scale - (0.5 if aligned else 0.0)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        width, height = width / size, height / size
        across, down = (ratio or math.ceil(width)), (ratio or math.ceil(height))
        for i, j in np.ndindex(size, size):
            for k, m in np.ndindex(max(down, 0), max(across, 0)):
                y = y1 + i * height + (k + 0.5) * height / down
                x = x1 + j * width + (m + 0.5) * width / across
                result[r, i, j] += bilinear(feature_map, y, x)
            result[r, i, j] /= max(down * across, 1)
    return result


def bilinear(feature_map, y, x):
    height, width, channels = feature_map.shape
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(channels)
    (top, bottom, down), (left, right, across) = _neighbours(y, height), _neighbours(x, width)
    upper = (1 - across) * feature_map[top, left] + across * feature_map[top, right]
    lower = (1 - across) * feature_map[bottom, left] + across * feature_map[bottom, right]
    return (1 - down) * upper + down * lower


def _neighbours(position, size):
    position = max(position, 0.0)
    low = int(position)
    if low >= size - 1:
        return size - 1, size - 1, 0.0
    return low, low + 1, position - low
