"""The public functions of the depthwise 2-D convolution."""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from replk_jax.ops.broadcasting import add_bias
from replk_jax.ops.depthwise.convolution import Convolution, Pair
from replk_jax.ops.depthwise.dispatch import (
    PLATFORMS,
    SYMBOLIC_SIZE_CHOICES,
    Case,
    Explanation,
    platform_of,
)
from replk_jax.ops.depthwise.implementation import DIRECTIONS
from replk_jax.ops.depthwise.primitives import convolve
from replk_jax.ops.depthwise.xla import convolve_symbolic_size

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

    The semantics are those of `jax.lax.conv_general_dilated` with `feature_group_count=C`: a
    cross-correlation, as in every deep-learning framework.

    Accumulation: sums of 16-bit operands are accumulated in float32, in the result and in all
    gradients; "xla" leaves this to XLA.

    Transformations: differentiable to any order, in reverse and forward mode, with respect to
    `x`, `kernel` and `bias`; works under `vmap` and `jax.export`. Arrays may be sharded over N
    and C. The only communication is the sum of the kernel gradient over N.

    Export: N may be symbolic. H and W may be symbolic with "xla", "portable" or None, which then
    use `lax.conv_general_dilated`, with its limitations. To export a program for Hopper GPUs,
    pass `implementation="portable"`, or allow the custom call with a `DisabledSafetyCheck`.

    Rounding: the errors of "dft" are proportional to the largest value of a channel of an image
    (for the kernel gradient, of a channel), about 3e-7 of it in float32. With one pixel of 1e4,
    results of magnitude 1 have errors of about 3e-3. The errors of the other implementations are
    proportional to the terms of each result. `precision="highest"` guarantees the latter.

    NaN and infinity: a value that is not finite contaminates every result whose sum contains it.
    With "dft" and "toeplitz" it contaminates its whole channel of its image, and with
    "mosaic_gpu" possibly a part of it, because these multiply it with zeros.

    Args:
      x: images, (N, H, W, C), floating point.
      kernel: (KH, KW, 1, C), the layout in which `flax.linen.Conv` stores it; odd or even,
        square or not.
      bias: (C,), added to the result; None for no bias.
      stride: step of the window, one number or (rows, columns).
      padding: "SAME" or "VALID" as `lax` defines them ("SAME" is `k // 2` on both sides for an
        odd kernel at stride 1); one number of zeros for all four sides; or one number or pair
        (before, after) for the rows and one for the columns.
      dilation: spacing of the kernel's taps, one number or (rows, columns).
      precision: of products on matrix units: "default", "high" or "highest", or a
        `jax.lax.Precision`. None uses `jax_default_matmul_precision` if that is one of these.
        If neither is set, float32 is computed in float32, with two exceptions: "xla" uses the
        default of XLA for the platform, and "mosaic_gpu" computes three bfloat16 products, with
        errors of 5e-6 of a typical result. "highest" (or "float32") excludes "mosaic_gpu". If
        "highest" is passed here, rather than configured, it also bounds the rounding error of
        every result by the magnitude of its own terms: this excludes "dft", unless
        `implementation` names it. If only "xla" remains, large kernels are slow, on CPUs up to a
        hundred times.
      implementation: None selects the fastest known implementation for the platform that the
        program is compiled for; `explain` reports it. Or one of: "xla" (XLA's own convolution),
        "dft" (matrix products with Fourier matrices), "shift" (a sum over the taps), "toeplitz"
        (one matrix product per channel of a small feature map), "mosaic_gpu" (kernels for NVIDIA
        Hopper GPUs; None selects them only if a table of the device shows that they are faster),
        "portable" (the fastest that consists of XLA operations: any but "mosaic_gpu").

    Returns:
      (N, H', W', C) in the dtype that `x`, `kernel` and `bias` promote to.

    Raises:
      ValueError: ranks or channel counts that do not match; an invalid stride, padding, dilation
        or kernel size; an implementation that is unknown or does not support this convolution.
        If support depends on the platform, the error is raised when the program is compiled.
      TypeError: operands that are not floating point.
    """
    _check_shapes(x.shape, kernel.shape)
    channels = x.shape[-1]
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias must be of shape ({channels},); got {bias.shape}.")
    operands = [x, kernel] if bias is None else [x, kernel, bias]
    dtype = _checked_dtype(jnp.result_type(*operands))
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    if all(isinstance(size, int) for size in x.shape[1:3]):
        convolution = _convolution(x.shape, kernel.shape, stride, padding, dilation, precision)
        y = convolve(x, kernel, convolution, implementation)
    elif implementation in SYMBOLIC_SIZE_CHOICES:
        y = convolve_symbolic_size(
            x,
            kernel,
            stride=_pair(stride, "stride"),
            padding=padding if isinstance(padding, str) else _explicit(padding),
            dilation=_pair(dilation, "dilation"),
            precision=_precision(precision),
        )
    else:
        raise ValueError(
            f"implementation={implementation!r} needs a fixed height and width, and x of shape "
            f"{x.shape} has symbolic ones; use one of "
            f"{', '.join(map(repr, SYMBOLIC_SIZE_CHOICES))}."
        )
    return y if bias is None else add_bias(y, bias.astype(dtype))


def explain(
    x_shape: tuple[int, int, int, int],
    kernel_shape: tuple[int, int, int, int],
    dtype: Any = jnp.float32,
    platform: str | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: Padding = "SAME",
    dilation: int | tuple[int, int] = 1,
    precision: lax.Precision | str | None = None,
) -> Explanation:
    """Reports which implementation `depthwise_conv2d` selects for these shapes, and why.

    Args:
      x_shape: (N, H, W, C).
      kernel_shape: (KH, KW, 1, C).
      dtype: of both arrays.
      platform: "cpu", "cuda", "rocm" or "tpu"; None for the platform of JAX's default device.
      stride, padding, dilation, precision: as in `depthwise_conv2d`.

    Returns:
      An object to print, with the attributes `choices` (keys "forward", "input_gradient" and
      "kernel_gradient"; values with a `name` and a `reason`), `unsupported` (by implementation,
      why it does not support this convolution) and `only_by_name` (by implementation, why it is
      used only if the caller names it).

    Raises:
      ValueError: an unknown platform, or shapes that do not match.
      TypeError: a dtype that is not floating point.
    """
    _check_shapes(tuple(x_shape), tuple(kernel_shape))
    platform = platform or platform_of(jax.devices()[0])
    if platform not in PLATFORMS:
        raise ValueError(f"Unknown platform {platform!r}; known: {', '.join(PLATFORMS)}.")
    convolution = _convolution(x_shape, kernel_shape, stride, padding, dilation, precision)
    case = Case(convolution, x_shape[0], x_shape[-1], _checked_dtype(dtype), platform)
    choices = {direction: case.fastest(direction) for direction in DIRECTIONS}
    return Explanation(choices, case.unsupported(), case.only_by_name())


def _check_shapes(x: tuple, kernel: tuple) -> None:
    if len(x) != 4 or len(kernel) != 4:
        raise ValueError(
            "depthwise_conv2d takes x of shape (N, H, W, C) and kernel of shape (KH, KW, 1, C); "
            f"got {x} and {kernel}."
        )
    if kernel[2:] != (1, x[-1]) or x[-1] == 0:
        raise ValueError(
            f"x of shape {x} has {x[-1]} channels, so the kernel must be (KH, KW, 1, {x[-1]}), "
            f"and there must be at least one channel; got a kernel of shape {kernel}."
        )


def _checked_dtype(dtype: Any) -> jnp.dtype:
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"depthwise_conv2d takes floating-point operands; got {dtype}.")
    return jnp.dtype(dtype)


def _convolution(
    x_shape: Sequence[int],
    kernel_shape: Sequence[int],
    stride: int | tuple[int, int],
    padding: Padding,
    dilation: int | tuple[int, int],
    precision: lax.Precision | str | None,
) -> Convolution:
    """The geometry of a call, checked."""
    size, kernel_size = (x_shape[1], x_shape[2]), (kernel_shape[0], kernel_shape[1])
    stride, dilation = _pair(stride, "stride"), _pair(dilation, "dilation")
    if min(*kernel_size, *stride, *dilation) < 1:
        raise ValueError(
            "Kernel size, stride and dilation must be at least 1; "
            f"got {kernel_size}, {stride} and {dilation}."
        )
    if isinstance(padding, str):
        if padding.upper() not in ("SAME", "VALID"):
            raise ValueError(f'padding must be "SAME", "VALID" or numbers; got {padding!r}.')
        spans = [(k - 1) * d + 1 for k, d in zip(kernel_size, dilation, strict=True)]
        padding = lax.padtype_to_pads(size, spans, stride, padding.upper())
    resolved = _precision(precision)
    # Only the argument: the global configuration must not make large kernels slow.
    bounded = precision is not None and resolved == lax.Precision.HIGHEST
    return Convolution(size, kernel_size, stride, _explicit(padding), dilation, resolved, bounded)


def _precision(precision: lax.Precision | str | None) -> lax.Precision | None:
    """The given precision, or that of the user's configuration."""
    if precision is None:
        # The configuration may name an algorithm for dot products, which convolutions lack.
        configured = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]  # JAX adds its options at import
        return lax.Precision(configured) if configured in _PRECISIONS else None
    try:
        return lax.Precision(precision)
    except ValueError:
        raise ValueError(
            f"precision must be None, 'default', 'high' or 'highest'; got {precision!r}."
        ) from None


_PRECISIONS = ("default", "fastest", "bfloat16", "high", "tensorfloat32", "highest", "float32")


def _explicit(padding: Any) -> tuple[Pair, Pair]:
    """((before, after) of the rows, (before, after) of the columns)."""
    sides = padding if isinstance(padding, (tuple, list)) else (padding, padding)
    if len(sides) != 2:
        raise ValueError(f"padding must be for rows and columns; got {padding!r}.")
    rows, columns = (_pair(side, "padding") for side in sides)
    return rows, columns


def _pair(value: Any, name: str) -> Pair:
    """(rows, columns) from two integers, or from one for both."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    try:
        first, second = map(operator.index, values)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be one whole number or two; got {value!r}.") from None
    return first, second
