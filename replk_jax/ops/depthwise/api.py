"""The depthwise 2-D convolution, the one operator every network of this package rests on."""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from replk_jax.ops.broadcasting import add_bias
from replk_jax.ops.depthwise.convolution import Convolution, Pair
from replk_jax.ops.depthwise.dispatch import (
    OPEN_SIZE_CHOICES,
    PLATFORMS,
    Case,
    Explanation,
    platform_of,
)
from replk_jax.ops.depthwise.implementation import DIRECTIONS
from replk_jax.ops.depthwise.primitives import convolve
from replk_jax.ops.depthwise.xla import convolve_open_size

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
    `feature_group_count=C` (a cross-correlation, as in every deep-learning framework). Sums of
    16-bit operands are accumulated in float32, in the result and in all gradients; "xla" relies
    on XLA for that. It can be differentiated any number of times, in reverse and in forward
    mode, with respect to `x`, `kernel` and `bias`; mapped with `vmap`; exported; and sharded
    over N and C without communication, but for the sum of the kernel's gradient over N.

    An export may leave N open, and with "xla", "portable" or None H and W as well, which are then
    left to `lax` with its limits. A program for Hopper GPUs that is to be exported takes
    `implementation="portable"`, or a `DisabledSafetyCheck` for their custom call.

    The rounding errors of "dft" are in proportion to the largest value of a channel of an image
    (in the kernel's gradient: of a channel), about 3e-7 of it in float32: with one pixel of 1e4,
    results of the size of 1 are off by some 3e-3. Those of the others are in proportion to the
    terms of each result. `precision="highest"` promises the latter.

    A value that is not finite contaminates at least the results whose sums it is in. With an
    implementation other than "xla" and "shift" it may contaminate more of the same channel of the
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
      precision: of products on matrix units: "default", "high" or "highest", or a
        `jax.lax.Precision`; None takes `jax_default_matmul_precision` if that is one of these.
        If neither says anything, float32 is computed in float32, with two exceptions: "xla"
        does what XLA does on the platform, and "mosaic_gpu" makes three products of bfloat16
        parts, with errors of 5e-6 of a typical result. "highest" (or "float32") excludes
        "mosaic_gpu". As this argument, and not as the configuration, it also bounds the rounding
        error of every result by the size of its own terms: it excludes "dft", unless
        `implementation` names it. Where "xla" is what is left, large kernels are then slow: on
        CPUs up to a hundred times.
      implementation: None takes the fastest that is known for the platform the program is
        compiled for, as `explain` reports; or a name: "xla" (XLA's own convolution), "dft"
        (matrix products with Fourier matrices), "shift" (a sum over the taps), "toeplitz" (a
        matrix product for every channel of a small map), "mosaic_gpu" (kernels for NVIDIA's
        Hopper GPUs, which None takes only where a table of the device shows them to be faster).
        "portable" takes the fastest of those that are XLA's operations alone: all but
        "mosaic_gpu".

    Returns:
      (N, H', W', C) in the dtype that `x`, `kernel` and `bias` promote to.

    Raises:
      ValueError: ranks or channel counts that do not belong together; geometry that is no
        convolution; an implementation that is unknown or cannot compute this. Where that
        depends on the platform, the error comes when the program is compiled.
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
        how = _convolution(x.shape, kernel.shape, stride, padding, dilation, precision)
        y = convolve(x, kernel, how, implementation)
    elif implementation in OPEN_SIZE_CHOICES:
        y = convolve_open_size(
            x,
            kernel,
            stride=_pair(stride, "stride"),
            padding=padding if isinstance(padding, str) else _explicit(padding),
            dilation=_pair(dilation, "dilation"),
            precision=_precision(precision),
        )
    else:
        raise ValueError(
            f"implementation={implementation!r} is built for one size of the map, and height or "
            f"width is open in {x.shape}; {', '.join(map(repr, OPEN_SIZE_CHOICES))} take it."
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
    """Which implementation `depthwise_conv2d` takes for these shapes, and why.

    Args:
      x_shape: (N, H, W, C).
      kernel_shape: (KH, KW, 1, C).
      dtype: of both.
      platform: "cpu", "cuda", "rocm" or "tpu"; None is that of JAX's default device.
      stride, padding, dilation, precision: as in `depthwise_conv2d`.

    Returns:
      `choices`, by "forward", "input_gradient" and "kernel_gradient": each with a `name` and a
      `reason`; `unsupported`: by implementation, why it cannot compute this; and `only_by_name`: by
      implementation, why it is not chosen unless the caller names it. Print it.

    Raises:
      ValueError: an unknown platform, or shapes that do not belong together.
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
            f"x of shape {x} has {x[-1]} channels, of which there must be some, and the kernel "
            f"must be (KH, KW, 1, {x[-1]}); got {kernel}."
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
    """The checked geometry of a call."""
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
    # Only the argument: as a setting of all products it would make large kernels slow.
    bounded = precision is not None and resolved == lax.Precision.HIGHEST
    return Convolution(size, kernel_size, stride, _explicit(padding), dilation, resolved, bounded)


def _precision(asked: lax.Precision | str | None) -> lax.Precision | None:
    """The given one, or the one that the user's configuration asks for."""
    if asked is None:
        # The configuration may name an algorithm for dot products, which convolutions lack.
        configured = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]  # JAX adds its options at import
        return lax.Precision(configured) if configured in _PRECISIONS else None
    try:
        return lax.Precision(asked)
    except ValueError:
        raise ValueError(
            f"precision must be None, 'default', 'high' or 'highest'; got {asked!r}."
        ) from None


_PRECISIONS = ("default", "fastest", "bfloat16", "high", "tensorfloat32", "highest", "float32")


def _explicit(padding: Any) -> tuple[Pair, Pair]:
    """((before, after) for the rows, and for the columns)."""
    sides = padding if isinstance(padding, (tuple, list)) else (padding, padding)
    if len(sides) != 2:
        raise ValueError(f"padding must be for rows and columns; got {padding!r}.")
    rows, columns = (_pair(side, "padding") for side in sides)
    return rows, columns


def _pair(value: Any, name: str) -> Pair:
    """Two whole numbers, or one for both."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    try:
        first, second = map(operator.index, values)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be one whole number or two; got {value!r}.") from None
    return first, second
