"""The contract of an implementation of the depthwise convolution.

An implementation is a module that fulfils `Implementation`. To add one, write the module and list
it in `dispatch.IMPLEMENTATIONS`; nothing else names implementations.
"""

import dataclasses
from typing import Any, Literal, Protocol

import jax

from replk_jax.ops.depthwise.convolution import Convolution

Direction = Literal["forward", "input_gradient", "kernel_gradient"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "input_gradient", "kernel_gradient")


@dataclasses.dataclass(frozen=True)
class RequiredGPU:
    """The GPUs that an implementation is limited to.

    Attributes:
      name: of these GPUs, for messages.
      compute_capability: as `jax.Device.compute_capability` gives it.
    """

    name: str
    compute_capability: str

    def unsupported_reason(self, platform: str, device: jax.Device | None) -> str | None:  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stubs
        """Why a device is not one of them; None if it is, or if it is not here to be asked.

        Args:
          platform: that programs are compiled for.
          device: of that platform, or None where this machine has none.
        """
        needed = f"its kernels are for {self.name} (compute capability {self.compute_capability})"
        if platform != "cuda":
            return f"{needed}, not {platform}"
        if device is not None and device.compute_capability != self.compute_capability:
            return f"{needed}; the {device.device_kind} has {device.compute_capability}"
        return None


@dataclasses.dataclass(frozen=True)
class Properties:
    """What dispatch must know about an implementation besides its speed.

    Attributes:
      custom_calls: whether its programs contain kernels of this package, as custom calls. Such an
        implementation is chosen only where a table of the device has measured it.
      required_gpu: the only GPUs that it runs on; None if it runs anywhere.
      partitioned_by_xla: whether XLA divides it over a mesh correctly. If not, every device
        computes its part by itself.
      error_scales_with_largest: whether its rounding errors are in proportion to the largest
        value of a channel, and not to the terms of each sum.
      takes_open_sizes: whether it computes feature maps whose height and width are symbolic.
    """

    custom_calls: bool = False
    required_gpu: RequiredGPU | None = None
    partitioned_by_xla: bool = True
    error_scales_with_largest: bool = False
    takes_open_sizes: bool = False


@dataclasses.dataclass(frozen=True)
class Estimate:
    """How good an implementation is thought to be on a device that has not been measured.

    Attributes:
      rank: the highest is chosen.
      reason: why, for `explain`.
    """

    rank: int
    reason: str


class Implementation(Protocol):
    """What the module of an implementation defines.

    In the three functions that compute, all arrays have one dtype, x is (N, H, W, C), kernel
    (KH, KW, 1, C) and g (N, OH, OW, C). Sums are accumulated in at least float32.
    """

    @property
    def NAME(self) -> str:
        """By which users ask for it."""
        ...

    @property
    def PROPERTIES(self) -> Properties:
        """What dispatch must know about it."""
        ...

    def unsupported_reason(
        self, convolution: Convolution, batch: int | None, channels: int, dtype: Any
    ) -> str | None:
        """Why it cannot compute this in all directions, or None if it can.

        Args:
          convolution: the geometry.
          batch: N; None where it is not known yet.
          channels: C.
          dtype: of all arrays.
        """
        ...

    def estimate(self, convolution: Convolution) -> Estimate | None:
        """Its estimate for a device without a table; None if it is not to be chosen there."""
        ...

    def forward(self, x: jax.Array, kernel: jax.Array, convolution: Convolution) -> jax.Array:
        """y, (N, OH, OW, C)."""
        ...

    def input_gradient(
        self, g: jax.Array, kernel: jax.Array, convolution: Convolution
    ) -> jax.Array:
        """The gradient with respect to x, (N, H, W, C)."""
        ...

    def kernel_gradient(self, x: jax.Array, g: jax.Array, convolution: Convolution) -> jax.Array:
        """The gradient with respect to the kernel, (KH, KW, 1, C)."""
        ...
