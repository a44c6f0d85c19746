"""The classes of ImageNet-1K (ILSVRC 2012), in the order of the networks' outputs.

Each is a synset of WordNet 3.0 (Princeton University, wordnet.princeton.edu), numbered in the
order of their identifiers, and named by its words. The licence of WordNet is in the same folder.
"""

import functools
from importlib import resources


@functools.cache
def class_names() -> tuple[str, ...]:
    """1,000 names, such as "tabby, tabby cat". Only the two cranes share one."""
    return tuple(name for _, name in _classes())


@functools.cache
def wordnet_ids() -> tuple[str, ...]:
    """1,000 identifiers, such as "n02123045"."""
    return tuple(identifier for identifier, _ in _classes())


def _classes() -> list[tuple[str, str]]:
    text = resources.files(__name__).joinpath("classes.txt").read_text("utf-8")
    lines = (line.partition(" ") for line in text.splitlines())
    return [(identifier, name) for identifier, _, name in lines]
