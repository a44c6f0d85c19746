"""The table of all kinds of blocks, `BLOCKS`, and the functions that merge them.

A block is identified by the names of its parts, which are usually those of the official PyTorch
code. Its parts are merged first: a convolution or dense layer becomes a `Linear`, a batch norm an
`Affine`.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from replk_jax.reparam import algebra
from replk_jax.reparam.algebra import Linear
from replk_jax.reparam.block import Block, Form, Parts, array_of, conv_of, node_of, norm_of


def register_block(block: Block) -> None:
    """Registers a kind of block for `reparameterize`; it takes precedence over those before.

    Call it at the start of a program: functions that `jax.jit` has already compiled do not change.

    Raises:
      ValueError: a block of this name is already registered.
    """
    if any(known.name == block.name for known in BLOCKS):
        raise ValueError(f"A block named {block.name!r} is already registered.")
    BLOCKS.insert(0, block)


def find_block(node: Parts) -> Block | None:
    """The kind of block of a node; None if it is not a block."""
    return next((block for block in BLOCKS if block.recognises(node)), None)


# --- Any network -------------------------------------------------------------------------


def _conv_norm(parts: Parts) -> Parts:
    """BN(W * x)."""
    conv = conv_of(parts, "conv", biased=False)
    return {"conv": algebra.fold_into_previous(conv, norm_of(parts, "bn"))}


def _residual_kernel(parts: Parts) -> Linear:
    """(I + W) * x: RepVGG's "trivial" variant, and the 1 x 1 convolution of a DBB."""
    kernel = array_of(parts, "residual_kernel")
    return Linear(algebra.identity_kernel(kernel) + kernel)


def _dirac_kernel(parts: Parts) -> Linear:
    """(diag(a) I + diag(b) W / |W|) * x."""
    kernel, a, b = (array_of(parts, name) for name in ("dirac_kernel", "a", "b"))
    return Linear(algebra.dirac_kernel(kernel, a, b))


def _asymmetric(parts: Parts) -> Parts:
    """ACB: K x K, K x 1 and 1 x K."""
    square = conv_of(parts, "square")
    others = [conv_of(parts, name) for name in ("vertical", "horizontal")]
    padded = [algebra.pad_kernel(other, square.size) for other in others]
    return {"conv": algebra.add(square, *padded)}


def _diverse_branches(parts: Parts) -> Parts:
    """DBB: K x K; 1 x 1; 1 x 1, then K x K; 1 x 1, then an average pool."""
    origin = conv_of(parts, "dbb_origin")
    size = origin.size
    pointwise = algebra.pad_kernel(conv_of(parts, "dbb_1x1"), size)

    # After its 1 x 1 convolutions, a DBB pads with their response to zero, not with zeros.
    chain = node_of(parts, "dbb_1x1_kxk", Form("idconv1 bn1 conv2 bn2"))
    first, second = (conv_of(chain, name, biased=False) for name in ("idconv1", "conv2"))
    first = algebra.fold_into_previous(first, norm_of(chain, "bn1"))
    chained = algebra.compose(first, second, zero_padding=False)
    chained = algebra.fold_into_previous(chained, norm_of(chain, "bn2"))

    pool = node_of(parts, "dbb_avg", Form("conv bn avgbn"))
    first = conv_of(pool, "conv", biased=False)
    first = algebra.fold_into_previous(first, norm_of(pool, "bn"))
    averaged = algebra.pool_average(first, size, zero_padding=False)
    averaged = algebra.fold_into_previous(averaged, norm_of(pool, "avgbn"))
    return {"conv": algebra.add(origin, pointwise, chained, averaged)}


# --- RepLKNet ----------------------------------------------------------------------------


def _large_kernel(parts: Parts) -> Parts:
    """K x K with a small kernel, or with the dilated kernels of UniRepLKNet."""
    origin = conv_of(parts, "lkb_origin")
    branches = [origin]
    for name in sorted(set(parts) - {"lkb_origin"}):
        branch = conv_of(parts, name)
        if dilated := re.fullmatch(r"dilated_\d+x\d+_(\d+)", name):
            branch = algebra.embed_dilated(branch, int(dilated[1]))
        branches.append(algebra.pad_kernel(branch, origin.size))
    return {"lkb_reparam": algebra.add(*branches)}


def _is_fused(branch: str, node: Parts) -> bool:
    """Whether the batch norm of a branch has already been fused into a bias."""
    part = node.get(branch)
    return isinstance(part, Mapping) and set(part) == {"conv"} and "bias" in part["conv"]


def _pointwise(parts: Parts, norm_name: str) -> dict[str, Any]:
    """The part that both kinds of blocks share: a batch norm, folded into pw1, and pw2."""
    pw1, pw2 = conv_of(parts, "pw1"), conv_of(parts, "pw2")
    outer, inner = pw1.kernel.shape[2:]
    _expect_kernel("pw1/conv", pw1, (1, 1, outer, inner))
    _expect_kernel("pw2/conv", pw2, (1, 1, inner, outer))
    pw1 = algebra.fold_into_next(norm_of(parts, norm_name), pw1)
    return {"pw1": {"conv": pw1}, "pw2": {"conv": pw2}}


def _replk_block(parts: Parts) -> Parts:
    pointwise = _pointwise(parts, "prelkb_bn")
    large = conv_of(node_of(parts, "large_kernel", Form("lkb_reparam")), "lkb_reparam")
    width, size = pointwise["pw1"]["conv"].kernel.shape[-1], large.kernel.shape[0]
    _expect_kernel("large_kernel/lkb_*", large, (size, size, 1, width))
    return {"large_kernel": {"lkb_reparam": large}, **pointwise}


def _conv_ffn(parts: Parts) -> Parts:
    return _pointwise(parts, "preffn_bn")


def _expect_kernel(name: str, linear: Linear, shape: tuple[int, ...]) -> None:
    if linear.kernel.shape != shape:
        raise ValueError(f"{name}/kernel: expected shape {shape}, found {linear.kernel.shape}.")


REPLK_BLOCK = Block(
    "RepLKBlock",
    marks="prelkb_bn large_kernel",
    training=(Form("prelkb_bn pw1 large_kernel pw2"),),
    merged=(Form("pw1 large_kernel pw2"),),
    merge=_replk_block,
)
CONV_FFN = Block(
    "ConvFFN",
    marks="preffn_bn",
    training=(Form("preffn_bn pw1 pw2"),),
    merged=(Form("pw1 pw2"),),
    merge=_conv_ffn,
)


def _replknet(parts: Parts) -> Parts:
    """Folds the final batch norm through the average pool into the classifier."""
    stages = sorted(name for name in parts if name.startswith("stages_"))
    widths = {name: parts[name]["blocks_0"]["pw2"]["conv"].bias.shape for name in stages}
    for name in sorted(parts):
        if name.startswith(("stem_", "transitions_")):
            conv_of(parts, name)
    for name in stages:
        if "norm" in parts[name]:
            _expect_norm(f"{name}/norm", parts[name]["norm"], widths[name])
    if "norm" not in parts:
        return parts
    _expect_norm("norm", parts["norm"], widths[f"stages_{len(stages) - 1}"])
    if "head" not in parts:
        return parts
    if not isinstance(parts["head"], Linear) or parts["head"].bias is None:
        raise ValueError("head: missing bias, or no classifier.")
    head = algebra.fold_into_next(parts["norm"], parts["head"])
    return {**{name: part for name, part in parts.items() if name != "norm"}, "head": head}


def _expect_norm(path: str, part: Any, shape: tuple[int, ...]) -> None:
    """Raises ValueError for a norm whose channels differ from those of the last block."""
    if norm_of({path: part}, path).scale.shape != shape:
        raise ValueError(f"{path}: expected shape {shape}, found {part.scale.shape}.")


def _is_replknet(node: Parts) -> bool:
    """Whether a stage contains a block with a large kernel."""
    stages = [part for name, part in node.items() if name.startswith("stages_")]
    blocks = [block for stage in stages if isinstance(stage, Mapping) for block in stage.values()]
    return any(isinstance(block, Mapping) and REPLK_BLOCK.recognises(block) for block in blocks)


def _check_replknet(node: Parts) -> None:
    """Raises ValueError if a part of the stem, a stage, a transition or a block is missing."""
    stages = range(max(1, sum(name.startswith("stages_") for name in node)))
    body = [f"stem_{i}" for i in range(4)]
    body += [f"stages_{s}" for s in stages]
    body += [f"transitions_{s}_{i}" for s in stages[:-1] for i in range(2)]
    if faults := Form(" ".join(body), "norm head").faults(set(node)):
        raise ValueError(f"{'; '.join(faults)}.")
    for s in stages:
        _check_stage(f"stages_{s}", node[f"stages_{s}"])


def _check_stage(path: str, stage: Any) -> None:
    """Raises ValueError unless large-kernel and feed-forward blocks alternate."""
    names = set(stage) if isinstance(stage, Mapping) else set()
    count = max(2, sum(name.startswith("blocks_") for name in names))
    blocks = [f"blocks_{i}" for i in range(count + count % 2)]
    if faults := Form(" ".join(blocks), "norm").faults(names):
        raise ValueError(f"{path}: {'; '.join(faults)}.")
    for i, name in enumerate(blocks):
        try:
            (CONV_FFN if i % 2 else REPLK_BLOCK).is_training(stage[name])
        except ValueError as error:
            raise ValueError(f"{path}/{name}: {error}") from error


# --- RepVGG ------------------------------------------------------------------------------

_LAYERS = "rbr_dense rbr_dense_and_identity rbr_acb rbr_dbb"
_WITH_RELU = "rbr_dense_relu rbr_1x1_relu rbr_identity_relu"


def _repvgg_block(parts: Parts) -> Parts:
    """3 x 3, 1 x 1 and identity, each with a batch norm; and the variants of section 4.2."""
    (name,) = set(_LAYERS.split()) & set(parts)
    normed = "post_bn" not in parts
    dense = conv_of(parts, name, biased=normed)
    branches = [dense]
    if "rbr_1x1" in parts:
        pointwise = conv_of(parts, "rbr_1x1", biased=normed)
        branches.append(algebra.pad_kernel(pointwise, dense.size))
    if name == "rbr_dense_and_identity" or "rbr_identity" in parts:
        identity = Linear(algebra.identity_kernel(dense.kernel))
        if "rbr_identity" in parts:
            identity = algebra.fold_into_previous(identity, norm_of(parts, "rbr_identity"))
        branches.append(identity)
    merged = algebra.add(*branches)
    if not normed:
        merged = algebra.fold_into_previous(merged, norm_of(parts, "post_bn"))
    squeeze_excite = {"se": parts["se"]} if "se" in parts else {}
    return {"rbr_reparam": merged, **squeeze_excite}


def _raise_not_linear(node: Parts) -> None:
    raise ValueError(
        "a ReLU in the branches, before their sum, is not linear, so no convolution equals this "
        "block. The paper uses it only to measure the effect of more non-linearity."
    )


BLOCKS: list[Block] = [
    Block(
        "RepLKNet",
        marks="",
        predicate=_is_replknet,
        training=(
            Form("norm", "stem_* stages_* transitions_* head"),
            Form("", "stem_* stages_* transitions_*"),
        ),
        merged=(
            Form("", "stem_* stages_* transitions_* head"),
            Form("", "stem_* stages_* transitions_* norm"),
        ),
        merge=_replknet,
        check=_check_replknet,
    ),
    REPLK_BLOCK,
    CONV_FFN,
    Block(
        "ReparamLargeKernelConv with its batch norms fused",
        marks="",
        predicate=partial(_is_fused, "lkb_origin"),
        training=(Form("lkb_origin", "small_conv dilated_*x*_*"),),
        merge=_large_kernel,
        parallel=True,
        has_norms=False,
    ),
    Block(
        "ReparamLargeKernelConv",
        marks="lkb_origin lkb_reparam small_conv",
        training=(Form("lkb_origin", "small_conv dilated_*x*_*"),),
        merged=(Form("lkb_reparam"),),
        merge=_large_kernel,
        parallel=True,
    ),
    Block(
        "RepVGGBlock with its batch norms fused",
        marks="",
        predicate=partial(_is_fused, "rbr_dense"),
        training=(Form("rbr_dense", "rbr_1x1 rbr_identity se"),),
        merge=_repvgg_block,
        parallel=True,
        has_norms=False,
    ),
    Block(
        "RepVGGBlock",
        marks=f"{_LAYERS} rbr_1x1 rbr_identity rbr_reparam",
        training=(
            Form("rbr_dense", "rbr_1x1 rbr_identity post_bn se"),
            Form("rbr_dense_and_identity", "rbr_1x1 post_bn se"),
            Form("rbr_acb", "se"),
            Form("rbr_dbb", "se"),
        ),
        merged=(Form("rbr_reparam", "se"),),
        merge=_repvgg_block,
        parallel=True,
    ),
    Block(
        "RepVGGBlock with ReLU in its branches",
        marks=_WITH_RELU,
        training=(Form("", f"{_WITH_RELU} se"),),
        merge=dict,
        has_norms=False,
        check=_raise_not_linear,
    ),
    Block(
        "AsymmetricConvBlock",
        marks="square vertical horizontal",
        training=(Form("square vertical horizontal"),),
        merge=_asymmetric,
        exact=True,
        parallel=True,
    ),
    Block(
        "DiverseBranchBlock",
        marks="dbb_origin dbb_1x1 dbb_1x1_kxk dbb_avg",
        training=(Form("dbb_origin dbb_1x1 dbb_1x1_kxk dbb_avg"),),
        merge=_diverse_branches,
        parallel=True,
    ),
    Block("ConvNorm", "conv bn", (Form("conv bn"),), _conv_norm, exact=True),
    Block(
        "ResidualKernelConv",
        "residual_kernel",
        (Form("residual_kernel"),),
        _residual_kernel,
        has_norms=False,
    ),
    Block("DiracConv", "dirac_kernel", (Form("dirac_kernel a b"),), _dirac_kernel, has_norms=False),
]
