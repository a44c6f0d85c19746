"""What a depthwise convolution is, apart from its arrays."""

import dataclasses
from functools import cached_property

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Convolution:
    """The static description of y = x * k.

    x is (N, H, W, C), k is (KH, KW, 1, C), y is (N, OH, OW, C). It is the trilinear form

        F(x, k, g) = sum g[n, i, j, c] x[n, s i + d u - p, s j + d v - q, c] k[u, v, 0, c]

    with stride s, dilation d, padding p and q, and x zero outside the map: y, the gradient
    with respect to x and that with respect to k are its three partial derivatives. An
    implementation computes them with

        forward(x, k, convolution)          -> y
        input_gradient(g, k, convolution)   -> dx, shaped as x
        kernel_gradient(x, g, convolution)  -> dk, shaped as k

    where both arrays and the result have one dtype.

    Attributes:
      size: (H, W) of the input map.
      kernel_size: (KH, KW).
      stride: step of the window, (rows, columns).
      padding: zeros (before, after) for the rows and for the columns; negative crops.
      dilation: spacing of the kernel's taps, (rows, columns).
      precision: of products on matrix units; None leaves it to the implementation.
      bounded_by_terms: whether the rounding error of a result must be in proportion to the terms
        of its own sum, and not to the largest value of its channel.
    """

    size: Pair
    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    precision: lax.Precision | None = None
    bounded_by_terms: bool = False

    @cached_property
    def output_size(self) -> Pair:
        """(OH, OW); 0 where the window does not fit into the padded feature map."""
        return self._output_length(0), self._output_length(1)

    def _output_length(self, axis: int) -> int:
        span = (self.kernel_size[axis] - 1) * self.dilation[axis] + 1
        padded = self.size[axis] + sum(self.padding[axis])
        return max(0, (padded - span) // self.stride[axis] + 1)

    @property
    def is_dense(self) -> bool:
        """Whether stride and dilation are 1."""
        return self.stride == self.dilation == (1, 1)

    def product_precision(self, dtype: DTypeLike) -> lax.Precision:
        """What matrix products need to lose nothing that `dtype` holds, if not asked for less.

        HIGH is three bfloat16 products on a TPU and tensorfloat32 on a GPU.
        """
        if self.precision is not None:
            return self.precision
        return lax.Precision.HIGH if jnp.dtype(dtype).itemsize < 4 else lax.Precision.HIGHEST

    def transposed(self) -> "Convolution":
        """The convolution of g with the flipped kernel that is the gradient for x.

        Raises:
          ValueError: with a stride or dilation it is not a convolution of this kind.
        """
        if not self.is_dense:
            raise ValueError("Only a convolution of stride and dilation 1 has one.")
        padding = tuple(
            (k - 1 - before, k - 1 - after)
            for k, (before, after) in zip(self.kernel_size, self.padding, strict=True)
        )
        return dataclasses.replace(self, size=self.output_size, padding=padding)
