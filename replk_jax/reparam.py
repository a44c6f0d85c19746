"""Structural re-parameterization: the training-time variables become the merged ones.

Ding et al., "RepVGG: Making VGG-style ConvNets Great Again" (arXiv:2101.03697), section 3.3,
and "Scaling Up Your Kernels to 31x31" (arXiv:2203.06717), guideline 3.

In eval mode a batch norm is an affine map of each channel,

    BN(x) = a x + b    with    a = scale / sqrt(var + eps)    and    b = bias - a mean,

and three identities remove it:

    BN(W * x)           = (a W) * x + b                  a batch norm after a convolution
    W (a x + b) + c     = (W a) x + (W b + c)            before a pointwise convolution or a
                                                         classifier (not before padding)
    W * x + w * x       = (W + pad(w)) * x               a small kernel beside a large one

Everything here reads a variable tree alone, knows its parts by their names, and refuses a
part that it does not know.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from replk_jax.models.layers import BATCH_NORM_EPSILON

Tree = Mapping[str, Any]


def reparameterize(variables: Tree) -> dict[str, Any]:
    """Merges parallel kernels and folds every batch norm into a neighbour.

    Goes further than the official code: the batch norms before the blocks are folded
    forward into the pointwise convolution that follows, and the final one through the
    average pool into the classifier. What has nothing to be folded into stays as the affine
    map it is (`scale` and `bias`): the stage norms of a backbone, and the final norm of a
    model without a classifier.

    Pure, and works under `jax.jit`, `jax.vmap`, `jax.grad` and `jax.eval_shape` and on sharded
    arrays. Sums are taken in at least float32. Idempotent, and it accepts trees that are
    merged in part, such as those of `merge_small_kernels`.

    Args:
      variables: {"params": ..., "batch_stats": ...} of a training-time model.

    Returns:
      {"params": ...} with the structure, shapes and dtypes of the variables of
      `model.clone(deploy=True)`.

    Raises:
      ValueError: a part that is foreign, incomplete or of the wrong shape, with its path.
    """
    return {"params": _network(_join(variables))}


def merge_small_kernels(variables: Tree) -> dict[str, Any]:
    """Merges the parallel small kernels into the large ones and nothing else.

    What the official `structural_reparam()` does: `lkb_origin` and `small_conv`, where
    there is one, become `lkb_reparam` with their batch norms folded in. All other batch norms
    stand, so the result is for export to PyTorch and for study; no structure of the models
    here runs it. `reparameterize` takes it the rest of the way.

    Args:
      variables: {"params": ..., "batch_stats": ...} of a training-time model.

    Returns:
      {"params": ..., "batch_stats": ...}.

    Raises:
      ValueError: as `reparameterize`.
    """
    jax.eval_shape(reparameterize, variables)  # refuses what it does not know

    def merge(node, path):
        if not isinstance(node, Mapping):
            return node
        if path[-1:] == ("large_kernel",):
            return _large_kernel(node, path)
        return {name: merge(child, (*path, name)) for name, child in node.items()}

    return _split(merge(_join(variables), ()))


@dataclasses.dataclass(frozen=True)
class Equivalence:
    """How far the merged structure is from the training-time one on some images.

    Attributes:
      max_abs: largest absolute difference of any output.
      max_rel: the same, each output's over its own largest absolute value.
    """

    max_abs: float
    max_rel: float


def check_equivalence(model: nn.Module, variables: Tree, images: jax.Array) -> Equivalence:
    """Runs both structures in eval mode on the same images and compares their outputs.

    Matrix products are taken at the highest precision, so that what is left on an accelerator
    is the difference of the structures. With a 16-bit `dtype` the rounding of the activations
    is in it too. A freshly initialised model proves nothing: its logits are the classifier's
    bias, whatever the image and however wrong the merge.

    Args:
      model: in its training-time structure (`deploy=False`).
      variables: of that model, trained ones for the check to mean anything.
      images: (N, H, W, C), normalised.

    Raises:
      ValueError: a model in its merged structure.
    """
    if model.deploy:
        raise ValueError("check_equivalence takes the training-time model; got deploy=True.")
    merged = model.clone(deploy=True)
    with jax.default_matmul_precision("highest"):
        expected = jax.tree.leaves(jax.jit(model.apply)(variables, images))
        actual = jax.tree.leaves(jax.jit(merged.apply)(reparameterize(variables), images))
    differences = [jnp.max(jnp.abs(a - e)) for a, e in zip(actual, expected, strict=True)]
    relative = [
        jnp.where(difference == 0, 0, difference / jnp.max(jnp.abs(e)))
        for difference, e in zip(differences, expected, strict=True)
    ]
    # jnp.max keeps a NaN, which Python's max may lose.
    return Equivalence(float(jnp.max(jnp.stack(differences))), float(jnp.max(jnp.stack(relative))))


# --- The algebra -------------------------------------------------------------------------


def _affine(norm: Tree) -> tuple[jax.Array, jax.Array]:
    """The a and b of a batch norm in eval mode."""
    scale, bias, mean, var = (_wide(norm[name]) for name in ("scale", "bias", "mean", "var"))
    a = scale * jax.lax.rsqrt(var + BATCH_NORM_EPSILON)
    return a, bias - a * mean


def _fold_norm_after(kernel: jax.Array, norm: Tree) -> dict[str, jax.Array]:
    """BN(W * x). The output channel is the kernel's last axis, depthwise or not."""
    a, b = _affine(norm)
    return {"kernel": _wide(kernel) * a, "bias": b}


def _fold_norm_before(norm: Tree, linear: Tree) -> dict[str, jax.Array]:
    """W BN(x) + c for a kernel (..., I, O) that sums over I alone."""
    a, b = _affine(norm)
    kernel, bias = linear["kernel"], linear["bias"]
    # HIGHEST: accelerators would otherwise round the operands to bfloat16 or TF32.
    moved = jnp.matmul(b, kernel, precision=jax.lax.Precision.HIGHEST)
    return {"kernel": kernel * a[:, None], "bias": bias + moved.reshape(bias.shape)}


def _add_centred(large: Tree, small: Tree) -> dict[str, jax.Array]:
    """W * x + w * x, both with padding k // 2."""
    margin = (large["kernel"].shape[0] - small["kernel"].shape[0]) // 2
    padded = jnp.pad(small["kernel"], [(margin, margin)] * 2 + [(0, 0)] * 2)
    return {"kernel": large["kernel"] + padded, "bias": large["bias"] + small["bias"]}


def _wide(x: jax.Array) -> jax.Array:
    return jnp.asarray(x).astype(jnp.promote_types(jnp.float32, x.dtype))


def _like(merged: Tree, source: jax.Array) -> dict[str, jax.Array]:
    """Rounds back to the dtype of the parameters that came in."""
    return {name: value.astype(source.dtype) for name, value in merged.items()}


# --- The parts of a network --------------------------------------------------------------

_STATISTICS = {"mean", "var"}
_AFFINE = {"scale", "bias"}
_LINEAR = {"kernel", "bias"}


def _network(node: Tree) -> dict[str, Any]:
    """RepLKNet, classifier or backbone."""
    stages = max(1, sum(name.startswith("stages_") for name in node))
    stem = {f"stem_{i}" for i in range(4)}
    transitions = {f"transitions_{s}_{i}" for s in range(stages - 1) for i in range(2)}
    body = stem | transitions | {f"stages_{s}" for s in range(stages)}
    _expect(node, (), body, body | {"norm"}, body | {"head"}, body | {"norm", "head"})
    merged = not _has_statistics(node)  # then what is left of a batch norm is affine already

    result = {name: _conv_norm(node[name], (name,)) for name in sorted(stem | transitions)}
    for s in range(stages):
        result[f"stages_{s}"] = _stage(node[f"stages_{s}"], (f"stages_{s}",), merged)
    if "head" in node:
        result["head"] = _head(node, merged)
    elif "norm" in node:
        width = _width(result[f"stages_{stages - 1}"])
        result["norm"] = _lone_norm(node["norm"], ("norm",), width, merged)
    return result


def _head(node: Tree, merged: bool) -> dict[str, jax.Array]:
    """The final batch norm, the average pool, which it commutes with, and the classifier."""
    _expect(node["head"], ("head",), _LINEAR)
    kernel = node["head"]["kernel"]
    _expect_shape(kernel, ("head", "kernel"), 2)
    _expect_shape(node["head"]["bias"], ("head", "bias"), kernel.shape[-1:])
    head = {name: _wide(leaf) for name, leaf in node["head"].items()}
    if "norm" in node:
        _expect_norm(node["norm"], ("norm",), kernel.shape[0])
        head = _fold_norm_before(node["norm"], head)
    elif not merged:
        raise ValueError("norm is missing: in a training-time model it precedes the head.")
    return _like(head, kernel)


def _stage(node: Tree, path: tuple[str, ...], merged: bool) -> dict[str, Any]:
    """Blocks by turns: RepLKBlock, ConvFFN."""
    count = sum(name.startswith("blocks_") for name in node) if isinstance(node, Mapping) else 0
    blocks = [f"blocks_{i}" for i in range(max(2, count + count % 2))]
    _expect(node, path, set(blocks), {*blocks, "norm"})
    result = {}
    for i, name in enumerate(blocks):
        block = _replk_block if i % 2 == 0 else _conv_ffn
        result[name] = block(node[name], (*path, name))
    if "norm" in node:
        result["norm"] = _lone_norm(node["norm"], (*path, "norm"), _width(result), merged)
    return result


def _width(stage: Tree) -> int:
    """The channels of a merged stage's map."""
    return stage["blocks_0"]["pw2"]["conv"]["bias"].shape[0]


def _replk_block(node: Tree, path: tuple[str, ...]) -> dict[str, Any]:
    parts = {"pw1", "large_kernel", "pw2"}
    _expect(node, path, parts | {"prelkb_bn"}, parts)
    pointwise = _pointwise(node, path, "prelkb_bn")
    large_kernel = _large_kernel(node["large_kernel"], (*path, "large_kernel"))
    merged, inner = large_kernel["lkb_reparam"]["kernel"], pointwise["pw1"]["conv"]["bias"]
    size = merged.shape[0]
    _expect_shape(merged, (*path, "large_kernel", "lkb_*"), (size, size, 1, *inner.shape))
    return {"large_kernel": large_kernel, **pointwise}


def _conv_ffn(node: Tree, path: tuple[str, ...]) -> dict[str, Any]:
    parts = {"pw1", "pw2"}
    _expect(node, path, parts | {"preffn_bn"}, parts)
    return _pointwise(node, path, "preffn_bn")


def _pointwise(node: Tree, path: tuple[str, ...], norm_name: str) -> dict[str, Any]:
    """What both blocks share: a batch norm that is folded into pw1, and pw2."""
    pw1, pw2 = (_linear(node[name], (*path, name)) for name in ("pw1", "pw2"))
    outer, inner = pw1["kernel"].shape[2:]
    _expect_shape(pw1["kernel"], (*path, "pw1", "conv", "kernel"), (1, 1, outer, inner))
    _expect_shape(pw2["kernel"], (*path, "pw2", "conv", "kernel"), (1, 1, inner, outer))
    if norm_name in node:
        _expect_norm(node[norm_name], (*path, norm_name), pw1["kernel"].shape[-2])
        pw1 = _fold_norm_before(node[norm_name], pw1)
    elif "bn" in node["pw1"]:
        raise ValueError(f"{_name((*path, norm_name))} is missing: a training-time block has it.")
    return {
        "pw1": {"conv": _like(pw1, node["pw1"]["conv"]["kernel"])},
        "pw2": {"conv": _like(pw2, node["pw2"]["conv"]["kernel"])},
    }


def _large_kernel(node: Tree, path: tuple[str, ...]) -> dict[str, Any]:
    """ReparamLargeKernelConv: both branches in one kernel."""
    _expect(node, path, {"lkb_origin", "small_conv"}, {"lkb_origin"}, {"lkb_reparam"})
    if "lkb_reparam" in node:
        merged = _kernel_and_bias(node["lkb_reparam"], (*path, "lkb_reparam"))
        return {"lkb_reparam": _like(merged, node["lkb_reparam"]["kernel"])}
    branches = {name: _linear(node[name], (*path, name)) for name in node}
    large = branches["lkb_origin"]
    if "small_conv" in branches:
        small = branches["small_conv"]
        _expect_to_fit(small["kernel"], large["kernel"], path)
        large = _add_centred(large, small)
    return {"lkb_reparam": _like(large, node["lkb_origin"]["conv"]["kernel"])}


def _conv_norm(node: Tree, path: tuple[str, ...]) -> dict[str, Any]:
    """ConvNorm: one convolution with bias."""
    return {"conv": _like(_linear(node, path), node["conv"]["kernel"])}


def _linear(node: Tree, path: tuple[str, ...]) -> dict[str, jax.Array]:
    """Kernel and bias of a ConvNorm, merged or not, still in the dtype sums are taken in."""
    _expect(node, path, {"conv", "bn"}, {"conv"})
    if "bn" not in node:
        return _kernel_and_bias(node["conv"], (*path, "conv"))
    _expect(node["conv"], (*path, "conv"), {"kernel"})
    kernel = node["conv"]["kernel"]
    _expect_shape(kernel, (*path, "conv", "kernel"), 4)
    _expect_norm(node["bn"], (*path, "bn"), kernel.shape[-1])
    return _fold_norm_after(kernel, node["bn"])


def _kernel_and_bias(node: Tree, path: tuple[str, ...]) -> dict[str, jax.Array]:
    """A convolution that is merged already, in the dtype sums are taken in."""
    _expect(node, path, _LINEAR)
    _expect_shape(node["kernel"], (*path, "kernel"), 4)
    _expect_shape(node["bias"], (*path, "bias"), node["kernel"].shape[-1:])
    return {name: _wide(leaf) for name, leaf in node.items()}


def _lone_norm(
    node: Tree, path: tuple[str, ...], channels: int, merged: bool
) -> dict[str, jax.Array]:
    """A batch norm with no neighbour to fold into."""
    if merged:
        _expect_vectors(node, path, _AFFINE, channels)
        return dict(node)
    _expect_norm(node, path, channels)
    a, b = _affine(node)
    return _like({"scale": a, "bias": b}, node["scale"])


# --- Checks: a tree that is not understood is refused ------------------------------------


def _expect(node: Any, path: tuple[str, ...], *forms: set[str]) -> None:
    """Raises unless the children of `node` are exactly those of one of `forms`."""
    if not isinstance(node, Mapping):
        raise ValueError(f"{_name(path)}: expected a part of a network, found an array.")
    given = set(node)
    if given in forms:
        return
    nearest = min(forms, key=lambda form: len(form ^ given))
    faults = [
        f"{fault} {', '.join(sorted(names))}"
        for fault, names in (("missing", nearest - given), ("not known here:", given - nearest))
        if names
    ]
    raise ValueError(f"{_name(path)}: {'; '.join(faults)}.")


def _expect_norm(node: Any, path: tuple[str, ...], channels: int) -> None:
    """Raises unless `node` is a batch norm, statistics included, of so many channels."""
    _expect_vectors(node, path, _AFFINE | _STATISTICS, channels)


def _expect_vectors(node: Any, path: tuple[str, ...], names: set[str], channels: int) -> None:
    """Raises unless `node` has exactly these vectors, of so many channels."""
    _expect(node, path, names)
    for name, leaf in node.items():
        _expect_shape(leaf, (*path, name), (channels,))


def _expect_shape(leaf: Any, path: tuple[str, ...], shape: int | tuple[int, ...]) -> None:
    """Raises unless `leaf` is an array of this shape, or of so many dimensions."""
    if not hasattr(leaf, "shape"):
        found = "a part of a network" if isinstance(leaf, Mapping) else repr(leaf)
        raise ValueError(f"{_name(path)}: expected an array, found {found}.")
    if isinstance(shape, int) and len(leaf.shape) != shape:
        raise ValueError(f"{_name(path)}: expected {shape} dimensions, found shape {leaf.shape}.")
    if isinstance(shape, tuple) and leaf.shape != shape:
        raise ValueError(f"{_name(path)}: expected shape {shape}, found {leaf.shape}.")


def _expect_to_fit(small: jax.Array, large: jax.Array, path: tuple[str, ...]) -> None:
    """Raises unless `small` can be centred in `large`."""
    margins = [outer - inner for outer, inner in zip(large.shape[:2], small.shape[:2], strict=True)]
    centred = margins[0] == margins[1] >= 0 and margins[0] % 2 == 0
    if not centred or small.shape[2:] != large.shape[2:]:
        raise ValueError(
            f"{_name(path)}: the small kernel {small.shape} cannot be centred in the large one "
            f"{large.shape}."
        )


def _name(path: tuple[str, ...]) -> str:
    return "/".join(path) or "the variables"


def _has_statistics(node: Any) -> bool:
    if not isinstance(node, Mapping):
        return False
    return bool(_STATISTICS & set(node)) or any(map(_has_statistics, node.values()))


def _join(variables: Tree) -> dict[str, Any]:
    """One tree in which a batch norm's parameters and statistics stand together."""
    if "params" not in variables or not set(variables) <= {"params", "batch_stats"}:
        raise ValueError(
            'Expected the variables {"params": ..., "batch_stats": ...}; '
            f"found {sorted(variables)}."
        )

    def join(params, stats):
        joined = dict(params)
        for name, child in stats.items():
            both_nodes = isinstance(child, Mapping) and isinstance(joined.get(name, {}), Mapping)
            joined[name] = join(joined.get(name, {}), child) if both_nodes else child
        return joined

    return join(variables["params"], variables.get("batch_stats", {}))


def _split(tree: Tree) -> dict[str, Any]:
    """The reverse of `_join`."""
    collections: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, child in tree.items():
        if isinstance(child, Mapping):
            for collection, subtree in _split(child).items():
                if subtree:
                    collections[collection][name] = subtree
        else:
            collection = "batch_stats" if name in _STATISTICS else "params"
            collections[collection][name] = child
    return collections
