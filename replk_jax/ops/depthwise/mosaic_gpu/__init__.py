"""Pallas Mosaic GPU kernels for NVIDIA Hopper GPUs: Toeplitz matrices on the tensor cores."""

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
# XLA cannot partition a custom call.
PROPERTIES = Properties(
    custom_calls=True,
    required_gpu=RequiredGPU("NVIDIA Hopper GPUs", "9.0"),
    partitioned_by_xla=False,
)


def unsupported_reason(
    convolution: Convolution, batch: int | None, channels: int, dtype: Any
) -> str | None:
    """Why one of the three directions is unsupported; None if all are supported.

    Dispatch checks the device (`PROPERTIES`).
    """
    return (
        plan.unsupported_reason(convolution, batch, channels, dtype)
        or plan.unsupported_reason(convolution.transposed(), batch, channels, dtype)
        or unsupported_gradient_reason(convolution, batch, channels, dtype)
    )


def estimate(convolution: Convolution) -> None:
    """None: these kernels are chosen only on devices where they have been measured."""
