"""Checkpoints in a .safetensors file: tensors by path, and a description in the metadata."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import traverse_util

from replk_jax.checkpoint.own_format import OwnCheckpoint, older_variables
from replk_jax.checkpoint.record import Checkpoint, parse_description
from replk_jax.io.files import json_text
from replk_jax.io.safetensors import write_safetensors
from replk_jax.io.tensors import StoredTensor
from replk_jax.models.variables import abstract_variables, by_path, differences, in_lines
from replk_jax.torch_import import WeightsFile

_KEY = "replk_jax"  # of the description, in the metadata


class SafetensorsCheckpoint(OwnCheckpoint):
    """An opened .safetensors file of this package.

    Args:
      path: of the file, for errors.
      file: a file that satisfies `is_own_file`.

    Raises:
      ValueError: an invalid description.
    """

    def __init__(self, path: Path, file: WeightsFile):
        super().__init__(path, parse_description(path, file.metadata[_KEY]))
        self._file = file

    @property
    def has_ema(self) -> bool:
        return False

    @property
    def files(self) -> tuple[Path, ...]:
        """As `WeightsFile.files`."""
        return self._file.files

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """The tensors by their path in the variables.

        Raises:
          FileError: the file is damaged.
        """
        return self._file.tensors

    def faults(self) -> list[str]:
        """The differences between the tensors and the network's variables, one line each."""
        return differences(self.tensors, by_path(abstract_variables(self.description.model)))

    def read_variables(self, prefer_ema: bool) -> dict[str, Any]:
        model, tensors = self.description.model, self.tensors
        places = by_path(abstract_variables(model))
        found = differences(tensors, places)
        if found and tensors.keys() == by_path(older_variables(model)).keys():
            found = differences({key: tensors[key] for key in places}, places)
        if found:
            raise ValueError(f"{self.path} does not fit its description:{in_lines(found)}")
        flat = {key: jnp.asarray(tensors[key].read(), leaf.dtype) for key, leaf in places.items()}
        return traverse_util.unflatten_dict(flat, sep="/")


def is_own_file(file: WeightsFile) -> bool:
    """Whether this package wrote a file.

    Raises:
      FileError: a .safetensors file that is damaged.
    """
    return _KEY in file.metadata


def write_file(path: str | os.PathLike, network: Checkpoint) -> None:
    """Writes a network to a .safetensors file, atomically."""
    description = json_text(network.description())
    write_safetensors(path, by_path(network.variables), {_KEY: description})
