"""The region proposal network: Ren et al., "Faster R-CNN" (arXiv:1506.01497), section 3.1."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from replk_jax.detection.anchors import centred_in_image, inside_image, level_anchors
from replk_jax.detection.assignment import BACKGROUND, assign
from replk_jax.detection.box_coder import decode, encode
from replk_jax.detection.losses import binary_cross_entropy, smooth_l1
from replk_jax.detection.sampling import sample
from replk_jax.detection.structures import Truths
from replk_jax.models.layers import Conv2D
from replk_jax.models.parts import NetworkPart, register_part
from replk_jax.models.stored import (
    COUNT,
    FLAG,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVES,
    StoredField,
)
from replk_jax.ops.dtypes import accumulation_dtype
from replk_jax.ops.nms import nms

_STDS = (1.0, 1.0, 1.0, 1.0)


class Outputs(NamedTuple):
    """What the layers of an RPN return, by level of the pyramid.

    Attributes:
      logits: (N, H, W, A) each, in at least float32, one for each of the A anchors of a position.
      deltas: (N, H, W, 4 A) each: four offsets of the first anchor, then of the second.
    """

    logits: tuple[jax.Array, ...]
    deltas: tuple[jax.Array, ...]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(H, W) of the levels."""
        return [(logits.shape[1], logits.shape[2]) for logits in self.logits]


class Proposals(NamedTuple):
    """Boxes that may contain objects, padded to P per image.

    Attributes:
      boxes: float32 (N, P, 4) in pixels of the network's input, the most likely first.
      valid: bool (N, P), False for padding.
    """

    boxes: jax.Array
    valid: jax.Array


@register_part
class RPNHead(NetworkPart, kw_only=True):
    """Finds boxes that may contain objects, of any class: mmdetection's RPNHead.

    The defaults are those of mmdetection's Cascade R-CNN.

    Attributes:
      channels: of the 3 x 3 convolution.
      anchor_scale: side of a square anchor, in strides of its level.
      anchor_ratios: of height to width.
      smooth_l1_beta: of the box loss, see `losses.smooth_l1`; 0 for L1.
      anchors_inside: whether the losses sample only anchors within the image. Otherwise they sample
        all whose centres are in it; mmdetection then also those in the padding of that image.
      train_pre_nms, test_pre_nms: number of anchors of each level, the most likely ones, that
        become boxes.
      train_post_nms, test_post_nms: P, the number of boxes that are left after NMS.
      nms_threshold: IoU of two boxes of the same level, of which one is left out.
      sample_count: number of anchors per image in the losses.
      positive_fraction: the largest share of positive ones among them.
      positive_threshold, negative_threshold, least_positive: see `assignment.assign`.
      others: see `NetworkPart`.
    """

    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        "channels": COUNT,
        "anchor_scale": POSITIVE,
        "anchor_ratios": POSITIVES,
        "nms_threshold": FRACTION,
        "test_pre_nms": COUNT,
        "test_post_nms": COUNT,
        "train_pre_nms": COUNT,
        "train_post_nms": COUNT,
        "smooth_l1_beta": NOT_NEGATIVE,
        "anchors_inside": FLAG,
        "sample_count": COUNT,
        "positive_fraction": FRACTION,
        "positive_threshold": FRACTION,
        "negative_threshold": FRACTION,
        "least_positive": FRACTION,
    }

    channels: int = 256
    anchor_scale: float = 8.0
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    smooth_l1_beta: float = 1 / 9
    anchors_inside: bool = True
    train_pre_nms: int = 2000
    train_post_nms: int = 2000
    test_pre_nms: int = 1000
    test_post_nms: int = 1000
    nms_threshold: float = 0.7
    sample_count: int = 256
    positive_fraction: float = 0.5
    positive_threshold: float = 0.7
    negative_threshold: float = 0.3
    least_positive: float = 0.3

    @nn.compact
    def __call__(self, pyramid: Sequence[jax.Array]) -> Outputs:
        """Maps a pyramid, (N, H, W, C) each, to the scores and offsets of the anchors."""

        def conv(name: str, features: int, size: int, dtype: jnp.dtype) -> Conv2D:
            return Conv2D(
                features,
                (size, size),
                padding=size // 2,
                kernel_init=nn.initializers.normal(0.01),
                dtype=dtype,
                param_dtype=self.param_dtype,
                name=name,
            )

        wide, number = accumulation_dtype(self.dtype), len(self.anchor_ratios)
        shared = conv("rpn_conv", self.channels, 3, self.dtype)
        scores, offsets = conv("rpn_cls", number, 1, wide), conv("rpn_reg", 4 * number, 1, wide)
        features = map(shared, pyramid)
        # Not `nn.relu`: the counters of published numbers do not see this one.
        features = [jnp.where(x > 0, x, 0) for x in features]
        return Outputs(tuple(map(scores, features)), tuple(map(offsets, features)))

    @nn.nowrap
    def propose(
        self, outputs: Outputs, strides: Sequence[int], sizes: jax.Array, train: bool
    ) -> Proposals:
        """The proposals, through which no gradient passes.

        NMS compares boxes of a level after they were clipped to the image. Boxes without area are
        left out.

        Args:
          outputs: of `__call__`.
          strides: of the pyramid.
          sizes: (N, 2), height and width of the images without padding.
          train: whether the numbers of boxes are those of training.
        """
        before = self.train_pre_nms if train else self.test_pre_nms
        after = self.train_post_nms if train else self.test_post_nms
        anchors = self._anchors(outputs.shapes, strides)

        def of_image(outputs: Outputs, size: jax.Array) -> Proposals:
            scores, boxes, levels = [], [], []
            for level, (logits, deltas) in enumerate(zip(*outputs, strict=True)):
                probabilities = jax.nn.sigmoid(logits.reshape(-1))
                best, chosen = jax.lax.top_k(probabilities, min(before, logits.size))
                deltas = deltas.reshape(-1, 4)[chosen]
                boxes.append(decode(anchors[level][chosen], deltas, _STDS, size))
                scores.append(best)
                levels.append(jnp.full(len(best), level, jnp.int32))
            candidates = jnp.concatenate(boxes)
            kept, count = nms(
                candidates,
                jnp.concatenate(scores),
                self.nms_threshold,
                groups=jnp.concatenate(levels),
                valid=jnp.all(candidates[:, 2:] > candidates[:, :2], axis=-1),
                max_kept=after,
            )
            kept_boxes = candidates.at[kept].get(mode="fill", fill_value=0)
            return Proposals(kept_boxes, jnp.arange(after, dtype=jnp.int32) < count)

        return jax.vmap(of_image)(jax.lax.stop_gradient(outputs), sizes)

    @nn.nowrap
    def losses(
        self,
        outputs: Outputs,
        strides: Sequence[int],
        sizes: jax.Array,
        truths: Truths,
        key: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """The losses of a sample of the anchors within the images.

        Both are divided by the number of sampled anchors of all images. As in mmdetection, an image
        without positive or without negative ones counts one more.

        Args:
          outputs, strides, sizes: as of `propose`.
          truths: the annotated objects.
          key: of the sample; None for the first anchors.

        Returns:
          Scalars "loss_rpn_cls" and "loss_rpn_bbox".
        """
        anchors = jnp.concatenate(self._anchors(outputs.shapes, strides))
        count = len(sizes)
        logits = jnp.concatenate([each.reshape(count, -1) for each in outputs.logits], axis=1)
        deltas = jnp.concatenate([each.reshape(count, -1, 4) for each in outputs.deltas], axis=1)
        inside = inside_image if self.anchors_inside else centred_in_image
        keys = None if key is None else jax.random.split(key, count)

        def of_image(logits, deltas, size, boxes, valid, key):
            assigned, _ = assign(
                anchors,
                boxes,
                valid,
                positive=self.positive_threshold,
                negative=self.negative_threshold,
                least_positive=self.least_positive,
                valid_boxes=inside(anchors, size),
            )
            positive, negative = assigned >= 0, assigned == BACKGROUND
            samples = sample(positive, negative, self.sample_count, self.positive_fraction, key)
            chosen = samples.indices
            score_losses = binary_cross_entropy(logits[chosen], samples.positive)
            # The targets of others than positive anchors do not count, but must be finite.
            which = jnp.where(samples.positive, assigned[chosen], 0)
            targets = jnp.where(
                samples.positive[:, None],
                boxes.at[which].get(mode="fill", fill_value=0),
                anchors[chosen],
            )
            targets = encode(anchors[chosen], targets, _STDS)
            box_losses = smooth_l1(deltas[chosen], targets, self.smooth_l1_beta)
            score_loss = jnp.sum(jnp.where(samples.valid, score_losses, 0))
            box_loss = jnp.sum(jnp.where(samples.positive[:, None], box_losses, 0))
            positives = jnp.sum(samples.positive)
            negatives = jnp.sum(samples.valid) - positives
            number = jnp.maximum(positives, 1) + jnp.maximum(negatives, 1)
            return score_loss, box_loss, number.astype(score_loss.dtype)

        axes = (0, 0, 0, 0, 0, None if keys is None else 0)
        score_loss, box_loss, number = (
            jnp.sum(each)
            for each in jax.vmap(of_image, axes)(
                logits, deltas, sizes, truths.boxes, truths.valid, keys
            )
        )
        return {"loss_rpn_cls": score_loss / number, "loss_rpn_bbox": box_loss / number}

    @nn.nowrap
    def _anchors(
        self, shapes: Sequence[tuple[int, int]], strides: Sequence[int]
    ) -> list[jax.Array]:
        return [
            level_anchors(shape, stride, self.anchor_scale, self.anchor_ratios)
            for shape, stride in zip(shapes, strides, strict=True)
        ]
