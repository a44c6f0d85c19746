"""RepVGG's weights in PyTorch: the names others give them, and what their shapes tell.

mmpretrain's network with squeeze-excite, D2se, computes something else once it has been merged:
its `switch_to_deploy()` keeps the weights of squeeze-excite, which its forward pass then passes
over. A merged file in its naming holds all that is needed; here it is read with squeeze-excite,
and gives what the training-time network gave.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from replk_jax.models import create_model
from replk_jax.models.repvgg import RepVGG, RepVGGArchitecture
from replk_jax.torch_import import names
from replk_jax.torch_import.shapes import Shapes
from replk_jax.torch_import.structures import Structure, structure_of
from replk_jax.torch_import.unrecorded import expect_recorded

NETWORK = RepVGG
KEYS = re.compile(r"(stage\d+|stem|stage_\d+)\.(\d+\.)?(rbr|branch)_")
ORDER = (
    "stage linear se down up rbr_identity rbr_dense rbr_1x1 rbr_reparam "
    "conv bn weight bias running_mean running_var num_batches_tracked"
)

_NAMINGS = {"official": r"stage\d+\..*rbr_", "mmpretrain": r"(stem|stage_\d+)\..*branch_"}
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


def official_names(weights: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """See `families.Family`."""
    naming = names.naming_of(weights, _NAMINGS)
    if naming == "official":
        return dict(weights), naming
    return names.renamed(weights, partial(names.replace_all, replacements=_FROM_MMPRETRAIN)), naming


def official_key(key: str, architecture: RepVGGArchitecture) -> str:
    """See `families.Family`. The variables mirror the official code."""
    return key


def infer_model(weights: Mapping[str, Any]) -> RepVGG:
    """See `families.Family`.

    The block is the paper's, as no file was published of any other. Without a classifier nothing
    tells a backbone from a feature extractor, and it is taken for the latter:
    `model.clone(out_indices=...)` gives maps, with the same variables.
    """
    shapes = Shapes(weights, "RepVGG")
    structure = structure_of(weights)
    branch = "rbr_dense.conv" if structure.has_branches else "rbr_reparam"
    layers = shapes.layers(r"stage(\d+)\.(\d+)\.")
    shapes.expect_believable(sum(layers))
    blocks = ["stage0", *(f"stage{s + 1}.{i}" for s, n in enumerate(layers) for i in range(n))]
    kernels = [shapes.kernel(f"{block}.{branch}.weight") for block in blocks]
    firsts = [0, *(sum(layers[:s]) + 1 for s in range(len(layers)))]
    return create_model(
        RepVGGArchitecture(
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
    block = model.architecture.block
    if block == "repvgg":
        return
    if block in ("residual", "relu_in_branches"):
        raise ValueError(f"The official code has no {block!r} blocks, in no structure.")
    if not (merged or model.deploy):
        raise ValueError(
            f"The official code has no {block!r} blocks: save them merged (merged=True, or "
            "convert --deploy), when all blocks are alike."
        )


def _groups(kernels: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Groups of every layer, from the shapes of the kernels; the first layer has none.

    A layer whose inputs do not divide counts as one group, so that its shape is reported.
    """
    inputs = [kernels[0][1], *(kernel[0] for kernel in kernels[:-1])]
    per_group = [kernel[1] for kernel in kernels]
    return tuple(1 if i % n else i // n for i, n in zip(inputs, per_group, strict=True))
