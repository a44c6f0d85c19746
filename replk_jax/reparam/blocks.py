"""What each kind of block is made of, and how it becomes one convolution.

`BLOCKS` is the one table of them. A block is known by the names of its parts, for most blocks
those of the official PyTorch code. It is merged from its parts, which are merged before it: then
a convolution or dense layer is a `Linear`, and a batch norm an `Affine`.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Mapping
from typing import Any

from replk_jax.reparam import algebra
from replk_jax.reparam.algebra import Affine, Linear

Parts = Mapping[str, Any]

_STATISTICS = {"mean", "var"}


@dataclasses.dataclass(frozen=True)
class Form:
    """The names of a block's parts, separated by spaces.

    Attributes:
      parts: names that must be there.
      optional: names that may be there, as shell-style patterns.
    """

    parts: str = ""
    optional: str = ""

    def faults(self, names: set[str]) -> list[str]:
        """What is missing or unknown, in words; nothing if `names` are of this form."""
        parts, optional = self.parts.split(), self.optional.split()
        missing = [part for part in parts if part not in names]
        unknown = [
            name
            for name in sorted(names - set(parts))
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in optional)
        ]
        found = (("missing", missing), ("not known here:", unknown))
        return [f"{fault} {', '.join(those)}" for fault, those in found if those]


@dataclasses.dataclass(frozen=True)
class Block:
    """A kind of block.

    Attributes:
      name: of the kind.
      marks: the names, separated by spaces, any of which among its children makes a node such a
        block; with `exact`, all of them and no others.
      training: forms of its training-time structure.
      merge: makes the merged block of its parts, which are merged themselves.
      merged: forms of its merged structure, if one is marked.
      exact: see `marks`.
      parallel: whether it is a block of parallel branches; `merge_branches` merges these.
      has_norms: whether there are batch norms somewhere in its training-time structure; a node
        without their statistics is taken for a merged one.
      check: raises ValueError for a node that is not as names alone can tell.
    """

    name: str
    marks: str
    training: tuple[Form, ...]
    merge: Callable[[Parts], Any]
    merged: tuple[Form, ...] = ()
    exact: bool = False
    parallel: bool = False
    has_norms: bool = True
    check: Callable[[Parts], None] = lambda node: None

    def recognises(self, node: Parts) -> bool:
        """Whether a node is such a block, whole or not."""
        marks = set(self.marks.split())
        return set(node) == marks if self.exact else not marks.isdisjoint(node)

    def is_training(self, node: Any) -> bool:
        """Checks a node; returns whether it is in the training-time structure.

        Raises:
          ValueError: parts that are missing, foreign, or without their statistics.
        """
        names = set(node) if isinstance(node, Mapping) else set()
        training = not self.has_norms or has_statistics(node)
        forms = self.training if training else self.merged
        if all(form.faults(names) for form in forms):
            if not training and not all(form.faults(names) for form in self.training):
                raise ValueError("missing the running statistics of its batch norms (batch_stats).")
            nearest = min((form.faults(names) for form in forms or self.training), key=_length)
            raise ValueError(f"{'; '.join(nearest)}.")
        self.check(node)
        return training


def register_block(block: Block) -> None:
    """Makes `reparameterize` know a kind of block; it is looked for before the others.

    At the start of a program: what `jax.jit` has compiled already does not learn of it.

    Raises:
      ValueError: there is one of this name.
    """
    if any(known.name == block.name for known in BLOCKS):
        raise ValueError(f"A block named {block.name!r} is registered already.")
    BLOCKS.insert(0, block)


def find_block(node: Parts) -> Block | None:
    """The kind of block that a node is, if it is one."""
    return next((block for block in BLOCKS if block.recognises(node)), None)


def has_statistics(node: Any) -> bool:
    """Whether there are running statistics somewhere below a node."""
    if not isinstance(node, Mapping):
        return False
    return not _STATISTICS.isdisjoint(node) or any(map(has_statistics, node.values()))


def _length(faults: list[str]) -> int:
    return len(" ".join(faults))


# --- Merged parts, as the blocks below take them -----------------------------------------


def convolution(parts: Parts, name: str, *, biased: bool = True) -> Linear:
    """The convolution that the part `name` is, or has by the name of "conv" and nothing else.

    Args:
      parts: of a block, merged.
      name: of the part.
      biased: whether it must have a bias, as what had a batch norm behind it has.

    Raises:
      ValueError: it is something else.
    """
    part = parts[name]
    if isinstance(part, Mapping):
        if faults := Form("conv").faults(set(part)):
            raise ValueError(f"{name}: {'; '.join(faults)}.")
        name, part = f"{name}/conv", part["conv"]
    if not isinstance(part, Linear) or part.kernel.ndim != 4:
        raise ValueError(f"{name}: expected the 4 dimensions of a convolution's kernel.")
    if biased and part.bias is None:
        raise ValueError(f"{name}: missing bias, or a batch norm behind it.")
    return part


def norm(parts: Parts, name: str) -> Affine:
    """The batch norm that the part `name` is.

    Raises:
      ValueError: it is something else, or has no running statistics.
    """
    part = parts[name]
    if not isinstance(part, Affine):
        names = set(part) if isinstance(part, Mapping) else set()
        faults = Form("scale bias mean var").faults(names)
        raise ValueError(f"{name}: {'; '.join(faults)}.")
    return part


def _expect_kernel(name: str, linear: Linear, shape: tuple[int, ...]) -> None:
    if linear.kernel.shape != shape:
        raise ValueError(f"{name}/kernel: expected shape {shape}, found {linear.kernel.shape}.")


# --- Any network -------------------------------------------------------------------------


def _conv_norm(parts: Parts) -> Parts:
    """BN(W * x)."""
    conv = convolution(parts, "conv", biased=False)
    return {"conv": algebra.fold_into_previous(conv, norm(parts, "bn"))}


def _residual_kernel(parts: Parts) -> Linear:
    """(I + W) * x: RepVGG's "trivial" variant, and the 1 x 1 convolution of a DBB."""
    kernel = parts["residual_kernel"]
    return Linear(algebra.identity_kernel(kernel) + kernel)


def _dirac_kernel(parts: Parts) -> Linear:
    """(diag(a) I + diag(b) W / |W|) * x."""
    return Linear(algebra.dirac_kernel(parts["dirac_kernel"], parts["a"], parts["b"]))


def _asymmetric(parts: Parts) -> Parts:
    """ACB: K x K, K x 1 and 1 x K."""
    square = convolution(parts, "square")
    others = [convolution(parts, name) for name in ("vertical", "horizontal")]
    padded = [algebra.pad_kernel(other, square.kernel.shape[:2]) for other in others]
    return {"conv": algebra.add(square, *padded)}


def _diverse_branches(parts: Parts) -> Parts:
    """DBB: K x K; 1 x 1; 1 x 1, then K x K; 1 x 1, then an average pool."""
    origin = convolution(parts, "dbb_origin")
    size = origin.kernel.shape[:2]
    pointwise = algebra.pad_kernel(convolution(parts, "dbb_1x1"), size)

    chain = parts["dbb_1x1_kxk"]
    first = algebra.fold_into_previous(chain["idconv1"], norm(chain, "bn1"))
    chained = algebra.compose(first, chain["conv2"])
    chained = algebra.fold_into_previous(chained, norm(chain, "bn2"))

    pool = parts["dbb_avg"]
    averaged = algebra.fold_into_previous(pool["conv"], norm(pool, "bn"))
    averaged = algebra.pool_average(averaged, size)
    averaged = algebra.fold_into_previous(averaged, norm(pool, "avgbn"))
    return {"conv": algebra.add(origin, pointwise, chained, averaged)}


# --- RepLKNet ----------------------------------------------------------------------------


def _large_kernel(parts: Parts) -> Parts:
    """K x K with a small kernel, or with dilated ones as UniRepLKNet has them."""
    origin = convolution(parts, "lkb_origin")
    branches = [origin]
    for name in sorted(set(parts) - {"lkb_origin"}):
        branch = convolution(parts, name)
        if dilated := re.fullmatch(r"dilated_\d+x\d+_(\d+)", name):
            branch = algebra.embed_dilated(branch, int(dilated[1]))
        branches.append(algebra.pad_kernel(branch, origin.kernel.shape[:2]))
    return {"lkb_reparam": algebra.add(*branches)}


def _pointwise(parts: Parts, norm_name: str) -> dict[str, Any]:
    """What both halves of a pair share: a batch norm, folded into pw1, and pw2."""
    pw1, pw2 = convolution(parts, "pw1"), convolution(parts, "pw2")
    outer, inner = pw1.kernel.shape[2:]
    _expect_kernel("pw1/conv", pw1, (1, 1, outer, inner))
    _expect_kernel("pw2/conv", pw2, (1, 1, inner, outer))
    pw1 = algebra.fold_into_next(norm(parts, norm_name), pw1)
    return {"pw1": {"conv": pw1}, "pw2": {"conv": pw2}}


def _replk_block(parts: Parts) -> Parts:
    pointwise = _pointwise(parts, "prelkb_bn")
    large = convolution(parts["large_kernel"], "lkb_reparam")
    width, size = pointwise["pw1"]["conv"].kernel.shape[-1], large.kernel.shape[0]
    _expect_kernel("large_kernel/lkb_*", large, (size, size, 1, width))
    return {"large_kernel": {"lkb_reparam": large}, **pointwise}


def _conv_ffn(parts: Parts) -> Parts:
    return _pointwise(parts, "preffn_bn")


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
    """The final batch norm goes through the average pool into the classifier."""
    stages = sorted(name for name in parts if name.startswith("stages_"))
    widths = {name: parts[name]["blocks_0"]["pw2"]["conv"].bias.shape for name in stages}
    for name in stages:
        if "norm" in parts[name]:
            _expect_norm(f"{name}/norm", parts[name]["norm"], widths[name])
    if "norm" not in parts:
        return parts
    _expect_norm("norm", parts["norm"], widths[stages[-1]])
    if "head" not in parts:
        return parts
    if parts["head"].bias is None:
        raise ValueError("head: missing bias.")
    head = algebra.fold_into_next(parts["norm"], parts["head"])
    return {**{name: part for name, part in parts.items() if name != "norm"}, "head": head}


def _expect_norm(path: str, part: Any, shape: tuple[int, ...]) -> None:
    """Raises ValueError for a norm that does not fit the map of the last block."""
    if norm({path: part}, path).scale.shape != shape:
        raise ValueError(f"{path}: expected shape {shape}, found {part.scale.shape}.")


def _check_replknet(node: Parts) -> None:
    """Raises ValueError unless stem, stages, transitions and blocks are all there."""
    stages = range(max(1, sum(name.startswith("stages_") for name in node)))
    body = [f"stem_{i}" for i in range(4)]
    body += [f"stages_{s}" for s in stages]
    body += [f"transitions_{s}_{i}" for s in stages[:-1] for i in range(2)]
    if faults := Form(" ".join(body), "norm head").faults(set(node)):
        raise ValueError(f"{'; '.join(faults)}.")
    for s in stages:
        _check_stage(f"stages_{s}", node[f"stages_{s}"])


def _check_stage(path: str, stage: Any) -> None:
    """Raises ValueError unless large-kernel and feed-forward blocks take turns."""
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
    dense = convolution(parts, name, biased=normed)
    branches = [dense]
    if "rbr_1x1" in parts:
        pointwise = convolution(parts, "rbr_1x1", biased=normed)
        branches.append(algebra.pad_kernel(pointwise, dense.kernel.shape[:2]))
    if name == "rbr_dense_and_identity" or "rbr_identity" in parts:
        same = Linear(algebra.identity_kernel(dense.kernel))
        if "rbr_identity" in parts:
            same = algebra.fold_into_previous(same, norm(parts, "rbr_identity"))
        branches.append(same)
    merged = algebra.add(*branches)
    if not normed:
        merged = algebra.fold_into_previous(merged, norm(parts, "post_bn"))
    squeeze_excite = {"se": parts["se"]} if "se" in parts else {}
    return {"rbr_reparam": merged, **squeeze_excite}


def _refuse(node: Parts) -> None:
    raise ValueError(
        "a ReLU in the branches, before they are added, is not linear: no convolution is equal to "
        "this block. The paper has it to show what more non-linearity would bring."
    )


BLOCKS: list[Block] = [
    Block(
        "RepLKNet",
        marks="stem_0 stages_0",
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
        "ReparamLargeKernelConv",
        marks="lkb_origin lkb_reparam small_conv",
        training=(Form("lkb_origin", "small_conv dilated_*x*_*"),),
        merged=(Form("lkb_reparam"),),
        merge=_large_kernel,
        parallel=True,
    ),
    Block(
        "RepVGGBlock",
        marks=f"{_LAYERS} rbr_1x1 rbr_identity post_bn rbr_reparam",
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
        check=_refuse,
    ),
    Block(
        "AsymmetricConvBlock",
        marks="square vertical horizontal",
        training=(Form("square vertical horizontal"),),
        merge=_asymmetric,
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
