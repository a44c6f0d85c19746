"""Text from outside as it is printed and stored."""

import io
import sys

import pytest

from replk_jax.io.text import encodable, escape_unencodable_output, escaped, escaped_lines, storable

# All control characters, separators and surrogates, and samples of the rest.
CHARACTERS = [
    *map(chr, range(0x3100)),
    *map(chr, range(0xD7F0, 0x10000)),
    *map(chr, range(0x10000, sys.maxunicode, 97)),
]


def test_every_character_is_escaped_where_it_must_be():
    """And only there; twice changes nothing."""
    for char in CHARACTERS:
        shown, stored = escaped(char), storable(char)
        assert shown == (char if char.isprintable() else repr(char)[1:-1])
        assert escaped(shown) == shown
        assert len(f"a{stored}b".splitlines()) == 1
        assert stored.encode().decode() == storable(stored) == stored
        surrogate = "\ud800" <= char <= "\udfff"
        assert encodable(char) == (repr(char)[1:-1] if surrogate else char)


def test_what_is_stored_keeps_unusual_spaces():
    assert storable("日本\u3000語\xa0é\u200b") == "日本\u3000語\xa0é\u200b"
    assert escaped("a\xa0b") == r"a\xa0b"


def test_lines_of_a_message():
    assert escaped_lines("a\tb\n\x1b\n") == "a\\tb\n\\x1b\n"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", r"\xe9\u5927\udce9"),
        ("latin-1", r"é\u5927\udce9"),
        ("utf-8", r"é大\udce9"),
    ],
)
def test_escape_unencodable_output(encoding, shown, monkeypatch):
    for name in ("stdout", "stderr"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, name, stream)
        escape_unencodable_output()
        print("é大\udce9", file=getattr(sys, name), flush=True)
        assert stream.buffer.getvalue().decode(encoding) == f"{shown}\n"


def test_streams_that_are_no_files_stay(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    escape_unencodable_output()
    print("é\udce9")
    assert sys.stdout.getvalue() == "é\udce9\n"
