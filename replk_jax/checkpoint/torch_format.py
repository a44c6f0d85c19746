"""PyTorch checkpoints, with the metadata that other libraries save beside the weights."""

import dataclasses
import os
from pathlib import Path

from replk_jax.checkpoint.nearby import pointing_to_checkpoint
from replk_jax.checkpoint.record import Checkpoint
from replk_jax.checkpoint.starting import fit_contents
from replk_jax.io.errors import naming
from replk_jax.io.user_warnings import warn_user
from replk_jax.models.backbone import Backbone
from replk_jax.models.fitting import Fitting
from replk_jax.models.network import Network
from replk_jax.torch_import import (
    Contents,
    Selection,
    WeightsFile,
    find_metadata,
    load_contents,
)


class TorchCheckpoint:
    """An opened file of PyTorch, or a .safetensors file of another library.

    Attributes:
      path: of the file or folder, as given.
    """

    def __init__(self, path: Path, file: WeightsFile):
        self.path, self._file = path, file

    @property
    def files(self) -> tuple[Path, ...]:
        """As `WeightsFile.files`."""
        return self._file.files

    @property
    def contents(self) -> Contents:
        """As `WeightsFile.contents`."""
        with pointing_to_checkpoint(self.path):
            return self._file.contents

    def load(self, selection: Selection, like: str | None = None) -> Checkpoint:
        """Reads the network, which the names and shapes of the tensors identify.

        Args:
          selection: which weights to read.
          like: as in `load`.

        Raises:
          ValueError: as `load`.
        """
        contents = self.contents
        with pointing_to_checkpoint(self.path), naming(self.path):
            model, fitted = load_contents(
                contents,
                selection=selection,
                source=os.fspath(self.path),
                fitting=Fitting(),
                like=like,
            )
        return dataclasses.replace(self.describe(model, like), variables=fitted.variables)

    def load_into(self, model: Network, selection: Selection, fitting: Fitting) -> Checkpoint:
        """Reads the variables of a model, or of the backbone of a composite one.

        Raises:
          ValueError: as `load_into`.
        """
        contents = self.contents
        with pointing_to_checkpoint(self.path), naming(self.path):
            own, variables = fit_contents(
                contents, model, selection, fitting, source=os.fspath(self.path)
            )
        # The model may have other classes than the file.
        described = self.describe(own.clone(num_classes=None))
        return dataclasses.replace(described, model=model, variables=variables)

    def describe(self, model: Network, like: str | None = None) -> Checkpoint:
        """As the function `describe`, of this checkpoint."""
        return describe(self.path, self.contents, model, like)


def describe(path: Path, contents: Contents, model: Network, like: str | None = None) -> Checkpoint:
    """The metadata of a PyTorch checkpoint. The result has no variables.

    Args:
      path: of the checkpoint.
      contents: of it.
      model: the network, with the checkpoint's number of classes, or None.
      like: as in `find_metadata`.
    """
    found = find_metadata(path, contents, model, like)
    unrecorded = None
    if found.backbone and isinstance(model, Backbone):
        unrecorded = found.backbone.difference(model)
    if unrecorded:
        warn_user(
            f"{path}: its configuration has a backbone with {unrecorded}. The weights do not "
            "record this, and the model lacks it: build a model with these fields, and load into "
            "that."
        )
    names, count = found.class_names, model.num_classes
    if names is not None and count is not None and len(names) != count:
        warn_user(
            f"{path}: its network has {count} classes; the {len(names)} names in "
            f"{found.class_names_source} are not used."
        )
    if names is None or len(names) != count:
        names = None
    return Checkpoint(
        model=model,
        variables={},
        preprocessing=found.preprocessing,
        class_names=names,
        preprocessing_source=found.preprocessing_source,
        class_names_source=found.class_names_source if names else None,
        unrecorded=unrecorded,
    )
