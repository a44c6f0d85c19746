"""What the shapes of a network's weights tell of it."""

import re
from collections.abc import Mapping
from typing import Any

from replk_jax.models.description import MOST_LAYERS
from replk_jax.torch_import.tensors import brief

# Tools of PyTorch that replace a tensor by others, from which the module computes it: what they
# have done to it, what is appended to its name, and how to undo it. The new interface of all of
# them stores the others in `parametrizations`.
_TOOLS = (
    ("pruned", ("_orig", "_mask"), "prune.remove"),
    ("weight-normalised", ("_g", "_v"), "remove_weight_norm"),
    ("spectrally normalised", ("_orig", "_u"), "remove_spectral_norm"),
)


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
          ValueError: it is missing, has other dimensions, or a dimension of length 0.
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
        if computed := self._computed(key):
            return f"{text}: {computed}"
        return f"{text}; of {module} there are {brief(beside)}" if beside else text

    def _computed(self, key: str) -> str | None:
        """Which tool of PyTorch has replaced a tensor by others, and the remedy; None if none."""
        module, _, leaf = key.rpartition(".")
        parametrization = f"{module}.parametrizations.{leaf}."
        tools = [(how, [key + end for end in ends], undo) for how, ends, undo in _TOOLS]
        stored = [name for name in self.weights if name.startswith(parametrization)]
        tools.append(("parametrized", stored, "parametrize.remove_parametrizations"))
        for how, names, undo in tools:
            if names and all(name in self.weights for name in names):
                return (
                    f"it has been {how} ({' and '.join(names)}). In PyTorch: "
                    f"torch.nn.utils.{undo}(module, {leaf!r}) before the state dict is saved."
                )
        return None

    def classes(self, head: str) -> int | None:
        """The number of classes of the classifier of this name; None if there is none.

        Raises:
          ValueError: it is another kind of classifier than a linear layer.
        """
        if not self.any(f"{head.split('.')[0]}."):
            return None
        key = f"{head}.weight"
        if key not in self.weights and not self.any(key) and not self._computed(key):
            parts = [name for name in self.weights if name.startswith(f"{head.split('.')[0]}.")]
            raise ValueError(
                f"its classifier is not a linear layer as a {self.family} has it: {key} is "
                f"missing; there are {brief(parts)}. Load it with num_classes and "
                "reset_head=True, or with num_classes=0 for no classifier."
            )
        return self.kernel(key, 2)[0]

    def layers(self, block: str) -> tuple[int, ...]:
        """How many blocks there are, one number per stage.

        Args:
          block: a pattern of what the names in a block begin with, with the numbers of the stage
            and of the block in it as groups.

        Raises:
          ValueError: none.
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
        """Raises if there are more layers than any network has, which would take long to build.

        Raises:
          ValueError: more layers than `MOST_LAYERS`.
        """
        if layers > MOST_LAYERS:
            raise ValueError(f"a {self.family} of {layers} layers is not believed")
