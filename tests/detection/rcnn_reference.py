"""Two-stage detectors by their definitions, in NumPy and float64: proposals, samples and losses."""

import math

import numpy as np

from tests.detection.reference import points_of
from tests.ops.detection_reference import nms, overlap, roi_align


def anchors(shapes, strides, scale=8, ratios=(0.5, 1, 2)):
    """(B, 4) of each level, by row, column and ratio."""
    levels = [[] for _ in strides]
    for x, y, stride, level in points_of(shapes, strides):
        x, y = x - stride / 2, y - stride / 2
        for ratio in ratios:
            width, height = stride * scale / math.sqrt(ratio), stride * scale * math.sqrt(ratio)
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            levels[level].append(box)
    return [np.array(level) for level in levels]


def encode(box, target, stds):
    (x, y, width, height), (tx, ty, target_width, target_height) = map(_centre, (box, target))
    offsets = (tx - x) / width, (ty - y) / height
    return np.array([*offsets, np.log(target_width / width), np.log(target_height / height)]) / stds


def decode(box, deltas, stds, size=None):
    x, y, width, height = _centre(box)
    dx, dy, dw, dh = np.float64(deltas) * stds
    limit = abs(math.log(16 / 1000))
    x, y = x + dx * width, y + dy * height
    width, height = (s * np.exp(np.clip(d, -limit, limit)) for s, d in ((width, dw), (height, dh)))
    decoded = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    return decoded if size is None else np.clip(decoded, 0, [size[1], size[0], size[1], size[0]])


def _centre(box):
    x1, y1, x2, y2 = box
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def proposals(logits, deltas, levels, size, before, after, threshold):
    """Of one image, from the outputs of each level."""
    boxes, scores, groups = [], [], []
    for level, (of_level, offsets, score) in enumerate(zip(levels, deltas, logits, strict=True)):
        score, offsets = np.float64(score).reshape(-1), offsets.reshape(-1, 4)
        for i in np.argsort(-score, kind="stable")[:before]:
            box = decode(of_level[i], offsets[i], np.ones(4), size)
            if box[2] > box[0] and box[3] > box[1]:
                boxes.append(box)
                scores.append(score[i])
                groups.append(level)
    kept = nms(np.array(boxes), np.array(scores), threshold, groups)
    return np.array(boxes)[kept[:after]]


def assign(boxes, truths, positive, negative, least=None):
    """-2 ignored, -1 background, otherwise the index of the truth."""
    if not len(truths):
        return np.full(len(boxes), -1)
    overlaps = np.array([[overlap(truth, box) for box in boxes] for truth in truths])
    assigned = np.full(len(boxes), -2)
    assigned[overlaps.max(0) < negative] = -1
    enough = overlaps.max(0) >= positive
    assigned[enough] = overlaps.argmax(0)[enough]
    if least is not None:
        for truth, row in enumerate(overlaps):
            if row.max() >= least:
                assigned[row == row.max()] = truth
    return assigned


def first(assigned, count, fraction):
    """The indices of the first positive and of the first background boxes."""
    positive = np.flatnonzero(assigned >= 0)[: int(count * fraction)]
    return positive, np.flatnonzero(assigned == -1)[: count - len(positive)]


def entropy(logits, targets):
    return np.logaddexp(0, logits) - logits * targets


def smooth_l1(x, beta):
    x = np.abs(x)
    return np.where(x < beta, 0.5 * x**2 / (beta or 1), x - beta / 2)


def rpn_losses(head, outputs, levels, sizes, truths):
    """Class and box loss.

    Args:
      head: whose settings count; its anchors are inside.
      outputs: logits and deltas of each level.
      levels: the anchors of each level.
      sizes: of the images.
      truths: boxes (M, 4) of each image.
    """
    boxes, of_class, of_boxes, number = np.concatenate(levels), 0.0, 0.0, 0
    for image, (height, width) in enumerate(sizes):
        inside = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2] < width) & (boxes[:, 3] < height)
        indices = np.flatnonzero(inside)
        assigned = assign(
            boxes[indices], truths[image], head.positive_threshold, head.negative_threshold,
            head.least_positive,
        )  # fmt: skip
        logits, deltas = (
            np.concatenate([np.float64(level[image]).reshape(-1, *shape) for level in kind])
            for kind, shape in zip(outputs, ((), (4,)), strict=True)
        )
        positive, negative = first(assigned, head.sample_count, head.positive_fraction)
        number += max(len(positive), 1) + max(len(negative), 1)
        of_class += entropy(logits[indices[positive]], 1).sum()
        of_class += entropy(logits[indices[negative]], 0).sum()
        for i in positive:
            target = encode(boxes[indices[i]], truths[image][assigned[i]], np.ones(4))
            of_boxes += smooth_l1(deltas[indices[i]] - target, head.smooth_l1_beta).sum()
    return of_class / number, of_boxes / number


def features(pyramid, strides, box, size):
    """(size, size, C) from the level that fits the box."""
    area = max(box[2] - box[0], 0) * max(box[3] - box[1], 0)
    level = int(np.clip(np.floor(np.log2(np.sqrt(area) / 56 + 1e-6)), 0, 3))
    return roi_align(np.float64(pyramid[level]), box[None], size, 1 / strides[level])[0]


def conv3(x, kernel):
    """Of (R, h, w, I) and (3, 3, I, O)."""
    rows, columns = x.shape[1:3]
    x = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    return sum(x[:, i : i + rows, j : j + columns] @ kernel[i, j] for i, j in np.ndindex(3, 3))


def box_head(params, x):
    """Logits (R, K + 1) and deltas (R, K, 4), with the statistics of the batch."""
    for name in sorted(params):
        if name.startswith("shared_convs"):
            x, norm = conv3(x, params[name]["conv"]["kernel"]), params[name]["bn"]
            x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
            x = np.maximum(x * norm["scale"] + norm["bias"], 0)
    x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    for name in sorted(params):
        if name.startswith("shared_fcs"):
            x = np.maximum(_linear(params[name], x), 0)
    return _linear(params["fc_cls"], x), _linear(params["fc_reg"], x).reshape(len(x), -1, 4)


def mask_head(params, x):
    """Logits (R, 2 h, 2 w, K)."""
    for name in sorted(params):
        if name.startswith("convs"):
            layer = params[name]["conv"]
            x = np.maximum(conv3(x, layer["kernel"]) + layer["bias"], 0)
    kernel, (count, rows, columns, _) = params["upsample"]["kernel"], x.shape
    upsampled = np.zeros((count, 2 * rows, 2 * columns, kernel.shape[2]))
    for i, j in np.ndindex(2, 2):
        upsampled[:, i::2, j::2] = x @ kernel[i, j].T
    x = np.maximum(upsampled + params["upsample"]["bias"], 0)
    return x @ params["conv_logits"]["kernel"][0, 0] + params["conv_logits"]["bias"]


def _linear(params, x):
    return x @ params["kernel"] + params["bias"]


def cascade_losses(head, params, pyramid, strides, boxes, sizes, truths, classes, masks):
    """The losses of all stages, with the GIoU loss and the first boxes as samples.

    Args:
      head: a `CascadeRoIHead`, whose settings count.
      params: of the head.
      pyramid: feature maps (N, H, W, C).
      strides: of the pyramid.
      boxes: the proposals of each image.
      sizes: of the images.
      truths, classes, masks: (M, 4), (M,) and (M, H, W) of each image.

    Returns:
      The losses by name; the number of samples, and of the positive ones that are no truths, of
      each stage.
    """
    losses, counts, background = {}, [], head.num_classes
    for index, stage in enumerate(head.stages):
        rois = []  # image, box, index of the truth or -1, whether it is a truth itself
        for image, of_image in enumerate(boxes):
            objects = truths[image]
            assigned = assign(of_image, objects, stage.threshold, stage.threshold)
            assigned = np.concatenate([np.arange(len(objects)), assigned]).astype(int)
            candidates = np.concatenate([objects, of_image])
            chosen = np.concatenate(first(assigned, head.sample_count, head.positive_fraction))
            rois += [(image, candidates[i], assigned[i], i < len(objects)) for i in chosen]
        number, positive = len(rois), [roi for roi in rois if roi[2] >= 0]
        counts.append((number, sum(not roi[3] for roi in positive)))
        labels = np.array([classes[i][t] if t >= 0 else background for i, _, t, _ in rois])

        def extract(regions, size):
            return np.stack(
                [features([x[i] for x in pyramid], strides, box, size) for i, box, *_ in regions]
            )

        logits, deltas = box_head(params[f"bbox_head_{index}"], extract(rois, head.box_size))
        log_sums = np.logaddexp.reduce(logits, axis=1)
        of_class = log_sums - logits[np.arange(number), labels]
        of_boxes = sum(
            1 - overlap(decode(box, deltas[row, labels[row]], stage.stds), truths[i][t], "giou")
            for row, (i, box, t, _) in enumerate(rois)
            if t >= 0
        )
        of_masks = []
        outputs = mask_head(params[f"mask_head_{index}"], extract(positive, head.mask_size))
        for (image, box, truth, _), output in zip(positive, outputs, strict=True):
            mask = np.float64(masks[image][truth])[..., None]
            target = roi_align(mask, box[None], 2 * head.mask_size, 1.0)[0, ..., 0] >= 0.5
            of_masks.append(entropy(output[..., classes[image][truth]], target).mean())
        losses[f"s{index}.loss_cls"] = stage.weight * of_class.mean()
        losses[f"s{index}.acc"] = 100 * (logits.argmax(1) == labels).mean()
        losses[f"s{index}.loss_bbox"] = stage.weight * head.box_loss_weight * of_boxes / number
        losses[f"s{index}.loss_mask"] = stage.weight * np.mean(of_masks)

        boxes = [[] for _ in boxes]
        for row, (image, box, truth, is_truth) in enumerate(rois):
            kind = labels[row] if truth >= 0 else logits[row, :background].argmax()
            if not is_truth:
                boxes[image].append(decode(box, deltas[row, kind], stage.stds, sizes[image]))
        boxes = [np.array(each).reshape(-1, 4) for each in boxes]
    return losses, counts
