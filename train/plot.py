"""Draws the curves of one run, or of several over one another.

    python -m train.plot out/digits
    python -m train.plot out/kernels_3 out/kernels_13 --output kernels.png

Loss and the scores of the evaluations, learning rate, norms, images a second and the shares of time
that the devices waited for data and of their arithmetic that was used, over the steps; what no run
has reported is left out.
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
    """Runs the program; ends it with exit status 1 and a line where it cannot continue.

    A run with metrics that are NaN or infinite is drawn without them, and then ends it so too.
    """
    escape_unencodable_output()
    parser = _parser()
    options = parser.parse_args(arguments)
    workdirs = options.workdir
    output = options.output or (workdirs[0] if len(workdirs) == 1 else Path()) / _NAME
    if output.suffix.lstrip(".") not in Figure().canvas.get_supported_filetypes():
        parser.error(f"--output {output}: a picture's name ends in .png, .svg or .pdf")
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
                        f"{workdir}: {name} is NaN or infinite at step {line['step']}, and left "
                        "out of the picture where it is so."
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
        help=f"the picture (default: WORKDIR/{_NAME}, of several runs ./{_NAME})",
    )
    return parser


if __name__ == "__main__":
    with clean_exit():
        main()
