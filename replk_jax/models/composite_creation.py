"""What the functions share that build composite networks by name, such as `create_segmenter`."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from replk_jax.models.architecture import Architecture
from replk_jax.models.backbone import Backbone
from replk_jax.models.registry import create_model

# The fields that a composite network decides, for its backbone and its parts.
NETWORK_FIELDS = ("deploy", "dtype", "param_dtype", "implementation", "remat")
_NUM_FEATURE_MAPS = 4


def build_backbone(
    backbone: str | Architecture | Backbone, options: Mapping[str, Any], function: str
) -> Backbone:
    """The backbone with its options, and with feature maps of four sizes unless they say which.

    Args:
      backbone: as of `create_model`; or a backbone, which takes no options.
      options: arguments of `create_model`. `out_indices` is by default, of the last four sizes of
        feature maps, the last stage of each.
      function: the name of the calling function, for errors.

    Raises:
      TypeError: options that cannot be set here.
      ValueError: as `create_model`.
    """
    if isinstance(backbone, Backbone):
        if options:
            raise TypeError(
                "backbone_options are for a backbone by name; build this "
                f"{type(backbone).__name__} with {', '.join(sorted(options))}."
            )
        return backbone
    of_network = sorted(set(options) & {*NETWORK_FIELDS, "num_classes"})
    if of_network:
        raise TypeError(
            f"{', '.join(of_network)} of the backbone follows the network: give it to "
            f"{function} itself."
        )
    built = create_model(backbone, num_classes=None, **options)
    if built.out_indices is not None:
        return built
    strides = built.clone(output_stride=None).stage_strides
    last_of_size = {stride: stage for stage, stride in enumerate(strides)}
    return built.clone(out_indices=tuple(last_of_size.values())[-_NUM_FEATURE_MAPS:])


def required_arguments(
    function: str,
    name: str,
    backbone: str | Architecture | Backbone | None,
    num_classes: int | None,
) -> tuple[str | Architecture | Backbone, int]:
    """The backbone and the number of classes, both of which must be given.

    Args:
      function, name: the calling function and its first argument, for the error.
      backbone, num_classes: its other arguments.

    Raises:
      TypeError: one of them is None.
    """
    if backbone is None or num_classes is None:
        missing = "a backbone" if backbone is None else "num_classes"
        raise TypeError(f"{function}({name!r}, ...) needs {missing}.")
    return backbone, num_classes


def describe_unknown(kind: str, name: str, names: Iterable[str]) -> str:
    """The start of the message for an unknown name: names that are like it.

    Args:
      kind: of network, such as "segmentation network".
      name: the unknown one.
      names: the known ones.
    """
    close = difflib.get_close_matches(name.lower(), names, cutoff=0.6)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f"Unknown {kind} {name!r}.{hint}"
