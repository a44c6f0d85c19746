"""Shows the inputs of a network in training: python -m train.preview --config configs/31b.py

It writes a picture with the first images of the first step, after the data pipeline and the
augmentation on the device. Each has its targets below: `tabby 0.72` and `otter 0.19`. Fields are
set as in training, for example --config.augmentation.mixup_alpha=0.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from replk_jax.io.text import escaped
from train.engine import config as configuration
from train.engine import config_flags as command_line
from train.errors import RunError, stopping
from train.tasks import find_task

_OUTPUT = flags.DEFINE_string("output", "preview.png", "PNG file to write")
_COUNT = flags.DEFINE_integer("count", 32, "number of images to show", lower_bound=1)

_MOST_COLUMNS = 8
# Sizes in pixels.
_WIDEST = 2160  # of several columns
_SMALLEST_TILE = 112  # smaller images are enlarged by an integer factor
_GAP = 12
_LINE = 18
_LETTER = 7
_NARROWEST_LEGEND = 240
_DPI = 128  # a power of two: sizes in pixels are exact when they are converted to inches and back


def main(_: list[str]) -> None:
    with stopping():
        path = command_line.flag_path("output", _OUTPUT.value)
        if path.suffix != ".png" or path.is_dir():
            raise RunError(f"--output={path} must be the name of a file and end in .png.")
        figure = preview(command_line.CONFIG.value, _COUNT.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    print(f"The inputs of the first step are in {escaped(str(path))}.")


def preview(config: ConfigDict, count: int) -> Figure:
    """A contact sheet of the first `count` images that a run trains on.

    Args:
      config: of the run; see configs/common.py.
      count: number of images; at most a batch or, with accumulation, a micro-batch.

    Raises:
      RunError: see `train.engine.task.TaskKind`; or `count` is too large.
    """
    configuration.check(config)
    kind = find_task(config)
    kind.check(config)
    shown = kind.preview(config, count)
    return contact_sheet(shown.pictures, shown.captions, shown.legend)


def contact_sheet(
    pixels: np.ndarray,
    captions: Sequence[Sequence[str]],
    legend: Callable[[int], np.ndarray] | None = None,
) -> Figure:
    """Images in rows of up to eight, with captions below.

    Small images are enlarged by an integer factor; of wide ones there are fewer in a row.

    Args:
      pixels: uint8 (N, H, W, 3).
      captions: for each image, at most two lines.
      legend: see `train.engine.task.Preview`.
    """
    zoom = math.ceil(_SMALLEST_TILE / min(pixels.shape[1:3]))
    tiles = pixels.repeat(zoom, axis=1).repeat(zoom, axis=2)
    count, tile_height, tile_width, _ = tiles.shape
    row_height, column_width = tile_height + 2 * _LINE + _GAP, tile_width + _GAP
    columns = max(1, min(count, _MOST_COLUMNS, (_WIDEST - _GAP) // column_width))
    height = _GAP + math.ceil(count / columns) * row_height
    width = _GAP + columns * column_width
    below = [] if legend is None else [legend(max(width, _NARROWEST_LEGEND))]
    width, top_of_legend = max(width, *(box.shape[1] for box in below), 0), height
    height += sum(box.shape[0] for box in below)

    sheet = np.full((height, width, 3), 255, np.uint8)
    for box in below:
        sheet[top_of_legend:, : box.shape[1]] = box
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    for number, (tile, lines) in enumerate(zip(tiles, captions, strict=True)):
        row, column = divmod(number, columns)
        top, left = _GAP + row * row_height, _GAP + column * column_width
        bottom = top + tile_height
        sheet[top:bottom, left : left + tile_width] = tile
        for line, text in enumerate(lines):
            figure.text(
                left / width,
                1 - (bottom + line * _LINE + _GAP / 4) / height,
                _shortened(text, tile_width // _LETTER),
                fontsize=6.5,
                verticalalignment="top",
                parse_math=False,
            )
    figure.figimage(sheet)
    return figure


def _shortened(text: str, length: int) -> str:
    """Shortens the name in "NAME PROBABILITY", so that the text has at most `length` letters."""
    name, _, probability = text.rpartition(" ")
    available = length - len(probability) - 1
    return text if len(name) <= available else f"{name[: available - 1]}… {probability}"


if __name__ == "__main__":
    command_line.run(main)
