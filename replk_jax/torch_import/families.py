"""The families of networks that are published for PyTorch, one module each."""

import re
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from replk_jax.models.backbone import Backbone
from replk_jax.models.network import Network
from replk_jax.torch_import import mobilenet_v2, replknet, repvgg, resnet
from replk_jax.torch_import.structures import StructureNames

Model = TypeVar("Model", bound=Backbone)


class Family(Protocol[Model]):
    """The PyTorch files of one family of networks; each module in `FAMILIES` implements it.

    Official names are those of the first implementation, which `save_torch` writes.
    """

    @property
    def NETWORK(self) -> type[Model]:
        """The network in this package."""
        ...

    @property
    def KEYS(self) -> re.Pattern[str]:
        """The start of keys that only this family has, in any naming."""
        ...

    @property
    def CLASSIFIER(self) -> str:
        """The official name of the classifier."""
        ...

    @property
    def STRUCTURES(self) -> StructureNames:
        """The official names that identify the structure of weights."""
        ...

    @property
    def ASSUMED(self) -> str:
        """What names and shapes do not determine and a reader assumes, in words."""
        ...

    @property
    def ORDER(self) -> str:
        """The parts of official names as PyTorch lists them (see `names.in_order`)."""
        ...

    def official_names(self, weights: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """Renames weights to official names.

        Args:
          weights: of one network, by names without a prefix.

        Returns:
          The weights, and whose names they had: "official", "torchvision", "mmpretrain" or
          "timm".

        Raises:
          ValueError: names of two kinds, or two tensors that would get the same name.
        """
        ...

    def timm_names(self, state_dict: Mapping[str, Any], architecture: Any) -> dict[str, Any]:
        """Renames the state dict of such a network from official names to timm's, in timm's order.

        Raises:
          ValueError: timm has no such network.
        """
        ...

    def mm_names(self, state_dict: Mapping[str, Any], architecture: Any) -> dict[str, Any]:
        """Renames the state dict of a backbone to mmpretrain's and mmsegmentation's names.

        Args:
          state_dict: by official names, in the official order.
          architecture: of the network.

        Returns:
          The state dict, in the order of mmpretrain.
        """
        ...

    def official_key(self, key: str, architecture: Any) -> str:
        """The official name of a tensor, from its name by rule (`names.by_rule`).

        Defined for every network of the family, including those that were never published.
        """
        ...

    def infer_model(self, weights: Mapping[str, Any]) -> Model:
        """The network of weights, inferred from keys and shapes alone.

        Args:
          weights: by official names; only the `shape` of each is used.

        Returns:
          The model, with `deploy=True` for merged weights.

        Raises:
          ValueError: weights of another network.
        """
        ...

    def expect_published(self, model: Model, merged: bool) -> None:
        """Checks that the official code can load the file of a network.

        Args:
          model: the network to save.
          merged: whether its parallel branches are merged first.

        Raises:
          ValueError: it cannot; the message contains the remedy.
        """
        ...


FAMILIES: tuple[Family[Any], ...] = (replknet, repvgg, mobilenet_v2, resnet)


def family_of(model: Network) -> Family[Any]:
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
