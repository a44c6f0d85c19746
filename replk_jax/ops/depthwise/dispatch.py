"""Which implementation computes a given convolution, and why.

Where the device has been measured, the choice is looked up: the nearest convolution of its
table tells which is fastest. Where it has not, it follows from arithmetic and bandwidth.
"""

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from replk_jax.ops.depthwise import dft, measurements, mosaic_gpu, shift, toeplitz, xla
from replk_jax.ops.depthwise.convolution import Convolution

IMPLEMENTATIONS: Mapping[str, ModuleType] = {
    "xla": xla,
    "dft": dft,
    "shift": shift,
    "toeplitz": toeplitz,
    "mosaic_gpu": mosaic_gpu,
}
# Those that are kernels of our own, a custom call in the compiled program: the others are XLA's
# operations alone, which any device and any later JAX runs.
CUSTOM_CALLS = frozenset({"mosaic_gpu"})
# Asks for the fastest without them.
PORTABLE = "portable"
# Those that XLA does not divide over a mesh by itself: it cannot look into kernels of our own, and
# its own convolution's kernel gradient comes out wrong where the batch is divided over one of
# two axes of a mesh (seen on CPUs with JAX 0.10.2 to 0.12.0).
UNDIVIDED = frozenset({"xla", "mosaic_gpu"})
# Those whose rounding errors are in proportion to the largest value of a channel, with the reason
# not to choose them at the highest precision.
SCALED_BY_LARGEST = {
    "dft": "its rounding errors grow with the largest value of a channel, not with the terms of "
    "each sum as precision 'highest' demands"
}
ROLES = ("forward", "input_gradient", "kernel_gradient")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


@dataclasses.dataclass(frozen=True)
class Choice:
    """The name of an implementation, and why it is the one."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


@dataclasses.dataclass(frozen=True)
class Case:
    """One convolution with everything that the choice depends on.

    Attributes:
      convolution: its geometry.
      batch: N; a symbol where it is not known yet.
      channels: C.
      dtype: of all arrays.
      platform: one of `PLATFORMS`.
    """

    convolution: Convolution
    batch: Any
    channels: int
    dtype: jnp.dtype
    platform: str

    @property
    def known_batch(self) -> int | None:
        """N, or None."""
        return self.batch if isinstance(self.batch, int) else None

    def refusals(self) -> dict[str, str]:
        """Why the implementations that cannot compute this cannot."""
        reasons = {}
        for name, module in IMPLEMENTATIONS.items():
            reason = module.refuses(self.convolution, self.known_batch, self.channels, self.dtype)
            if name == "mosaic_gpu":
                reason = _refused_platform(self.platform) or reason
            if reason:
                reasons[name] = reason
        return reasons

    def only_by_name(self) -> dict[str, str]:
        """Why implementations that could compute this are chosen only if the caller names them."""
        return dict(SCALED_BY_LARGEST) if self.convolution.bounded_by_terms else {}

    def choose(self, implementation: str | None, role: str) -> Choice:
        """What computes one of `ROLES`, where the caller asks for `implementation`.

        Raises:
          ValueError: it is unknown or cannot compute this.
        """
        if implementation in (None, PORTABLE):
            return self.fastest(role, portable=implementation == PORTABLE)
        return self._demanded(implementation)

    def _demanded(self, name: str) -> Choice:
        """An implementation by its name."""
        if name not in IMPLEMENTATIONS:
            raise ValueError(
                f"Unknown implementation {name!r}; known: {', '.join(IMPLEMENTATIONS)}, {PORTABLE}."
            )
        refusals = self.refusals()
        if name in refusals:
            able = ", ".join(each for each in IMPLEMENTATIONS if each not in refusals)
            raise ValueError(
                f"implementation={name!r} cannot compute this on {self.platform}: "
                f"{refusals[name]}. These can: {able}; None chooses."
            )
        return Choice(name, "it was asked for")

    def fastest(self, role: str, *, portable: bool = False) -> Choice:
        """The fastest implementation known for one of `ROLES`; if portable, no custom call."""
        excluded = self.refusals().keys() | self.only_by_name().keys()
        excluded |= CUSTOM_CALLS if portable else set()
        able = [name for name in IMPLEMENTATIONS if name not in excluded]
        device = _device_kind(self.platform)
        table = measurements.table_of(device) if device else None
        case = self.convolution, self.known_batch, self.channels, self.dtype
        for nearest in table.by_distance(role, *case) if table else ():
            if name := nearest.fastest(able):
                reason = f"fastest that can, at the nearest measured convolution: {nearest}"
                return Choice(name, reason)
        return self._unmeasured(able)

    def _unmeasured(self, able: list[str]) -> Choice:
        """What arithmetic and bandwidth say of a device that is not in any table."""
        height, width = self.convolution.size
        taps = max(self.convolution.kernel_size)
        if (
            "mosaic_gpu" in able
            and _is_hopper(self.platform)
            and taps >= 9
            and (self.known_batch or 0) >= 16
        ):
            return Choice("mosaic_gpu", "not measured; tensor cores, and a batch that fills them")
        if "toeplitz" in able and taps >= 5 and max(height, width) <= 8:
            return Choice("toeplitz", "not measured; one small matrix for every channel")
        if "dft" in able and taps >= 9 and self.convolution.is_dense:
            return Choice("dft", "not measured; its matrix products do fewer operations")
        return Choice("xla", "not measured; limited by memory")


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What would run, and why nothing else.

    Attributes:
      choices: by role: the result and its two gradients.
      refusals: by implementation: why it cannot compute this at all.
      only_by_name: by implementation: why it is chosen only with `implementation=NAME`.
    """

    choices: dict[str, Choice]
    refusals: dict[str, str]
    only_by_name: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{role.replace('_', ' ')}: {self.choices[role]}" for role in ROLES]
        lines += [f"not {name}: {why}" for name, why in self.refusals.items()]
        lines += [f"{name} only if named: {why}" for name, why in self.only_by_name.items()]
        return "\n".join(lines)


def _refused_platform(platform: str) -> str | None:
    if platform != "cuda":
        return f"its kernels are for NVIDIA's Hopper GPUs (compute capability 9.0), not {platform}"
    device = _device(platform)
    if device is not None and device.compute_capability != "9.0":
        return (
            "its kernels are for Hopper GPUs (compute capability 9.0), and the "
            f"{device.device_kind} has {device.compute_capability}"
        )
    return None


def _is_hopper(platform: str) -> bool:
    device = _device(platform)
    return device is not None and device.compute_capability == "9.0"


def _device_kind(platform: str) -> str | None:
    """Of the device that programs for a platform run on here, None where there is none."""
    if platform == "cpu":
        return "cpu"
    device = _device(platform)
    return device and device.device_kind


def platform_of(device: jax.Device) -> str:
    """The one of `PLATFORMS` that programs for a device are lowered for."""
    return "cuda" if device.platform == "gpu" else device.platform


def _device(platform: str) -> jax.Device | None:
    try:
        return jax.devices(platform)[0]
    except RuntimeError:  # a program for a device that this machine does not have
        return None
