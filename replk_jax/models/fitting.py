"""Fits tensors to a model that may differ in classes, input channels or stage norms.

The rules are the same for variables of this package and for tensors in PyTorch's names and
layouts. A `Naming` describes the difference.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from replk_jax.io.tensors import TensorLike
from replk_jax.io.text import brief
from replk_jax.io.user_warnings import warn_user
from replk_jax.models.backbone import Backbone
from replk_jax.models.layers import pytorch_init
from replk_jax.models.network import Path
from replk_jax.models.variables import abstract_variables, by_path, conform
from replk_jax.reparam import reparameterize

_Tensors = Mapping[str, TensorLike]

_INITIAL_NORM = {
    ("params", "scale"): 1,
    ("params", "bias"): 0,
    ("batch_stats", "mean"): 0,
    ("batch_stats", "var"): 1,
}


@dataclasses.dataclass(frozen=True)
class Fitting:
    """The permitted changes to tensors.

    Attributes:
      reset_head: draw a new classifier if the number of classes differs.
      adapt_input: adapt the kernels that see the image to the model's number of channels, like
        `in_channels` of `load_torch`.
      adapt_stage_norms: initialise output norms of stages that the file lacks, and leave out those
        that the model lacks.
      seed: of the new classifier.
    """

    reset_head: bool = False
    adapt_input: bool = False
    adapt_stage_norms: bool = False
    seed: int = 0


class Fitted(NamedTuple):
    """Variables fitted to a model.

    Attributes:
      variables: of the model.
      left_out: unused modules of the file, by their names there: a classifier, for a backbone
        everything after its last stage, and output norms of stages.
      initialized: modules that the file lacks, by the names they would have there; they have
        their initial values.
    """

    variables: dict[str, Any]
    left_out: tuple[str, ...]
    initialized: tuple[str, ...]


class Naming(Protocol):
    """The names and layouts of the tensors in a file.

    Attributes:
      input_axis: the axis of the input channels in a convolution's kernel.
      class_axis: the axis of the classes in a classifier's kernel.
    """

    input_axis: int
    class_axis: int

    def shapes(self, model: Backbone) -> Mapping[str, tuple[int, ...]]:
        """The shapes of the tensors of a model, by name."""
        ...

    def key(self, path: Path) -> str:
        """The name of the variable at a path, which begins with the collection."""
        ...

    def module(self, key: str) -> str:
        """The name of a tensor's module."""
        ...

    def in_module(self, key: str, module: str) -> str:
        """The name of the corresponding tensor in another module."""
        ...

    def in_classifier(self, key: str) -> bool:
        """Whether a tensor's module has the name of a classifier."""
        ...


def fit_variables(
    variables: Mapping[str, Any], model: Backbone, fitting: Fitting, *, source: str
) -> Fitted:
    """Fits the training-time variables of a network to another model of its class.

    Args:
      variables: of the network.
      model: the network to load into. With `deploy=True` the variables are re-parameterized.
      fitting: the permitted changes.
      source: name of the file, for warnings.

    Raises:
      ValueError: variables that do not fit.
    """
    fitted, left_out, initialized = fit_tensors(
        by_path(variables), model, _VariablePaths(model.head_name), fitting, source=source
    )
    training = conform(fitted, model.clone(deploy=False))
    return Fitted(reparameterize(training) if model.deploy else training, left_out, initialized)


def fit_tensors(
    tensors: _Tensors, model: Backbone, naming: Naming, fitting: Fitting, *, source: str
) -> tuple[dict[str, TensorLike], tuple[str, ...], tuple[str, ...]]:
    """Applies the permitted changes to tensors. Checks no other names and shapes.

    Args:
      tensors: by name.
      model: the network to load into.
      naming: of the tensors.
      fitting: the permitted changes.
      source: name of the file, for warnings.

    Returns:
      The tensors, and the modules left out and initialized; see `Fitted`.

    Raises:
      ValueError: another number of classes or input channels, and no permission to change it.
    """
    tensors = _place_last_norm(tensors, model, naming)
    fitted = _fit_input(tensors, model, naming, fitting, source)
    initial = {}
    if fitting.adapt_stage_norms:
        fitted = _without_surplus_norms(fitted, model, naming)
        initial = _missing_norms(fitted, model, naming)
    fitted = _fit_head(fitted | initial, model, naming, fitting)
    left_out = {naming.module(key) for key in tensors if key not in fitted}
    initialized = set(map(naming.module, initial))
    return fitted, tuple(sorted(left_out)), tuple(sorted(initialized))


class _VariablePaths:
    """Paths of variables, such as "params/head/kernel", and Flax's layouts."""

    input_axis, class_axis = 2, -1

    def __init__(self, head_name: str):
        self._head_name = head_name

    def shapes(self, model: Backbone) -> Mapping[str, tuple[int, ...]]:
        training = model.clone(deploy=False)
        return _variable_shapes(training)  # pyright: ignore[reportArgumentType]  # modules are hashable

    def key(self, path: Path) -> str:
        return "/".join(path)

    def module(self, key: str) -> str:
        _, *modules, _ = key.split("/")
        return "/".join(modules)

    def in_module(self, key: str, module: str) -> str:
        collection, *_, leaf = key.split("/")
        return f"{collection}/{module}/{leaf}"

    def in_classifier(self, key: str) -> bool:
        return key.split("/")[1] == self._head_name


@functools.lru_cache(maxsize=8)  # to trace a network takes a second, and fitting asks repeatedly
def _variable_shapes(model: Backbone) -> Mapping[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in by_path(abstract_variables(model)).items()}


def _modules(keys: Mapping[str, Any], naming: Naming) -> set[str]:
    return set(map(naming.module, keys))


def _module_at(path: Path, naming: Naming) -> str:
    """The name of a batch norm."""
    return naming.module(naming.key(("params", *path, "scale")))


def _place_last_norm(tensors: _Tensors, model: Backbone, naming: Naming) -> _Tensors:
    """Renames the norm after the last stage where a classifier and a backbone differ.

    It is the final norm of a classifier or feature extractor, and the last stage's own norm in a
    backbone.
    """
    if not model.stage_norms:
        return tensors
    final, of_stage = (_module_at(p, naming) for p in (model.final_norm, model.stage_norms[-1]))
    held, wanted = _modules(tensors, naming), _modules(naming.shapes(model), naming)
    for source, target in ((final, of_stage), (of_stage, final)):
        if source in held - wanted and target in wanted - held:
            return {
                naming.in_module(key, target) if naming.module(key) == source else key: value
                for key, value in tensors.items()
            }
    return tensors


def _without_surplus_norms(
    tensors: _Tensors, model: Backbone, naming: Naming
) -> dict[str, TensorLike]:
    """Removes the output norms of stages that the model lacks."""
    norms = {_module_at(path, naming) for path in model.stage_norms}
    surplus = norms - _modules(naming.shapes(model), naming)
    return {key: value for key, value in tensors.items() if naming.module(key) not in surplus}


def _missing_norms(tensors: _Tensors, model: Backbone, naming: Naming) -> dict[str, np.ndarray]:
    """Initial values of the model's output norms of stages that the tensors lack."""
    shapes = naming.shapes(model)
    missing = _modules(shapes, naming) - _modules(tensors, naming)
    norms = [path for path in model.stage_norms if _module_at(path, naming) in missing]
    values = {
        naming.key((collection, *path, leaf)): value
        for path in norms
        for (collection, leaf), value in _INITIAL_NORM.items()
    }
    return {key: np.full(shapes[key], value, np.float32) for key, value in values.items()}


def _fit_head(
    tensors: _Tensors, model: Backbone, naming: Naming, fitting: Fitting
) -> dict[str, TensorLike]:
    """Removes final layers that the model lacks, and draws a new classifier if permitted."""
    kept = {key: value for key, value in tensors.items() if not naming.in_classifier(key)}
    shapes = naming.shapes(model)
    if not model.has_classifier:
        whole = naming.shapes(model.clone(num_classes=1, out_indices=None))
        final = _modules(whole, naming) - _modules(shapes, naming)
        return {key: value for key, value in kept.items() if naming.module(key) not in final}
    kernel, bias = (naming.key(("params", model.head_name, leaf)) for leaf in ("kernel", "bias"))
    shape = tensors[kernel].shape if kernel in tensors else None
    is_linear = bias in tensors and shape is not None and len(shape) == 2
    fits = shape is not None and (not shape or shape[naming.class_axis] == model.num_classes)
    # The later check of all shapes reports another kind of classifier, unless it is replaced.
    if fits and (is_linear or not fitting.reset_head):
        return dict(tensors)
    held = _describe_classifier(tensors, kernel, bias, naming)
    if not fitting.reset_head:
        raise ValueError(
            f"its classifier {held}, the model has {model.num_classes}: load with reset_head=True "
            "to draw a new one, or set num_classes."
        )
    warn_user(
        f"The classifier of the file, which {held}, is left out, and one of "
        f"{model.num_classes} classes is drawn at random."
    )
    return kept | _draw_classifier(shapes, kernel, bias, fitting.seed)


def _describe_classifier(tensors: _Tensors, kernel: str, bias: str, naming: Naming) -> str:
    """Describes a classifier that does not fit, for an error.

    Args:
      tensors: of the network.
      kernel, bias: names of the tensors of a linear classifier.
      naming: of the tensors.
    """
    shape = tensors[kernel].shape if kernel in tensors else ()
    if bias in tensors and len(shape) == 2:
        return f"has {shape[naming.class_axis]} classes"
    parts = sorted(filter(naming.in_classifier, tensors))
    if not parts:
        return "is not there"
    missing = [name for name in (kernel, bias) if name not in tensors]
    problem = f"{missing[0]} is missing" if missing else f"{kernel} is no matrix"
    return f"is of another kind ({problem}; there are {brief(parts)})"


def _draw_classifier(
    shapes: Mapping[str, tuple[int, ...]], kernel: str, bias: str, seed: int
) -> dict[str, np.ndarray]:
    """Initial values of a linear classifier, by the names of its tensors.

    Args:
      shapes: of the model's tensors.
      kernel, bias: names of the classifier's tensors.
      seed: of the values.
    """
    width = math.prod(shapes[kernel]) // math.prod(shapes[bias])
    draw = pytorch_init(width)
    return {
        key: np.asarray(
            draw(jax.random.fold_in(jax.random.key(seed), len(shapes[key])), shapes[key])
        )
        for key in (kernel, bias)
    }


def _fit_input(
    tensors: _Tensors, model: Backbone, naming: Naming, fitting: Fitting, source: str
) -> dict[str, TensorLike]:
    """Adapts the kernels that see the image to the model's number of channels.

    Raises:
      ValueError: the number differs, and adapting is not permitted.
    """
    wanted, axis = model.in_channels, naming.input_axis
    fitted = dict(tensors)
    for key, shape in naming.shapes(model).items():
        held = _input_channels(tensors.get(key), shape, wanted, axis)
        if held in (None, wanted):
            continue
        if not fitting.adapt_input:
            raise ValueError(
                f"{key} takes {held} channels, the model has in_channels={wanted}. To adapt it to "
                f"{wanted} channels, load with in_channels={wanted} (load_into: adapt_input=True; "
                "in training --config.init_adapt_input)."
            )
        fitted[key] = _other_inputs(np.asarray(tensors[key]), wanted, axis)
        warn_user(f"{source}: {key} takes {held} channels, and is adapted to {wanted}.")
    return fitted


def _input_channels(
    tensor: TensorLike | None, shape: tuple[int, ...], in_channels: int, axis: int
) -> int | None:
    """Input channels of a kernel; None unless it sees the image.

    Args:
      tensor: of the file.
      shape: in the model.
      in_channels: of the model.
      axis: of the input channels.
    """
    if tensor is None or len(tensor.shape) != 4 or len(shape) != 4 or shape[axis] != in_channels:
        return None
    same_but_inputs = (*tensor.shape[:axis], in_channels, *tensor.shape[axis + 1 :]) == shape
    return tensor.shape[axis] or None if same_but_inputs else None


def _other_inputs(kernel: np.ndarray, count: int, axis: int) -> np.ndarray:
    """Adapts a kernel to another number of input channels, as timm does.

    For one channel it sums over the inputs. Otherwise it repeats the inputs in turn and scales
    them. If the old number divides the new one, an image with equal channels gives the same output
    as before.

    Args:
      kernel: of a convolution, with four axes.
      count: of the new input channels.
      axis: of the input channels.
    """
    if count == 1:
        return kernel.sum(axis, keepdims=True, dtype=np.float32).astype(kernel.dtype)
    held = kernel.shape[axis]
    repeated = np.take(kernel, np.arange(count) % held, axis)
    return (repeated.astype(np.float32) * (held / count)).astype(kernel.dtype)
