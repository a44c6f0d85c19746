"""Channel-wise arithmetic whose gradients are accumulated in float32.

The gradient of a vector that is broadcast over a feature map is a sum over all positions. JAX
computes this sum in the dtype of the operation. In bfloat16, XLA on CPUs also accumulates in
bfloat16, and the sum stops growing after a few hundred terms. These functions compute, and thus
accumulate gradients, in at least float32 and round only their results. XLA fuses the conversions.
"""

from functools import partial

import jax

from replk_jax.ops.dtypes import accumulation_dtype


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x + bias, where the gradient of `bias` is accumulated in at least float32.

    Args:
      x: (..., C), floating point.
      bias: (C,), of the same dtype.

    Returns:
      (..., C) in the same dtype.
    """
    wide = accumulation_dtype(x.dtype)
    bias = bias.astype(wide).reshape((1,) * (x.ndim - 1) + bias.shape)
    return (x.astype(wide) + bias).astype(x.dtype)


# Without rematerialization, the backward pass would store the operands in float32.
@partial(jax.checkpoint, prevent_cse=False)
def scale_channels(x: jax.Array, scale: jax.Array) -> jax.Array:
    """x * scale, with one factor per image and channel.

    The gradient of `scale` is accumulated in at least float32. The backward pass stores only the
    operands.

    Args:
      x: (N, H, W, C), floating point.
      scale: (N, 1, 1, C), of the same dtype.

    Returns:
      (N, H, W, C) in the same dtype.
    """
    wide = accumulation_dtype(x.dtype)
    return (x.astype(wide) * scale.astype(wide)).astype(x.dtype)
