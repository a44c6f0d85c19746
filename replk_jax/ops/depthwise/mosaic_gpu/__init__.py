"""Kernels for NVIDIA's Hopper GPUs: Toeplitz matrices on the tensor cores, in Pallas Mosaic GPU."""

from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.mosaic_gpu import plan
from replk_jax.ops.depthwise.mosaic_gpu.forward import forward, forward_packed, input_gradient
from replk_jax.ops.depthwise.mosaic_gpu.kernel_gradient import (
    kernel_gradient,
    refuses_kernel_gradient,
)

__all__ = ["forward", "forward_packed", "input_gradient", "kernel_gradient", "refuses"]


def refuses(convolution: Convolution, batch: int | None, channels: int, dtype) -> str | None:
    """What any of the three kernels cannot compute."""
    return (
        plan.refuses(convolution, batch, channels, dtype)
        or plan.refuses(convolution.transposed(), batch, channels, dtype)
        or refuses_kernel_gradient(convolution, batch, channels, dtype)
    )
