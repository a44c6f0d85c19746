"""Which implementation computes a given convolution, and why.

Where the device has been measured, the choice is looked up: the fastest at the nearest
convolution of its table. Where it has not, it follows from the estimates of the implementations
that are XLA's operations alone.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from replk_jax.ops.depthwise import dft, measurements, mosaic_gpu, shift, toeplitz, xla
from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.implementation import DIRECTIONS, Direction, Implementation, Properties

_IN_ORDER: tuple[Implementation, ...] = (xla, dft, shift, toeplitz, mosaic_gpu)
IMPLEMENTATIONS: Mapping[str, Implementation] = {each.NAME: each for each in _IN_ORDER}
# What the others are compared with.
REFERENCE = xla.NAME
# Asks for the fastest without custom calls: XLA's operations run on any device, and a program that
# is exported with them on any later JAX.
PORTABLE = "portable"
# What may be asked for where the height and width of the feature map are symbolic.
OPEN_SIZE_CHOICES = (
    None,
    PORTABLE,
    *(name for name, each in IMPLEMENTATIONS.items() if each.PROPERTIES.takes_open_sizes),
)
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

    @property
    def table(self) -> measurements.Table | None:
        """The measurements of the device that programs for the platform run on here."""
        device = _device_kind(self.platform)
        return measurements.table_of(device) if device else None

    def unsupported(self) -> dict[str, str]:
        """By implementation: why it cannot compute this."""
        reasons = {name: self._unsupported(each) for name, each in IMPLEMENTATIONS.items()}
        return {name: reason for name, reason in reasons.items() if reason}

    def _unsupported(self, implementation: Implementation) -> str | None:
        gpu = implementation.PROPERTIES.required_gpu
        reason = gpu and gpu.unsupported_reason(self.platform, _device(self.platform))
        return reason or implementation.unsupported_reason(
            self.convolution, self.known_batch, self.channels, self.dtype
        )

    def only_by_name(self) -> dict[str, str]:
        """By implementation that could compute this: why it is chosen only if it is named."""
        unsupported, table = self.unsupported(), self.table
        reasons = {
            name: self._only_by_name(name, each.PROPERTIES, table)
            for name, each in IMPLEMENTATIONS.items()
            if name not in unsupported
        }
        return {name: reason for name, reason in reasons.items() if reason}

    def _only_by_name(
        self, name: str, properties: Properties, table: measurements.Table | None
    ) -> str | None:
        if table and name in table.unusable:
            fault = table.unusable[name]
            return f"it failed its comparison with {REFERENCE!r} on this device: {fault}"
        if properties.custom_calls and not (table and table.has_measured(name)):
            return (
                "kernels of this package run by default only where they have been measured; "
                "python -m replk_jax bench depthwise --tune does that on the device at hand"
            )
        if properties.error_scales_with_largest and self.convolution.bounded_by_terms:
            return (
                "its rounding errors grow with the largest value of a channel, not with the terms "
                "of each sum as precision 'highest' demands"
            )
        return None

    def choose(self, implementation: str | None, direction: Direction) -> Choice:
        """What computes one of `DIRECTIONS`, where the caller asks for `implementation`.

        Raises:
          ValueError: it is unknown or cannot compute this.
        """
        if implementation in (None, PORTABLE):
            return self.fastest(direction, portable=implementation == PORTABLE)
        return self._demanded(implementation)

    def _demanded(self, name: str) -> Choice:
        """An implementation by its name."""
        if name not in IMPLEMENTATIONS:
            raise ValueError(
                f"Unknown implementation {name!r}; known: {', '.join(IMPLEMENTATIONS)}, {PORTABLE}."
            )
        unsupported = self.unsupported()
        if name in unsupported:
            able = ", ".join(each for each in IMPLEMENTATIONS if each not in unsupported)
            raise ValueError(
                f"implementation={name!r} cannot compute this on {self.platform}: "
                f"{unsupported[name]}. These can: {able}; None chooses."
            )
        return Choice(name, "it was asked for")

    def fastest(self, direction: Direction, *, portable: bool = False) -> Choice:
        """The fastest implementation known for one of `DIRECTIONS`; if portable, without custom
        calls."""
        excluded = self.unsupported().keys() | self.only_by_name().keys()
        able = [
            name
            for name, each in IMPLEMENTATIONS.items()
            if name not in excluded and not (portable and each.PROPERTIES.custom_calls)
        ]
        case = self.convolution, self.known_batch, self.channels, self.dtype
        table = self.table
        for nearest in table.by_distance(direction, *case) if table else ():
            if name := nearest.fastest(able):
                reason = f"fastest that can, at the nearest measured convolution: {nearest}"
                return Choice(name, reason)
        return self._estimated(able)

    def _estimated(self, able: Iterable[str]) -> Choice:
        """The best by the implementations' own estimates."""
        estimates = {name: IMPLEMENTATIONS[name].estimate(self.convolution) for name in able}
        known = {name: estimate for name, estimate in estimates.items() if estimate}
        best = max(known, key=lambda name: known[name].rank)
        return Choice(best, f"not measured; {known[best].reason}")


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What would run, and why nothing else.

    Attributes:
      choices: by direction, what computes it.
      unsupported: by implementation, why it cannot compute this at all.
      only_by_name: by implementation, why it is chosen only with `implementation=NAME`.
    """

    choices: dict[str, Choice]
    unsupported: dict[str, str]
    only_by_name: dict[str, str]

    def __str__(self) -> str:
        lines = [
            f"{direction.replace('_', ' ')}: {self.choices[direction]}" for direction in DIRECTIONS
        ]
        lines += [f"not {name}: {why}" for name, why in self.unsupported.items()]
        lines += [f"{name} only if named: {why}" for name, why in self.only_by_name.items()]
        return "\n".join(lines)


def _device_kind(platform: str) -> str | None:
    """Of the device that programs for a platform run on here, None where there is none."""
    if platform == "cpu":
        return "cpu"
    device = _device(platform)
    return device and device.device_kind


def platform_of(device: jax.Device) -> str:  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stubs
    """The one of `PLATFORMS` that programs for a device are lowered for."""
    return "cuda" if device.platform == "gpu" else device.platform


def _device(platform: str) -> jax.Device | None:  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stubs
    try:
        return jax.devices(platform)[0]
    except RuntimeError:  # a program for a device that this machine does not have
        return None
