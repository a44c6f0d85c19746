"""Heads that see regions of interest: one stage (Faster R-CNN), or several (Cascade R-CNN).

Ren et al., "Faster R-CNN" (arXiv:1506.01497); He et al., "Mask R-CNN" (arXiv:1703.06870); Cai and
Vasconcelos, "Cascade R-CNN" (arXiv:1906.09756). The rules are those of mmdetection 2.28.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from replk_jax.detection.box_coder import decode
from replk_jax.detection.box_head import BoxHead, of_class
from replk_jax.detection.mask_head import MaskHead
from replk_jax.detection.roi_losses import BOX_LOSSES, box_head_losses, mask_loss
from replk_jax.detection.roi_targets import Rois, sample_rois
from replk_jax.detection.rpn import Proposals
from replk_jax.detection.selection import Candidates, select
from replk_jax.detection.structures import Detections, Truths
from replk_jax.models.parts import NetworkPart, register_part
from replk_jax.models.stored import (
    COUNT,
    FLAG,
    FRACTION,
    MOST_LAYERS,
    NOT_NEGATIVE,
    StoredField,
)
from replk_jax.ops.roi_align import levels_roi_align, mask_targets

# RoIs use the first levels of the pyramid, of at most this number.
_LEVELS = 4
_NUMBER = StoredField(lambda value: type(value) is int and 0 <= value <= MOST_LAYERS)
_BOX_LOSS = StoredField(lambda value: value in BOX_LOSSES)


class Stage(NamedTuple):
    """The settings of one stage.

    Attributes:
      threshold: least IoU of a positive box with its truth; boxes below it are background.
      weight: of the losses of the stage.
      stds: of the offsets, see `box_coder.encode`.
    """

    threshold: float
    weight: float
    stds: tuple[float, float, float, float]


class RoIHead(NetworkPart, kw_only=True):
    """Classifies, refines and segments proposals in one or several stages.

    Attributes:
      num_classes: K.
      masks: whether there are mask heads.
      box_size: bins per axis of the features that the box heads see.
      box_convs, box_conv_channels, box_fcs, box_fc_channels, class_agnostic: see `BoxHead`.
      mask_size: bins per axis of the features that the mask heads see; masks have twice as many.
      mask_convs, mask_channels: see `MaskHead`.
      sampling_ratio: of RoIAlign, see `ops.roi_align`; 0 is adaptive.
      box_loss: "giou" of the decoded boxes, "l1" or "smooth_l1" (beta 1) of the offsets.
      box_loss_weight: its weight.
      match_low_quality: whether each truth gets the box that overlaps it most, if its IoU reaches
        the threshold; see `assignment.assign`.
      sample_count: number of boxes per image in the losses of a stage.
      positive_fraction: the largest share of positive ones among them.
      score_threshold: objects with lower or equal scores are not reported.
      nms_threshold: IoU of two boxes of the same class, of which one is left out.
      max_detections: D, the number of objects per image at most.
      others: see `NetworkPart`.
    """

    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        "masks": FLAG,
        "box_size": COUNT,
        "box_convs": _NUMBER,
        "box_conv_channels": COUNT,
        "box_fcs": _NUMBER,
        "box_fc_channels": COUNT,
        "class_agnostic": FLAG,
        "mask_size": COUNT,
        "mask_convs": _NUMBER,
        "mask_channels": COUNT,
        "sampling_ratio": _NUMBER,
        "score_threshold": FRACTION,
        "nms_threshold": FRACTION,
        "max_detections": COUNT,
        "box_loss": _BOX_LOSS,
        "box_loss_weight": NOT_NEGATIVE,
        "match_low_quality": FLAG,
        "sample_count": COUNT,
        "positive_fraction": FRACTION,
    }
    shared_fields: ClassVar[tuple[str, ...]] = (*NetworkPart.shared_fields, "num_classes")
    stages: ClassVar[tuple[Stage, ...]] = ()

    num_classes: int = 80
    masks: bool = True
    box_size: int = 7
    box_convs: int = 0
    box_conv_channels: int = 256
    box_fcs: int = 2
    box_fc_channels: int = 1024
    class_agnostic: bool = False
    mask_size: int = 14
    mask_convs: int = 4
    mask_channels: int = 256
    sampling_ratio: int = 0
    box_loss: str = "l1"
    box_loss_weight: float = 1.0
    match_low_quality: bool = False
    sample_count: int = 512
    positive_fraction: float = 0.25
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100

    def new_box_head(self) -> BoxHead:
        """The box head of a stage."""
        return BoxHead(
            num_classes=self.num_classes,
            num_convs=self.box_convs,
            conv_channels=self.box_conv_channels,
            num_fcs=self.box_fcs,
            fc_channels=self.box_fc_channels,
            class_agnostic=self.class_agnostic,
            **self.common_kwargs(),
        )

    def new_mask_head(self) -> MaskHead:
        """The mask head of a stage."""
        return MaskHead(
            num_classes=self.num_classes,
            num_convs=self.mask_convs,
            channels=self.mask_channels,
            **self.common_kwargs(),
        )

    @property
    def box_heads(self) -> Sequence[BoxHead]:
        """The box heads of all stages."""
        raise NotImplementedError

    @property
    def mask_heads(self) -> Sequence[MaskHead]:
        """The mask heads of all stages; empty without masks."""
        raise NotImplementedError

    @nn.nowrap
    def prefix(self, stage: int) -> str:
        """Of the names of the losses of a stage."""
        raise NotImplementedError

    def detect(
        self,
        pyramid: Sequence[jax.Array],
        strides: Sequence[int],
        proposals: Proposals,
        sizes: jax.Array,
        scales: jax.Array | None,
    ) -> Detections:
        """Detects objects: the scores of all stages are averaged, the boxes are of the last.

        Args:
          pyramid: feature maps (N, H, W, C), from the largest to the smallest.
          strides: of the pyramid.
          proposals: of the RPN.
          sizes: (N, 2), height and width of the images without padding.
          scales: (N, 2), see `DetectionNetwork`.
        """
        boxes, scores = self.candidates(pyramid, strides, proposals.boxes, sizes)
        if scales is not None:
            scales = scales[:, None, ::-1]  # horizontal, vertical
            scales = jnp.concatenate([scales, scales], axis=-1)
            boxes = boxes / scales[:, :, None]
        detections = self._select(boxes, scores, proposals.valid)
        if not self.masks:
            return detections
        in_input = detections.boxes if scales is None else detections.boxes * scales
        masks = self._masks_of(pyramid, strides, in_input, detections.classes)
        return detections._replace(masks=masks)

    def candidates(
        self,
        pyramid: Sequence[jax.Array],
        strides: Sequence[int],
        boxes: jax.Array,
        sizes: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """The boxes of all classes before NMS.

        Args:
          pyramid, strides, sizes: as of `detect`.
          boxes: (N, P, 4), the proposals.

        Returns:
          Boxes (N, P, K, 4) in pixels of the input, clipped to the image; probabilities
          (N, P, K + 1), background last.
        """
        logits, deltas = self._score(0, pyramid, strides, boxes)
        total = logits
        for index, stage in enumerate(self.stages[:-1], 1):
            best = jnp.argmax(logits[..., :-1], axis=-1)
            boxes = _refine(boxes, of_class(deltas, best), stage, sizes)
            logits, deltas = self._score(index, pyramid, strides, boxes)
            total = total + logits
        shape = (*deltas.shape[:2], self.num_classes, 4)
        deltas = jnp.broadcast_to(deltas, shape)
        decoded = _refine(boxes[:, :, None], deltas, self.stages[-1], sizes)
        return decoded, jax.nn.softmax(total / len(self.stages))

    @nn.nowrap
    def _select(self, boxes: jax.Array, scores: jax.Array, valid: jax.Array) -> Detections:
        """NMS by class; of equal scores, the lower class comes first.

        Args:
          boxes, scores: of `candidates`.
          valid: bool (N, P), of the proposals.
        """
        count, _, kinds = boxes.shape[:3]
        scores = scores[..., :-1]
        classes = jnp.arange(kinds, dtype=jnp.int32)[None, None]

        def by_class(array: jax.Array) -> jax.Array:
            """(N, P, K, ...) to (N, K P, ...)."""
            return array.swapaxes(1, 2).reshape(count, -1, *array.shape[3:])

        candidates = Candidates(
            by_class(boxes),
            by_class(scores),
            by_class(jnp.broadcast_to(classes, scores.shape)),
            by_class(valid[..., None] & (scores > self.score_threshold)),
        )
        return select(candidates, self.nms_threshold, self.max_detections)

    def _masks_of(
        self,
        pyramid: Sequence[jax.Array],
        strides: Sequence[int],
        boxes: jax.Array,
        classes: jax.Array,
    ) -> jax.Array:
        """The mean of the masks of all stages: probabilities (N, D, h, w); 0 for padding."""
        features = self._extract(pyramid, strides, boxes, self.mask_size)
        flat = jnp.maximum(classes, 0).reshape(-1)
        masks = jnp.stack([jax.nn.sigmoid(head(features, flat)) for head in self.mask_heads])
        masks = jnp.mean(masks, axis=0).reshape(*classes.shape, *masks.shape[2:])
        return jnp.where((classes >= 0)[..., None, None], masks, 0)

    def losses(
        self,
        pyramid: Sequence[jax.Array],
        strides: Sequence[int],
        proposals: Proposals,
        sizes: jax.Array,
        truths: Truths,
        key: jax.Array | None,
        train: bool,
    ) -> dict[str, jax.Array]:
        """The losses of all stages; each stage refines the boxes that the next one samples.

        Args:
          pyramid, strides, proposals, sizes: as of `detect`.
          truths: the annotated objects; with masks if there are mask heads.
          key: of the samples; None for the first boxes.
          train: whether batch norms use the statistics of the batch.

        Returns:
          Scalars "loss_cls", "acc" (in percent), "loss_bbox" and "loss_mask", with the prefix of
          the stage.
        """
        results: dict[str, jax.Array] = {}
        keys = [None] * len(self.stages) if key is None else jax.random.split(key, len(self.stages))
        for index, stage in enumerate(self.stages):
            rois = sample_rois(
                proposals,
                truths,
                threshold=stage.threshold,
                match_low_quality=self.match_low_quality,
                count=self.sample_count,
                fraction=self.positive_fraction,
                background=self.num_classes,
                key=keys[index],
            )
            logits, deltas = self._score(index, pyramid, strides, rois.boxes, train, rois.valid)
            named = box_head_losses(logits, deltas, rois, stage.stds, self.box_loss)
            named["loss_bbox"] = named["loss_bbox"] * self.box_loss_weight
            if self.masks:
                named["loss_mask"] = self._mask_loss(index, pyramid, strides, rois, truths)
            for name, value in named.items():
                weight = stage.weight if "loss" in name else 1.0
                results[self.prefix(index) + name] = value * weight
            if index + 1 < len(self.stages):
                best = jnp.argmax(logits[..., :-1], axis=-1)
                chosen = of_class(deltas, jnp.where(rois.positive, rois.labels, best))
                refined = _refine(rois.boxes, chosen, stage, sizes)
                proposals = Proposals(jax.lax.stop_gradient(refined), rois.valid & ~rois.is_truth)
        return results

    def outputs_of(
        self, pyramid: Sequence[jax.Array], strides: Sequence[int], boxes: jax.Array
    ) -> list[jax.Array]:
        """Logits, offsets and mask logits of every stage for the same boxes, (N, B, 4)."""
        outputs: list[jax.Array] = []
        for index in range(len(self.stages)):
            outputs += self._score(index, pyramid, strides, boxes)
        if self.masks:
            features = self._extract(pyramid, strides, boxes, self.mask_size)
            for head in self.mask_heads:
                logits = head(features)
                outputs.append(logits.reshape(*boxes.shape[:2], *logits.shape[1:]))
        return outputs

    def _score(
        self,
        index: int,
        pyramid: Sequence[jax.Array],
        strides: Sequence[int],
        boxes: jax.Array,
        train: bool = False,
        valid: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Logits (N, B, K + 1) and offsets (N, B, K or 1, 4) of a stage for boxes (N, B, 4)."""
        features = self._extract(pyramid, strides, boxes, self.box_size)
        valid = None if valid is None else valid.reshape(-1)
        logits, deltas = self.box_heads[index](features, train, valid)
        batch = boxes.shape[:2]
        return logits.reshape(*batch, -1), deltas.reshape(*batch, -1, 4)

    def _mask_loss(
        self,
        index: int,
        pyramid: Sequence[jax.Array],
        strides: Sequence[int],
        rois: Rois,
        truths: Truths,
    ) -> jax.Array:
        """The mask loss of the positive boxes, which are the first of the sample."""
        rois = rois.first(self.sample_count, self.positive_fraction)
        # Others than positive boxes do not count: empty ones cost nothing.
        boxes = jnp.where(rois.positive[..., None], rois.boxes, 0)
        features = self._extract(pyramid, strides, boxes, self.mask_size)
        classes = jnp.where(rois.positive, rois.labels, 0).reshape(-1)
        logits = self.mask_heads[index](features, classes)
        targets = jax.vmap(lambda *args: mask_targets(*args, size=2 * self.mask_size))(
            truths.masks, boxes, jnp.maximum(rois.truths, 0)
        )
        return mask_loss(logits, targets.reshape(logits.shape), rois.positive.reshape(-1))

    def _extract(
        self, pyramid: Sequence[jax.Array], strides: Sequence[int], boxes: jax.Array, size: int
    ) -> jax.Array:
        """Features (N B, size, size, C) of boxes (N, B, 4)."""
        levels = min(_LEVELS, len(pyramid))
        scales = tuple(1 / stride for stride in strides[:levels])
        return _roi_features(tuple(pyramid[:levels]), boxes, size, scales, self.sampling_ratio)

    @nn.nowrap
    def check_fields(self) -> None:
        """Raises ValueError for invalid fields."""
        if self.box_loss not in BOX_LOSSES:
            raise ValueError(
                f"box_loss must be one of {', '.join(BOX_LOSSES)}; got {self.box_loss!r}."
            )
        super().check_fields()


@register_part
class StandardRoIHead(RoIHead, kw_only=True):
    """One stage. The defaults are those of mmdetection's Faster R-CNN, with masks."""

    stages: ClassVar[tuple[Stage, ...]] = (Stage(0.5, 1.0, (0.1, 0.1, 0.2, 0.2)),)

    def setup(self) -> None:
        self.bbox_head = self.new_box_head()
        if self.masks:
            self.mask_head = self.new_mask_head()

    @property
    def box_heads(self) -> Sequence[BoxHead]:
        """See `RoIHead`."""
        return [self.bbox_head]

    @property
    def mask_heads(self) -> Sequence[MaskHead]:
        """See `RoIHead`."""
        return [self.mask_head] if self.masks else []

    @nn.nowrap
    def prefix(self, stage: int) -> str:
        """See `RoIHead`."""
        return ""


@register_part
class CascadeRoIHead(RoIHead, kw_only=True):
    """Three stages, each of which expects better boxes than the one before."""

    stages: ClassVar[tuple[Stage, ...]] = (
        Stage(0.5, 1.0, (0.1, 0.1, 0.2, 0.2)),
        Stage(0.6, 0.5, (0.05, 0.05, 0.1, 0.1)),
        Stage(0.7, 0.25, (0.033, 0.033, 0.067, 0.067)),
    )

    def setup(self) -> None:
        self.bbox_head = [self.new_box_head() for _ in self.stages]
        if self.masks:
            self.mask_head = [self.new_mask_head() for _ in self.stages]

    @property
    def box_heads(self) -> Sequence[BoxHead]:
        """See `RoIHead`."""
        return self.bbox_head

    @property
    def mask_heads(self) -> Sequence[MaskHead]:
        """See `RoIHead`."""
        return self.mask_head if self.masks else []

    @nn.nowrap
    def prefix(self, stage: int) -> str:
        """See `RoIHead`."""
        return f"s{stage}."


# Traced once for all stages.
@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _roi_features(
    pyramid: tuple[jax.Array, ...],
    boxes: jax.Array,
    size: int,
    scales: tuple[float, ...],
    sampling_ratio: int,
) -> jax.Array:
    """See `RoIHead._extract`."""

    def of_image(feature_maps: tuple[jax.Array, ...], boxes: jax.Array) -> jax.Array:
        return levels_roi_align(
            feature_maps,
            boxes,
            output_size=size,
            scales=scales,
            sampling_ratio=sampling_ratio,
        )

    features = jax.vmap(of_image)(pyramid, boxes)
    return features.reshape(-1, *features.shape[2:])


def _refine(boxes: jax.Array, deltas: jax.Array, stage: Stage, sizes: jax.Array) -> jax.Array:
    """Decodes the offsets of a stage, and clips the boxes to their images.

    Args:
      boxes, deltas: (N, ..., 4), of shapes that broadcast.
      stage: its settings.
      sizes: (N, 2).
    """
    return jax.vmap(functools.partial(decode, stds=stage.stds))(boxes, deltas, size=sizes)
