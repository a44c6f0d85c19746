"""COCO's compressed run lengths of masks."""

import numpy as np


def compressed_run_lengths(mask: np.ndarray) -> dict[str, object]:
    """A mask as the `segmentation` of a result in COCO's format.

    The runs go down the columns, first of pixels outside the mask. From the fourth on, each length
    is stored as its difference from the one two before. A number is written in groups of 5 bits,
    the lowest first, each as a character from code 48 on; bit 5 says that another group follows,
    and bit 4 of the last group is the sign (COCO's API, `maskApi.c`).

    Args:
      mask: bool (H, W).

    Returns:
      `size`, [H, W], and `counts`, a string.
    """
    height, width = mask.shape
    flat = np.concatenate([[False], mask.ravel("F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    lengths = np.diff(changes, prepend=0, append=mask.size)
    differences = lengths.copy()
    differences[3:] -= lengths[1:-2]
    counts = "".join(map(_encoded, differences.tolist()))
    return {"size": [height, width], "counts": counts}


def _encoded(number: int) -> str:
    """A signed number in groups of 5 bits."""
    characters = []
    while True:
        group, number = number & 31, number >> 5
        is_last = number == (-1 if group & 16 else 0)
        characters.append(chr(48 + (group if is_last else group | 32)))
        if is_last:
            return "".join(characters)
