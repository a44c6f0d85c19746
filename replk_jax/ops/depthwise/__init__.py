"""The depthwise 2-D convolution: the operator, its implementations and the choice among them.

`api` is the public function, `layer` the Flax layer. `primitives` are what JAX differentiates,
`dispatch` chooses an implementation for each of them, and `measurements` is what the choice rests
on. One module per implementation: `xla`, `dft`, `shift`, `toeplitz` and `mosaic_gpu`.
"""

from replk_jax.ops.depthwise.api import depthwise_conv2d, explain
from replk_jax.ops.depthwise.layer import DepthwiseConv2D

__all__ = ["DepthwiseConv2D", "depthwise_conv2d", "explain"]
