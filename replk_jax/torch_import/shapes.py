"""What the shapes of a network's weights tell of it."""

import re
from collections.abc import Mapping
from typing import Any

from replk_jax.models.description import MOST_LAYERS


class Shapes:
    """The shapes of weights that are taken for those of a network.

    Attributes:
      weights: by official names; of each only the `shape` is looked at.
      family: what errors call the network.
    """

    def __init__(self, weights: Mapping[str, Any], family: str):
        self.weights, self.family = weights, family

    def __contains__(self, key: str) -> bool:
        return key in self.weights

    def any(self, prefix: str) -> bool:
        """Whether there are tensors whose names begin so."""
        return any(key.startswith(prefix) for key in self.weights)

    def kernel(self, key: str, dimensions: int = 4) -> tuple[int, ...]:
        """Shape of a kernel, in PyTorch's layout.

        Raises:
          ValueError: it is not there, has other dimensions, or none of some kind.
        """
        found = self.weights[key].shape if key in self.weights else ()
        if len(found) != dimensions or 0 in found:
            raise ValueError(
                f"in a {self.family} {key} would be a kernel of {dimensions} dimensions"
            )
        return found

    def classes(self, head: str) -> int | None:
        """What the classifier of this name tells apart; None if there is none."""
        return self.kernel(f"{head}.weight", 2)[0] if self.any(f"{head}.") else None

    def layers(self, block: str) -> tuple[int, ...]:
        """How many blocks there are, one number per stage.

        Args:
          block: a pattern of what the names in a block begin with, with the numbers of the stage
            and of the block in it as groups.
        """
        blocks: dict[int, set[str]] = {}
        for match in filter(None, map(re.compile(block).match, self.weights)):
            blocks.setdefault(int(match[1]), set()).add(match[2])
        return tuple(len(blocks[stage]) for stage in sorted(blocks))

    def expect_believable(self, layers: int) -> None:
        """Raises if there are more layers than any network has, which would take long to build.

        Raises:
          ValueError: more layers than `MOST_LAYERS`.
        """
        if layers > MOST_LAYERS:
            raise ValueError(f"a {self.family} of {layers} layers is not believed")
