"""The composite networks that are published for PyTorch, one module each: heads on a backbone.

A state dict of such a network has its backbone under `backbone.`, in the names of the backbone's
family (`families.Family`), and its heads in modules beside that.
"""

import re
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from replk_jax.models.backbone import Backbone
from replk_jax.models.composite import CompositeNetwork
from replk_jax.models.network import Network
from replk_jax.models.pretrained_composite import PretrainedComposite
from replk_jax.torch_import import detectors, segmenters
from replk_jax.vision.base_preprocessing import BasePreprocessing

BACKBONE = "backbone."

Model = TypeVar("Model", bound=CompositeNetwork)
Value = TypeVar("Value")


class Composite(Protocol[Model]):
    """The PyTorch files of a composite network; each module in `COMPOSITES` implements it.

    The variables of heads mirror the official code, so their names follow `names.by_rule`, apart
    from `official_key`.
    """

    @property
    def NETWORK(self) -> type[Model]:
        """The network in this package."""
        ...

    @property
    def MODULES(self) -> tuple[str, ...]:
        """The modules beside the backbone, in PyTorch's order."""
        ...

    @property
    def KEYS(self) -> re.Pattern[str]:
        """The start of names that only the heads of this network have, beside a backbone."""
        ...

    @property
    def ORDER(self) -> str:
        """The parts of the names of heads as PyTorch lists them (see `names.in_order`)."""
        ...

    @property
    def PUBLISHED(self) -> tuple[PretrainedComposite, ...]:
        """The published checkpoints."""
        ...

    def official_names(self, heads: Mapping[str, Any]) -> dict[str, Any]:
        """Renames the tensors of the heads to official names.

        Raises:
          ValueError: heads that are not supported; the message lists those that are.
        """
        ...

    def official_key(self, key: str) -> str:
        """The official name of a tensor of the heads, from its name by rule (`names.by_rule`)."""
        ...

    def infer_model(
        self, heads: Mapping[str, Any], backbone: Backbone, settings: Mapping[str, Any]
    ) -> Model:
        """The network of weights.

        Args:
          heads: the tensors of the heads, by official names; only the `shape` of each is used.
          backbone: inferred from its weights.
          settings: what names and shapes do not determine, as far as it is known: the result of
            `read_settings`, or a published checkpoint's.

        Returns:
          The model. Its `deploy` is that of the backbone.

        Raises:
          ValueError: weights of another network.
        """
        ...

    def num_classes(self, heads: Mapping[str, Any]) -> int | None:
        """The number of classes of the heads, by official names; None if it is not there."""
        ...

    def read_settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a network in a configuration of mmengine or mmcv.

        Args:
          config: the result of `mm_config.parse_config`.

        Raises:
          ValueError: settings that the network cannot have.
        """
        ...

    def read_preprocessing(self, config: Mapping[str, Any]) -> BasePreprocessing | None:
        """How a configuration prepares test images; None if it does not say.

        Args:
          config: as of `read_settings`.

        Raises:
          ValueError: steps that the preprocessing of such a network cannot represent.
        """
        ...

    def assumed(self, model: Model, settings: Mapping[str, Any]) -> str:
        """The properties of an inferred model that neither weights nor settings determine.

        Returns:
          In words; empty if there are none.
        """
        ...

    def expect_published(self, model: Model, merged: bool) -> None:
        """As `Family.expect_published`, of the heads."""
        ...


COMPOSITES: tuple[Composite[Any], ...] = (segmenters, detectors)


def composite_of(model: Network) -> Composite[Any]:
    """The entry of `COMPOSITES` for a network.

    Raises:
      ValueError: a network of none of them.
    """
    for composite in COMPOSITES:
        if isinstance(model, composite.NETWORK):
            return composite
    known = " or ".join(composite.NETWORK.__name__ for composite in COMPOSITES)
    raise ValueError(
        f"There are no PyTorch files of a {type(model).__name__}: of networks with heads, only of "
        f"a {known}."
    )


def split(weights: Mapping[str, Value]) -> tuple[dict[str, Value], dict[str, Value]]:
    """Splits the state dict of a composite network.

    Returns:
      The weights of the backbone, by names without a prefix, and those of the heads.
    """
    backbone = {
        name.removeprefix(BACKBONE): value
        for name, value in weights.items()
        if name.startswith(BACKBONE)
    }
    heads = {name: value for name, value in weights.items() if not name.startswith(BACKBONE)}
    return backbone, heads


def joined(backbone: Mapping[str, Value], heads: Mapping[str, Value]) -> dict[str, Value]:
    """The reverse of `split`."""
    return {f"{BACKBONE}{name}": value for name, value in backbone.items()} | dict(heads)
