"""The contents of a checkpoint, and their description in JSON."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from replk_jax import pretrained
from replk_jax.io.errors import error_text
from replk_jax.io.text import brief
from replk_jax.io.user_warnings import warn_user
from replk_jax.models import registry
from replk_jax.models.description import describe, from_description
from replk_jax.models.network import Network
from replk_jax.vision.base_preprocessing import BasePreprocessing


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A network with everything that is needed to run it.

    Attributes:
      model: the network; `deploy=True` if it is re-parameterized.
      variables: of the model.
      preprocessing: of its images; None if unknown.
      class_names: one per class; None if unknown.
      preprocessing_source, class_names_source: where they were found in or next to a PyTorch
        checkpoint; None for other files.
      unrecorded: strides and dilation in the configuration of a PyTorch checkpoint that the model
        lacks; None if there is no difference.
    """

    model: Network
    variables: Mapping[str, Any]
    preprocessing: BasePreprocessing | None = None
    class_names: tuple[str, ...] | None = None
    preprocessing_source: str | None = dataclasses.field(default=None, compare=False)
    class_names_source: str | None = dataclasses.field(default=None, compare=False)
    unrecorded: str | None = dataclasses.field(default=None, compare=False)

    @property
    def name(self) -> str | None:
        """The registered name of the model; None if it is not registered."""
        return registry.name_of(self.model)

    def resolve_preprocessing(self) -> BasePreprocessing:
        """The preprocessing; if unknown, that of similar networks, with a warning.

        Raises:
          ValueError: unknown, and there are no similar networks.
        """
        if self.preprocessing is not None:
            return self.preprocessing
        default = pretrained.default_preprocessing(self.model)
        if default is None:
            raise ValueError("The preprocessing is unknown: give one.")
        warn_user(
            "The preprocessing is unknown: the file does not record it, and does not have the name "
            f"of a published checkpoint. Assumed: {default}."
        )
        return default

    def description(self) -> dict[str, Any]:
        """Everything but the variables, as plain data for JSON."""
        return {
            "name": self.name,
            "model": describe(self.model),
            "preprocessing": self.preprocessing and self.preprocessing.as_dict(),
            "class_names": self.class_names and list(self.class_names),
        }


def parse_description(path: Path, text: str) -> Checkpoint:
    """Parses a description. The result has no variables.

    Args:
      path: of the checkpoint, for errors.
      text: JSON of `Checkpoint.description`.

    Raises:
      ValueError: an invalid description.
    """
    try:
        description = json.loads(text)
        names = description["class_names"]
        preprocessing = description["preprocessing"]
        model = from_description(description["model"])
        return Checkpoint(
            model=model,
            variables={},
            preprocessing=(
                None if preprocessing is None else BasePreprocessing.from_dict(preprocessing)
            ),
            class_names=None if names is None else _class_names(names, model.num_classes),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error_text(error)
        raise ValueError(f"{path} has an invalid description: {reason}") from error


def _class_names(names: Any, count: int | None) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names must be a list of strings; got {brief(names)}")
    if len(names) != count:
        raise ValueError(f"class_names must be {count}; got {len(names)}")
    return tuple(names)
