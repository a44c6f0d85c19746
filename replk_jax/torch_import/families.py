"""The families of networks that are published for PyTorch: a module each."""

import re
from collections.abc import Mapping
from typing import Any, Protocol

import flax.linen as nn

from replk_jax.models.backbone import Backbone
from replk_jax.torch_import import mobilenet_v2, replknet, repvgg, resnet
from replk_jax.torch_import.structures import StructureNames


class Family(Protocol):
    """What is known of the files of one family; the modules in `FAMILIES` have it.

    Official names are those of the first implementation, which `save_torch` writes.

    Attributes:
      NETWORK: the network here.
      KEYS: what a key begins with that no other family has, in any naming.
      CLASSIFIER: the official name of the classifier.
      STRUCTURES: the official names by which the structure of weights is known.
      ASSUMED: what names and shapes do not determine, and what is assumed of it, in words.
      ORDER: the parts of official names as PyTorch lists them (see `names.in_order`).
    """

    NETWORK: type[Backbone]
    KEYS: re.Pattern[str]
    CLASSIFIER: str
    STRUCTURES: StructureNames
    ASSUMED: str
    ORDER: str

    def official_names(self, weights: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """Renames weights to official names.

        Args:
          weights: of one network, by names without a prefix.

        Returns:
          The weights, and whose names they had: "official", "torchvision", "mmpretrain" or
          "timm".

        Raises:
          ValueError: names of two kinds, or two tensors that come to have the same name.
        """

    def names_in(self, weights: Mapping[str, Any], model: Backbone) -> Mapping[str, Any]:
        """Renames weights to official names as they are in this model.

        Args:
          weights: by official names of a network of the same architecture, which may be used in
            another way: as a classifier or as a backbone.
          model: what they are for.
        """

    def timm_names(self, state_dict: Mapping[str, Any], architecture: Any) -> dict[str, Any]:
        """Renames the state dict of such a network from official names to timm's, in timm's order.

        Raises:
          ValueError: timm has no such network.
        """

    def official_key(self, key: str, architecture: Any) -> str:
        """The official name of what has this name by rule (`names.by_rule`).

        For every network of the family, also those that were never published.
        """

    def infer_model(self, weights: Mapping[str, Any]) -> Backbone:
        """The network that weights are for, told from keys and shapes alone.

        Args:
          weights: by official names; of each only the `shape` is looked at.

        Returns:
          The model, with `deploy=True` for weights that are merged.

        Raises:
          ValueError: weights that are no such network's.
        """

    def expect_published(self, model: Backbone, merged: bool) -> None:
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
    raise ValueError(f"There are no PyTorch files of a {type(model).__name__}; {known_families()}.")


def known_families() -> str:
    """The names of all families, as the end of a sentence."""
    *others, last = (family.NETWORK.__name__ for family in FAMILIES)
    return f"which are {', '.join(others)} and {last}"
