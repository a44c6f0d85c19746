"""Names of very many files."""

import os
from array import array
from collections.abc import Iterable, Sequence

import numpy as np


class Names(Sequence):
    """Strings in one piece of memory: that of their bytes, and 8 bytes for each.

    A list of strings takes four times as much and is pickled string by string; this is copied.

    Args:
      names: any that files can have.
    """

    def __init__(self, names: Iterable[str]):
        text, ends = bytearray(), array("q", [0])
        for name in names:
            text += os.fsencode(name)
            ends.append(len(text))
        self._text = bytes(text)
        self._ends = np.frombuffer(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self._text[self._ends[index] : self._ends[index + 1]])
