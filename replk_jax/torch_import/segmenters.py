"""Segmenters in mmsegmentation's files: names and shapes of their heads."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from replk_jax.io.text import brief
from replk_jax.models.backbone import Backbone
from replk_jax.segmentation.deeplab import DeepLabV3Head, DeepLabV3PlusHead
from replk_jax.segmentation.fcn import FCNHead
from replk_jax.segmentation.head import SegmentationHead
from replk_jax.segmentation.pretrained_table import PRETRAINED_SEGMENTERS
from replk_jax.segmentation.pspnet import PSPHead, PyramidPoolingHead
from replk_jax.segmentation.segmenter import SegmentationNetwork
from replk_jax.segmentation.upernet import UPerHead
from replk_jax.torch_import import mm_segmentation
from replk_jax.torch_import.composite_backbones import (
    stages_of_widths,
    usual_stages,
    with_settings,
)
from replk_jax.torch_import.other_heads import identify
from replk_jax.torch_import.shapes import Shapes
from replk_jax.vision.base_preprocessing import BasePreprocessing

NETWORK = SegmentationNetwork
PUBLISHED = PRETRAINED_SEGMENTERS
MODULES = ("decode_head", "auxiliary_head")
# Not the classifier alone, which does not identify a head.
KEYS = re.compile(r"decode_head\.(?!conv_seg\.)")
ORDER = (
    "decode_head auxiliary_head conv_seg image_pool psp_modules aspp_modules convs conv_cat "
    "bottleneck c1_bottleneck sep_bottleneck lateral_convs fpn_convs fpn_bottleneck "
    "depthwise_conv pointwise_conv conv bn weight bias running_mean running_var "
    "num_batches_tracked"
)

# The modules of each head: those that identify it, and its others.
_HEADS: tuple[tuple[type[SegmentationHead], frozenset[str], frozenset[str]], ...] = tuple(
    (head, frozenset(own.split()), frozenset(others.split()))
    for head, own, others in (
        (UPerHead, "lateral_convs fpn_convs fpn_bottleneck", "psp_modules bottleneck"),
        (PSPHead, "psp_modules", "bottleneck"),
        (DeepLabV3PlusHead, "sep_bottleneck", "image_pool aspp_modules bottleneck c1_bottleneck"),
        (DeepLabV3Head, "aspp_modules", "image_pool bottleneck"),
        (FCNHead, "convs conv_cat", ""),
    )
)
_SUPPORTED = (
    "Supported are UPerHead, PSPHead, ASPPHead, DepthwiseSeparableASPPHead and FCNHead. The "
    'backbone alone is loaded with prefix="backbone." (--prefix).'
)
_CLASSIFIER = "conv_seg"


# --- Names -------------------------------------------------------------------------------


def official_names(heads: Mapping[str, Any]) -> dict[str, Any]:
    """See `composites.Composite`. A list of one auxiliary head becomes that head.

    Raises:
      ValueError: several decode or auxiliary heads, or heads that are not supported.
    """
    for module in MODULES:
        numbers = sorted({m[1] for m in (re.match(rf"{module}\.(\d+)\.", n) for n in heads) if m})
        if len(numbers) > 1 or (numbers and module == "decode_head"):
            kind = "decode heads in turn" if module == "decode_head" else "auxiliary heads"
            raise ValueError(
                f"it has {len(numbers)} {kind} ({module}.{', '.join(numbers)}), and a "
                f"{NETWORK.__name__} has one. {_remedy(heads, module)}"
            )
    renamed = {re.sub(r"^auxiliary_head\.\d+\.", "auxiliary_head.", n): v for n, v in heads.items()}
    for module in MODULES:
        if any(name.startswith(f"{module}.") for name in renamed):
            _head_class(renamed, module)
    return renamed


def _remedy(heads: Mapping[str, Any], module: str) -> str:
    if module == "decode_head":
        label = identify({name.removeprefix(f"{module}.") for name in heads})
        return f"{f'These are {label}. ' if label else ''}{_SUPPORTED}"
    return (
        "To leave out one, load with rename=lambda name: None if "
        'name.startswith("auxiliary_head.1.") else name.'
    )


def _parts(heads: Mapping[str, Any], module: str) -> dict[str, str]:
    """The modules of a head, each with the name of one of its tensors."""
    start = f"{module}."
    names = [name for name in heads if name.startswith(start)]
    return {name.removeprefix(start).partition(".")[0]: name for name in reversed(names)}


def _head_class(heads: Mapping[str, Any], module: str) -> type[SegmentationHead]:
    """The class of a head, from the names of its modules.

    Raises:
      ValueError: a head that is not supported, or modules of two heads.
    """
    in_head = {name.removeprefix(f"{module}.") for name in heads if name.startswith(f"{module}.")}
    if label := identify(in_head):
        raise ValueError(f"its {module} is {label}, which is not supported. {_SUPPORTED}")
    parts = _parts(heads, module)
    held = parts.keys() - {_CLASSIFIER}
    head, own, others = next(
        ((head, own, others) for head, own, others in _HEADS if own & held), (FCNHead, set(), set())
    )
    surplus = sorted(held - own - others)
    if not surplus:
        return head
    example = parts[surplus[0]]
    known = {part for _, own, others in _HEADS for part in own | others}
    if own & held and set(surplus) <= known:
        raise ValueError(
            f"its {module} mixes tensors of two heads: those of a {_name(head)}, and {example}."
        )
    raise ValueError(
        f"its {module} has modules of no supported head, {brief(surplus)}, such as in {example}. "
        f"{_SUPPORTED}"
    )


def _name(head: type[SegmentationHead]) -> str:
    """The name of a head in mmsegmentation."""
    theirs = {DeepLabV3Head: "ASPPHead", DeepLabV3PlusHead: "DepthwiseSeparableASPPHead"}
    return theirs.get(head, head.__name__)


def official_key(key: str) -> str:
    """See `composites.Composite`."""
    return key


# --- Shapes ------------------------------------------------------------------------------


def num_classes(heads: Mapping[str, Any]) -> int | None:
    """See `composites.Composite`."""
    classifier = heads.get("decode_head.conv_seg.weight")
    return classifier.shape[0] if classifier is not None and classifier.shape else None


def infer_model(
    heads: Mapping[str, Any], backbone: Backbone, settings: Mapping[str, Any]
) -> SegmentationNetwork:
    """See `composites.Composite`.

    The feature maps of the backbone are, of the last four sizes, those of the last stage of each
    (all four of most families, and stages 1, 2, 4 and 6 of MobileNet V2), unless the shapes of the
    heads or the settings say otherwise. The auxiliary head is on the second-to-last feature map,
    or else on the last one whose width it takes.
    """
    shapes = Shapes(heads, NETWORK.__name__)
    for module in MODULES[: 1 + shapes.any("auxiliary_head.")]:
        shapes.kernel(f"{module}.{_CLASSIFIER}.weight")
    head = _infer_head(shapes, "decode_head", settings)
    indices = settings.get("out_indices") or _out_indices(shapes, head, backbone)
    backbone = with_settings(backbone, indices, settings)
    widths = [backbone.stage_channels[index] for index in indices]
    auxiliary = None
    if shapes.any("auxiliary_head."):
        auxiliary = _infer_head(shapes, "auxiliary_head", settings)
        if isinstance(auxiliary, FCNHead):
            place = _in_index(shapes, "auxiliary_head", widths, settings.get("auxiliary_in_index"))
            auxiliary = auxiliary.clone(in_index=place)
    if isinstance(head, FCNHead):
        place = _in_index(shapes, "decode_head", widths, settings.get("decode_in_index", -1))
        head = head.clone(in_index=place)
    return SegmentationNetwork(
        backbone=backbone,
        decode_head=head,
        auxiliary_head=auxiliary,
        num_classes=num_classes(heads),
        align_corners=settings.get("align_corners", False),
        deploy=backbone.deploy,
    )


def _infer_head(shapes: Shapes, module: str, settings: Mapping[str, Any]) -> SegmentationHead:
    """A head, without its `in_index`."""
    head = _head_class(shapes.weights, module)
    if issubclass(head, FCNHead):
        return head(**_fcn_fields(shapes, module))
    channels = shapes.kernel(f"{module}.bottleneck.conv.weight")[0]
    if issubclass(head, PyramidPoolingHead):
        count = _count(shapes, rf"{module}\.psp_modules\.(\d+)\.")
        width = shapes.kernel(f"{module}.psp_modules.0.1.conv.weight")[0]
        return head(
            channels=channels,
            pool_scales=_one_each("pool_scales", head, count, settings),
            pool_channels=None if width == channels else width,
        )
    assert issubclass(head, DeepLabV3Head)
    count = _count(shapes, rf"{module}\.aspp_modules\.(\d+)\.")
    fields: dict[str, Any] = {"dilations": _one_each("dilations", head, count, settings)}
    if issubclass(head, DeepLabV3PlusHead):
        low = f"{module}.c1_bottleneck.conv.weight"
        fields["low_level_channels"] = shapes.kernel(low)[0] if low in shapes else None
    return head(channels=channels, **fields)


def _fcn_fields(shapes: Shapes, module: str) -> dict[str, Any]:
    count = len({name.split(".")[2] for name in shapes.weights if f"{module}.convs." in name})
    last = f"{module}.conv_cat.conv.weight"
    first = f"{module}.convs.0.conv.weight" if count else last
    kernel = shapes.kernel(first) if first in shapes or count else None
    return {
        "channels": shapes.kernel(f"{module}.{_CLASSIFIER}.weight")[1],
        "num_convs": count,
        "concat_input": last in shapes,
        **({} if kernel is None else {"kernel_size": kernel[-1]}),
    }


def _count(shapes: Shapes, branch: str) -> int:
    return len({match[1] for match in map(re.compile(branch).match, shapes.weights) if match})


def _one_each(
    name: str, head: type[SegmentationHead], count: int, settings: Mapping[str, Any]
) -> tuple[int, ...]:
    """A setting with a value for each branch of a head.

    Raises:
      ValueError: the setting or, without one, the default is for another number of branches.
    """
    value = settings.get(name, getattr(head, name))
    if len(value) != count:
        what = f"the {name} {value} of its configuration" if name in settings else "the usual ones"
        raise ValueError(
            f"its {_name(head)} has {count} parallel branches, and {what} are {len(value)}: pass a "
            f"model with the {name}."
        )
    return value


def _out_indices(shapes: Shapes, head: SegmentationHead, backbone: Backbone) -> tuple[int, ...]:
    """The stages whose feature maps the heads see."""
    if not isinstance(head, UPerHead):
        return usual_stages(backbone)
    count = _count(shapes, r"decode_head\.lateral_convs\.(\d+)\.")
    wanted = [shapes.kernel(f"decode_head.lateral_convs.{i}.conv.weight")[1] for i in range(count)]
    wanted.append(shapes.kernel("decode_head.psp_modules.0.1.conv.weight")[1])
    return stages_of_widths(backbone, wanted, "decode_head")


def _in_index(shapes: Shapes, module: str, widths: Sequence[int], preferred: int | None) -> int:
    """The feature map that an FCN head sees, counted from the end.

    Args:
      shapes: of the heads.
      module: name of the head.
      widths: of the feature maps.
      preferred: where it fits; None for the second-to-last.
    """
    preferred = -2 if preferred is None else preferred
    if preferred >= 0:
        preferred -= len(widths)
    keys = (f"{module}.convs.0.conv.weight", f"{module}.{_CLASSIFIER}.weight")
    if keys[0] not in shapes and f"{module}.conv_cat.conv.weight" in shapes:
        return preferred  # the input of this convolution is a concatenation
    width = shapes.kernel(next(key for key in keys if key in shapes))[1]
    fitting = [i - len(widths) for i, w in enumerate(widths) if w == width]
    return preferred if preferred in fitting or not fitting else fitting[-1]


# --- What names and shapes do not determine ------------------------------------------------


def read_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """See `composites.Composite`."""
    return mm_segmentation.read_settings(config)


def read_preprocessing(config: Mapping[str, Any]) -> BasePreprocessing | None:
    """See `composites.Composite`."""
    return mm_segmentation.segmentation_protocol(config)


def assumed(model: SegmentationNetwork, settings: Mapping[str, Any]) -> str:
    """See `composites.Composite`."""
    facts = {"align_corners": f"align_corners={model.align_corners}"}
    if isinstance(model.decode_head, PyramidPoolingHead):
        facts["pool_scales"] = f"pool_scales={model.decode_head.pool_scales}"
    if isinstance(model.decode_head, DeepLabV3Head):
        facts["dilations"] = f"dilations={model.decode_head.dilations}"
    facts["output_stride"] = f"an output stride of {model.backbone.stage_strides[-1]}"
    return ", ".join(text for name, text in facts.items() if name not in settings)


def expect_published(model: SegmentationNetwork, merged: bool) -> None:
    """See `composites.Composite`."""
    if model.deploy:
        raise ValueError(
            "mmsegmentation has no heads without batch norms: save the training-time variables "
            "(deploy=False), with merged=True if need be."
        )
    head = model.decode_head
    if isinstance(head, FCNHead) and not (head.num_convs or head.concat_input):
        raise ValueError(
            "A decode head of a classifier alone cannot be recognized in a PyTorch file: save it "
            "in a format of this package."
        )
