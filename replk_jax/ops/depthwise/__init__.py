"""The depthwise 2-D convolution: the operator, its implementations and the choice between them.

- `api`: the public function. `layer`: the Flax layer.
- `primitives`: the JAX primitives, one for each direction, with their differentiation rules.
- `dispatch`: chooses an implementation for each primitive, from the tables of `measurements`.
- `xla`, `dft`, `shift`, `toeplitz`, `mosaic_gpu`: the implementations.
"""

from replk_jax.ops.depthwise.api import depthwise_conv2d, explain
from replk_jax.ops.depthwise.layer import DepthwiseConv2D

__all__ = ["DepthwiseConv2D", "depthwise_conv2d", "explain"]
