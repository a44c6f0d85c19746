"""The depthwise 2-D convolution, the one operator every network of this package rests on."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from replk_jax.ops.convolution import Convolution
from replk_jax.ops.dispatch import PLATFORMS, ROLES, Case, Explanation
from replk_jax.ops.primitives import convolve

Padding = str | int | Sequence[int | tuple[int, int]]


def depthwise_conv2d(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: Padding = "SAME",
    dilation: int | tuple[int, int] = 1,
    precision: lax.Precision | str | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Convolves every channel of `x` with its own two-dimensional kernel.

    The semantics are those of `jax.lax.conv_general_dilated` with
    `feature_group_count=C` (a cross-correlation, as in every deep-learning
    framework). 16-bit operands are summed in float32. It can be differentiated any number of
    times, in reverse and in forward mode, with respect to `x`, `kernel` and `bias`; mapped
    with `vmap`; exported with a symbolic N; and sharded over N and C without communication,
    but for the sum of the kernel's gradient over N.

    A value that is not finite spoils at least the results that it belongs to. With an
    implementation other than "xla" and "shift" it may spoil more of the same channel of the
    same image (all of it with "dft" and "toeplitz"), since zeros are multiplied with it.

    Args:
      x: images, (N, H, W, C), floating point.
      kernel: (KH, KW, 1, C), the layout in which `flax.linen.Conv` stores it; odd or even,
        square or not.
      bias: (C,), added to the result; None adds nothing.
      stride: step of the window, one number or (rows, columns).
      padding: "SAME" or "VALID" as `lax` defines them ("SAME" is `k // 2` on either side for
        an odd kernel at stride 1); one number of zeros for all four sides (`k // 2` is
        PyTorch's usual choice); or one number or pair (before, after) for the rows and one for
        the columns.
      dilation: spacing of the kernel's taps, one number or (rows, columns).
      precision: of products on matrix units, as in `jax.lax.conv_general_dilated`. None keeps
        float32's accuracy, except with "xla", which does what XLA does on the platform.
      implementation: None takes the fastest that is known for the platform the program is
        compiled for, as `explain` tells; or a name: "xla" (XLA's own convolution), "dft"
        (matrix products with Fourier matrices), "shift" (a sum over the taps), "toeplitz" (a
        matrix product for every channel of a small map), "mosaic_gpu" (kernels for NVIDIA's
        Hopper GPUs).

    Returns:
      (N, H', W', C) in the dtype that `x`, `kernel` and `bias` promote to.

    Raises:
      ValueError: ranks or channel counts that do not belong together; geometry that is no
        convolution; an implementation that is unknown or cannot compute this. Where that
        depends on the platform, the error comes when the program is compiled.
      TypeError: operands that are not floating point.
    """
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(
            "depthwise_conv2d takes x of shape (N, H, W, C) and kernel of shape (KH, KW, 1, C); "
            f"got {x.shape} and {kernel.shape}."
        )
    channels = x.shape[-1]
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias must be of shape ({channels},); got {bias.shape}.")
    operands = [x, kernel] if bias is None else [x, kernel, bias]
    dtype = jnp.result_type(*operands)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"depthwise_conv2d takes floating-point operands; got {dtype}.")
    convolution = _convolution(x.shape, kernel.shape, stride, padding, dilation, precision)
    y = convolve(x.astype(dtype), kernel.astype(dtype), convolution, implementation)
    return y if bias is None else y + bias.astype(dtype)


def explain(
    x_shape: tuple[int, int, int, int],
    kernel_shape: tuple[int, int, int, int],
    dtype: Any = jnp.float32,
    platform: str | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: Padding = "SAME",
    dilation: int | tuple[int, int] = 1,
) -> Explanation:
    """Which implementation `depthwise_conv2d` takes for these shapes, and why.

    Args:
      x_shape: (N, H, W, C).
      kernel_shape: (KH, KW, 1, C).
      dtype: of both.
      platform: "cpu", "cuda", "rocm" or "tpu"; None is that of JAX's default device.
      stride, padding, dilation: as in `depthwise_conv2d`.

    Returns:
      The choice for the result and for each gradient, with its reason, and why the
      implementations that cannot compute this cannot. Print it.

    Raises:
      ValueError: an unknown platform, or shapes that do not belong together.
    """
    platform = platform or jax.devices()[0].platform
    platform = "cuda" if platform == "gpu" else platform
    if platform not in PLATFORMS:
        raise ValueError(f"Unknown platform {platform!r}; known: {', '.join(PLATFORMS)}.")
    convolution = _convolution(x_shape, kernel_shape, stride, padding, dilation, None)
    case = Case(convolution, x_shape[0], x_shape[-1], jnp.dtype(dtype), platform)
    return Explanation({role: case.fastest(role) for role in ROLES}, case.refusals())


def _convolution(x_shape, kernel_shape, stride, padding, dilation, precision) -> Convolution:
    """The checked geometry of a call."""
    if kernel_shape[2:] != (1, x_shape[-1]):
        raise ValueError(
            f"x of shape {x_shape} has {x_shape[-1]} channels, so the kernel must be "
            f"(KH, KW, 1, {x_shape[-1]}); got {kernel_shape}."
        )
    size, kernel_size = x_shape[1:3], kernel_shape[:2]
    stride, dilation = _pair(stride), _pair(dilation)
    if min(*kernel_size, *stride, *dilation) < 1:
        raise ValueError(
            "Kernel size, stride and dilation must be at least 1; "
            f"got {kernel_size}, {stride} and {dilation}."
        )
    if isinstance(padding, str):
        spans = [(k - 1) * d + 1 for k, d in zip(kernel_size, dilation, strict=True)]
        padding = lax.padtype_to_pads(size, spans, stride, padding)
    padding = tuple(_pair(side) for side in _pair(padding))
    return Convolution(
        tuple(size), tuple(kernel_size), stride, padding, dilation, _precision(precision)
    )


def _precision(precision: lax.Precision | str | None) -> lax.Precision | None:
    """The given one, or the one that the user's configuration asks for."""
    try:
        precision = precision or jax.config.jax_default_matmul_precision
        return None if precision is None else lax.Precision(precision)
    except ValueError:
        names = ", ".join(repr(each.name.lower()) for each in lax.Precision)
        raise ValueError(f"precision must be None or one of {names}; got {precision!r}.") from None


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
