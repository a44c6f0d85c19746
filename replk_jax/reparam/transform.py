"""Structural re-parameterization: maps training-time variables to merged variables.

Ding et al., "RepVGG: Making VGG-style ConvNets Great Again" (arXiv:2101.03697), section 3.3,
and "Scaling Up Your Kernels to 31x31" (arXiv:2203.06717), guideline 3.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from replk_jax.ops.dtypes import accumulation_dtype
from replk_jax.reparam.algebra import Affine, Linear, affine_of_norm
from replk_jax.reparam.block import Form, arrays
from replk_jax.reparam.table import find_block

Tree = Mapping[str, Any]
_Path = tuple[str, ...]

_NORM = Form("scale bias mean var")


def reparameterize(variables: Tree) -> dict[str, Any]:
    """Merges parallel branches and folds every batch norm into a neighbour.

    It merges more than the official code. RepLKNet's batch norms before the blocks are folded into
    the pointwise convolutions after them, and the final batch norm through the average pool into
    the classifier. Batch norms that cannot be folded remain as affine functions (`scale` and
    `bias`): the stage norms of a backbone, and the final norm of a model without a classifier.

    It needs only the tree, and identifies blocks by the names of their parts (`table.BLOCKS`, which
    `register_block` extends). So it also merges other networks that consist of such blocks. It
    makes two assumptions: a module with exactly the children `conv` and `bn` is a 2-D convolution
    followed by a batch norm, and every batch norm has the epsilon 1e-5. Other modules need other
    names, or a registered block.

    Pure: works under `jax.jit`, `jax.vmap`, `jax.grad` and `jax.eval_shape` and on sharded arrays.
    Sums are accumulated in at least float32. Idempotent: accepts trees that are partly merged, such
    as those of `merge_branches`.

    Args:
      variables: {"params": ..., "batch_stats": ...} of a training-time model. Other collections
        are returned as they are.

    Returns:
      {"params": ...} with the structure, shapes and dtypes of the variables of
      `model.clone(deploy=True)`.

    Raises:
      ValueError: a block that is unknown, incomplete, of the wrong shape or not linear; the message
        contains its path.
    """
    merged = _plain(_merge(_join(variables), ()))
    return {"params": _rounded(merged, variables["params"]), **_others(variables)}


def merge_branches(variables: Tree) -> dict[str, Any]:
    """Merges only parallel branches, like the official code.

    That is RepLKNet's `structural_reparam()` and RepVGG's `switch_to_deploy()`. The other batch
    norms of RepLKNet remain. No structure of that model in this package can run the result, which
    is for export to PyTorch; `reparameterize` merges the rest.

    Args:
      variables: {"params": ..., "batch_stats": ...} of a training-time model. Other collections
        are returned as they are.

    Returns:
      {"params": ..., "batch_stats": ...}.

    Raises:
      ValueError: as `reparameterize`.
    """
    jax.eval_shape(reparameterize, variables)  # raises the errors of invalid blocks

    def merge(node, source, path):
        if not isinstance(node, Mapping):
            return node
        block = find_block(node)
        if block and block.parallel:
            return _rounded(_plain(_merge(node, path)), source)
        return {
            name: merge(child, source.get(name, {}), (*path, name)) for name, child in node.items()
        }

    merged = _split(merge(_join(variables), variables["params"], ()))
    return merged | _others(variables)


# --- From the leaves up ------------------------------------------------------------------


def _merge(node: Any, path: _Path) -> Any:
    """Merges all blocks of a node, into Linear and Affine in the dtype of accumulation."""
    if not isinstance(node, Mapping):
        if not hasattr(node, "shape"):
            raise ValueError(f"{_name(path)}: expected an array, found {node!r}.")
        floating = jnp.issubdtype(node.dtype, jnp.floating)
        return node.astype(accumulation_dtype(node.dtype)) if floating else node
    block = find_block(node)
    merge = block.merge if block and _at(path, block.is_training, node) else _layer
    parts = {name: _merge(child, (*path, name)) for name, child in node.items()}
    return _at(path, merge, parts)


def _layer(parts: Tree) -> Any:
    """Wraps a batch norm, convolution or dense layer; returns any other node unchanged."""
    names = arrays(parts)
    if names & {"mean", "var"}:
        if faults := _NORM.faults(set(parts)):
            raise ValueError(f"{'; '.join(faults)}.")
        _expect_alike(parts)
        return affine_of_norm(**parts)
    if names == set(parts) == {"scale", "bias"}:
        _expect_alike(parts)
    if names == set(parts) and names in ({"kernel"}, {"kernel", "bias"}):
        kernel, bias = parts["kernel"], parts.get("bias")
        if kernel.ndim not in (2, 4):
            return parts
        if bias is None or bias.shape == kernel.shape[-1:]:
            return Linear(kernel, bias)
        if bias.ndim == 1 and bias.shape != kernel.shape[-2:-1]:
            raise ValueError(f"bias: expected shape {kernel.shape[-1:]}, found {bias.shape}.")
    return parts


def _expect_alike(leaves: Tree) -> None:
    """Raises ValueError unless the arrays of a norm have the same shape."""
    for name, leaf in leaves.items():
        if leaf.shape != leaves["scale"].shape:
            shape = leaves["scale"].shape
            raise ValueError(f"{name}: expected shape {shape}, that of scale, found {leaf.shape}.")


def _at(path: _Path, function: Callable[[Any], Any], node: Any) -> Any:
    """Calls the function and adds the path to its errors."""
    try:
        return function(node)
    except ValueError as error:
        raise ValueError(f"{_name(path)}: {error}") from error


def _name(path: _Path) -> str:
    return "/".join(path) or "the variables"


# --- Trees -------------------------------------------------------------------------------


def _plain(node: Any) -> Any:
    """Converts Linear and Affine to the dictionaries of Flax."""
    if isinstance(node, Affine):
        return {"scale": node.scale, "bias": node.bias}
    if isinstance(node, Linear):
        return {"kernel": node.kernel} | ({} if node.bias is None else {"bias": node.bias})
    if isinstance(node, Mapping):
        return {name: _plain(child) for name, child in node.items()}
    return node


def _rounded(merged: Any, source: Any) -> Any:
    """Casts to the dtypes of the original parameters; new ones to the dtype of their block."""
    if isinstance(merged, Mapping):
        return {
            name: _rounded(
                child, source.get(name, source) if isinstance(source, Mapping) else source
            )
            for name, child in merged.items()
        }
    return merged.astype(jax.tree.leaves(source)[0].dtype)


def _others(variables: Tree) -> dict[str, Any]:
    """The collections that have nothing to merge."""
    return {name: variables[name] for name in variables if name not in ("params", "batch_stats")}


def _join(variables: Tree) -> dict[str, Any]:
    """One tree, in which a node of a batch norm has both its parameters and its statistics."""
    if "params" not in variables:
        raise ValueError(
            'Expected the variables {"params": ..., "batch_stats": ...}; '
            f"found {sorted(variables)}."
        )
    if "intermediates" in variables:
        raise ValueError("intermediates are outputs of a call, not variables: leave them out.")
    if not variables["params"]:
        raise ValueError('the variables: "params" is empty.')

    def join(params, stats):
        joined = dict(params)
        for name, child in stats.items():
            are_nodes = isinstance(child, Mapping) and isinstance(joined.get(name, {}), Mapping)
            joined[name] = join(joined.get(name, {}), child) if are_nodes else child
        return joined

    return join(variables["params"], variables.get("batch_stats", {}))


def _split(tree: Tree) -> dict[str, Any]:
    """The inverse of `_join`."""
    collections: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, child in tree.items():
        if isinstance(child, Mapping):
            for collection, subtree in _split(child).items():
                if subtree:
                    collections[collection][name] = subtree
        else:
            collection = "batch_stats" if name in ("mean", "var") else "params"
            collections[collection][name] = child
    return collections
