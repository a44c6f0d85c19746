"""The usual segmentation networks: heads by name on any backbone, and the networks of papers."""

import dataclasses
import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

from replk_jax.models.aliases import spelling
from replk_jax.models.architecture import Architecture
from replk_jax.models.backbone import Backbone
from replk_jax.models.registry import create_model
from replk_jax.segmentation.deeplab import DeepLabV3Head, DeepLabV3PlusHead
from replk_jax.segmentation.fcn import FCNHead
from replk_jax.segmentation.head import SegmentationHead
from replk_jax.segmentation.pspnet import PSPHead
from replk_jax.segmentation.segmenter import SegmentationNetwork
from replk_jax.segmentation.table import SEGMENTERS
from replk_jax.segmentation.upernet import UPerHead

DECODE_HEADS: dict[str, type[SegmentationHead]] = {
    "upernet": UPerHead,
    "pspnet": PSPHead,
    "deeplabv3": DeepLabV3Head,
    "deeplabv3plus": DeepLabV3PlusHead,
    "fcn": FCNHead,
}
# The fields that the network decides, for its backbone and its heads.
_OF_NETWORK = ("align_corners", "deploy", "dtype", "param_dtype", "implementation", "remat")
_NUM_FEATURE_MAPS = 4


def list_segmenters(pattern: str = "*") -> list[str]:
    """The names of segmentation networks of papers that match a shell-style pattern.

    If none matches, case, hyphens and underscores are ignored.
    """
    exact = fnmatch.filter(SEGMENTERS, pattern)
    return exact or [
        name for name in SEGMENTERS if fnmatch.fnmatch(spelling(name), spelling(pattern))
    ]


def find_segmenter(name: str) -> str | None:
    """The name in `SEGMENTERS` that equals `name` but for case, hyphens and underscores."""
    return _spelt(name, SEGMENTERS)


def create_segmenter(
    name: str,
    backbone: str | Architecture | Backbone | None = None,
    num_classes: int | None = None,
    *,
    backbone_options: Mapping[str, Any] | None = None,
    auxiliary_channels: int | None = 256,
    auxiliary_index: int = -2,
    dropout_rate: float = 0.1,
    **fields: Any,
) -> SegmentationNetwork:
    """Builds a segmentation network.

        create_segmenter("upernet", "replknet_31b", num_classes=150)
        create_segmenter("deeplabv3plus", "mobilenet_v2", num_classes=19,
                         backbone_options={"output_stride": 8, "contract_dilation": False})
        create_segmenter("pspnet", "resnet_50", num_classes=19,
                         backbone_options={"output_stride": 8})
        create_segmenter("upernet_replknet_31b_ade20k")
        create_segmenter("upernet_replknet_31b_ade20k", num_classes=2, channels=256)

    The defaults are mmsegmentation's, except that no backbone is dilated unless `output_stride` is
    among its options: without it, PSPNet's and DeepLabv3's logits have a 32nd of the images' size.
    `resnet_50` is torchvision's network; that of mmsegmentation's configurations is ResNetV1c, with
    three convolutions in its stem, which this package does not have.

    Args:
      name: of the decode head (upernet, pspnet, deeplabv3, deeplabv3plus or fcn); or of a network
        (`list_segmenters`), which determines all other arguments that are not given. Case, hyphens
        and underscores are ignored.
      backbone: the name of a model or an architecture; or a backbone with `out_indices`. Not with
        the name of a network.
      num_classes: K.
      backbone_options: arguments of `create_model` for a backbone by name or architecture, such as
        `drop_path_rate` and `output_stride`. `out_indices` is by default, of the last four sizes
        of feature maps, the last stage of each: all stages of most families, and stages 1, 2, 4
        and 6 of MobileNet V2.
      auxiliary_channels: width of the auxiliary FCN head, which has one convolution; None for no
        such head.
      auxiliary_index: of its feature map among those of the backbone; negative numbers count from
        the end.
      dropout_rate: of both heads.
      **fields: of the decode head (`channels`, `pool_scales`, ...) or of `SegmentationNetwork`
        (`align_corners`, `deploy`, `dtype`, `param_dtype`, `implementation`, `remat`).

    Raises:
      ValueError: an unknown name, or invalid values.
      TypeError: an unknown field, or arguments that are missing or exclude each other.
    """
    options = dict(backbone_options or {})
    if known := find_segmenter(name):
        row = SEGMENTERS[known]
        if backbone is not None:
            raise TypeError(
                f"{known} has the backbone {row.backbone}: leave out backbone, or use "
                f"create_segmenter({row.head!r}, backbone, ...)."
            )
        name, backbone = row.head, row.backbone
        num_classes = row.num_classes if num_classes is None else num_classes
        options, fields = {**row.backbone_options, **options}, {**row.fields, **fields}
    if (known_head := _spelt(name, DECODE_HEADS)) is None:
        raise ValueError(_unknown(name))
    name = known_head
    if backbone is None or num_classes is None:
        missing = "a backbone" if backbone is None else "num_classes"
        raise TypeError(f"create_segmenter({name!r}, ...) needs {missing}.")

    head = DECODE_HEADS[name]
    of_network = {field: fields.pop(field) for field in _OF_NETWORK if field in fields}
    if unknown := sorted(set(fields) - _own_fields(head)):
        raise TypeError(
            f"Unknown field {', '.join(unknown)}. {head.__name__} takes "
            f"{', '.join(sorted(_own_fields(head)))}, and the network {', '.join(_OF_NETWORK)}. "
            "Fields of the backbone go into backbone_options."
        )
    auxiliary = None
    if auxiliary_channels is not None:
        auxiliary = FCNHead(
            channels=auxiliary_channels,
            in_index=auxiliary_index,
            num_convs=1,
            concat_input=False,
            dropout_rate=dropout_rate,
        )
    network = SegmentationNetwork(
        backbone=_build_backbone(backbone, options),
        num_classes=num_classes,
        decode_head=head(**fields, dropout_rate=dropout_rate),
        auxiliary_head=auxiliary,
        **of_network,
    )
    network.check_fields()
    return network


def _spelt(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that equals `name` but for case, hyphens and underscores."""
    return next((known for known in names if spelling(known) == spelling(name)), None)


def _own_fields(head: type[SegmentationHead]) -> set[str]:
    """The fields of a head that `create_segmenter` takes for it alone."""
    of_others = {*_OF_NETWORK, "num_classes", "dropout_rate", "parent", "name"}
    return {field.name for field in dataclasses.fields(head)} - of_others


def _build_backbone(backbone: str | Architecture | Backbone, options: dict[str, Any]) -> Backbone:
    """The backbone with its options, and with feature maps of four sizes unless they say which."""
    if isinstance(backbone, Backbone):
        if options:
            raise TypeError(
                "backbone_options are for a backbone by name; build this "
                f"{type(backbone).__name__} with {', '.join(sorted(options))}."
            )
        return backbone
    of_network = sorted(set(options) & {*_OF_NETWORK, "num_classes"})
    if of_network:
        raise TypeError(
            f"{', '.join(of_network)} of the backbone follows the network: give it to "
            "create_segmenter itself."
        )
    built = create_model(backbone, num_classes=None, **options)
    if built.out_indices is not None:
        return built
    strides = built.clone(output_stride=None).stage_strides
    last_of_size = {stride: stage for stage, stride in enumerate(strides)}
    return built.clone(out_indices=tuple(last_of_size.values())[-_NUM_FEATURE_MAPS:])


def _unknown(name: str) -> str:
    """The message for a name that is neither a head nor a network."""
    names = [*DECODE_HEADS, *SEGMENTERS]
    close = difflib.get_close_matches(name.lower(), names, cutoff=0.6)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return (
        f"Unknown segmentation network {name!r}.{hint} Decode heads are "
        f"{', '.join(DECODE_HEADS)}; list_segmenters() has the names of whole networks."
    )
