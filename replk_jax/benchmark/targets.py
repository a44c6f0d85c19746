"""Performance targets of the operator, and reports of how benchmark rows compare with them."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from replk_jax.benchmark.depthwise import BOTH, FORWARD, OURS, PACKED, PASSES, Layer, Row
from replk_jax.benchmark.roofline import roofline_seconds
from replk_jax.ops.depthwise.shapes import (
    REPLKNET_31B_DEPTHS,
    REPLKNET_224,
    SMALL,
    TABLE_1,
    TABLE_1_KERNELS,
    Shape,
)

TORCH = "torch channels_last"
# If the operator takes longer than the fastest contender by more than this factor, its choice of
# implementation is reported as not the best.
TOLERANCE = 1.05
# The setting of Table 1 of the paper.
TABLE_1_BATCH, TABLE_1_LAYERS = 64, 24


class _Times:
    """Seconds by shape, batch, passes and contender.

    Its methods raise KeyError for what was not measured.
    """

    def __init__(self, rows: Iterable[Row], statistic: str):
        self._timings = {
            (row.layer, row.passes, row.contender): row.timing for row in rows if row.timing
        }
        self._statistic = statistic

    def of(self, shape: Shape, batch: int, passes: str, *contenders: str) -> float:
        """The time of the fastest of the contenders, among those that were measured."""
        layer = Layer(shape, batch)
        measured = [name for name in contenders if (layer, passes, name) in self._timings]
        return min(
            getattr(self._timings[layer, passes, name], self._statistic)
            for name in measured or contenders
        )

    def total(
        self,
        shapes: Sequence[Shape],
        batch: int,
        passes: str,
        contender: str,
        weights: Sequence[int],
    ) -> float:
        return sum(
            weight * self.of(shape, batch, passes, contender)
            for weight, shape in zip(weights, shapes, strict=True)
        )

    def compile_seconds(self, shape: Shape, batch: int, passes: str) -> float:
        seconds = self._timings[Layer(shape, batch), passes, OURS].compile_seconds
        if seconds is None:
            raise KeyError(shape, batch, passes)
        return seconds


def _over_torch(
    shapes: Sequence[Shape], passes: str, weights: Sequence[int]
) -> Callable[[_Times], float]:
    """The operator's total time over PyTorch's, at a batch size of 4."""

    def value(times):
        ours, torch = (
            times.total(shapes, 4, passes, contender, weights) for contender in (OURS, TORCH)
        )
        return ours / torch

    return value


def _min_speedup(
    shapes: Sequence[Shape], batch: int, passes: str, *others: str
) -> Callable[[_Times], float]:
    """The smallest speedup of any shape over the fastest of the other contenders."""

    def value(times):
        return min(
            times.of(shape, batch, passes, *others) / times.of(shape, batch, passes, OURS)
            for shape in shapes
        )

    return value


@dataclasses.dataclass(frozen=True)
class Target:
    """A bound on a quantity.

    Attributes:
      what: a description of the quantity.
      value: computes the quantity from the times.
      bound: the value to reach.
      at_least: whether the bound is a lower bound; else it is an upper bound.
    """

    what: str
    value: Callable[[_Times], float]
    bound: float
    at_least: bool

    def report(self, rows: Sequence[Row]) -> str | None:
        """A line of text; None if a required time was not measured."""
        try:
            median, minimum = (self.value(_Times(rows, each)) for each in ("median", "minimum"))
        except KeyError:
            return None
        reached = median >= self.bound if self.at_least else median <= self.bound
        figures = f"{median:.3g}"
        if median != minimum:
            figures += f" by the medians, {minimum:.3g} by the minima"
        relation = "at least" if self.at_least else "at most"
        verdict = "reached" if reached else "MISSED"
        return f"{self.what}: {figures}; {relation} {self.bound:g}: {verdict}"


def targets(device: str, dtype: str) -> list[Target]:
    """The targets for a kind of device and a dtype."""
    if (device, dtype) == ("cpu", "float32"):
        return _CPU
    if (device, dtype) == ("NVIDIA H200", "bfloat16"):
        return _h200()
    return []


_ONCE = (1,) * len(SMALL)
_CPU = [
    Target(
        "RepLKNet-31B's large kernels, batch 4, forward: total over PyTorch channels_last's",
        _over_torch(REPLKNET_224, FORWARD, REPLKNET_31B_DEPTHS),
        bound=1.0,
        at_least=False,
    ),
    Target(
        "the same, forward+backward",
        _over_torch(REPLKNET_224, BOTH, REPLKNET_31B_DEPTHS),
        bound=0.2,
        at_least=False,
    ),
    Target(
        "the same layers, forward: smallest speedup over lax.conv",
        _min_speedup(REPLKNET_224, 4, FORWARD, "xla"),
        bound=50.0,
        at_least=True,
    ),
    Target(
        "its small kernels, batch 4, forward: total over PyTorch channels_last's",
        _over_torch(SMALL, FORWARD, _ONCE),
        bound=2.0,
        at_least=False,
    ),
    Target(
        "the same, forward+backward",
        _over_torch(SMALL, BOTH, _ONCE),
        bound=2.0,
        at_least=False,
    ),
    Target(
        "longest time to compile a layer, forward+backward, in seconds",
        lambda t: max(t.compile_seconds(shape, 4, BOTH) for shape in [*REPLKNET_224, *SMALL]),
        bound=1.0,
        at_least=False,
    ),
]


def _h200() -> list[Target]:
    def roofline(shape: Shape, unit: str) -> float:
        seconds = roofline_seconds(shape, 64, "bfloat16", False, "NVIDIA H200", unit)
        assert seconds is not None, "the peaks of an H200 are known"
        return seconds

    found = [
        Target(
            f"{shape.name}, batch 64, forward: fraction of the roofline of useful operations",
            lambda t, shape=shape: roofline(shape, "bfloat16") / t.of(shape, 64, FORWARD, OURS),
            bound=bound,
            at_least=True,
        )
        for shape, bound in zip(REPLKNET_224[:3], (0.55, 0.55, 0.6), strict=True)
    ]
    found += [
        Target(
            f"Table 1, {shape.name}, forward: time over the roofline of the CUDA cores",
            lambda t, shape=shape: t.of(shape, 64, FORWARD, OURS) / roofline(shape, "float32"),
            bound=1.0,
            at_least=False,
        )
        for shape in TABLE_1
        if min(shape.size) >= 32 and max(shape.kernel_size) >= 9
    ]
    peers = "xla", TORCH, "torch NCHW"
    found += [
        Target(
            f"Table 1, {shape.name}, {passes}: speedup over the faster of cuDNN and PyTorch",
            _min_speedup([shape], 64, passes, *peers),
            bound=bound,
            at_least=True,
        )
        for passes, bound in ((FORWARD, 20.0), (BOTH, 15.0))
        for shape in TABLE_1
        if max(shape.kernel_size) == 31
    ]
    return found


def conclusions(
    rows: Sequence[Row], layers: Sequence[Layer], device: str, dtype: str
) -> Iterator[str]:
    """Lines of text: Table 1, the targets, and where another contender was faster.

    Args:
      rows: the measured rows.
      layers: the requested layers, some of which may not have been measured.
      device: `jax.Device.device_kind`.
      dtype: of the arrays.
    """
    measured = {row.layer for row in rows}
    left_out = [str(layer) for layer in layers if layer not in measured]
    if left_out:
        yield f"no time was left for {'; '.join(left_out)}"
    yield from _table_1(rows)
    lines = [line for target in targets(device, dtype) if (line := target.report(rows))]
    if lines:
        yield "Targets"
        yield from lines
    slower = list(_slower_than_another(rows))
    yield f"Slower than another contender by more than {TOLERANCE - 1:.0%}: {len(slower)} times"
    yield from slower


def _slower_than_another(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each layer on which a contender beat the operator by more than `TOLERANCE`."""
    for ours in rows:
        if ours.contender != OURS or not ours.timing:
            continue
        medians = {
            row.contender: row.timing.median
            for row in rows
            if (row.layer, row.passes) == (ours.layer, ours.passes)
            and row.timing
            and row.contender != PACKED
        }
        fastest = min(medians, key=medians.__getitem__)
        ratio = ours.timing.median / medians[fastest]
        if ratio > TOLERANCE:
            yield f"{ours.layer}, {ours.passes}: {ratio:.2f} times the time of {fastest}"


def _table_1(rows: Sequence[Row]) -> Iterator[str]:
    """Table 1 of the paper: milliseconds for its 24 layers."""
    times = {
        (row.layer, row.passes, row.contender): row.timing.median for row in rows if row.timing
    }
    contenders = dict.fromkeys(row.contender for row in rows)
    lines = []
    for passes, size, contender in itertools.product(
        PASSES, dict.fromkeys(shape.size for shape in TABLE_1), contenders
    ):
        shapes = [shape for shape in TABLE_1 if shape.size == size]
        keys = [(Layer(shape, TABLE_1_BATCH), passes, contender) for shape in shapes]
        if any(key in times for key in keys):
            cells = [
                f"{1e3 * TABLE_1_LAYERS * times[key]:10.2f}" if key in times else f"{'-':>10}"
                for key in keys
            ]
            lines.append(f"{passes:17}{size[0]:4} {contender:20}{''.join(cells)}")
    if lines:
        kernels = "".join(f"{kernel:10}" for kernel in TABLE_1_KERNELS)
        yield f"Table 1 of the paper, ms for {TABLE_1_LAYERS} layers at batch {TABLE_1_BATCH}"
        yield f"{'':17}{'R':>4} {'':20}{kernels}"
        yield from lines
