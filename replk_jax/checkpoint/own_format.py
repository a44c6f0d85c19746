"""The base of the two checkpoint formats of this package."""

import abc
import dataclasses
import os
from pathlib import Path
from typing import Any

from replk_jax.checkpoint.record import Checkpoint
from replk_jax.checkpoint.starting import fit_network
from replk_jax.io.errors import naming
from replk_jax.models.fitting import Fitting
from replk_jax.models.network import Network
from replk_jax.models.variables import abstract_variables
from replk_jax.torch_import import Selection


class OwnCheckpoint(abc.ABC):
    """An opened checkpoint in a format of this package.

    Attributes:
      path: of the checkpoint.
      description: the network in it, without variables.
    """

    def __init__(self, path: Path, description: Checkpoint):
        self.path, self.description = path, description

    @property
    @abc.abstractmethod
    def has_ema(self) -> bool:
        """Whether it has an EMA of the weights."""

    @abc.abstractmethod
    def read_variables(self, prefer_ema: bool) -> dict[str, Any]:
        """Reads the variables of the network, or their EMA.

        Raises:
          ValueError: damaged, or variables of another network.
        """

    def check_selection(self, selection: Selection) -> None:
        """Raises ValueError for a selection that does not apply to this checkpoint."""
        if selection != Selection(selection.prefer_ema):
            raise ValueError(
                f"{self.path} was saved by this package: key, prefix and rename do not apply."
            )
        if selection.prefer_ema and not self.has_ema:
            raise ValueError(f"{self.path} has no EMA of the weights.")

    def load(self, selection: Selection) -> Checkpoint:
        """Reads the network.

        Raises:
          ValueError: as `load`.
        """
        self.check_selection(selection)
        variables = self.read_variables(selection.prefer_ema)
        return dataclasses.replace(self.description, variables=variables)

    def load_into(self, model: Network, selection: Selection, fitting: Fitting) -> Checkpoint:
        """Reads variables for a model of the same architecture, or with such a backbone.

        Raises:
          ValueError: as `load_into`.
        """
        loaded = self.load(selection)
        with naming(self.path):
            variables = fit_network(loaded, model, fitting, source=os.fspath(self.path))
        same_classes = (type(model), model.num_classes) == (
            type(loaded.model),
            loaded.model.num_classes,
        )
        names = loaded.class_names if same_classes else None
        return dataclasses.replace(loaded, model=model, variables=variables, class_names=names)


def older_variables(model: Network) -> dict[str, Any]:
    """As `abstract_variables`, for files of version 0.1.0.

    A backbone with `norm_intermediate_features` then had a norm in every stage, including those
    that it did not return.
    """
    if getattr(model, "norm_intermediate_features", False) and model.out_indices is not None:
        model = model.clone(out_indices=tuple(range(len(model.stage_channels))))
    return abstract_variables(model)
