"""Kernels for NVIDIA's Hopper GPUs: Toeplitz matrices on the tensor cores, in Pallas Mosaic GPU."""

from typing import Any

from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.implementation import Properties, RequiredGPU
from replk_jax.ops.depthwise.mosaic_gpu import plan
from replk_jax.ops.depthwise.mosaic_gpu.forward import forward, forward_packed, input_gradient
from replk_jax.ops.depthwise.mosaic_gpu.kernel_gradient import (
    kernel_gradient,
    unsupported_gradient_reason,
)

__all__ = [
    "NAME",
    "PROPERTIES",
    "estimate",
    "forward",
    "forward_packed",
    "input_gradient",
    "kernel_gradient",
    "unsupported_reason",
]

NAME = "mosaic_gpu"
# XLA cannot look into a custom call to divide it.
PROPERTIES = Properties(
    custom_calls=True,
    required_gpu=RequiredGPU("NVIDIA's Hopper GPUs", "9.0"),
    partitioned_by_xla=False,
)


def unsupported_reason(
    convolution: Convolution, batch: int | None, channels: int, dtype: Any
) -> str | None:
    """What any of the three kernels cannot compute; the device is not asked."""
    return (
        plan.unsupported_reason(convolution, batch, channels, dtype)
        or plan.unsupported_reason(convolution.transposed(), batch, channels, dtype)
        or unsupported_gradient_reason(convolution, batch, channels, dtype)
    )


def estimate(convolution: Convolution) -> None:
    """None: kernels of our own run only where they have been measured."""
