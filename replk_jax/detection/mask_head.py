"""The head that segments the object in a box: He et al., "Mask R-CNN" (arXiv:1703.06870)."""

import flax.linen as nn
import jax

from replk_jax.models.layers import Conv2D, ReparameterizableModule, conv_init
from replk_jax.models.roi_layers import ClassConv2D, Upsampling2D
from replk_jax.ops.dtypes import accumulation_dtype


class _Convolution(ReparameterizableModule, kw_only=True):
    """A 3 x 3 convolution with bias in a module `conv`, as mmdetection's trees have it."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (R, h, w, I) to (R, h, w, features)."""
        return Conv2D(
            self.features,
            (3, 3),
            padding=1,
            kernel_init=conv_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conv",
        )(x)


class MaskHead(ReparameterizableModule, kw_only=True):
    """Maps the features of boxes to masks: mmdetection's FCNMaskHead.

    3 x 3 convolutions, a transposed convolution to twice the size, and a classifier of pixels.

    Attributes:
      num_classes: K.
      num_convs: number of 3 x 3 convolutions.
      channels: width of all layers but the last.
      deploy, dtype, param_dtype, implementation: see `ReparameterizableModule`.
    """

    num_classes: int
    num_convs: int
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, classes: jax.Array | None = None) -> jax.Array:
        """Maps features (R, s, s, C) of R boxes to logits.

        Args:
          x: (R, s, s, C).
          classes: int (R,), the class of each box; None for all classes.

        Returns:
          (R, 2 s, 2 s) for the classes, or (R, 2 s, 2 s, K), in at least float32.
        """
        for i in range(self.num_convs):
            module = _Convolution(features=self.channels, **self.common_kwargs(), name=f"convs_{i}")
            x = nn.relu(module(x))
        dtypes = {"param_dtype": self.param_dtype, "kernel_init": conv_init}
        x = Upsampling2D(self.channels, dtype=self.dtype, **dtypes, name="upsample")(x)
        dtype = accumulation_dtype(self.dtype)
        logits = ClassConv2D(self.num_classes, dtype=dtype, **dtypes, name="conv_logits")
        return logits(nn.relu(x), classes)
