"""Warnings to the user, which point to the user's own line."""

import sys
import warnings

_PACKAGE = __name__.partition(".")[0]


def warn_user(message: str) -> None:
    """Warns, however deep in this package, as of the line outside of it that called it."""
    level, frame = 1, sys._getframe()
    while frame.f_back and _is_own(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def _is_own(module: str) -> bool:
    return module.partition(".")[0] == _PACKAGE
