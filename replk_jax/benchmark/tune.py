"""Verifies and measures the implementations on the current device and writes its table."""

import dataclasses
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax

from replk_jax.benchmark.depthwise import Layer
from replk_jax.benchmark.depthwise_programs import (
    calls_of,
    contender,
    direction_function,
    draw_operands,
)
from replk_jax.benchmark.environment import describe_environment
from replk_jax.benchmark.timing import Contender, Timing, compete
from replk_jax.benchmark.verify import find_faults, layers_to_verify
from replk_jax.ops.depthwise.dispatch import IMPLEMENTATIONS
from replk_jax.ops.depthwise.implementation import DIRECTIONS, Direction
from replk_jax.ops.depthwise.measurements import Measurement, Table, table_of, write
from replk_jax.ops.depthwise.shapes import REPLKNET_224, SMALL, Shape, square

KERNELS = (3, 5, 7, 9, 13, 21, 31)
# For all batch sizes but the first.
FEWER_KERNELS = (3, 7, 13, 31)
STRIDED_KERNELS = (3, 5, 7)
# The channels of the feature maps of the networks, by height and width.
CHANNELS = {7: 1024, 14: 512, 28: 256, 56: 128, 112: 64}
# An implementation is not measured if it was slower than the fastest by more than MAX_SLOWDOWN at a
# convolution nearer than MAX_DISTANCE (`Measurement.distance`).
MAX_SLOWDOWN = 50
MAX_DISTANCE = 2.5


def grid(platform: str) -> list[Layer]:
    """The convolutions to measure, the most informative first.

    First the layers of RepLKNet-31B, then other sizes of kernels and feature maps, then other
    batch sizes.
    """
    first, *others = (4, 1, 32) if platform == "cpu" else (32, 1, 4)
    shapes = [
        *SMALL,
        *reversed(REPLKNET_224),
        *_shapes(KERNELS),
        *_shapes(STRIDED_KERNELS, stride=2),
    ]
    layers = [Layer(shape, first) for shape in shapes]
    layers += [Layer(shape, batch) for batch in others for shape in _shapes(FEWER_KERNELS)]
    layers += [Layer(shape, batch) for batch in others for shape in _shapes((3,), stride=2)]
    return list(dict.fromkeys(layers))


def tune(
    path: Path,
    dtypes: tuple[str, ...],
    *,
    layers: Iterable[Layer] | None = None,
    verified: Iterable[Layer] | None = None,
    minutes: float,
    seconds: float = 0.05,
) -> Iterator[str]:
    """Measures all implementations in all directions.

    First, it compares the implementations with the reference implementation. Those with wrong
    results are recorded in the table as unusable, and are not measured.

    The table is written after the comparison and after every convolution, so an interrupted run
    leaves a usable table. It retains the measurements of the device's previous table that are not
    repeated.

    Args:
      path: of the table.
      dtypes: of the arrays.
      layers: the convolutions to measure; None for the `grid` of the device.
      verified: the convolutions to compare on; None for `layers_to_verify`.
      minutes: after which no convolution is started.
      seconds: how long to repeat each program; at least two runs are timed.

    Yields:
      Lines of text: the unusable implementations, each measurement, and each failure.

    Raises:
      OSError: the table cannot be written.
    """
    device = jax.devices()[0]
    layers = grid(device.platform) if layers is None else layers
    setting = {**describe_environment(), "calls": calls_of(device.platform)}
    present = table_of(device.device_kind)
    measurements = {_case(each): each for each in present.measurements} if present else {}
    verified = layers_to_verify(device.platform) if verified is None else verified
    # In every dtype: dispatch also uses measurements of other dtypes than that of a call.
    unusable = find_faults(verified)
    for name, fault in unusable.items():
        yield f"{name} is unusable on this device: {fault}"

    def table() -> Table:
        return Table(device.device_kind, setting, tuple(measurements.values()), unusable)

    write(table(), path)
    end = time.monotonic() + 60 * minutes
    cases = [(layer, dtype) for layer in layers for dtype in dtypes]
    for done, (layer, dtype) in enumerate(cases):
        if time.monotonic() > end:
            yield f"{minutes:g} minutes are over: {len(cases) - done} convolutions are left out"
            return
        results = _measure(layer, dtype, table(), seconds)
        for direction in DIRECTIONS:
            times = {name: result for (each, name), result in results.items() if each == direction}
            measured = {n: t.median for n, t in times.items() if isinstance(t, Timing)}
            for name, error in times.items():
                if name not in measured:
                    yield f"{direction}: {name} failed at {layer}, {dtype}: {error!r}"
            if measured:
                new = _measurement(direction, layer, dtype, measured)
                measurements[_case(new)] = new
                yield f"{direction}: {new}"
        write(table(), path)
        if not done:
            yield f"The measurements are written to {path}."


def _measure(
    layer: Layer, dtype: str, before: Table, seconds: float
) -> dict[tuple[Direction, str], Timing | Exception]:
    """The timings by (direction, implementation), without unsupported and very slow ones."""
    operands = draw_operands(layer.shape, layer.batch, dtype, calls_of(jax.devices()[0].platform))
    excluded = layer.explain(dtype).unsupported.keys() | before.unusable.keys()
    candidates = [name for name in IMPLEMENTATIONS if name not in excluded]
    contenders: dict[tuple[Direction, str], Contender] = {
        (direction, name): contender(
            direction_function(direction, layer.shape.convolution, name), operands
        )
        for direction in DIRECTIONS
        for name in candidates
        if not _is_too_slow(direction, name, layer, dtype, before)
    }
    return compete(contenders, seconds, least_runs=2)


def _is_too_slow(direction: Direction, name: str, layer: Layer, dtype: str, before: Table) -> bool:
    """Whether it was much slower than the fastest at the nearest convolution it was measured at."""
    case = layer.shape.convolution, layer.batch, layer.shape.channels, dtype
    for measured in before.by_distance(direction, *case):
        if name in measured.seconds:
            ratio = measured.seconds[name] / min(measured.seconds.values())
            return ratio > MAX_SLOWDOWN and measured.distance(*case) < MAX_DISTANCE
    return False


def _case(measurement: Measurement) -> tuple:
    """All fields but the seconds, to identify measurements of the same case."""
    return dataclasses.astuple(dataclasses.replace(measurement, seconds={}))[:-1]


def _measurement(
    direction: Direction, layer: Layer, dtype: str, seconds: dict[str, float]
) -> Measurement:
    shape = layer.shape
    return Measurement(
        direction=direction,
        dtype=dtype,
        batch=layer.batch,
        channels=shape.channels,
        size=shape.size,
        kernel_size=shape.kernel_size,
        stride=(shape.stride, shape.stride),
        seconds=seconds,
    )


def _shapes(kernels: tuple[int, ...], stride: int = 1) -> list[Shape]:
    """All kernels on all feature maps of more than half the size of the kernel."""
    return [
        square(size, kernel, channels, stride)
        for kernel in kernels
        for size, channels in CHANNELS.items()
        if kernel < 2 * size
    ]
