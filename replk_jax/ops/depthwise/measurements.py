"""Tables of the measured times of the implementations, one per device.

The package contains one file per device in `tables`. `python -m replk_jax bench depthwise --tune`
measures the current device and writes a user table, which takes precedence.
"""

import dataclasses
import functools
import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from replk_jax.io.files import json_text, replace_text
from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.implementation import Direction

PACKAGED = Path(__file__).with_name("tables")


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The times of the implementations for one direction of one convolution.

    Attributes:
      direction: "forward", "input_gradient" or "kernel_gradient".
      dtype: of the arrays, "float32", "bfloat16", ...
      batch, channels: N and C.
      size, kernel_size, stride: as in `Convolution`; the padding is half the kernel.
      seconds: by implementation, without those that do not support the convolution.
    """

    direction: Direction
    dtype: str
    batch: int
    channels: int
    size: tuple[int, int]
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    seconds: dict[str, float]

    def fastest(self, candidates: Iterable[str]) -> str | None:
        """The fastest of the candidates; None if none of them was measured."""
        measured = [name for name in candidates if name in self.seconds]
        return min(measured, key=self.seconds.__getitem__, default=None)

    def distance(
        self, convolution: Convolution, batch: int | None, channels: int, dtype: Any
    ) -> float:
        """The distance to another convolution: the root of a sum of weighted squares.

        The terms are the octaves between the sizes of kernel, feature map, batch and channels, and
        whether stride and dtype differ. Kernel and feature map have large weights, since they
        decide most between implementations; another stride counts like two octaves of these.
        """
        octaves = [
            2 * _octaves(self.kernel_size, convolution.kernel_size),
            2 * _octaves(self.size, convolution.size),
            _octaves((self.batch,), (batch,)) if batch else 0,
            _octaves((self.channels,), (channels,)) / 2,
            4 * (self.stride != convolution.stride),
            self.dtype != str(dtype),
        ]
        return math.hypot(*octaves)

    def __str__(self) -> str:
        (h, w), (kh, kw) = self.size, self.kernel_size
        stride = "" if self.stride == (1, 1) else f", stride {self.stride[0]}"
        times = sorted(self.seconds.items(), key=lambda item: item[1])
        listed = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in times)
        return (
            f"{self.batch} x {h} x {w} x {self.channels}, kernel {kh} x {kw}{stride}, "
            f"{self.dtype}: {listed}"
        )


@dataclasses.dataclass(frozen=True)
class Table:
    """The measurements of one device.

    Attributes:
      device: `jax.Device.device_kind`.
      setting: what else the times depend on: processor, threads, versions, date.
      measurements: in any order.
      unusable: the faults of the implementations that failed or computed wrong results on this
        device, by their names. Dispatch does not choose them.
    """

    device: str
    setting: dict[str, Any]
    measurements: tuple[Measurement, ...]
    unusable: dict[str, str] = dataclasses.field(default_factory=dict)

    def has_measured(self, name: str) -> bool:
        """Whether there is a measurement of an implementation."""
        return any(name in each.seconds for each in self.measurements)

    def by_distance(
        self,
        direction: Direction,
        convolution: Convolution,
        batch: int | None,
        channels: int,
        dtype: Any,
    ) -> list[Measurement]:
        """The measurements of a direction, sorted by `Measurement.distance` to a convolution."""
        same_direction = [each for each in self.measurements if each.direction == direction]
        return sorted(
            same_direction, key=lambda each: each.distance(convolution, batch, channels, dtype)
        )


def own_path(device: str) -> Path:
    """The path of the user table of a device.

    Its folder is the environment variable REPLK_JAX_TABLES, by default ~/.cache/replk_jax.
    """
    folder = os.environ.get("REPLK_JAX_TABLES") or os.path.expanduser("~/.cache/replk_jax")
    return Path(folder) / _file_name(device)


def table_of(device: str) -> Table | None:
    """The user table of a device, or else that of the package, or else None.

    The processes of a multi-process program must choose the same implementations, so they use a
    user table only if REPLK_JAX_TABLES is set.

    Raises:
      ValueError: the file is not a table.
    """
    paths = [PACKAGED / _file_name(device)]
    if jax.process_count() == 1 or os.environ.get("REPLK_JAX_TABLES"):
        paths.insert(0, own_path(device))
    for path in paths:
        if os.path.isfile(path):  # also False if the folder cannot be read
            return _read(path, path.stat().st_mtime_ns)
    return None


def write(table: Table, path: Path) -> None:
    """Writes a table atomically.

    Raises:
      OSError: the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join("  " + json_text(dataclasses.asdict(each)) for each in table.measurements)
    head = {"device": table.device, "setting": table.setting, "unusable": table.unusable}
    head = json_text(head, indent=1)
    replace_text(path, head[:-2] + ',\n "measurements": [\n' + lines + "\n ]\n}\n")


@functools.lru_cache
def _read(path: Path, modified: int) -> Table:
    try:
        content = json.loads(path.read_text())
        measurements = []
        for entry in content["measurements"]:
            if "role" in entry:  # the name of this field in tables of version 0.1
                entry["direction"] = entry.pop("role")
            pairs = {key: tuple(entry[key]) for key in ("size", "kernel_size", "stride")}
            measurements.append(Measurement(**{**entry, **pairs}))
        unusable = dict(content.get("unusable", {}))
        return Table(content["device"], content["setting"], tuple(measurements), unusable)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a table of measurements ({error!r}). Delete it, or replace it with "
            "python -m replk_jax bench depthwise --tune."
        ) from error


def _file_name(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_") + ".json"


def _octaves(measured: tuple[int, ...], wanted: tuple[int, ...]) -> float:
    """The binary logarithm of the ratio of two sizes; for areas, of the ratio of their sides."""
    ratio = math.prod(wanted) / math.prod(measured)
    return abs(math.log2(ratio)) / len(measured) if ratio > 0 else math.inf
