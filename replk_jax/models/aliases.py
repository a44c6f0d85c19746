"""Names of models and arguments as timm, torchvision and others have them."""

import re
from collections.abc import Mapping
from typing import Any

from replk_jax.models.backbone import Backbone

_SAME_FIELD = {"in_chans": "in_channels", "drop_rate": "dropout_rate"}
_LOADS_WEIGHTS = ("pretrained", "weights", "weights_backbone", "checkpoint_path")
# What only some families have, in words.
_REGULARIZATION = {
    "dropout_rate": "dropout before its classifier",
    "drop_path_rate": "stochastic depth",
}

# Prefixes and suffixes of timm, transformers and mmpretrain that say where weights come from, and
# the version of ResNet that all have.
_ORIGIN = re.compile(
    r"^(?:hf[-_]hub:)?(?:(?:timm|google|microsoft)/)?(?:(?:tv|gluon|ssl|swsl)_(?=resnet))?"
    r"|\.(?!(?:pth?|bin|safetensors)$)[a-z]\w*$"
    r"|(?:_(?:3rdparty|in21k-pre|\d+xb\d+[-\w]*?))+_in1k(?:-\d+px)?$",
    re.IGNORECASE,
)
_RESNET_VERSION = re.compile(r"(?<=\d)[-_ ]?v1(?:b|\.5)$", re.IGNORECASE)
# What is no name, in the spelling of `plain_name`.
_FILE = re.compile(r".*\.(?:pth?|bin|safetensors)")


def spelling(name: str) -> str:
    """A name or pattern in lower case, without separators outside of brackets."""
    return re.sub(r"[-_\s](?![^\[]*\])", "", name.lower())


def plain_name(name: str) -> str:
    """The name of a model in one spelling, without the origin of its weights.

    `timm/resnet101.tv_in1k`, `microsoft/resnet-101` and `tv_resnet101` are all `resnet101`.
    """
    return spelling(_RESNET_VERSION.sub("", _ORIGIN.sub("", name)))


def describe_other(plain: str, lookalikes: Mapping[str, str]) -> str | None:
    """What a name stands for that resembles a registered one, and what to do; None if unknown.

    Args:
      plain: from `plain_name`.
      lookalikes: see `ModelFamily`, of all families.
    """
    if _FILE.fullmatch(plain):
        return (
            "a file. Load it with replk_jax.load_torch(path), or give the name of the network "
            "alone."
        )
    return next((text for names, text in lookalikes.items() if re.fullmatch(names, plain)), None)


def translate(
    arguments: dict[str, Any], family: type[Backbone], stages: int, known: set[str]
) -> dict[str, Any]:
    """The arguments in the names of this package.

    Args:
      arguments: of `create_model`, by name.
      family: that is built.
      stages: how many it has.
      known: names of the fields of the family and of its architecture.

    Raises:
      ValueError: weights are asked for, which `create_model` does not load.
      TypeError: the same field is given by two names, or regularisation that the family lacks.
    """
    # As in timm, where None means the default.
    arguments = {
        name: value
        for name, value in arguments.items()
        if value is not None or name not in (*_SAME_FIELD, *_REGULARIZATION)
    }
    for name in _LOADS_WEIGHTS:
        if arguments.pop(name, None):
            raise ValueError(
                f"create_model loads no weights, so {name} cannot be set. Download the checkpoint, "
                "and load it with replk_jax.load_torch(path), or replk_jax.load(path) for a file "
                "that this package wrote."
            )
    given_as = {}
    for theirs, ours in _SAME_FIELD.items():
        if theirs in arguments:
            if ours in arguments:
                raise TypeError(f"{theirs} and {ours} are the same field: give one of them.")
            arguments[ours] = arguments.pop(theirs)
            given_as[ours] = theirs
    for field, words in _REGULARIZATION.items():
        # A rate of 0 asks for nothing.
        if field not in known and field in arguments and arguments.pop(field):
            given = given_as.get(field, field)
            raise TypeError(f"{family.__name__} has no {words}: leave out {given}.")
    if arguments.pop("features_only", False) and arguments.get("out_indices") is None:
        arguments["out_indices"] = tuple(range(stages))
    if "replace_stride_with_dilation" in arguments:
        raise TypeError(
            "replace_stride_with_dilation is output_stride here: output_stride=16 dilates the last "
            "stage, output_stride=8 the last two."
        )
    return arguments
