"""Orbax checkpoints: folders, as training writes them."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from replk_jax.checkpoint.own_format import OwnCheckpoint, older_variables
from replk_jax.checkpoint.record import Checkpoint, parse_description
from replk_jax.io import checksums
from replk_jax.io.errors import error_text
from replk_jax.models.variables import abstract_variables, by_path

_EMA = "ema"  # the item with the EMA of all variables
_DESCRIPTION = "description"  # the JSON item
_UNREADABLE = (ValueError, KeyError, FileNotFoundError)  # raised by Orbax for other variables


class OrbaxCheckpoint(OwnCheckpoint):
    """An opened Orbax checkpoint of this package.

    Args:
      path: of a folder that satisfies `is_own_folder`.

    Raises:
      ValueError: an invalid description.
    """

    def __init__(self, path: Path):
        super().__init__(path, parse_description(path, _description_file(path).read_text()))

    @property
    def has_ema(self) -> bool:
        return (self.path / _EMA).is_dir()

    def read_variables(self, prefer_ema: bool) -> dict[str, Any]:
        if checksums.has_record(self.path) and (fault := checksums.fault(self.path)):
            raise ValueError(f"{self.path} is damaged: {fault}.")
        model = self.description.model
        variables = abstract_variables(model)
        try:
            restored = self._restore(variables, prefer_ema)
        except _UNREADABLE as error:
            try:
                older = by_path(self._restore(older_variables(model), prefer_ema))
            except _UNREADABLE:
                raise ValueError(
                    f"{self.path} is damaged, or does not fit its description: {error_text(error)}"
                ) from error
            kept = {key: older[key] for key in by_path(variables)}
            restored = traverse_util.unflatten_dict(kept, sep="/")
        return jax.tree.map(jnp.asarray, restored)  # training saves NumPy arrays

    def _restore(self, variables: Mapping[str, Any], prefer_ema: bool) -> dict[str, Any]:
        import orbax.checkpoint as ocp

        path = self.path.absolute()
        with ocp.StandardCheckpointer() as checkpointer:
            if prefer_ema:
                return checkpointer.restore(path / _EMA, variables)
            return {item: checkpointer.restore(path / item, v) for item, v in variables.items()}


def is_own_folder(path: Path) -> bool:
    """Whether a path is an Orbax checkpoint of this package, which has a description."""
    return _description_file(path).exists()


def _description_file(path: Path) -> Path:
    return path / _DESCRIPTION / "metadata"


def write_folder(path: Path, network: Checkpoint) -> None:
    """Writes a network to a folder, atomically.

    Args:
      path: absolute; an existing checkpoint is replaced.
      network: to write.

    Raises:
      OSError: it cannot be written.
    """
    import orbax.checkpoint as ocp  # the import takes a second

    items: dict[str, ocp.args.CheckpointArgs] = {
        name: ocp.args.StandardSave(tree) for name, tree in network.variables.items()
    }
    items[_DESCRIPTION] = ocp.args.JsonSave(network.description())
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(new, args=ocp.args.Composite(**items))
        checksums.record(new)
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(new, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
