"""The algebra of structural re-parameterization: exact operations on linear layers.

A `Linear` is a convolution, with a kernel (rows, columns, I / groups, O) and a bias (O,), or a
dense layer, with a kernel (I, O) and a bias (O,); in equations W * x + c. A batch norm in eval mode
is an affine function of each channel, a x + b. These operations merge the branches of a block into
one convolution:

    a (W * x + c) + b          = (a W) * x + (a c + b)             fold_into_previous
    W * (a x + b) + c          = (W a) * x + (sum W b + c)         fold_into_next
    W * x + w * x              = (W + w) * x                       add
    w * x, w smaller           = pad(w) * x                        pad_kernel
    w * x, dilated             = embed(w) * x                      embed_dilated
    x                          = I * x                             identity_kernel
    (diag(a) I + diag(b) W / |W|) * x                              dirac_kernel
    W * (w * x + c) + C        = (W w) * x + (sum W c + C)         compose, w 1 x 1
    mean over K x K, w * x + c = (w / K^2 at every tap) * x + c    pool_average, w 1 x 1

Every operation is exact and independent of the values. Some require a condition on the padding,
which their docstrings state. The number of groups follows from the shapes: I / groups is an axis of
the kernel.

RepVGG (arXiv:2101.03697) section 3.3, Diverse Branch Block (arXiv:2103.13425) section 3.2,
RepLKNet (arXiv:2203.06717) guideline 3, UniRepLKNet (arXiv:2311.15599) section 3.1.
"""

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

# PyTorch's default. It is a constant because a variable tree does not contain it.
BATCH_NORM_EPSILON = 1e-5

# Accelerators would otherwise round the operands of products to bfloat16 or TF32.
_EXACT = jax.lax.Precision.HIGHEST


class Linear(NamedTuple):
    """A convolution or a dense layer.

    Attributes:
      kernel: (rows, columns, I / groups, O), or (I, O).
      bias: (O,), or None for none.
    """

    kernel: jax.Array
    bias: jax.Array | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(rows, columns) of a convolution's kernel."""
        rows, columns, _, _ = self.kernel.shape
        return rows, columns


class Affine(NamedTuple):
    """a x + b on each channel; scale a and bias b are (C,)."""

    scale: jax.Array
    bias: jax.Array


def affine_of_norm(scale: jax.Array, bias: jax.Array, mean: jax.Array, var: jax.Array) -> Affine:
    """A batch norm in eval mode: a = scale / sqrt(var + eps), b = bias - a mean."""
    a = scale * jax.lax.rsqrt(var + BATCH_NORM_EPSILON)
    return Affine(a, bias - a * mean)


def fold_into_previous(linear: Linear, affine: Affine) -> Linear:
    """a (W * x + c) + b = (a W) * x + (a c + b): a batch norm after a convolution.

    Raises:
      ValueError: the numbers of channels differ.
    """
    a, b = affine
    _expect_channels("the batch norm after it", a, linear.kernel.shape[-1])
    bias = b if linear.bias is None else a * linear.bias + b
    return Linear(linear.kernel * _over_outputs(a, linear.kernel), bias)


def fold_into_next(affine: Affine, linear: Linear, *, zero_padding: bool = True) -> Linear:
    """W * (a x + b) + c = (W a) * x + (sum W b + c): a batch norm before a convolution.

    This also holds with an average pool in between, since the mean of a x + b is a mean(x) + b.

    Args:
      affine: over the I input channels.
      linear: the convolution or dense layer.
      zero_padding: whether a kernel larger than 1 x 1 pads a x + b with zeros. False if it does
        not pad, or if a x + b was padded with b.

    Raises:
      ValueError: a larger kernel with zero padding, for which no equal kernel and bias exist; or
        the numbers of channels differ.
    """
    a, b = affine
    kernel, bias = linear
    if zero_padding:
        _expect_no_border(kernel)
    moved = _response_to_constant(b, kernel)
    scaled = kernel * _over_inputs(a, kernel)
    return Linear(scaled, moved if bias is None else bias + moved)


def add(*branches: Linear) -> Linear:
    """W * x + c + V * x + d = (W + V) * x + (c + d), for kernels of one size.

    Raises:
      ValueError: kernels of different shapes.
    """
    shapes = [branch.kernel.shape for branch in branches]
    if len(set(shapes)) != 1:
        raise ValueError(f"branches with kernels of shapes {shapes} cannot be added.")
    biases = [branch.bias for branch in branches if branch.bias is not None]
    kernel = reduce(jnp.add, (branch.kernel for branch in branches))
    return Linear(kernel, reduce(jnp.add, biases) if biases else None)


def pad_kernel(linear: Linear, size: tuple[int, int]) -> Linear:
    """The same convolution with a larger kernel, padded with zeros; both with SAME padding.

    Raises:
      ValueError: the kernel cannot be centred in this size.
    """
    kernel = linear.kernel
    margins = [outer - inner for outer, inner in zip(size, kernel.shape, strict=False)]
    if any(margin < 0 or margin % 2 for margin in margins):
        rows, columns = kernel.shape[:2]
        raise ValueError(
            f"a {rows}x{columns} kernel cannot be centred in one of {size[0]}x{size[1]}."
        )
    around = [(margin // 2, margin // 2) for margin in margins]
    return Linear(jnp.pad(kernel, [*around, (0, 0), (0, 0)]), linear.bias)


def embed_dilated(linear: Linear, dilation: int) -> Linear:
    """The same convolution without dilation: its taps with dilation - 1 zeros between them."""
    between = [(0, 0, dilation - 1)] * 2 + [(0, 0, 0)] * 2
    zero = jnp.zeros((), linear.kernel.dtype)
    return Linear(jax.lax.pad(linear.kernel, zero, between), linear.bias)


def identity_kernel(like: jax.Array) -> jax.Array:
    """The kernel of the identity, in the shape of another kernel.

    Args:
      like: (rows, columns, C / groups, C) of odd size.

    Raises:
      ValueError: there is none: the groups do not divide C, or the kernel has no centre.
    """
    rows, columns, per_group, channels = like.shape
    if channels % per_group or rows % 2 == 0 or columns % 2 == 0:
        raise ValueError(f"no kernel of shape {like.shape} is the identity.")
    centre = jnp.arange(per_group)[:, None] == jnp.arange(channels)[None] % per_group
    zeros = jnp.zeros(like.shape, like.dtype)
    return zeros.at[rows // 2, columns // 2].set(centre.astype(like.dtype))


def dirac_kernel(kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """diag(a) I + diag(b) W / |W|, with the norm |W| of each output channel; 0 / |0| = 0.

    Zagoruyko and Komodakis, "DiracNets" (arXiv:1706.00388).

    Args:
      kernel: W (rows, columns, C / groups, C).
      a, b: (C,).
    """
    squared = jnp.sum(jnp.square(kernel), (0, 1, 2))
    # The bound 1e-12 on the norm is that of torch.nn.functional.normalize. It keeps the gradient
    # finite.
    length = jnp.sqrt(jnp.maximum(squared, 1e-24))
    a, b, length = (_over_outputs(vector, kernel) for vector in (a, b, length))
    return a * identity_kernel(kernel) + b * kernel / length


def pool_average(linear: Linear, size: tuple[int, int], *, zero_padding: bool = True) -> Linear:
    """mean over K x L windows of (w * x + c) = (w / (K L) at every tap) * x + c.

    Args:
      linear: w and c, 1 x 1.
      size: (K, L).
      zero_padding: whether the pool pads w * x + c with zeros, and counts them. False if it does
        not pad, or if w * x + c was padded with c.

    Raises:
      ValueError: a bias c before zero padding, or a kernel that is not 1 x 1.
    """
    kernel = linear.kernel
    if kernel.shape[:2] != (1, 1):
        raise ValueError(f"only a 1x1 convolution is pooled here, not one of {kernel.shape}.")
    taps = jnp.broadcast_to(kernel / (size[0] * size[1]), (*size, *kernel.shape[2:]))
    if zero_padding and linear.bias is not None:
        _expect_no_border(taps)
    return Linear(taps, linear.bias)


def compose(first: Linear, second: Linear, *, zero_padding: bool = True) -> Linear:
    """W * (w * x + c) + C = (W w) * x + (sum W c + C): a 1 x 1 convolution, then another one.

    Args:
      first: (1, 1, I / groups, M).
      second: (rows, columns, M / groups, O), in the same groups.
      zero_padding: whether the second, if larger than 1 x 1, pads w * x + c with zeros. False if
        it does not pad, or if w * x + c was padded with c, as in Diverse Branch Blocks.

    Raises:
      ValueError: a bias c before zero padding; a first kernel that is not 1 x 1; or different
        groups.
    """
    (rows, columns, per_group, middle), (*size, inner, outer) = (
        first.kernel.shape,
        second.kernel.shape,
    )
    groups, rest = divmod(middle, inner)
    if (rows, columns) != (1, 1) or rest or outer % groups:
        raise ValueError(
            f"kernels of shapes {first.kernel.shape} and {second.kernel.shape} do not compose: the "
            "first must be 1x1, and both must have the same number of groups."
        )
    w = first.kernel.reshape(per_group, groups, inner)
    big = second.kernel.reshape(*size, inner, groups, outer // groups)
    kernel = jnp.einsum("igm,hwmgo->hwigo", w, big, precision=_EXACT)
    kernel = kernel.reshape(*size, per_group, outer)
    if first.bias is None:
        return Linear(kernel, second.bias)
    if zero_padding:
        _expect_no_border(second.kernel)
    moved = _response_to_constant(first.bias, second.kernel)
    return Linear(kernel, moved if second.bias is None else second.bias + moved)


def _expect_no_border(kernel: jax.Array) -> None:
    """Raises ValueError for a kernel that reads zeros, instead of the bias, at the border."""
    if kernel.ndim == 4 and kernel.shape[:2] != (1, 1):
        rows, columns = kernel.shape[:2]
        raise ValueError(
            f"a batch norm or bias cannot be folded into the {rows}x{columns} window after it, "
            "which pads with zeros: at the border the window reads these zeros instead of the "
            "bias. Pad before the batch norm and pass zero_padding=False, or move the batch norm "
            "after the window."
        )


def _over_outputs(vector: jax.Array, kernel: jax.Array) -> jax.Array:
    """Reshapes a vector over the outputs (O,) to broadcast against a kernel (..., O)."""
    return vector.reshape((1,) * (kernel.ndim - 1) + vector.shape)


def _over_inputs(vector: jax.Array, kernel: jax.Array) -> jax.Array:
    """Expands a vector over the inputs (I,) to broadcast against a kernel (..., I / groups, O)."""
    per_group, outer = kernel.shape[-2:]
    groups = vector.shape[0] // per_group
    if vector.shape != (groups * per_group,) or groups < 1 or outer % groups:
        raise ValueError(
            f"{vector.shape[0]} input channels do not match a kernel of shape {kernel.shape}."
        )
    columns = vector.reshape(groups, per_group).T
    columns = jnp.repeat(columns, outer // groups, axis=1, total_repeat_length=outer)
    return columns.reshape((1,) * (kernel.ndim - 2) + columns.shape)


def _response_to_constant(vector: jax.Array, kernel: jax.Array) -> jax.Array:
    """The response (O,) of a kernel to an input that equals `vector` (I,) at every position."""
    taps = kernel.sum(tuple(range(kernel.ndim - 2)))
    return (taps * _over_inputs(vector, taps)).sum(0)


def _expect_channels(what: str, vector: jax.Array, channels: int) -> None:
    if vector.shape != (channels,):
        raise ValueError(
            f"{what} has shape {vector.shape}, and the convolution has {channels} channels."
        )
