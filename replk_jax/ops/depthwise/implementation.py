"""The contract of an implementation of the depthwise convolution.

An implementation is a module that satisfies the protocol `Implementation`. To add one, write the
module and list it in `dispatch.IMPLEMENTATIONS`.
"""

import dataclasses
from typing import Any, Literal, Protocol

import jax

from replk_jax.ops.depthwise.convolution import Convolution

Direction = Literal["forward", "input_gradient", "kernel_gradient"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "input_gradient", "kernel_gradient")


@dataclasses.dataclass(frozen=True)
class RequiredGPU:
    """The only GPUs that an implementation supports.

    Attributes:
      name: of these GPUs, for messages.
      compute_capability: as in `jax.Device.compute_capability`.
    """

    name: str
    compute_capability: str

    def unsupported_reason(self, platform: str, device: jax.Device | None) -> str | None:  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stubs
        """Why a device is unsupported; None if it is supported or unknown.

        Args:
          platform: that programs are compiled for.
          device: of that platform; None if this machine has none.
        """
        needed = f"its kernels are for {self.name} (compute capability {self.compute_capability})"
        if platform != "cuda":
            return f"{needed}, not {platform}"
        if device is not None and device.compute_capability != self.compute_capability:
            return f"{needed}; the {device.device_kind} has {device.compute_capability}"
        return None


@dataclasses.dataclass(frozen=True)
class Properties:
    """The properties of an implementation that dispatch needs, besides its speed.

    Attributes:
      custom_calls: whether its programs contain kernels of this package, as custom calls. Dispatch
        chooses such an implementation only if the table of the device has measurements of it.
      required_gpu: the only GPUs that it runs on; None if it runs anywhere.
      partitioned_by_xla: whether XLA partitions it over a mesh correctly. If not, every device
        computes its own shard.
      error_scales_with_largest: whether its rounding errors are proportional to the largest value
        of a channel, rather than to the terms of each sum.
      supports_symbolic_sizes: whether the height and width of the feature map may be symbolic.
    """

    custom_calls: bool = False
    required_gpu: RequiredGPU | None = None
    partitioned_by_xla: bool = True
    error_scales_with_largest: bool = False
    supports_symbolic_sizes: bool = False


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The expected speed of an implementation on a device without measurements.

    Attributes:
      rank: dispatch chooses the highest.
      reason: of the rank, for `explain`.
    """

    rank: int
    reason: str


class Implementation(Protocol):
    """The interface of the module of an implementation.

    In `forward`, `input_gradient` and `kernel_gradient` all arrays have the same dtype; x is
    (N, H, W, C), kernel (KH, KW, 1, C) and g (N, OH, OW, C). Sums are accumulated in at least
    float32.
    """

    @property
    def NAME(self) -> str:
        """The value of `implementation` that selects it."""
        ...

    @property
    def PROPERTIES(self) -> Properties:
        """Its properties, for dispatch."""
        ...

    def unsupported_reason(
        self, convolution: Convolution, batch: int | None, channels: int, dtype: Any
    ) -> str | None:
        """Why it does not support this case in all directions; None if it does.

        Args:
          convolution: the geometry.
          batch: N; None if it is symbolic.
          channels: C.
          dtype: of all arrays.
        """
        ...

    def estimate(self, convolution: Convolution) -> Estimate | None:
        """Its estimate for a device without a table; None if it must not be chosen there."""
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
