"""The depthwise 2-D convolution, the one operator every network of this package rests on."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def depthwise_conv2d(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: str | int | Sequence[int | tuple[int, int]] = "SAME",
    dilation: int | tuple[int, int] = 1,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """Convolves every channel of `x` with its own two-dimensional kernel.

    The semantics are those of `jax.lax.conv_general_dilated` with
    `feature_group_count=C` (a cross-correlation, as in every deep-learning
    framework); the gradients are defined with respect to `x`, `kernel` and `bias`.

    Args:
      x: images, (N, H, W, C), floating point.
      kernel: (KH, KW, 1, C), the layout in which `flax.linen.Conv` stores it.
      bias: (C,), added to the result; None adds nothing.
      stride: step of the window, one number or (rows, columns).
      padding: "SAME" or "VALID" as `lax` defines them; one number of zeros for all four
        sides (`k // 2` is PyTorch's usual choice); or one number or pair (before, after)
        for the rows and one for the columns.
      dilation: spacing of the kernel's taps, one number or (rows, columns).
      precision: as in `jax.lax.conv_general_dilated`.

    Returns:
      (N, H', W', C) in the dtype that `x`, `kernel` and `bias` promote to.

    Raises:
      ValueError: ranks or channel counts that do not belong together.
      TypeError: operands that are not floating point.
    """
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(
            "depthwise_conv2d takes x of shape (N, H, W, C) and kernel of shape (KH, KW, 1, C); "
            f"got {x.shape} and {kernel.shape}."
        )
    channels = x.shape[-1]
    if kernel.shape[2:] != (1, channels):
        raise ValueError(
            f"x of shape {x.shape} has {channels} channels, so the kernel must be "
            f"(KH, KW, 1, {channels}); got {kernel.shape}."
        )
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias must be of shape ({channels},); got {bias.shape}.")
    operands = [x, kernel] if bias is None else [x, kernel, bias]
    dtype = jnp.result_type(*operands)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"depthwise_conv2d takes floating-point operands; got {dtype}.")

    y = lax.conv_general_dilated(
        x.astype(dtype),
        kernel.astype(dtype),
        window_strides=_pair(stride),
        padding=_explicit_padding(padding),
        rhs_dilation=_pair(dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
        precision=precision,
    )
    return y if bias is None else y + bias.astype(dtype)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _explicit_padding(padding):
    if isinstance(padding, str):
        return padding
    return tuple(_pair(side) for side in _pair(padding))
