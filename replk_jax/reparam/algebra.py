"""The algebra of structural re-parameterization: exact steps on linear maps.

A convolution is a kernel (rows, columns, I / groups, O) with a bias (O,), a dense layer a
kernel (I, O) with a bias; both are a `Linear` here, and in equations W * x + c. A batch norm in
eval mode is an affine map of each channel, a x + b. With these, the branches of a block become
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

Every step is exact; none looks at values. Those that hold only under a condition on the padding
say so. The number of groups is told by the shapes: I / groups is an axis of the kernel.

RepVGG (arXiv:2101.03697) section 3.3, Diverse Branch Block (arXiv:2103.13425) section 3.2,
RepLKNet (arXiv:2203.06717) guideline 3, UniRepLKNet (arXiv:2311.15599) section 3.1.
"""

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

# PyTorch's default. It is a constant and not a field because a variable tree does not store it.
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
    """a (W * x + c) + b = (a W) * x + (a c + b): a batch norm behind a convolution.

    Raises:
      ValueError: another number of channels.
    """
    a, b = affine
    _expect_channels("the batch norm behind it", a, linear.kernel.shape[-1])
    bias = b if linear.bias is None else a * linear.bias + b
    return Linear(linear.kernel * _over_outputs(a, linear.kernel), bias)


def fold_into_next(affine: Affine, linear: Linear, *, zero_padding: bool = True) -> Linear:
    """W * (a x + b) + c = (W a) * x + (sum W b + c): a batch norm before a convolution.

    Also before an average pool and a dense layer, since the mean of a x + b is a mean(x) + b.

    Args:
      affine: over the I channels that enter.
      linear: the convolution or dense layer.
      zero_padding: whether a kernel that is larger than 1 x 1 pads a x + b with zeros; not where
        it does not pad, or where a x + b was padded with b.

    Raises:
      ValueError: a larger kernel with zero padding, which no kernel and bias are equal to; or
        another number of channels.
    """
    a, b = affine
    kernel, bias = linear
    if zero_padding:
        _expect_no_border(kernel)
    moved = _each_group(b, kernel)
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
    """A convolution as one with a larger kernel, with zeros around; both padded to keep the size.

    Raises:
      ValueError: a size that the kernel cannot be centred in.
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
    """A dilated convolution as one without: its taps with dilation - 1 zeros between them."""
    between = [(0, 0, dilation - 1)] * 2 + [(0, 0, 0)] * 2
    zero = jnp.zeros((), linear.kernel.dtype)
    return Linear(jax.lax.pad(linear.kernel, zero, between), linear.bias)


def identity_kernel(like: jax.Array) -> jax.Array:
    """The kernel that gives back what it gets, of the shape of another one.

    Args:
      like: (rows, columns, C / groups, C) of odd size.

    Raises:
      ValueError: there is none: the groups do not divide C, or the kernel has no middle.
    """
    rows, columns, per_group, channels = like.shape
    if channels % per_group or rows % 2 == 0 or columns % 2 == 0:
        raise ValueError(f"no kernel of shape {like.shape} is the identity.")
    centre = jnp.arange(per_group)[:, None] == jnp.arange(channels)[None] % per_group
    zeros = jnp.zeros(like.shape, like.dtype)
    return zeros.at[rows // 2, columns // 2].set(centre.astype(like.dtype))


def dirac_kernel(kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """diag(a) I + diag(b) W / |W|, with |W| of each output channel; W / |W| = 0 where W = 0.

    Zagoruyko and Komodakis, "DiracNets" (arXiv:1706.00388).

    Args:
      kernel: W (rows, columns, C / groups, C).
      a, b: (C,).
    """
    squared = jnp.sum(jnp.square(kernel), (0, 1, 2))
    # The bound is that of PyTorch's normalize, 1e-12 on the root; it keeps the gradient finite.
    length = jnp.sqrt(jnp.maximum(squared, 1e-24))
    a, b, length = (_over_outputs(vector, kernel) for vector in (a, b, length))
    return a * identity_kernel(kernel) + b * kernel / length


def pool_average(linear: Linear, size: tuple[int, int], *, zero_padding: bool = True) -> Linear:
    """The average over windows of w * x + c = (w / windows' size, at every tap) * x + c.

    Args:
      linear: 1 x 1.
      size: rows and columns of the windows.
      zero_padding: whether the pool pads w * x + c with zeros, which it counts; not where it does
        not pad, or where w * x + c was padded with c.

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
      zero_padding: whether the second, if larger than 1 x 1, pads w * x + c with zeros; not where
        it does not pad, or where w * x + c was padded with c, as Diverse Branch Blocks do it.

    Raises:
      ValueError: a bias c before zero padding; a first kernel that is not 1 x 1; or groups that
        do not agree.
    """
    (rows, columns, per_group, middle), (*size, inner, outer) = (
        first.kernel.shape,
        second.kernel.shape,
    )
    groups, rest = divmod(middle, inner)
    if (rows, columns) != (1, 1) or rest or outer % groups:
        raise ValueError(
            f"kernels of shapes {first.kernel.shape} and {second.kernel.shape} do not compose: a "
            "1x1 convolution and one in as many groups do."
        )
    w = first.kernel.reshape(per_group, groups, inner)
    big = second.kernel.reshape(*size, inner, groups, outer // groups)
    kernel = jnp.einsum("igm,hwmgo->hwigo", w, big, precision=_EXACT)
    kernel = kernel.reshape(*size, per_group, outer)
    if first.bias is None:
        return Linear(kernel, second.bias)
    if zero_padding:
        _expect_no_border(second.kernel)
    moved = _each_group(first.bias, second.kernel)
    return Linear(kernel, moved if second.bias is None else second.bias + moved)


def _expect_no_border(kernel: jax.Array) -> None:
    """Raises ValueError for a kernel that sees zeros at the border, in place of a bias."""
    if kernel.ndim == 4 and kernel.shape[:2] != (1, 1):
        rows, columns = kernel.shape[:2]
        raise ValueError(
            f"a batch norm or bias cannot be moved through the {rows}x{columns} window behind it, "
            "which pads with zeros: at the border it sees those, and not the bias. Pad before the "
            "batch norm, or put the norm behind; zero_padding=False says that it is so."
        )


def _over_outputs(vector: jax.Array, kernel: jax.Array) -> jax.Array:
    """A vector over the outputs (O,) as what a kernel (..., O) is multiplied with."""
    return vector.reshape((1,) * (kernel.ndim - 1) + vector.shape)


def _over_inputs(vector: jax.Array, kernel: jax.Array) -> jax.Array:
    """A vector over the inputs (I,) as what a kernel (..., I / groups, O) is multiplied with."""
    per_group, outer = kernel.shape[-2:]
    groups = vector.shape[0] // per_group
    if vector.shape != (groups * per_group,) or groups < 1 or outer % groups:
        raise ValueError(
            f"{vector.shape[0]} channels do not enter a kernel of shape {kernel.shape}."
        )
    columns = vector.reshape(groups, per_group).T
    columns = jnp.repeat(columns, outer // groups, axis=1, total_repeat_length=outer)
    return columns.reshape((1,) * (kernel.ndim - 2) + columns.shape)


def _each_group(vector: jax.Array, kernel: jax.Array) -> jax.Array:
    """What a kernel makes of a map that is `vector` everywhere: sum over taps and inputs."""
    taps = kernel.sum(tuple(range(kernel.ndim - 2)))
    return (taps * _over_inputs(vector, taps)).sum(0)


def _expect_channels(what: str, vector: jax.Array, channels: int) -> None:
    if vector.shape != (channels,):
        raise ValueError(f"{what} has shape {vector.shape}, the convolution {channels} channels.")
