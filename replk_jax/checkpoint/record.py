"""A network with all that is needed to run it, and its description in JSON."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from replk_jax.io.errors import error_text
from replk_jax.io.text import brief
from replk_jax.io.user_warnings import warn_user
from replk_jax.models import pretrained, registry
from replk_jax.models.description import describe, from_description
from replk_jax.models.network import Network
from replk_jax.vision.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A network with all that is needed to run it.

    Attributes:
      model: the network; `deploy=True` where it is re-parameterized.
      variables: of the model.
      preprocessing: of its images; None where it is not known.
      class_names: one for each class; None where they are not known.
      preprocessing_source, class_names_source: where in a PyTorch checkpoint, or beside it, they
        were found; None for other files.
      unrecorded: strides and dilation that a configuration saved with a PyTorch checkpoint gives,
        and the model does not have; None where there is no such difference.
    """

    model: Network
    variables: Mapping[str, Any]
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None
    preprocessing_source: str | None = dataclasses.field(default=None, compare=False)
    class_names_source: str | None = dataclasses.field(default=None, compare=False)
    unrecorded: str | None = dataclasses.field(default=None, compare=False)

    @property
    def name(self) -> str | None:
        """Under which the model is registered, if it is."""
        return registry.name_of(self.model)

    def resolve_preprocessing(self) -> Preprocessing:
        """The preprocessing; if it is not known, that of networks like it, with a warning.

        Raises:
          ValueError: it is not known, and there is no network like it.
        """
        if self.preprocessing is not None:
            return self.preprocessing
        default = pretrained.default_preprocessing(self.model)
        if default is None:
            raise ValueError("The preprocessing is not known: give one.")
        warn_user(
            "The preprocessing is not known: the file does not record it, and does not have the "
            f"name of a released checkpoint. Assumed: {default}."
        )
        return default

    def description(self) -> dict[str, Any]:
        """All but the variables, as JSON can hold it."""
        return {
            "name": self.name,
            "model": describe(self.model),
            "preprocessing": self.preprocessing and self.preprocessing.as_dict(),
            "class_names": self.class_names and list(self.class_names),
        }


def parse_description(path: Path, text: str) -> Checkpoint:
    """The network that was described, without variables.

    Args:
      path: of the checkpoint, for errors.
      text: JSON of `Checkpoint.description`.

    Raises:
      ValueError: another text.
    """
    try:
        description = json.loads(text)
        names = description["class_names"]
        preprocessing = description["preprocessing"]
        model = from_description(description["model"])
        return Checkpoint(
            model=model,
            variables={},
            preprocessing=None if preprocessing is None else Preprocessing.from_dict(preprocessing),
            class_names=None if names is None else _class_names(names, model.num_classes),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error_text(error)
        raise ValueError(f"{path} has a description that cannot be understood: {reason}") from error


def _class_names(names: Any, count: int | None) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names must be a list of strings; got {brief(names)}")
    if len(names) != count:
        raise ValueError(f"class_names must be {count}; got {len(names)}")
    return tuple(names)
