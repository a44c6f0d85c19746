"""Times the depthwise convolution, next to those of XLA and PyTorch, on layers of networks."""

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax

from replk_jax.benchmark import torch_peers
from replk_jax.benchmark.depthwise_programs import calls_of, contender, draw_operands, operator
from replk_jax.benchmark.roofline import roofline_seconds
from replk_jax.benchmark.timing import Contender, Program, Timing, compete
from replk_jax.ops import explain
from replk_jax.ops.depthwise import mosaic_gpu
from replk_jax.ops.depthwise.dispatch import IMPLEMENTATIONS, Explanation
from replk_jax.ops.depthwise.implementation import DIRECTIONS
from replk_jax.ops.depthwise.mosaic_gpu.packing import pack
from replk_jax.ops.depthwise.shapes import (
    REPLKNET_224,
    REPLKNET_384,
    REPLKNET_DETECTION,
    SMALL,
    TABLE_1,
    Shape,
)

OURS = "replk_jax"
PACKED = "mosaic_gpu packed"
FORWARD, BOTH = PASSES = ("forward", "forward+backward")


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution and its batch size."""

    shape: Shape
    batch: int

    @property
    def products(self) -> int:
        """The number of multiplications, including those with padding.

        The time of direct methods is proportional to it.
        """
        outputs = math.prod(self.shape.convolution.output_size)
        return self.batch * outputs * self.shape.channels * math.prod(self.shape.kernel_size)

    def explain(self, dtype: str) -> Explanation:
        """The implementations that compute it, and why the others do not."""
        convolution, channels = self.shape.convolution, self.shape.channels
        return explain(
            (self.batch, *convolution.size, channels),
            (*convolution.kernel_size, 1, channels),
            dtype,
            stride=convolution.stride,
            padding=convolution.padding,
            dilation=convolution.dilation,
        )

    def __str__(self) -> str:
        return f"{self.shape.name}, {self.shape.channels} channels, batch {self.batch}"


def _layers(shapes: Iterable[Shape], batch: int) -> list[Layer]:
    return [Layer(shape, batch) for shape in shapes]


def _paper() -> list[Layer]:
    """The layers of RepLKNet, of the paper's Table 1 and of a detector.

    The most informative come first, and small ones before large ones, so that the time of the
    large ones can be predicted.
    """
    detector = REPLKNET_DETECTION[:1]
    large = [shape for shape in TABLE_1 if max(shape.kernel_size) == 31]
    others = [shape for shape in reversed(TABLE_1) if shape not in large]
    replknet = [*reversed(REPLKNET_224), *reversed(REPLKNET_384)]
    return [
        *_layers(replknet, 64),
        *_layers(large, 64),
        *_layers(detector, 1),
        *_layers(replknet, 1),
        *_layers(replknet, 8),
        *_layers(others, 64),
        *_layers(replknet, 128),
        *_layers(detector, 2),
        *_layers(detector, 4),
    ]


SUITES = {
    "cpu": [*_layers(SMALL, 4), *_layers(reversed(REPLKNET_224), 4)],
    "replknet": _layers(reversed(REPLKNET_224), 64),
    "paper": _paper(),
    "detection": [
        layer for batch in (1, 2, 4) for layer in _layers(reversed(REPLKNET_DETECTION), batch)
    ],
}


def layers_of(suite: str, batch: int | None = None) -> list[Layer]:
    """The layers of one of `SUITES`, with the given batch size instead of their own."""
    layers = SUITES[suite]
    if batch is not None:
        layers = [dataclasses.replace(layer, batch=batch) for layer in layers]
    return list(dict.fromkeys(layers))


@dataclasses.dataclass(frozen=True)
class Row:
    """The result of one contender on one layer.

    Attributes:
      layer: the convolution.
      passes: one of `PASSES`.
      contender: `OURS`, the operator with its default choice; the name of an implementation;
        "torch" and a layout; or `PACKED`, the Hopper kernel without the changes of layout.
      chosen: for `OURS`, the implementation of each direction.
      timing: None if it was not measured.
      roofline: the time of the roofline over the median; None for a device without known peaks.
      skipped: why it was not measured; None if it was.
    """

    layer: Layer
    passes: str
    contender: str
    chosen: tuple[str, ...] = ()
    timing: Timing | None = None
    roofline: float | None = None
    skipped: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """All fields as one flat dictionary for JSON."""
        fields = {name: getattr(self, name) for name in ("passes", "contender", "chosen")}
        timing = dataclasses.asdict(self.timing) if self.timing else {}
        outcome = {"roofline": self.roofline, "skipped": self.skipped}
        shape = dataclasses.asdict(self.layer.shape)
        return {**shape, "batch": self.layer.batch, **fields, **timing, **outcome}

    def __str__(self) -> str:
        shape = self.layer.shape
        head = (
            f"{shape.name:17}{self.layer.batch:4}{shape.channels:5} {self.passes:17}"
            f"{self.contender:20}"
        )
        if self.timing is None:
            return f"{head} not measured: {self.skipped}"
        timing = self.timing
        roofline = "" if self.roofline is None else f"{self.roofline:.1%}"
        compiled = "" if timing.compile_seconds is None else f"{timing.compile_seconds:.2f}"
        figures = (
            f"{1e3 * timing.median:10.4g}{1e3 * timing.minimum:10.4g}{timing.runs:6}"
            f"{roofline:>10}{compiled:>11}"
        )
        return f"{head}{figures}  {', '.join(self.chosen)}".rstrip()


HEADER = (
    f"{'layer':17}{'N':>4}{'C':>5} {'':17}{'':20}{'median ms':>10}{'min ms':>10}{'runs':>6}"
    f"{'roofline':>10}{'compile s':>11}"
)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Times layers on the default device.

    The compile times are meaningful only without JAX's persistent compilation cache.

    Attributes:
      dtype: of all arrays, "float32", "bfloat16" or "float16".
      implementations: of the operator, measured in addition to its default choice.
      peers: whether to measure PyTorch as well, if it is installed.
      seconds: how long to repeat each program; at least two runs are timed.
      limit: seconds of one call. A contender other than `OURS` is skipped if it is expected to
        take longer. The expectation is its time for the measured layer with the nearest number of
        products, scaled by the number of products.

    Raises:
      ValueError: an unknown implementation.
    """

    dtype: str = "float32"
    implementations: tuple[str, ...] = ("xla", "dft")
    peers: bool = True
    seconds: float = 1.0
    limit: float = 60.0

    def __post_init__(self):
        unknown = sorted(set(self.implementations) - set(IMPLEMENTATIONS))
        if unknown:
            raise ValueError(
                f"Unknown implementation {', '.join(unknown)}; known: {', '.join(IMPLEMENTATIONS)}."
            )

    def run(self, layers: Sequence[Layer], minutes: float = math.inf) -> Iterator[Row]:
        """Measures the layers in order; starts none after the given minutes."""
        end = time.monotonic() + 60 * minutes
        rows: list[Row] = []
        for layer in layers:
            if time.monotonic() > end:
                return
            calls = calls_of(jax.devices()[0].platform)
            operands = draw_operands(layer.shape, layer.batch, self.dtype, calls)
            new = self._rows(layer, operands, rows)
            rows += new
            yield from new

    def _rows(self, layer: Layer, operands: list, before: list[Row]) -> list[Row]:
        """The rows of all contenders on one layer, which run interleaved."""
        explanation = layer.explain(self.dtype)
        contenders = {
            (passes, name): each
            for passes in PASSES
            for name, each in self._contenders(layer, passes, operands, explanation).items()
        }
        skipped = {}
        for passes, name in contenders:
            expected = _expected_seconds(layer, passes, name, before)
            if name in explanation.unsupported:
                skipped[passes, name] = explanation.unsupported[name]
            elif name != OURS and expected > self.limit:
                reason = f"{expected:.3g} s expected, more than {self.limit:g} s"
                skipped[passes, name] = reason
        runnable = {key: each for key, each in contenders.items() if key not in skipped}
        results = compete(runnable, self.seconds, least_runs=2)
        rows = []
        for passes, name in contenders:
            directions = DIRECTIONS if passes == BOTH else DIRECTIONS[:1]
            chosen = tuple(explanation.choices[direction].name for direction in directions)
            row = Row(layer, passes, name, chosen if name == OURS else ())
            result = results.get((passes, name))
            if result is None:
                rows.append(dataclasses.replace(row, skipped=skipped[passes, name]))
            elif isinstance(result, Exception):
                rows.append(dataclasses.replace(row, skipped=f"failed, {_brief(result)}"))
            else:
                bound = self._roofline_seconds(layer, passes)
                fraction = None if bound is None else bound / result.median
                rows.append(dataclasses.replace(row, timing=result, roofline=fraction))
        return rows

    def _contenders(
        self, layer: Layer, passes: str, operands: list, explanation: Explanation
    ) -> dict[str, Contender]:
        """The contenders by name, including those that will be skipped."""
        shape, backward = layer.shape, passes == BOTH
        platform = jax.devices()[0].platform
        contenders = {
            name or OURS: contender(operator(shape, backward, name), operands)
            for name in (None, *self.implementations)
        }
        if not backward and "mosaic_gpu" not in explanation.unsupported:
            contenders[PACKED] = Contender(partial(_packed, shape, operands))
        if self.peers and not torch_peers.unsupported_reason(platform):
            for layout in torch_peers.LAYOUTS:
                prepare = partial(
                    torch_peers.convolution_program,
                    shape,
                    layer.batch,
                    dtype=self.dtype,
                    layout=layout,
                    backward=backward,
                    calls=len(operands),
                    platform=platform,
                )
                contenders[f"torch {layout}"] = Contender(prepare)
        return contenders

    def _roofline_seconds(self, layer: Layer, passes: str) -> float | None:
        return roofline_seconds(
            layer.shape,
            layer.batch,
            self.dtype,
            passes == BOTH,
            jax.devices()[0].device_kind,
        )


def failures(rows: Iterable[Row]) -> list[str]:
    """The measurements of the operator itself that failed, one line each."""
    return [
        f"{row.layer}, {row.passes}: {row.skipped}"
        for row in rows
        if row.contender == OURS and row.skipped
    ]


def _packed(shape: Shape, operands: list) -> Program:
    """The kernel of `mosaic_gpu` on images in its own layout."""
    packed = [(jax.jit(pack)(x), kernel) for x, kernel, _ in operands]
    convolve = partial(mosaic_gpu.forward_packed, convolution=shape.convolution)
    return contender(convolve, packed).prepare()


def _expected_seconds(layer: Layer, passes: str, name: str, before: list[Row]) -> float:
    """The time of a contender for the measured layer nearest in size, scaled; 0 if there is none.

    Args:
      layer: to predict the time of.
      passes, name: of the contender.
      before: the rows measured so far.
    """
    measured = [
        (row.layer.products, row.timing.median)
        for row in before
        if row.timing and (row.passes, row.contender) == (passes, name)
    ]
    if not measured:
        return 0.0
    products, seconds = min(measured, key=lambda each: abs(math.log(each[0] / layer.products)))
    return seconds * layer.products / products


def _brief(error: Exception) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
