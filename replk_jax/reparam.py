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
import re
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
    return {"params": _network(_join(variables), ())}


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
      ValueError: an incomplete large-kernel convolution, with its path.
    """

    def merge(node, path):
        if not isinstance(node, Mapping):
            return node
        if "lkb_origin" in node:
            return _large_kernel(node, path)
        return {name: merge(child, (*path, name)) for name, child in node.items()}

    return _split(merge(_join(variables), ()))


@dataclasses.dataclass(frozen=True)
class Equivalence:
    """How far the merged structure is from the training-time one on some images.

    Attributes:
      max_abs: largest absolute difference of any output.
      max_rel: the same over the largest absolute output, `scale`.
      scale: largest absolute output of the training-time structure. If it is tiny, or hardly
        depends on the image as in a freshly initialised model, the check says nothing.
    """

    max_abs: float
    max_rel: float
    scale: float


def check_equivalence(model: nn.Module, variables: Tree, images: jax.Array) -> Equivalence:
    """Runs both structures in eval mode on the same images and compares their outputs.

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
    expected = jax.tree.leaves(jax.jit(model.apply)(variables, images))
    actual = jax.tree.leaves(jax.jit(merged.apply)(reparameterize(variables), images))
    differences = [jnp.max(jnp.abs(a - e)) for a, e in zip(actual, expected, strict=True)]
    max_abs = float(jnp.max(jnp.stack(differences)))  # unlike Python's max, it keeps a NaN
    scale = float(jnp.max(jnp.stack([jnp.max(jnp.abs(e)) for e in expected])))
    return Equivalence(max_abs, max_abs / scale if scale else float("inf"), scale)


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
    kernel, bias = _wide(linear["kernel"]), _wide(linear["bias"])
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


def _network(node: Tree, path: tuple[str, ...]) -> dict[str, Any]:
    """RepLKNet, classifier or backbone."""
    merged = not _has_statistics(node)  # then what is left of a batch norm is affine already
    result = {}
    for name, child in node.items():
        if re.fullmatch(r"stem_\d+|transitions_\d+_\d+", name):
            result[name] = _conv_norm(child, (name,))
        elif re.fullmatch(r"stages_\d+", name):
            result[name] = _stage(child, (name,), merged)
        elif name not in ("norm", "head"):
            raise _foreign((name,), "stem_*, stages_*, transitions_*_*, norm and head")
    if "head" not in node:
        if "norm" in node:
            result["norm"] = _lone_norm(node["norm"], ("norm",), merged)
        return result

    _expect(node["head"], ("head",), _LINEAR)
    head = {name: _wide(leaf) for name, leaf in node["head"].items()}
    if "norm" in node:
        _expect_norm(node["norm"], ("norm",), head["kernel"].shape[0])
        head = _fold_norm_before(node["norm"], head)
    elif not merged:
        raise ValueError("params/norm is missing: the head of a training-time model follows it.")
    result["head"] = _like(head, node["head"]["kernel"])
    return result


def _stage(node: Tree, path: tuple[str, ...], merged: bool) -> dict[str, Any]:
    result = {}
    for name, child in node.items():
        child_path = (*path, name)
        if name == "norm":
            result[name] = _lone_norm(child, child_path, merged)
        elif not re.fullmatch(r"blocks_\d+", name):
            raise _foreign(child_path, "blocks_* and norm")
        elif "large_kernel" in child:
            result[name] = _block(child, child_path, "prelkb_bn")
            large_kernel = _large_kernel(child["large_kernel"], (*child_path, "large_kernel"))
            result[name]["large_kernel"] = large_kernel
        else:
            result[name] = _block(child, child_path, "preffn_bn")
    return result


def _block(node: Tree, path: tuple[str, ...], norm_name: str) -> dict[str, Any]:
    """What RepLKBlock and ConvFFN share: batch norm, pw1, something, pw2."""
    parts = {"pw1", "pw2"} | ({"large_kernel"} & set(node))
    _expect(node, path, parts | {norm_name}, parts)
    pw1 = _linear(node["pw1"], (*path, "pw1"))
    if norm_name in node:
        _expect_norm(node[norm_name], (*path, norm_name), pw1["kernel"].shape[-2])
        pw1 = _fold_norm_before(node[norm_name], pw1)
    elif "bn" in node["pw1"]:
        raise ValueError(f"{_name((*path, norm_name))} is missing: a training-time block has it.")
    return {
        "pw1": {"conv": _like(pw1, node["pw1"]["conv"]["kernel"])},
        "pw2": _conv_norm(node["pw2"], (*path, "pw2")),
    }


def _large_kernel(node: Tree, path: tuple[str, ...]) -> dict[str, Any]:
    """ReparamLargeKernelConv: both branches in one kernel."""
    _expect(node, path, {"lkb_origin", "small_conv"}, {"lkb_origin"}, {"lkb_reparam"})
    if "lkb_reparam" in node:
        _expect(node["lkb_reparam"], (*path, "lkb_reparam"), _LINEAR)
        return {"lkb_reparam": dict(node["lkb_reparam"])}
    branches = {name: _linear(node[name], (*path, name)) for name in node}
    large = branches["lkb_origin"]
    if "small_conv" in branches:
        small = branches["small_conv"]
        shapes = small["kernel"].shape, large["kernel"].shape
        if shapes[0][0] > shapes[1][0] or shapes[0][2:] != shapes[1][2:]:
            raise ValueError(
                f"{_name(path)}: the small kernel {shapes[0]} does not fit into "
                f"the large one {shapes[1]}."
            )
        large = _add_centred(large, small)
    return {"lkb_reparam": _like(large, node["lkb_origin"]["conv"]["kernel"])}


def _conv_norm(node: Tree, path: tuple[str, ...]) -> dict[str, Any]:
    """ConvNorm: one convolution with bias."""
    return {"conv": _like(_linear(node, path), node["conv"]["kernel"])}


def _linear(node: Tree, path: tuple[str, ...]) -> dict[str, jax.Array]:
    """Kernel and bias of a ConvNorm, merged or not, still in the dtype sums are taken in."""
    _expect(node, path, {"conv", "bn"}, {"conv"})
    conv_path = (*path, "conv")
    if "bn" not in node:
        _expect(node["conv"], conv_path, _LINEAR)
        return {name: _wide(leaf) for name, leaf in node["conv"].items()}
    _expect(node["conv"], conv_path, {"kernel"})
    kernel = node["conv"]["kernel"]
    _expect_norm(node["bn"], (*path, "bn"), kernel.shape[-1])
    return _fold_norm_after(kernel, node["bn"])


def _lone_norm(node: Tree, path: tuple[str, ...], merged: bool) -> dict[str, jax.Array]:
    """A batch norm with no neighbour to fold into."""
    if merged:
        _expect(node, path, _AFFINE)
        return dict(node)
    _expect(node, path, _AFFINE | _STATISTICS)
    a, b = _affine(node)
    return _like({"scale": a, "bias": b}, node["scale"])


# --- Checks: a tree that is not understood is refused ------------------------------------


def _expect(node: Any, path: tuple[str, ...], *forms: set[str]) -> None:
    """Raises unless the children of `node` are exactly those of one of `forms`."""
    given = set(node) if isinstance(node, Mapping) else None
    if given in forms:
        return
    wanted = " or ".join("{" + ", ".join(sorted(form)) + "}" for form in forms)
    found = "an array" if given is None else "{" + ", ".join(sorted(given)) + "}"
    raise ValueError(f"{_name(path)}: expected {wanted}, found {found}.")


def _expect_norm(node: Any, path: tuple[str, ...], channels: int) -> None:
    """Raises unless `node` is a batch norm, statistics included, of so many channels."""
    _expect(node, path, _AFFINE | _STATISTICS)
    for name, leaf in node.items():
        if leaf.shape != (channels,):
            raise ValueError(
                f"{_name((*path, name))}: expected shape ({channels},), found {leaf.shape}."
            )


def _foreign(path: tuple[str, ...], known: str) -> ValueError:
    return ValueError(f"{_name(path)} is not a part of a RepLKNet; known here: {known}.")


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
