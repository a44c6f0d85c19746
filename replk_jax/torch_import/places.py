"""Maps the names of a file's tensors to the variables of a network."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from replk_jax.models.backbone import Backbone
from replk_jax.models.composite import CompositeNetwork
from replk_jax.models.network import Network
from replk_jax.models.variables import abstract_variables
from replk_jax.torch_import import names
from replk_jax.torch_import.composites import BACKBONE, composite_of, split
from replk_jax.torch_import.families import family_of
from replk_jax.torch_import.structures import Structure, in_structure

Places = Mapping[str, tuple[names.Path, Any]]  # from name to path and leaf


def structure_of(keys: Iterable[str], model: Network) -> Structure:
    """The structure of weights in official names.

    That of a composite network is the structure of its backbone, except that heads without batch
    norms make an unmerged one `FUSED_BRANCHES`.
    """
    if not isinstance(model, CompositeNetwork):
        return family_of(model).STRUCTURES.structure_of(dict.fromkeys(keys))
    backbone, heads = split(dict.fromkeys(keys))
    structure = structure_of(backbone, model.backbone)
    is_fused = structure is Structure.TRAINING and _are_fused(heads, model)
    return Structure.FUSED_BRANCHES if is_fused else structure


def places_in(keys: Iterable[str], model: Network) -> Places:
    """For each official name, the path and the leaf of the variable.

    Args:
      keys: official names of weights, which determine the structure.
      model: the network; its `deploy` does not matter.
    """
    if isinstance(model, Backbone):
        return places_of(model, structure_of(keys, model))
    assert isinstance(model, CompositeNetwork)
    backbone, heads = split(dict.fromkeys(keys))
    places = {
        f"{BACKBONE}{key}": (_in_backbone(path), leaf)
        for key, (path, leaf) in places_in(backbone, model.backbone).items()
    }
    structure = Structure.FUSED if _are_fused(heads, model) else Structure.TRAINING
    return {**places, **_places_of_heads(model, structure)}  # pyright: ignore[reportArgumentType]  # modules are hashable


def places_of(model: Backbone, structure: Structure) -> Places:
    """As `places_in`, in a given structure."""
    return _places_of(model, structure)  # pyright: ignore[reportArgumentType]  # modules are hashable


def by_key(variables: Mapping[str, Any], model: Network) -> Places:
    """For each official name, the path and the leaf in a tree of variables of a network.

    The tree may be in any structure.
    """
    if isinstance(model, CompositeNetwork):
        composite = composite_of(model)
        of_backbone = {kind: tree.get("backbone", {}) for kind, tree in variables.items()}
        places = {
            f"{BACKBONE}{key}": (_in_backbone(path), leaf)
            for key, (path, leaf) in by_key(of_backbone, model.backbone).items()
        }
        return places | names.by_key(_heads_of(variables), composite.official_key)
    official_key, architecture = family_of(model).official_key, model.architecture
    return names.by_key(variables, lambda key: official_key(key, architecture))


@functools.lru_cache(maxsize=8)  # tracing a network takes a second, and loading needs it twice
def _places_of(model: Backbone, structure: Structure) -> Places:
    variables = abstract_variables(model.clone(deploy=False))
    return by_key(in_structure(variables, structure), model)


@functools.lru_cache(maxsize=8)
def _places_of_heads(model: CompositeNetwork, structure: Structure) -> Places:
    variables = _heads_of(abstract_variables(model.clone(deploy=False)))
    return names.by_key(in_structure(variables, structure), composite_of(model).official_key)


def _heads_of(variables: Mapping[str, Any]) -> dict[str, Any]:
    return {
        kind: {module: leaves for module, leaves in tree.items() if module != "backbone"}
        for kind, tree in variables.items()
    }


def _in_backbone(path: names.Path) -> names.Path:
    collection, *rest = path
    return (collection, "backbone", *rest)


def _are_fused(heads: Iterable[str], model: CompositeNetwork) -> bool:
    """Whether convolutions of heads have biases in place of batch norms."""
    keys = list(heads)
    if not any(key.endswith(".conv.bias") for key in keys) or any(map(_is_of_norm, keys)):
        return False
    return any(map(_is_of_norm, _places_of_heads(model, Structure.TRAINING)))  # pyright: ignore[reportArgumentType]  # modules are hashable


def _is_of_norm(key: str) -> bool:
    return key.endswith(".running_var")
