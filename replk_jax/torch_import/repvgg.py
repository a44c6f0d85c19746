"""RepVGG's weights in PyTorch: names in other libraries, and inference from shapes.

mmpretrain's D2se, which has squeeze-excite, changes its outputs when merged: `switch_to_deploy()`
keeps the weights of squeeze-excite, but the merged forward pass skips it. A merged file in
mmpretrain's naming is complete. This importer reads it with squeeze-excite, so that its outputs
equal those of the training-time network.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from replk_jax.models.repvgg import RepVGG, RepVGGArchitecture
from replk_jax.torch_import import names
from replk_jax.torch_import.shapes import Shapes
from replk_jax.torch_import.structures import Structure, StructureNames
from replk_jax.torch_import.unrecorded import expect_recorded

NETWORK = RepVGG
KEYS = re.compile(
    r"(?:stage\d+|stem|stage_\d+)\.(?:\d+\.)?(?:rbr|branch)_"
    r"|stem\.(?:conv_kxk\.(?:conv|bn)|reparam_conv)\."
)
CLASSIFIER = "linear"
STRUCTURES = StructureNames(fused_bias="stage0.rbr_dense.conv.bias", merged_kernel="rbr_reparam")
ASSUMED = "an output stride of 32"
ORDER = (
    "stage linear se down up rbr_identity rbr_dense rbr_1x1 rbr_reparam "
    "conv bn weight bias running_mean running_var num_batches_tracked"
)

_TIMM_ORDER = (
    "stem stages head identity conv_kxk conv_1x1 reparam_conv attn fc fc1 fc2 "
    "conv bn weight bias running_mean running_var num_batches_tracked"
)

_NAMINGS = {
    "official": r"stage\d+\..*rbr_",
    "mmpretrain": r"(stem|stage_\d+)\..*branch_",
    "timm": r"(stem|stages[._]\d+\.\d+)\.(conv_kxk|conv_1x1|reparam_conv|identity)\.",
}
_FROM_MMPRETRAIN = (
    (r"^stem\.", "stage0."),
    (r"^stage_(\d+)\.", r"stage\1."),
    (r"\.branch_3x3\.", ".rbr_dense."),
    (r"\.branch_1x1\.", ".rbr_1x1."),
    (r"\.branch_norm\.", ".rbr_identity."),
    (r"\.branch_reparam\.", ".rbr_reparam."),
    (r"\.norm\.", ".bn."),
    (r"\.se_layer\.conv1\.conv\.", ".se.down."),
    (r"\.se_layer\.conv2\.conv\.", ".se.up."),
    (r"^head\.fc\.", "linear."),
)
_TO_MMPRETRAIN = (
    (r"^stage0\.", "stem."),
    (r"^stage(\d+)\.", r"stage_\1."),
    (r"\.rbr_dense\.", ".branch_3x3."),
    (r"\.rbr_1x1\.", ".branch_1x1."),
    (r"\.rbr_identity\.", ".branch_norm."),
    (r"\.rbr_reparam\.", ".branch_reparam."),
    (r"\.bn\.", ".norm."),
    (r"\.se\.down\.", ".se_layer.conv1.conv."),
    (r"\.se\.up\.", ".se_layer.conv2.conv."),
    (r"^linear\.", "head.fc."),
)
_MMPRETRAIN_ORDER = (
    "stem stage_ head branch_norm branch_3x3 branch_1x1 se_layer branch_reparam fc "
    "conv norm weight bias running_mean running_var num_batches_tracked"
)
# Parts of timm's names, and the official parts.
_TIMM_PARTS = (
    ("conv_kxk", "rbr_dense"),
    ("conv_1x1", "rbr_1x1"),
    ("identity", "rbr_identity"),
    ("reparam_conv", "rbr_reparam"),
    ("attn.fc1", "se.down"),
    ("attn.fc2", "se.up"),
    ("head.fc", "linear"),
    ("stem", "stage0"),
)


def official_names(weights: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """See `families.Family`."""
    naming = names.naming_of(weights, _NAMINGS)
    match naming:
        case "mmpretrain":
            rename = partial(names.replace_all, replacements=_FROM_MMPRETRAIN)
            return names.renamed(weights, rename), naming
        case "timm":
            return names.renamed(weights, _from_timm), naming
    return dict(weights), naming


def timm_names(state_dict: Mapping[str, Any], architecture: RepVGGArchitecture) -> dict[str, Any]:
    """See `families.Family`."""
    return names.in_order(names.renamed(state_dict, _to_timm), _TIMM_ORDER)


def _from_timm(key: str) -> str:
    for timm, official in _TIMM_PARTS:
        key = _replace_part(key, timm, official)
    # With features_only=True timm has the stages at the top of the network, as "stages_0".
    return re.sub(r"^stages[._](\d{1,4})\.", lambda m: f"stage{int(m[1]) + 1}.", key)


def _to_timm(key: str) -> str:
    for timm, official in _TIMM_PARTS:
        key = _replace_part(key, official, timm)
    return re.sub(r"^stage(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.", key)


def _replace_part(key: str, old: str, new: str) -> str:
    """Replaces a part of a key, or several consecutive parts."""
    return re.sub(rf"(?<![^.]){re.escape(old)}(?=\.)", new, key)


def mm_names(state_dict: Mapping[str, Any], architecture: RepVGGArchitecture) -> dict[str, Any]:
    """See `families.Family`."""
    rename = partial(names.replace_all, replacements=_TO_MMPRETRAIN)
    return names.in_order(names.renamed(state_dict, rename), _MMPRETRAIN_ORDER)


def official_key(key: str, architecture: RepVGGArchitecture) -> str:
    """See `families.Family`. The variables mirror the official code."""
    return key


def infer_model(weights: Mapping[str, Any]) -> RepVGG:
    """See `families.Family`.

    The block is the paper's: files of the variants were never published. A network without a
    classifier is inferred as a feature extractor; `model.clone(out_indices=...)` is a backbone with
    the same variables.
    """
    shapes = Shapes(weights, "RepVGG")
    structure = STRUCTURES.structure_of(weights)
    branch = "rbr_dense.conv" if structure.has_branches else "rbr_reparam"
    layers = shapes.layers(r"stage(\d+)\.(\d+)\.")
    shapes.expect_believable(sum(layers))
    blocks = ["stage0", *(f"stage{s + 1}.{i}" for s, n in enumerate(layers) for i in range(n))]
    kernels = [shapes.kernel(f"{block}.{branch}.weight") for block in blocks]
    firsts = [0, *(sum(layers[:s]) + 1 for s in range(len(layers)))]
    return RepVGG(
        architecture=RepVGGArchitecture(
            layers=layers,
            channels=tuple(kernels[first][0] for first in firsts),
            groups=_groups(kernels),
            squeeze_excite=shapes.any("stage0.se."),
            in_channels=kernels[0][1],
        ),
        num_classes=shapes.classes("linear"),
        deploy=structure is not Structure.TRAINING,
    )


def expect_published(model: RepVGG, merged: bool) -> None:
    """See `families.Family`."""
    expect_recorded(model, {})
    if (groups := model.architecture.stages()[0][0].groups) != 1:
        raise ValueError(
            f"The official code has no groups in stage 0, and a file does not record them; got "
            f"{groups}."
        )
    block = model.architecture.block
    if block == "repvgg":
        return
    if block in ("residual", "relu_in_branches"):
        raise ValueError(f"The official code has no {block!r} blocks, in any structure.")
    if not (merged or model.deploy):
        raise ValueError(
            f"The official code has no {block!r} blocks: save them merged (merged=True, or "
            "convert --deploy), when all blocks are alike."
        )


def _groups(kernels: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The groups of every layer, from the shapes of the kernels. The first layer has 1.

    A layer with an impossible shape counts as 1 group, so that a later check reports the shape.
    """
    inputs = [kernels[0][1], *(kernel[0] for kernel in kernels[:-1])]
    per_group = [kernel[1] for kernel in kernels]
    return tuple(1 if i % n else i // n for i, n in zip(inputs, per_group, strict=True))
