"""Finds the settings of a composite network that its weights do not record."""

import os
from collections.abc import Mapping
from typing import Any

from replk_jax import pretrained
from replk_jax.io.user_warnings import warn_user
from replk_jax.models.backbone import Backbone
from replk_jax.models.pretrained_composite import PretrainedComposite
from replk_jax.models.registry import name_of
from replk_jax.torch_import.composites import Composite
from replk_jax.torch_import.mm_config import parse_config
from replk_jax.torch_import.torch_files import Contents


def find_settings(
    contents: Contents,
    path: str | os.PathLike | None,
    composite: Composite,
    heads: Mapping[str, Any],
    backbone: Backbone,
    like: str | None,
) -> dict[str, Any]:
    """The settings, each from the first of these sources that has it.

    They are the configuration in the file, the name of the file if it is that of a published
    checkpoint of this network, and the checkpoint `like`. A configuration that cannot be read is
    left out, with a warning.

    Args:
      contents: of the file.
      path: of the file; None without a name.
      composite: the class of the network.
      heads: the tensors of its heads.
      backbone: of the network.
      like: the tag or file name of a published checkpoint of such a network; None for none.

    Returns:
      As `Composite.read_settings`; empty without a source.

    Raises:
      ValueError: `like` is not of a published checkpoint of such a network.
    """
    settings = {} if like is None else _settings_of(like, composite)
    named = None if path is None else pretrained.find(path)
    if named in composite.PUBLISHED:
        assert isinstance(named, PretrainedComposite)
        same_classes = composite.num_classes(heads) == named.num_classes
        if same_classes and name_of(backbone) == named.backbone:
            settings |= named.settings
    return settings | _in_file(contents, composite)


def _in_file(contents: Contents, composite: Composite) -> dict[str, Any]:
    meta = contents.get("meta") if isinstance(contents, Mapping) else None
    if not isinstance(meta, Mapping):
        return {}
    try:
        return composite.read_settings(parse_config(meta))
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        warn_user(f"The settings of the network in its meta entry cannot be used: {error}")
        return {}


def _settings_of(like: str, composite: Composite) -> dict[str, Any]:
    entry = pretrained.lookup(like)
    if entry not in composite.PUBLISHED:
        kind = entry.network.__name__ if isinstance(entry, PretrainedComposite) else "classifier"
        raise ValueError(
            f"{entry.tag} is a checkpoint of a {kind}, and this is one of a "
            f"{composite.NETWORK.__name__}: name one of "
            f"{', '.join(entry.tag for entry in composite.PUBLISHED)}."
        )
    return dict(entry.settings)
