"""The text of errors."""

import pytest

from replk_jax.io.errors import error_text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no such thing"), "no such thing"),
        (ValueError(), "ValueError"),
        (AssertionError(), "AssertionError"),
        (MemoryError(), "MemoryError"),
        (KeyError("There is no x."), "There is no x."),
        (KeyError(), "KeyError"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (FileNotFoundError(2, "No such file", "x.pth"), "x.pth: No such file"),
        (OSError(21, "Is a directory", "x.partial", None, "x"), "x: Is a directory"),
        (OSError("in words"), "in words"),
        (OSError(), "OSError"),
    ],
)
def test_the_text_of_an_error(error, text):
    assert error_text(error) == text
