"""Chooses the implementation of a given convolution and explains the choice.

If the device has a table of measurements, the choice is the fastest implementation at the nearest
measured convolution. Otherwise it is the implementation with the best estimate, among those that
consist of XLA operations.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from replk_jax.ops.depthwise import dft, measurements, mosaic_gpu, shift, toeplitz, xla
from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.implementation import DIRECTIONS, Direction, Implementation, Properties

_MODULES: tuple[Implementation, ...] = (xla, dft, shift, toeplitz, mosaic_gpu)
IMPLEMENTATIONS: Mapping[str, Implementation] = {each.NAME: each for each in _MODULES}
# The implementation that the others are verified against.
REFERENCE = xla.NAME
# The name that selects the fastest implementation without custom calls. Its XLA operations run on
# any device, and exported programs that contain them run with later releases of JAX.
PORTABLE = "portable"
# The values of `implementation` that support a symbolic height and width.
SYMBOLIC_SIZE_CHOICES = (
    None,
    PORTABLE,
    *(name for name, each in IMPLEMENTATIONS.items() if each.PROPERTIES.supports_symbolic_sizes),
)
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


@dataclasses.dataclass(frozen=True)
class Choice:
    """The name of the chosen implementation, and why it was chosen."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


@dataclasses.dataclass(frozen=True)
class Case:
    """One convolution with everything that the choice depends on.

    Attributes:
      convolution: its geometry.
      batch: N; a symbolic dimension if it is unknown.
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
        """N, or None if it is symbolic."""
        return self.batch if isinstance(self.batch, int) else None

    @property
    def table(self) -> measurements.Table | None:
        """The measurements of this machine's device of the platform."""
        device = _device_kind(self.platform)
        return measurements.table_of(device) if device else None

    def unsupported(self) -> dict[str, str]:
        """The reasons of the implementations that do not support this case, by their names."""
        reasons = {name: self._unsupported(each) for name, each in IMPLEMENTATIONS.items()}
        return {name: reason for name, reason in reasons.items() if reason}

    def _unsupported(self, implementation: Implementation) -> str | None:
        gpu = implementation.PROPERTIES.required_gpu
        reason = gpu and gpu.unsupported_reason(self.platform, _device(self.platform))
        return reason or implementation.unsupported_reason(
            self.convolution, self.known_batch, self.channels, self.dtype
        )

    def only_by_name(self) -> dict[str, str]:
        """The reasons of the implementations that are used only if named, by their names."""
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
                "kernels of this package run by default only on devices where they have been "
                "measured; python -m replk_jax bench depthwise --tune measures them on this device"
            )
        if properties.error_scales_with_largest and self.convolution.bounded_by_terms:
            return (
                "its rounding errors grow with the largest value of a channel; precision 'highest' "
                "requires errors that grow with the terms of each sum"
            )
        return None

    def choose(self, implementation: str | None, direction: Direction) -> Choice:
        """Chooses the implementation of one direction.

        Args:
          implementation: the name that the caller gave; None or `PORTABLE` for the fastest.
          direction: one of `DIRECTIONS`.

        Raises:
          ValueError: the implementation is unknown or does not support this case.
        """
        if implementation is None or implementation == PORTABLE:
            return self.fastest(direction, portable=implementation == PORTABLE)
        return self._named(implementation)

    def _named(self, name: str) -> Choice:
        """The implementation of this name, if it supports this case."""
        if name not in IMPLEMENTATIONS:
            raise ValueError(
                f"Unknown implementation {name!r}; known: {', '.join(IMPLEMENTATIONS)}, {PORTABLE}."
            )
        unsupported = self.unsupported()
        if name in unsupported:
            supported = ", ".join(each for each in IMPLEMENTATIONS if each not in unsupported)
            raise ValueError(
                f"implementation={name!r} cannot compute this on {self.platform}: "
                f"{unsupported[name]}. Use one of {supported}, or None for the fastest."
            )
        return Choice(name, "requested by name")

    def fastest(self, direction: Direction, *, portable: bool = False) -> Choice:
        """The fastest known implementation of a direction.

        Args:
          direction: one of `DIRECTIONS`.
          portable: whether to exclude implementations with custom calls.
        """
        excluded = self.unsupported().keys() | self.only_by_name().keys()
        candidates = [
            name
            for name, each in IMPLEMENTATIONS.items()
            if name not in excluded and not (portable and each.PROPERTIES.custom_calls)
        ]
        case = self.convolution, self.known_batch, self.channels, self.dtype
        table = self.table
        for nearest in table.by_distance(direction, *case) if table else ():
            if name := nearest.fastest(candidates):
                reason = f"fastest supported one at the nearest measured convolution: {nearest}"
                return Choice(name, reason)
        return self._best_estimate(candidates)

    def _best_estimate(self, candidates: Iterable[str]) -> Choice:
        """The candidate whose own estimate ranks highest."""
        estimates = {name: IMPLEMENTATIONS[name].estimate(self.convolution) for name in candidates}
        known = {name: estimate for name, estimate in estimates.items() if estimate}
        best = max(known, key=lambda name: known[name].rank)
        return Choice(best, f"not measured; {known[best].reason}")


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Which implementations run, and why the others do not.

    Attributes:
      choices: the implementation of each direction.
      unsupported: by implementation, why it does not support this case.
      only_by_name: by implementation, why it is used only with `implementation=NAME`.
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
    """The kind of this machine's device of a platform; None if there is none."""
    if platform == "cpu":
        return "cpu"
    device = _device(platform)
    return device and device.device_kind


def platform_of(device: jax.Device) -> str:  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stubs
    """The member of `PLATFORMS` that programs for a device are lowered for."""
    return "cuda" if device.platform == "gpu" else device.platform


def _device(platform: str) -> jax.Device | None:  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stubs
    try:
        return jax.devices(platform)[0]
    except RuntimeError:  # this machine has no device of the platform
        return None
