"""The head that classifies and refines boxes: Girshick, "Fast R-CNN" (arXiv:1504.08083)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from replk_jax.models.layers import ConvNorm, ReparameterizableModule, conv_init
from replk_jax.models.roi_layers import Linear
from replk_jax.ops.dtypes import accumulation_dtype


class BoxHead(ReparameterizableModule, kw_only=True):
    """Maps the features of boxes to class scores and offsets: mmdetection's ConvFCBBoxHead.

    3 x 3 convolutions with batch norm and ReLU, then linear layers with ReLU.

    Attributes:
      num_classes: K.
      num_convs, conv_channels: number and width of the convolutions.
      num_fcs, fc_channels: number and width of the linear layers.
      class_agnostic: whether all classes share their offsets.
      deploy, dtype, param_dtype, implementation: see `ReparameterizableModule`.
    """

    num_classes: int
    num_convs: int
    conv_channels: int
    num_fcs: int
    fc_channels: int
    class_agnostic: bool

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, valid: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Maps features (R, s, s, C) of R boxes to scores and offsets.

        Args:
          x: (R, s, s, C).
          train, valid: as of `BatchNorm`.

        Returns:
          In at least float32: logits (R, K + 1), background last; offsets (R, K, 4), or
          (R, 1, 4) if `class_agnostic`.
        """
        for i in range(self.num_convs):
            module = ConvNorm(
                features=self.conv_channels,
                kernel_size=3,
                kernel_init=conv_init,
                **self.common_kwargs(),
                name=f"shared_convs_{i}",
            )
            x = nn.relu(module(x, train, valid))
        # PyTorch's order of axes: channel, row, column.
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        for i in range(self.num_fcs):
            x = nn.relu(
                Linear(
                    self.fc_channels,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    kernel_init=nn.initializers.xavier_uniform(),
                    name=f"shared_fcs_{i}",
                )(x)
            )
        kinds = 1 if self.class_agnostic else self.num_classes
        logits = self._output(x, self.num_classes + 1, 0.01, "fc_cls")
        deltas = self._output(x, 4 * kinds, 0.001, "fc_reg")
        return logits, deltas.reshape(-1, kinds, 4)

    def _output(self, x: jax.Array, features: int, std: float, name: str) -> jax.Array:
        return Linear(
            features,
            dtype=accumulation_dtype(self.dtype),
            param_dtype=self.param_dtype,
            kernel_init=nn.initializers.normal(std),
            name=name,
        )(x)


def of_class(deltas: jax.Array, classes: jax.Array) -> jax.Array:
    """The offsets of one class for each box.

    Args:
      deltas: (..., K or 1, 4), as of `BoxHead`.
      classes: int (...), from 0 to K - 1.

    Returns:
      (..., 4).
    """
    if deltas.shape[-2] == 1:
        return deltas[..., 0, :]
    return jnp.take_along_axis(deltas, classes[..., None, None], axis=-2)[..., 0, :]
