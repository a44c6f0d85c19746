"""Times NMS and RoIAlign next to torchvision's, at the sizes of a detector."""

import dataclasses
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.benchmark import torchvision_peers
from replk_jax.benchmark.depthwise_programs import contender
from replk_jax.benchmark.timing import Contender, Timing, compete
from replk_jax.ops.nms import nms
from replk_jax.ops.roi_align import box_levels, levels_roi_align

OURS, PEER = "replk_jax", "torchvision"
OPERATIONS = (NMS, ALIGN, ALIGN_BOTH) = (
    "nms",
    "roi_align forward",
    "roi_align forward+backward",
)
# Of the input, in pixels; and of the pyramid.
IMAGE_SIZE = (800, 1344)
STRIDES = (4, 8, 16, 32)
CHANNELS = 256
OUTPUT_SIZE = 7
NMS_BOXES, ALIGN_BOXES = (1000, 2000, 4000), (512, 1000)
NMS_THRESHOLD = 0.7  # of mmdetection's proposals


@dataclasses.dataclass(frozen=True)
class Row:
    """The result of one contender.

    Attributes:
      operation: one of `OPERATIONS`.
      boxes: their number.
      contender: `OURS` or `PEER`.
      timing: None if it was not measured.
      skipped: why it was not measured; None if it was.
    """

    operation: str
    boxes: int
    contender: str
    timing: Timing | None = None
    skipped: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """All fields as one flat dictionary for JSON."""
        timing = dataclasses.asdict(self.timing) if self.timing else {}
        fields = {name: getattr(self, name) for name in ("operation", "boxes", "contender")}
        return {**fields, **timing, "skipped": self.skipped}

    def __str__(self) -> str:
        head = f"{self.operation:28}{self.boxes:6}  {self.contender:12}"
        if self.timing is None:
            return f"{head} not measured: {self.skipped}"
        timing = self.timing
        return f"{head}{1e3 * timing.median:10.4g}{1e3 * timing.minimum:10.4g}{timing.runs:6}"


HEADER = f"{'operation':28}{'boxes':>6}  {'':12}{'median ms':>10}{'min ms':>10}{'runs':>6}"


def draw_boxes(
    number: int, image_size: tuple[int, int] = IMAGE_SIZE, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores like a detector's: eight around each of some objects of 16 to 1024 pixels.

    Args:
      number: of the boxes, N.
      image_size: (height, width) in pixels.
      seed: of the random numbers.

    Returns:
      float32 (N, 4), x1, y1, x2, y2 inside the image, and float32 (N,).
    """
    rng = np.random.default_rng(seed)
    height, width = image_size
    objects = -(-number // 8)
    centers = rng.uniform(0, (width, height), (objects, 2))
    sides = np.exp(rng.uniform(np.log(16), np.log(1024), (objects, 1)))
    sides = sides * np.exp(rng.normal(0, 0.3, (objects, 2)))
    of = rng.integers(0, objects, number)
    centers = centers[of] + rng.normal(0, 0.15, (number, 2)) * sides[of]
    sides = sides[of] * np.exp(rng.normal(0, 0.15, (number, 2)))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1)
    boxes = np.clip(boxes, 0, (width, height, width, height))
    return boxes.astype(np.float32), rng.random(number, np.float32)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Times the operators on the default device, in float32.

    Attributes:
      seconds: how long to repeat each program.
      peers: whether to measure torchvision as well, if it is installed.
      nms_boxes, align_boxes: the numbers of boxes.
      image_size: (height, width) of the input, of which the feature maps are a part by stride.
      channels: of the feature maps.
    """

    seconds: float = 1.0
    peers: bool = True
    nms_boxes: tuple[int, ...] = NMS_BOXES
    align_boxes: tuple[int, ...] = ALIGN_BOXES
    image_size: tuple[int, int] = IMAGE_SIZE
    channels: int = CHANNELS

    def run(self) -> Iterator[Row]:
        """Measures each operation for each number of boxes; contenders run interleaved."""
        for number in self.nms_boxes:
            yield from self._rows(NMS, number, self._nms(number))
        for number in self.align_boxes:
            for operation in (ALIGN, ALIGN_BOTH):
                contenders = self._align(number, operation == ALIGN_BOTH)
                yield from self._rows(operation, number, contenders)

    def _rows(self, operation: str, number: int, contenders: dict[str, Contender]) -> Iterator[Row]:
        reason = torchvision_peers.unsupported_reason(jax.devices()[0].platform)
        if reason or not self.peers:
            del contenders[PEER]
        for name, result in compete(contenders, self.seconds).items():
            row = Row(operation, number, name)
            if isinstance(result, Exception):
                brief = f"failed, {type(result).__name__}: {(str(result).splitlines() or [''])[0]}"
                yield dataclasses.replace(row, skipped=brief)
            else:
                yield dataclasses.replace(row, timing=result)
        if reason and self.peers:
            yield Row(operation, number, PEER, skipped=reason)

    def _nms(self, number: int) -> dict[str, Contender]:
        """All that are kept, as torchvision returns them."""
        boxes, scores = draw_boxes(number, self.image_size)
        run = partial(nms, threshold=NMS_THRESHOLD, max_kept=number)
        return {
            OURS: contender(run, [(jnp.asarray(boxes), jnp.asarray(scores))]),
            PEER: Contender(partial(torchvision_peers.nms_program, boxes, scores, NMS_THRESHOLD)),
        }

    def _align(self, number: int, backward: bool) -> dict[str, Contender]:
        boxes, _ = draw_boxes(number, self.image_size)
        rng = np.random.default_rng(0)
        height, width = self.image_size
        maps = [
            rng.standard_normal(
                (-(-height // stride), -(-width // stride), self.channels), np.float32
            )
            for stride in STRIDES
        ]
        scales = [1 / stride for stride in STRIDES]
        align = partial(levels_roi_align, output_size=OUTPUT_SIZE, scales=scales)

        def forward(maps, boxes):
            return align(maps, boxes)

        def both(maps, boxes):
            y, pull_back = jax.vjp(lambda maps: align(maps, boxes), maps)
            return y, *pull_back(jnp.ones_like(y))

        operands = ([jnp.asarray(each) for each in maps], jnp.asarray(boxes))
        levels = np.asarray(box_levels(jnp.asarray(boxes), len(STRIDES)))
        peer = partial(
            torchvision_peers.roi_align_program,
            maps,
            boxes,
            levels,
            scales,
            OUTPUT_SIZE,
            backward,
        )
        return {OURS: contender(both if backward else forward, [operands]), PEER: Contender(peer)}


def failures(rows: Iterable[Row]) -> list[str]:
    """The measurements of our operators that failed, one line each."""
    return [
        f"{row.operation}, {row.boxes} boxes: {row.skipped}"
        for row in rows
        if row.contender == OURS and row.skipped
    ]
