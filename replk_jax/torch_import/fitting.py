"""Fits weights in official naming to a model that may differ in classes or input channels."""

from collections.abc import Mapping

from replk_jax.io.tensors import TensorLike
from replk_jax.models.backbone import Backbone
from replk_jax.models.composite import CompositeNetwork
from replk_jax.models.composite_fitting import fit_classes
from replk_jax.models.fitting import Fitted, Fitting, fit_tensors
from replk_jax.models.network import Path
from replk_jax.reparam import reparameterize
from replk_jax.torch_import import names
from replk_jax.torch_import.composites import composite_of, joined, split
from replk_jax.torch_import.convert import convert_state_dict
from replk_jax.torch_import.families import family_of
from replk_jax.torch_import.places import places_of, structure_of
from replk_jax.torch_import.structures import Structure


def fit(
    weights: Mapping[str, TensorLike], model: Backbone, fitting: Fitting, *, source: str
) -> Fitted:
    """Converts weights to the variables of a model.

    Args:
      weights: by official names.
      model: the network to load into.
      fitting: the permitted changes.
      source: name of the file, for warnings.

    Raises:
      ValueError: as `load_torch`.
    """
    naming = _OfficialNames(weights, model)
    fitted, left_out, initialized = fit_tensors(weights, model, naming, fitting, source=source)
    return Fitted(convert_state_dict(fitted, model), left_out, initialized)


def fit_composite(
    weights: Mapping[str, TensorLike], model: CompositeNetwork, fitting: Fitting, *, source: str
) -> Fitted:
    """Converts the weights of a composite network to the variables of a model of its class.

    Args:
      weights: by official names.
      model: the network to load into.
      fitting: the permitted changes. Those of the classes are of the heads.
      source: name of the file, for warnings.

    Raises:
      ValueError: as `load_torch`.
    """
    composite = composite_of(model)
    backbone, heads = split(weights)
    naming = _OfficialNames(backbone, model.backbone)
    backbone, *changes = fit_tensors(backbone, model.backbone, naming, fitting, source=source)
    own = model.clone(num_classes=composite.num_classes(heads) or model.num_classes)
    if structure_of(weights, model) is not Structure.TRAINING:
        if own.num_classes != model.num_classes:
            raise ValueError(
                f"it is re-parameterized and has {own.num_classes} classes, the model has "
                f"{model.num_classes}: give the file from before the merge."
            )
        return Fitted(convert_state_dict(joined(backbone, heads), model), *changes)
    own = own.clone(deploy=False)
    variables = convert_state_dict(joined(backbone, heads), own)
    if own.num_classes != model.num_classes:
        variables = fit_classes(variables, own, model, fitting)
    return Fitted(reparameterize(variables) if model.deploy else variables, *changes)


class _OfficialNames:
    """Official names, and PyTorch's layouts, in the structure of some weights."""

    input_axis, class_axis = 1, 0

    def __init__(self, weights: Mapping[str, TensorLike], model: Backbone):
        self._family, self._architecture = family_of(model), model.architecture
        self._structure = self._family.STRUCTURES.structure_of(weights)

    def shapes(self, model: Backbone) -> Mapping[str, tuple[int, ...]]:
        places = places_of(model, self._structure)
        return {key: names.torch_shape(leaf.shape) for key, (_, leaf) in places.items()}

    def key(self, path: Path) -> str:
        return self._family.official_key(names.by_rule(path), self._architecture)

    def module(self, key: str) -> str:
        return key.rpartition(".")[0]

    def in_module(self, key: str, module: str) -> str:
        return f"{module}.{key.rpartition('.')[2]}"

    def in_classifier(self, key: str) -> bool:
        return bool(names.CLASSIFIER.match(key))
