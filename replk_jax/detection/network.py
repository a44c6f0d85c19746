"""The base of detection networks: a backbone with a feature pyramid, and heads of a subclass."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from replk_jax.detection.fpn import FPN
from replk_jax.detection.structures import Detections, Truths
from replk_jax.models.composite import CompositeNetwork
from replk_jax.models.parts import stored_part
from replk_jax.models.stored import StoredField


class DetectionNetwork(CompositeNetwork, kw_only=True):
    """A backbone with a feature pyramid and heads that detect objects.

    The tree of variables mirrors mmdetection's: `backbone`, `neck`, and the heads. A subclass is
    decorated with `register_network`, has its heads as fields, and defines `detect`, `losses` and
    `head_outputs`. `create_detector` builds the usual networks.

    Attributes:
      num_classes: K.
      neck: maps the feature maps of the backbone to a pyramid.
      backbone: with `out_indices` in ascending order. It, the neck and the heads take `deploy`,
        `dtype`, `param_dtype` and `implementation` from this network, the heads also `num_classes`.
      remat, deploy, dtype, param_dtype, implementation: see `Network`.

    Raises:
      TypeError: a backbone that is no `Backbone`, or a neck that is no `FPN`.
    """

    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        **CompositeNetwork.stored_fields,
        "neck": stored_part(FPN),
    }

    num_classes: int | None = 80
    neck: FPN

    def __post_init__(self):
        if not isinstance(self.neck, FPN):
            raise TypeError(f"neck must be an FPN; got {type(self.neck).__name__}.")
        super().__post_init__()

    @property
    def pyramid_strides(self) -> tuple[int, ...]:
        """Size of the image over the size of each level of the pyramid."""
        strides = self.stage_strides
        return self.neck.strides([strides[stage] for stage in self.backbone.out_indices or ()])

    def __call__(
        self,
        x: jax.Array,
        train: bool = False,
        *,
        sizes: jax.Array | None = None,
        scales: jax.Array | None = None,
        truths: Truths | None = None,
        key: jax.Array | None = None,
    ) -> Detections | dict[str, jax.Array]:
        """Detects objects, or computes the training losses.

        Args:
          x: normalised images, (N, H, W, in_channels), floating point, padded at the right and at
            the bottom with 0; any H and W.
          train: see `Network`. The losses with frozen statistics are those of False.
          sizes: (N, 2), (height, width) of each image without padding; None for all of x.
          scales: float32 (N, 2), (vertical, horizontal) size of each image over that of the
            original. Given, boxes are in pixels of the originals, otherwise in those of x.
          truths: the annotated objects, in pixels of x.
          key: of random samples of boxes. None samples the first ones.

        Returns:
          Without `truths`, the detections. With `truths`, float32 scalars by mmdetection's names,
          such as "loss_cls". They are weighted: the training loss is the sum of those whose names
          contain "loss". Their divisors are counts over the whole batch.

        Raises:
          ValueError: arrays of other shapes, or invalid fields.
          TypeError: images that are not floating point.
        """
        self.check_call(x)
        count, height, width, _ = x.shape
        _check_shape("sizes", sizes, (count, 2))
        _check_shape("scales", scales, (count, 2))
        pyramid = self.pyramid(x, train)
        if sizes is None:
            sizes = jnp.broadcast_to(jnp.asarray([[height, width]], jnp.float32), (count, 2))
        sizes = sizes.astype(jnp.float32)
        if truths is None:
            return self.detect(pyramid, sizes, scales)
        _check_truths(truths, count)
        return self.losses(pyramid, sizes, truths, key, train)

    def comparable(self, x: jax.Array) -> Any:
        """See `Network`. The pyramid and the outputs of the heads."""
        self.check_call(x)
        pyramid = self.pyramid(x, train=False)
        return pyramid, self.head_outputs(pyramid)

    def pyramid(self, x: jax.Array, train: bool) -> tuple[jax.Array, ...]:
        """The feature maps of the neck, (N, H, W, C), from the largest to the smallest.

        Args:
          x, train: as of `__call__`.
        """
        return self.neck(cast("tuple[jax.Array, ...]", self.backbone(x, train)))

    def detect(
        self, pyramid: tuple[jax.Array, ...], sizes: jax.Array, scales: jax.Array | None
    ) -> Detections:
        """Detects objects.

        Args:
          pyramid: of `pyramid`.
          sizes: float32 (N, 2).
          scales: as of `__call__`.
        """
        raise NotImplementedError

    def losses(
        self,
        pyramid: tuple[jax.Array, ...],
        sizes: jax.Array,
        truths: Truths,
        key: jax.Array | None,
        train: bool,
    ) -> dict[str, jax.Array]:
        """The training losses.

        Args:
          pyramid: of `pyramid`.
          sizes: float32 (N, 2).
          truths, key, train: as of `__call__`.
        """
        raise NotImplementedError

    def head_outputs(self, pyramid: tuple[jax.Array, ...]) -> Any:
        """Outputs of the heads that `comparable` returns: a tree of arrays.

        Args:
          pyramid: of `pyramid`.
        """
        raise NotImplementedError

    @nn.nowrap
    def check_fields(self) -> None:
        """Raises ValueError for invalid fields, of the backbone and the neck too."""
        super().check_fields()
        if self.num_classes is None:
            raise ValueError(f"A {type(self).__name__} needs num_classes.")
        stages = self.backbone.out_indices or ()
        if list(stages) != sorted(set(stages)):
            raise ValueError(
                "The neck takes feature maps from the largest to the smallest: out_indices of the "
                f"backbone must be in ascending order; got {stages}."
            )
        self.neck.check_fields()
        self.neck.check_feature_maps(len(stages))


def _check_shape(name: str, array: jax.Array | None, shape: tuple[int, ...]) -> None:
    if array is not None and array.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}; got {array.shape}.")


def _check_truths(truths: Truths, count: int) -> None:
    """Raises ValueError unless the truths are of `count` images."""
    objects = truths.classes.shape[-1] if truths.classes.ndim else 0
    _check_shape("classes of truths", truths.classes, (count, objects))
    _check_shape("valid of truths", truths.valid, (count, objects))
    _check_shape("boxes of truths", truths.boxes, (count, objects, 4))
