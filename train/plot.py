"""Plots the metrics of one or more runs.

    python -m train.plot out/digits
    python -m train.plot out/kernels_3 out/kernels_13 --output kernels.png

The panels are loss, scores, learning rate, norms, images per second, data wait and MFU, by step.
Panels without metrics are omitted.
"""

import argparse
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from replk_jax.cli.argument_types import user_path
from replk_jax.cli.clean_exit import clean_exit
from replk_jax.io.text import escape_unencodable_output, escaped
from train.errors import RunError, stopping
from train.reporting.curve import draw, read_run

_NAME = "curve.png"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program; errors end it with a message and exit status 1.

    NaN or infinite metrics are omitted from the plot, and are then reported as an error.
    """
    escape_unencodable_output()
    parser = _parser()
    options = parser.parse_args(arguments)
    workdirs = options.workdir
    output = options.output or (workdirs[0] if len(workdirs) == 1 else Path()) / _NAME
    if output.suffix.lstrip(".") not in Figure().canvas.get_supported_filetypes():
        parser.error(f"--output {output}: the suffix must be .png, .svg or .pdf")
    with stopping():
        draw(workdirs, output)
        print(escaped(str(output)), flush=True)
        _require_finite(workdirs)


def _require_finite(workdirs: Iterable[Path]) -> None:
    for workdir in workdirs:
        for line in read_run(workdir):
            for name, value in line.items():
                if not math.isfinite(value):
                    raise RunError(
                        f"{workdir}: {name} is NaN or infinite at step {line['step']}; such values "
                        "are omitted from the plot."
                    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train.plot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdir", nargs="+", type=user_path, help="folder of a run")
    parser.add_argument(
        "--output",
        type=user_path,
        metavar="FILE",
        help=f"file to write (default: WORKDIR/{_NAME}, for several runs ./{_NAME})",
    )
    return parser


if __name__ == "__main__":
    with clean_exit():
        main()
