"""The families of networks that are published for PyTorch: a module each."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import flax.linen as nn

from replk_jax.models.network import Network
from replk_jax.torch_import import mobilenet_v2, replknet, repvgg, resnet
from replk_jax.torch_import.tensors import brief


class Family(Protocol):
    """What is known of the files of one family; the modules in `FAMILIES` have it.

    Official names are those of the first implementation, which `save_torch` writes.

    Attributes:
      NETWORK: the network here.
      KEYS: what a key begins with that no other family has, in any naming.
      ORDER: the parts of official names as PyTorch lists them (see `names.in_order`).
    """

    NETWORK: type[Network]
    KEYS: re.Pattern[str]
    ORDER: str

    def official_names(self, weights: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """Renames weights to official names.

        Args:
          weights: of one network, by names without a prefix.

        Returns:
          The weights, and whose names they had: "official", "torchvision" or "mmpretrain".

        Raises:
          ValueError: names of two kinds, or two tensors that come to have the same name.
        """

    def official_key(self, key: str, architecture: Any) -> str:
        """The official name of what has this name by rule (`names.by_rule`).

        For every network of the family, also those that were never published.
        """

    def infer_model(self, weights: Mapping[str, Any]) -> Network:
        """The network that weights are for, told from keys and shapes alone.

        Args:
          weights: by official names; of each only the `shape` is looked at.

        Returns:
          The model, with `deploy=True` for weights that are merged.

        Raises:
          ValueError: weights that are no such network's.
        """

    def expect_published(self, model: Network, merged: bool) -> None:
        """Raises unless the official code could load what would be saved.

        Args:
          model: whose variables they are.
          merged: whether parallel branches are to be merged first.

        Raises:
          ValueError: it could not; with the remedy.
        """


FAMILIES: tuple[Family, ...] = (replknet, repvgg, mobilenet_v2, resnet)


def family_of(model: nn.Module) -> Family:
    """The family of a network.

    Raises:
      ValueError: a network of none of them.
    """
    for family in FAMILIES:
        if isinstance(model, family.NETWORK):
            return family
    raise ValueError(f"There are no PyTorch files of a {type(model).__name__}; {_known()}.")


def family_of_keys(keys: Iterable[str]) -> Family:
    """The family that the names of tensors tell of, in any naming.

    Raises:
      ValueError: none of them.
    """
    keys = list(keys)
    for family in FAMILIES:
        if any(map(family.KEYS.match, keys)):
            return family
    raise ValueError(
        f"these are not the weights of a network known here, {_known()}: {brief(keys)}"
    )


def _known() -> str:
    *others, last = (family.NETWORK.__name__ for family in FAMILIES)
    return f"which are {', '.join(others)} and {last}"
