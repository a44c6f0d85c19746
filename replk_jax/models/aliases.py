"""Names of models and arguments in timm, torchvision and other libraries."""

import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any

from replk_jax.models.backbone import Backbone

_SAME_FIELD = {"in_chans": "in_channels", "drop_rate": "dropout_rate"}
_LOADS_WEIGHTS = ("pretrained", "weights", "weights_backbone", "checkpoint_path")
# Fields that only some families have, with their descriptions.
_REGULARIZATION = {
    "dropout_rate": "dropout before its classifier",
    "drop_path_rate": "stochastic depth",
}

# Prefixes and suffixes that name the origin of weights in timm, transformers and mmpretrain.
_ORIGIN = re.compile(
    r"^(?:hf[-_]hub:)?(?:(?:timm|google|microsoft)/)?(?:(?:tv|gluon|ssl|swsl)_(?=resnet))?"
    r"|\.(?!(?:pth?|bin|safetensors)$)[a-z]\w*$"
    r"|(?:_(?:3rdparty|in21k-pre|\d+xb\d+[-\w]*?))+_in1k(?:-\d+px)?$",
    re.IGNORECASE,
)
# The version of ResNet that all these libraries have.
_RESNET_VERSION = re.compile(r"(?<=\d)[-_ ]?v1(?:b|\.5)$", re.IGNORECASE)
# After `plain_name`: the start of the name of a segmentation or detection network, and a file name.
_SEGMENTER = re.compile("upernet|pspnet|deeplabv3|fcn")
_DETECTOR = re.compile("fcos|cascade|(?:mask|faster)rcnn")
_FILE = re.compile(r".*\.(?:pth?|bin|safetensors)")


def spelling(name: str) -> str:
    """A name or pattern in lower case, without hyphens, underscores and spaces outside brackets."""
    return re.sub(r"[-_\s](?![^\[]*\])", "", name.lower())


def spelt(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that equals `name` but for case, hyphens and underscores."""
    return next((known for known in names if spelling(known) == spelling(name)), None)


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that match a shell-style pattern.

    If none matches, case, hyphens and underscores are ignored.
    """
    names = list(names)
    exact = fnmatch.filter(names, pattern)
    return exact or [name for name in names if fnmatch.fnmatch(spelling(name), spelling(pattern))]


def plain_name(name: str) -> str:
    """The `spelling` of a model's name, without the origin of its weights.

    `timm/resnet101.tv_in1k`, `microsoft/resnet-101` and `tv_resnet101` all become `resnet101`.
    """
    return spelling(_RESNET_VERSION.sub("", _ORIGIN.sub("", name)))


def describe_other(plain: str, lookalikes: Mapping[str, str]) -> str | None:
    """Explains a name that resembles a registered one, and what to do; None if unknown.

    Args:
      plain: the result of `plain_name`.
      lookalikes: see `ModelFamily`; of all families.
    """
    if _FILE.fullmatch(plain):
        return (
            "a file. Load it with replk_jax.load_torch(path), or give the name of the network "
            "alone."
        )
    if _SEGMENTER.match(plain):
        return "a segmentation network, which replk_jax.create_segmenter builds."
    if _DETECTOR.match(plain):
        return "a detection network, which replk_jax.create_detector builds."
    return next((text for names, text in lookalikes.items() if re.fullmatch(names, plain)), None)


def translate(
    arguments: dict[str, Any], family: type[Backbone], stages: int, known: set[str]
) -> dict[str, Any]:
    """Translates arguments to the names in this package.

    Args:
      arguments: of `create_model`, by name.
      family: the class of the network.
      stages: number of stages.
      known: names of the fields of the network and of its architecture.

    Raises:
      ValueError: a request for weights, which `create_model` does not load.
      TypeError: a field given by two names, or regularisation that the family lacks.
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
    for field, description in _REGULARIZATION.items():
        # A rate of 0 changes nothing.
        if field not in known and field in arguments and arguments.pop(field):
            given = given_as.get(field, field)
            raise TypeError(f"{family.__name__} has no {description}: leave out {given}.")
    if arguments.pop("features_only", False) and arguments.get("out_indices") is None:
        arguments["out_indices"] = tuple(range(stages))
    if "replace_stride_with_dilation" in arguments:
        raise TypeError(
            "replace_stride_with_dilation is output_stride here: output_stride=16 dilates the last "
            "stage, output_stride=8 the last two."
        )
    return arguments
