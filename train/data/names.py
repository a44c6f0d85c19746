"""Compact storage for the names of millions of files."""

import os
from array import array
from collections.abc import Iterable

import numpy as np


class Names:
    """File names, stored as one byte string and 8 bytes for each name.

    A list of strings takes four times the memory, and is slow to pickle.

    Args:
      names: to store.
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
