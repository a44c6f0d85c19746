"""The base of segmentation heads, and the layers that they share."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from replk_jax.models.layers import Conv2D, ConvNorm, conv_init
from replk_jax.models.parts import NetworkPart
from replk_jax.models.stored import COUNT, INDICES_OR_NONE, StoredField
from replk_jax.ops.dtypes import accumulation_dtype

classifier_init = nn.initializers.normal(0.01)


class SegmentationHead(NetworkPart, kw_only=True):
    """Maps feature maps of a backbone to class scores.

    A subclass is decorated with `register_part`, and defines `feature_map`. The parameters have the
    names and the initialisation of mmsegmentation's heads.

    Attributes:
      channels: width of the head.
      num_classes: K.
      dropout_rate: probability of dropping a channel of the feature map before the classifier.
      align_corners: of all bilinear resizing in the head; see `ops.resize.bilinear_matrix`.
      deploy, dtype, param_dtype, implementation: see `ReparameterizableModule`.
    """

    stored_fields: ClassVar[Mapping[str, StoredField]] = {"channels": COUNT}
    shared_fields: ClassVar[tuple[str, ...]] = (
        *NetworkPart.shared_fields,
        "num_classes",
        "align_corners",
    )
    class_key: ClassVar[str] = "head"
    fewest_feature_maps: ClassVar[int] = 1

    channels: int = 512
    num_classes: int = 150
    dropout_rate: float = 0.1
    align_corners: bool = False

    @nn.compact
    def __call__(self, feature_maps: Sequence[jax.Array], train: bool = False) -> jax.Array:
        """Maps feature maps (N, H, W, C), from the largest to the smallest, to class scores.

        Returns:
          Logits (N, H', W', num_classes), in at least float32; the size is that of one of the
          feature maps, which depends on the head.
        """
        x = self.feature_map(feature_maps, train)
        # Drops whole channels, like PyTorch's Dropout2d.
        x = nn.Dropout(self.dropout_rate, broadcast_dims=(1, 2))(x, deterministic=not train)
        return Conv2D(
            self.num_classes,
            (1, 1),
            kernel_init=classifier_init,
            dtype=accumulation_dtype(self.dtype),
            param_dtype=self.param_dtype,
            name="conv_seg",
        )(x)

    def feature_map(self, feature_maps: Sequence[jax.Array], train: bool) -> jax.Array:
        """The feature map (N, H', W', channels) that the classifier sees."""
        raise NotImplementedError

    def conv(
        self, x: jax.Array, train: bool, name: str, kernel_size: int = 1, **fields: Any
    ) -> jax.Array:
        """A convolution to `channels`, with batch norm and ReLU.

        Args:
          x: (N, H, W, C).
          train: as of `__call__`.
          name: of the module.
          kernel_size: K.
          **fields: others of `ConvNorm`.
        """
        fields = {"features": self.channels, "kernel_init": conv_init, **fields}
        module = ConvNorm(kernel_size=kernel_size, **fields, **self.common_kwargs(), name=name)
        return nn.relu(module(x, train))

    @nn.nowrap
    def check_feature_maps(self, count: int) -> None:
        """Raises ValueError if a backbone with `count` feature maps has too few."""
        if count < self.fewest_feature_maps:
            raise ValueError(
                f"A {type(self).__name__} needs at least {self.fewest_feature_maps} feature maps; "
                f"the backbone returns {count}. Build it with more out_indices."
            )

    @nn.nowrap
    def check_fields(self) -> None:
        """Raises ValueError for invalid fields."""
        super().check_fields()
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate must be in [0, 1); got {self.dropout_rate}.")


def concatenate(feature_maps: Sequence[jax.Array]) -> jax.Array:
    """Concatenates feature maps (N, H, W, C) of the same size over their channels."""
    return jnp.concatenate(feature_maps, axis=-1)


# A tuple of positive numbers, a list in JSON.
COUNTS = StoredField(
    lambda value: (
        INDICES_OR_NONE.is_valid(value) and bool(value) and all(map(COUNT.is_valid, value))
    ),
    encode=lambda value: list(value) if isinstance(value, tuple) else value,
    decode=tuple,
)
