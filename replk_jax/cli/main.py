"""The verbs of `python -m replk_jax`, each in its own module."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import jax

from replk_jax.cli import (
    bench,
    convert,
    detect,
    export,
    features,
    inspect,
    models,
    predict,
    segment,
)
from replk_jax.cli.clean_exit import is_output_error
from replk_jax.cli.text import message
from replk_jax.io.text import escape_unencodable_output

_VERBS = (models, inspect, convert, predict, segment, detect, features, export, bench)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one verb. A user error gives one line and exit status 2."""
    escape_unencodable_output()
    parser = make_parser()
    arguments = parser.parse_args(argv)
    try:
        with warnings.catch_warnings():
            # Without the line of code, which is not the user's.
            warnings.showwarning = _show_warning
            arguments.run(arguments)
    except (ValueError, OSError) as error:
        if is_output_error(error):
            raise  # see `clean_exit`
        parser.exit(2, f"error: {message(error)}\n")
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        parser.exit(2, f"error: out of memory; use a smaller batch.\n{error}\n")


def _show_warning(warning: Warning | str, *_: Any) -> None:
    print(f"warning: {message(warning)}", file=sys.stderr)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs. Its result has the function `run`, which executes the verb."""
    parser = argparse.ArgumentParser(
        prog="python -m replk_jax", description="Large-kernel networks in JAX."
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb in _VERBS:
        verb.add_parser(verbs)
    return parser
