"""Arguments of timm's `create_model` and torchvision's builders, as fields of the networks here."""

from typing import Any

from replk_jax.models.network import Network

_SAME_FIELD = {"in_chans": "in_channels", "drop_rate": "dropout_rate"}
_LOADS_WEIGHTS = ("pretrained", "weights", "weights_backbone", "checkpoint_path")
# What only some families have, in words.
_REGULARIZATION = {
    "dropout_rate": "dropout before its classifier",
    "drop_path_rate": "stochastic depth",
}


def translate(
    arguments: dict[str, Any], family: type[Network], stages: int, known: set[str]
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
    arguments = dict(arguments)
    for name in _LOADS_WEIGHTS:
        if arguments.pop(name, None):
            raise ValueError(
                f"create_model loads no weights, so {name} cannot be set. Download the checkpoint, "
                "and load it with replk_jax.load_torch(path), or replk_jax.load(path) for a file "
                "that this package wrote."
            )
    for theirs, ours in _SAME_FIELD.items():
        if theirs in arguments:
            if ours in arguments:
                raise TypeError(f"{theirs} and {ours} are the same field: give one of them.")
            arguments[ours] = arguments.pop(theirs)
    if arguments.pop("features_only", False):
        arguments.setdefault("out_indices", tuple(range(stages)))
    for field, words in _REGULARIZATION.items():
        # A rate of 0 asks for nothing.
        if field not in known and field in arguments and arguments.pop(field):
            raise TypeError(f"{family.__name__} has no {words}: leave out {field}.")
    if "replace_stride_with_dilation" in arguments:
        raise TypeError(
            "replace_stride_with_dilation is output_stride here: output_stride=16 dilates the last "
            "stage, output_stride=8 the last two."
        )
    return arguments
