"""Infers properties of a network from the shapes of its weights."""

import re
from collections.abc import Mapping
from typing import Any

from replk_jax.io.text import brief
from replk_jax.models.stored import MOST_LAYERS
from replk_jax.torch_import.names import CLASSIFIER


class Shapes:
    """The shapes of the weights of a network.

    Attributes:
      weights: by official names; only the `shape` of each is used.
      family: name of the network, for errors.
    """

    def __init__(self, weights: Mapping[str, Any], family: str):
        self.weights, self.family = weights, family

    def __contains__(self, key: str) -> bool:
        return key in self.weights

    def any(self, prefix: str) -> bool:
        """Whether any tensor's name has a prefix."""
        return any(key.startswith(prefix) for key in self.weights)

    def kernel(self, key: str, dimensions: int = 4) -> tuple[int, ...]:
        """Shape of a kernel, in PyTorch's layout.

        Raises:
          ValueError: it is missing, has another number of dimensions, or is empty.
        """
        if key not in self.weights:
            raise ValueError(self._missing(key, dimensions))
        found = self.weights[key].shape
        if len(found) != dimensions or 0 in found:
            raise ValueError(
                f"in a {self.family} {key} would be a kernel of {dimensions} dimensions; it has "
                f"the shape {found}"
            )
        return found

    def _missing(self, key: str, dimensions: int) -> str:
        text = f"{key} is missing, which in a {self.family} is a kernel of {dimensions} dimensions"
        module = key.rpartition(".")[0]
        beside = [name for name in self.weights if name.startswith(f"{module}.")]
        return f"{text}; of {module} there are {brief(beside)}" if beside else text

    def classes(self, head: str) -> int | None:
        """The number of classes of the classifier with a name; None without a classifier.

        Raises:
          ValueError: the classifier is not a linear layer.
        """
        parts = [name for name in self.weights if CLASSIFIER.match(name)]
        if not parts:
            return None
        key = f"{head}.weight"
        if key in self.weights and len(self.weights[key].shape) == 2:
            return self.kernel(key, 2)[0]
        problem = (
            f"is of shape {self.weights[key].shape}, not a kernel of 2 dimensions"
            if key in self.weights
            else "is missing"
        )
        raise ValueError(
            f"its classifier is not a linear layer as a {self.family} has it: {key} {problem}; "
            f"there are {brief(parts)}. Load it with num_classes and reset_head=True, or with "
            "num_classes=0 for no classifier."
        )

    def layers(self, block: str) -> tuple[int, ...]:
        """The number of blocks of each stage.

        Args:
          block: a pattern of the start of names in a block, with the numbers of the stage and of
            the block as groups.

        Raises:
          ValueError: no blocks.
        """
        blocks: dict[int, set[str]] = {}
        for match in filter(None, map(re.compile(block).match, self.weights)):
            blocks.setdefault(int(match[1]), set()).add(match[2])
        if not blocks:
            example = block.replace(r"(\d+)", "N").replace("\\", "")
            raise ValueError(
                f"its stages are missing: a {self.family} has tensors whose names begin with "
                f"{example}, and there are {brief(list(self.weights))}"
            )
        return tuple(len(blocks[stage]) for stage in sorted(blocks))

    def expect_believable(self, layers: int) -> None:
        """Rejects networks that would take very long to build.

        Raises:
          ValueError: more layers than `MOST_LAYERS`.
        """
        if layers > MOST_LAYERS:
            raise ValueError(f"a {self.family} of {layers} layers is not believed")
