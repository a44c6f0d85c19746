"""FCOS's head: Tian et al., "FCOS: Fully Convolutional One-Stage Object Detection"
(arXiv:1904.01355)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from replk_jax.detection.fcos_targets import fcos_targets, pyramid_points
from replk_jax.detection.losses import binary_cross_entropy, iou_loss, sigmoid_focal_loss
from replk_jax.detection.selection import Candidates, select
from replk_jax.detection.structures import Detections, Truths
from replk_jax.models.layers import Conv2D, GroupNorm, ReparameterizableModule
from replk_jax.models.parts import NetworkPart, register_part
from replk_jax.models.stored import COUNT, FLAG, FRACTION, POSITIVE, POSITIVES, StoredField
from replk_jax.ops.boxes import clip_boxes
from replk_jax.ops.dtypes import accumulation_dtype

_PRIOR = 0.01  # the probability of each class at the start
_LEAST_DIVISOR = 1e-6  # of the box loss
_init = nn.initializers.normal(0.01)


class FCOSOutputs(NamedTuple):
    """What the layers of the head return, by level, in at least float32.

    Attributes:
      logits: (N, H, W, K) each.
      distances: (N, H, W, 4) each, to the left, top, right and bottom side of a box; in pixels, or
        with `norm_on_bbox` in strides.
      centerness: (N, H, W, 1) each, logits.
    """

    logits: tuple[jax.Array, ...]
    distances: tuple[jax.Array, ...]
    centerness: tuple[jax.Array, ...]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of the levels."""
        return [(logits.shape[1], logits.shape[2]) for logits in self.logits]


class _Tower(ReparameterizableModule, kw_only=True):
    """A 3 x 3 convolution without bias, group norm and ReLU."""

    features: int
    num_groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, C) to (N, H, W, features)."""
        conv = Conv2D(
            self.features,
            (3, 3),
            padding=1,
            use_bias=False,
            kernel_init=_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conv",
        )
        norm = GroupNorm(num_groups=self.num_groups, **self.common_kwargs(), name="gn")
        return nn.relu(norm(conv(x)))


class _Scale(ReparameterizableModule):
    """A learned factor, the parameter `scale` ()."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (...) in at least float32 to the same."""
        scale = self.param("scale", nn.initializers.ones, (), self.param_dtype)
        return x * scale.astype(x.dtype)


@register_part
class FCOSHead(NetworkPart, kw_only=True):
    """Two towers of convolutions, shared by all levels of a pyramid: mmdetection's FCOSHead.

    The defaults are mmdetection's.

    Attributes:
      num_classes: K.
      channels: of both towers.
      num_convs: number of convolutions of each tower.
      num_groups: of the group norms.
      regression_limits: in pixels; see `limits` of `fcos_targets`. One less than the levels.
      norm_on_bbox: whether distances are max(x, 0) strides instead of exp(x) pixels.
      center_sampling: whether only points close to the middle of a box belong to it.
      center_radius: how close, in strides, for `center_sampling`.
      centerness_on_reg: whether the centerness comes from the tower of the distances instead of
        that of the classes.
      score_threshold: a detection has a higher probability of its class. The centerness is not a
        factor of this probability, but of the score of the detection.
      candidates_per_level: number of pairs of a point and a class of each level, the most likely
        ones, that take part in NMS.
      nms_threshold: IoU of two boxes of a class, above which the one with the lower score is left
        out.
      max_detections: D, per image.
      others: see `NetworkPart`.
    """

    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        "channels": COUNT,
        "num_convs": COUNT,
        "num_groups": COUNT,
        "regression_limits": POSITIVES,
        "norm_on_bbox": FLAG,
        "center_sampling": FLAG,
        "center_radius": POSITIVE,
        "centerness_on_reg": FLAG,
        "score_threshold": FRACTION,
        "candidates_per_level": COUNT,
        "nms_threshold": FRACTION,
        "max_detections": COUNT,
    }
    shared_fields: ClassVar[tuple[str, ...]] = (*NetworkPart.shared_fields, "num_classes")

    num_classes: int = 80
    channels: int = 256
    num_convs: int = 4
    num_groups: int = 32
    regression_limits: tuple[float, ...] = (64, 128, 256, 512)
    norm_on_bbox: bool = False
    center_sampling: bool = False
    center_radius: float = 1.5
    centerness_on_reg: bool = False
    score_threshold: float = 0.05
    candidates_per_level: int = 1000
    nms_threshold: float = 0.5
    max_detections: int = 100

    @nn.compact
    def __call__(self, pyramid: Sequence[jax.Array]) -> FCOSOutputs:
        """Maps a pyramid of feature maps (N, H, W, C) to the outputs of all levels."""
        bias_init = nn.initializers.constant(-math.log((1 - _PRIOR) / _PRIOR))
        towers = {
            name: [self._tower(f"{name}_convs_{i}") for i in range(self.num_convs)]
            for name in ("cls", "reg")
        }
        conv_cls = self._final("conv_cls", self.num_classes, bias_init=bias_init)
        conv_reg, conv_centerness = self._final("conv_reg", 4), self._final("conv_centerness", 1)
        logits, distances, centerness = [], [], []
        for level, x in enumerate(pyramid):
            of_classes = of_distances = x
            for cls_layer, reg_layer in zip(towers["cls"], towers["reg"], strict=True):
                of_classes, of_distances = cls_layer(of_classes), reg_layer(of_distances)
            logits.append(conv_cls(of_classes))
            centerness.append(
                conv_centerness(of_distances if self.centerness_on_reg else of_classes)
            )
            scale = _Scale(**self.common_kwargs(), name=f"scales_{level}")
            scaled = scale(conv_reg(of_distances))
            distances.append(jnp.maximum(scaled, 0) if self.norm_on_bbox else jnp.exp(scaled))
        return FCOSOutputs(tuple(logits), tuple(distances), tuple(centerness))

    @nn.nowrap
    def losses(
        self, outputs: FCOSOutputs, strides: Sequence[int], truths: Truths
    ) -> dict[str, jax.Array]:
        """The training losses, float32.

        Args:
          outputs: of the N images.
          strides: of the levels.
          truths: the annotated objects, whose masks are ignored.

        Returns:
          "loss_cls", the focal loss of all points, divided by the number of positive ones, at least
          1; "loss_bbox", -log(IoU) of the boxes of positive points, weighted by their centerness;
          "loss_centerness", the mean cross entropy of the centerness of positive points. Without
          positive points the last two are 0.
        """
        points = pyramid_points(outputs.sizes, strides)
        targets = fcos_targets(
            points,
            truths,
            self.num_classes,
            self.regression_limits,
            self.center_radius if self.center_sampling else None,
        )
        logits, distances, centerness = (
            jnp.concatenate([x.reshape(x.shape[0], -1, x.shape[-1]) for x in levels], axis=1)
            for levels in outputs
        )
        positive = targets.classes < self.num_classes
        count = jnp.sum(positive, dtype=jnp.float32)
        divisor = jnp.maximum(count, 1)

        one_hot = targets.classes[..., None] == jnp.arange(self.num_classes).reshape(1, 1, -1)
        loss_cls = jnp.sum(sigmoid_focal_loss(logits, one_hot)) / divisor

        target_distances = targets.distances.astype(distances.dtype)
        if self.norm_on_bbox:
            target_distances /= jnp.asarray(points.strides, distances.dtype).reshape(1, -1, 1)
        # At the origin: the IoU does not depend on the point. What the head predicts for background
        # must not be seen at all, or an overflow there would give gradients of NaN.
        box_losses = iou_loss(
            _boxes(jnp.where(positive[..., None], distances, 1)),
            _boxes(jnp.where(positive[..., None], target_distances, 1)),
        )
        weights = targets.centerness.astype(box_losses.dtype)
        weight_sum = jnp.maximum(jnp.sum(weights), _LEAST_DIVISOR)
        loss_bbox = jnp.sum(box_losses * weights) / weight_sum

        entropies = binary_cross_entropy(centerness[..., 0], targets.centerness)
        loss_centerness = jnp.sum(jnp.where(positive, entropies, 0)) / divisor
        losses = {
            "loss_cls": loss_cls,
            "loss_bbox": loss_bbox,
            "loss_centerness": loss_centerness,
        }
        return {name: loss.astype(jnp.float32) for name, loss in losses.items()}

    @nn.nowrap
    def candidates(
        self,
        outputs: FCOSOutputs,
        strides: Sequence[int],
        sizes: jax.Array,
        scales: jax.Array | None,
    ) -> Candidates:
        """The boxes that take part in NMS, level by level, the most likely of each level first.

        Args:
          outputs: of the N images.
          strides: of the levels.
          sizes: float32 (N, 2), (height, width) of the images without padding, to which boxes are
            clipped.
          scales: see `DetectionNetwork`.
        """
        points = pyramid_points(outputs.sizes, strides)
        levels = []
        for level, (logits, distances, centerness) in enumerate(zip(*outputs, strict=True)):
            positions = jnp.asarray(points.positions[points.levels == level])
            factor = strides[level] if self.norm_on_bbox else 1

            def of_image(logits, distances, centerness, size, positions=positions, factor=factor):
                probabilities = jax.nn.sigmoid(logits.reshape(-1, self.num_classes))
                probability, point, of_class = _most_likely(
                    probabilities, self.candidates_per_level
                )
                boxes = _boxes(factor * distances.reshape(-1, 4)[point]) + jnp.tile(
                    positions[point], (1, 2)
                )
                return Candidates(
                    clip_boxes(boxes.astype(jnp.float32), size),
                    (probability * jax.nn.sigmoid(centerness.reshape(-1)[point])).astype(
                        jnp.float32
                    ),
                    of_class,
                    probability > self.score_threshold,
                )

            levels.append(jax.vmap(of_image)(logits, distances, centerness, sizes))
        found = Candidates(*(jnp.concatenate(each, axis=1) for each in zip(*levels, strict=True)))
        if scales is None:
            return found
        return found._replace(boxes=found.boxes / jnp.tile(scales[:, None, ::-1], (1, 1, 2)))

    @nn.nowrap
    def detect(
        self,
        outputs: FCOSOutputs,
        strides: Sequence[int],
        sizes: jax.Array,
        scales: jax.Array | None,
    ) -> Detections:
        """Selects the detected objects; see `candidates`."""
        found = self.candidates(outputs, strides, sizes, scales)
        return select(found, self.nms_threshold, self.max_detections)

    @nn.nowrap
    def check_fields(self) -> None:
        """Raises ValueError for invalid fields."""
        super().check_fields()
        if self.channels % self.num_groups:
            raise ValueError(
                f"channels of a {type(self).__name__} must be a multiple of num_groups, "
                f"{self.num_groups}; got {self.channels}."
            )
        limits = self.regression_limits
        if list(limits) != sorted(limits):
            raise ValueError(f"regression_limits must be in ascending order; got {limits}.")

    @nn.nowrap
    def check_levels(self, count: int) -> None:
        """Raises ValueError if the head does not fit a pyramid of `count` levels."""
        needed = len(self.regression_limits) + 1
        if count != needed:
            raise ValueError(
                f"A {type(self).__name__} with regression_limits {self.regression_limits} needs "
                f"{needed} levels of the pyramid; it has {count}. Set neck_num_outputs={needed}, "
                "or give one limit less than there are levels."
            )

    @nn.nowrap
    def _tower(self, name: str) -> _Tower:
        return _Tower(
            features=self.channels, num_groups=self.num_groups, **self.common_kwargs(), name=name
        )

    @nn.nowrap
    def _final(self, name: str, features: int, **fields: Any) -> Conv2D:
        return Conv2D(
            features,
            (3, 3),
            padding=1,
            kernel_init=_init,
            dtype=accumulation_dtype(self.dtype),
            param_dtype=self.param_dtype,
            name=name,
            **fields,
        )


def _boxes(distances: jax.Array) -> jax.Array:
    """Boxes about the origin from the distances (..., 4) to their sides."""
    return jnp.concatenate([-distances[..., :2], distances[..., 2:]], axis=-1)


def _most_likely(probabilities: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The pairs of a point and a class with the highest probabilities.

    The points are reduced before the pairs are sorted: `count` pairs are of at most `count` points,
    whose best pairs are the best of all points.

    Args:
      probabilities: (P, K).
      count: number of pairs, or all that there are.

    Returns:
      Probability, point and class of each pair, the highest first; of equal ones, by point and
      class.
    """
    number, classes = probabilities.shape
    _, points = jax.lax.top_k(jnp.max(probabilities, axis=1), min(count, number))
    points = jnp.sort(points)  # so that equal pairs are in the order of their points
    pairs = probabilities[points].reshape(-1)
    highest, indices = jax.lax.top_k(pairs, min(count, pairs.size))
    return highest, points[indices // classes], (indices % classes).astype(jnp.int32)
