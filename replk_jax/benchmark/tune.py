"""Verifies and measures the implementations on the device at hand and writes its table."""

import dataclasses
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from replk_jax.benchmark.depthwise import Layer
from replk_jax.benchmark.depthwise_programs import (
    calls_of,
    contender,
    direction_function,
    draw_operands,
)
from replk_jax.benchmark.environment import describe_environment
from replk_jax.benchmark.timing import Timing, compete
from replk_jax.benchmark.verify import find_faults, layers_to_verify
from replk_jax.ops.depthwise.dispatch import IMPLEMENTATIONS
from replk_jax.ops.depthwise.implementation import DIRECTIONS, Direction
from replk_jax.ops.depthwise.measurements import Measurement, Table, table_of, write
from replk_jax.ops.depthwise.shapes import REPLKNET_224, SMALL, Shape, square

KERNELS = (3, 5, 7, 9, 13, 21, 31)
# For batches other than the first.
FEWER_KERNELS = (3, 7, 13, 31)
STRIDED_KERNELS = (3, 5, 7)
# Channels that a map of this size has in the networks.
CHANNELS = {7: 1024, 14: 512, 28: 256, 56: 128, 112: 64}
# An implementation that took so many times the time of the fastest for a convolution that is at
# most so far (`Measurement.distance`) is left out.
HOPELESS = 50
NEAR = 2.5


def grid(platform: str) -> list[Layer]:
    """The convolutions to measure, the most informative first.

    The layers of RepLKNet-31B; kernels and maps between them; then other batches.
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
    """Measures every implementation that is able, in every direction.

    Before that, all are compared with the reference implementation. Those that err are recorded
    in the table as unusable and are not measured.

    The table is written after that and after every convolution, so that it is of use when this is
    stopped. What the device's present table holds, and is not measured anew, stays in it.

    Args:
      path: of the table.
      dtypes: of the arrays.
      layers: what to measure; None is the `grid` of the device.
      verified: on what to compare the implementations; None is `layers_to_verify`.
      minutes: after which no further convolution is begun.
      seconds: to repeat each program for; at least two runs are timed.

    Yields:
      Which implementations are unusable; what was measured, a line for each direction of each
      convolution; and which implementations failed.

    Raises:
      OSError: the table cannot be written.
    """
    device = jax.devices()[0]
    layers = grid(device.platform) if layers is None else layers
    setting = {**describe_environment(), "calls": calls_of(device.platform)}
    present = table_of(device.device_kind)
    measurements = {_case(each): each for each in present.measurements} if present else {}
    verified = layers_to_verify(device.platform) if verified is None else verified
    # In every dtype: the nearest measurement may be of another one than a call has.
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
            yield f"From now on {path} holds what is measured."


def _measure(layer: Layer, dtype: str, before: Table, seconds: float) -> dict[Any, Any]:
    """By (direction, implementation): the timings of those that can and may be fast."""
    operands = draw_operands(layer.shape, layer.batch, dtype, calls_of(jax.devices()[0].platform))
    excluded = layer.explain(dtype).unsupported.keys() | before.unusable.keys()
    able = [name for name in IMPLEMENTATIONS if name not in excluded]
    contenders = {
        (direction, name): contender(
            direction_function(direction, layer.shape.convolution, name), operands
        )
        for direction in DIRECTIONS
        for name in able
        if not _is_hopeless(direction, name, layer, dtype, before)
    }
    return compete(contenders, seconds, least_runs=2)


def _is_hopeless(direction: Direction, name: str, layer: Layer, dtype: str, before: Table) -> bool:
    """By the nearest convolution for which it was measured, if that is near."""
    case = layer.shape.convolution, layer.batch, layer.shape.channels, dtype
    for measured in before.by_distance(direction, *case):
        if name in measured.seconds:
            ratio = measured.seconds[name] / min(measured.seconds.values())
            return ratio > HOPELESS and measured.distance(*case) < NEAR
    return False


def _case(measurement: Measurement) -> tuple:
    """All but the seconds."""
    return dataclasses.astuple(dataclasses.replace(measurement, seconds=None))


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
    """Every kernel on every map that is not much smaller than it."""
    return [
        square(size, kernel, channels, stride)
        for kernel in kernels
        for size, channels in CHANNELS.items()
        if kernel < 2 * size
    ]
