"""Text from files as a terminal may see it."""

import sys

import numpy as np
import pytest

from replk_jax.cli.main import main
from replk_jax.cli.text import printable, shortened
from replk_jax.torch_import.placeholders import Placeholder
from tests.torch_import.archives import write_with_header


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("stem.0.conv.weight", "stem.0.conv.weight"),
        ("größe 大", "größe 大"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x9b31m", r"\x9b31m"),
        ("\ud800", r"\ud800"),
        ("\u202e\u2028\u200b", r"\u202e\u2028\u200b"),
        ("", ""),
        (90, "90"),
        (None, "None"),
        (["\x1b"], r"['\x1b']"),
        (Placeholder("\x1b", "f"), r"\x1b.f"),
    ],
)
def test_printable(value, shown):
    assert printable(value) == shown


def test_every_character_becomes_harmless():
    for code in range(sys.maxunicode + 1):
        shown = printable(chr(code))
        assert shown.isprintable()
        assert shown.isascii() or shown == chr(code)


@pytest.mark.parametrize("most", [10, 80])
def test_lengths(most):
    rng = np.random.default_rng(0)
    for length in (*range(most - 2, most + 3), 10_000_000):
        for char in ("a", "\x1b", "\U000e0001"):
            text = char * length
            shown = printable(text, most)
            assert len(shown) <= most
            assert shown == text or (char, shown[-3:]) == ("a", "...") or shown[0] == "\\"
    mixed = "".join(map(chr, rng.integers(0, 0xD000, 1000)))
    assert len(printable(mixed, most)) == most


def test_shortened():
    assert list(shortened("abc", 3)) == ["a", "b", "c"]
    assert list(shortened("abcde", 3)) == ["a", "b", "c", "... and 2 more"]
    assert list(shortened(iter(range(2000)), 1))[1] == "... and 1,999 more"


def test_errors_that_quote_a_file(tmp_path, capsys):
    header = rb'{"\u001b[2J\ud800": {"dtype": "F99", "shape": [], "data_offsets": [0, 0]}}'
    path = write_with_header(tmp_path / "x.safetensors", header)
    for verb in ("inspect", "convert"):
        with pytest.raises(SystemExit) as caught:
            main([verb, str(path), *([str(tmp_path / "y")] if verb == "convert" else [])])
        assert caught.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {path}: it has ")
        assert line.isprintable()
