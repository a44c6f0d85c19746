"""The static description of a depthwise convolution."""

import dataclasses
from functools import cached_property

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Convolution:
    """The static description of y = x * k.

    x is (N, H, W, C), k is (KH, KW, 1, C), y is (N, OH, OW, C). Consider the trilinear form

        F(x, k, g) = sum g[n, i, j, c] x[n, s i + d u - p, s j + d v - q, c] k[u, v, 0, c]

    with stride s, dilation d, padding p and q; x is zero outside the feature map. Its three partial
    derivatives are y, the gradient with respect to x and the gradient with respect to k. An
    implementation computes them:

        forward(x, k, convolution)          -> y
        input_gradient(g, k, convolution)   -> dx, of the shape of x
        kernel_gradient(x, g, convolution)  -> dk, of the shape of k

    Both operands and the result have the same dtype.

    Attributes:
      size: (H, W) of the input.
      kernel_size: (KH, KW).
      stride: step of the window, (rows, columns).
      padding: zeros (before, after) for the rows and for the columns; negative crops.
      dilation: spacing of the kernel's taps, (rows, columns).
      precision: of products on matrix units; None for the default of the implementation.
      bounded_by_terms: whether the rounding error of a result must be proportional to the terms
        of its own sum, rather than to the largest value of its channel.
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
        """(OH, OW); 0 if the window is larger than the padded input."""
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
        """The requested precision, or else one that keeps all bits of operands of this dtype.

        HIGH is three bfloat16 products on a TPU and tensorfloat32 on a GPU.
        """
        if self.precision is not None:
            return self.precision
        return lax.Precision.HIGH if jnp.dtype(dtype).itemsize < 4 else lax.Precision.HIGHEST

    def transposed(self) -> "Convolution":
        """The convolution of g with the flipped kernel that computes the gradient for x.

        Raises:
          ValueError: the stride or dilation is not 1.
        """
        if not self.is_dense:
            raise ValueError(
                "The transpose is a convolution of this kind only at stride 1 and dilation 1; got "
                f"{self.stride} and {self.dilation}."
            )
        padding = tuple(
            (k - 1 - before, k - 1 - after)
            for k, (before, after) in zip(self.kernel_size, self.padding, strict=True)
        )
        return dataclasses.replace(self, size=self.output_size, padding=padding)
