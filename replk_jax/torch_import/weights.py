"""Where in the contents of a PyTorch file the weights of the network lie."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from replk_jax.torch_import.tensors import StoredTensor, brief

# What training scripts call the weights beside what else they save, and the averages of them.
_WRAPPERS = ("model", "module", "state_dict")
_AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")

# What DataParallel, torch.compile and Lightning put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.")
_MOST_PREFIXES = 4
_BACKBONE = "backbone."
# What the families call their classifiers, whose weights have two dimensions.
_CLASSIFIERS = ("head", "head.fc", "linear", "classifier.1", "fc")

# How many steps went into a moving average, which PyTorch and mmengine keep beside its weights.
_COUNTERS = ("n_averaged", "steps")


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of one network.

    Attributes:
      tensors: by names without a prefix.
      place: where they were, in words.
      ignored: names of tensors beside them that belong to other networks, such as the decoder
        of a segmenter.
    """

    tensors: dict[str, StoredTensor]
    place: str
    ignored: tuple[str, ...] = ()


def find_weights(contents: Any, *, prefer_ema: bool = False) -> Weights:
    """Looks into the wrappers that training scripts put around a state dict.

    Args:
      contents: of a file, as `read` gives them.
      prefer_ema: take the moving average that was saved beside the weights.

    Raises:
      ValueError: there is no state dict, no moving average where one is wanted, or an entry
        among the weights that is not a tensor.
    """
    keys = []
    while isinstance(contents, Mapping):
        inner = _wrapped(contents, prefer_ema and not set(keys) & set(_AVERAGES))
        if inner is None:
            break
        keys.append(inner)
        contents = contents[inner]
    if prefer_ema and not set(keys) & set(_AVERAGES):
        raise ValueError(
            "there is no moving average of the weights: none of the entries "
            f"{', '.join(_AVERAGES)}."
        )
    if not isinstance(contents, Mapping) or not contents:
        raise ValueError(
            f"there is no state dict but {_describe(contents)}. In PyTorch: "
            "torch.save(model.state_dict(), path)."
        )
    others = [
        str(key)
        for key, value in contents.items()
        if not (isinstance(key, str) and isinstance(value, StoredTensor))
    ]
    if others:
        raise ValueError(
            f"{len(others)} of {len(contents)} entries are not tensors, so this is no state "
            f"dict: {brief(others)}"
        )
    place = "".join(f"[{key!r}]" for key in keys) or "at the top"
    tensors = {key: tensor for key, tensor in contents.items() if key not in _COUNTERS}
    return _without_prefix(tensors, place)


def has_average(contents: Any) -> bool:
    """Whether a moving average was saved beside the weights."""
    return isinstance(contents, Mapping) and _average(contents) is not None


def _wrapped(contents: Mapping[str, Any], prefer_ema: bool) -> str | None:
    """Under which of its keys a wrapper has the state dict; None if it is no wrapper."""
    average = _average(contents)
    if prefer_ema and average:
        return average
    for key in _WRAPPERS:
        if isinstance(contents.get(key), Mapping):
            return key
    if average:
        raise ValueError(
            f"there are no weights but their moving average, {average!r}: ask for that "
            "(prefer_ema=True, or --ema)."
        )
    return None


def _average(contents: Mapping[str, Any]) -> str | None:
    return next((key for key in _AVERAGES if isinstance(contents.get(key), Mapping)), None)


def _without_prefix(tensors: dict[str, StoredTensor], place: str) -> Weights:
    removed = ""
    for _ in range(_MOST_PREFIXES):
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in tensors)), None)
        if prefix is None:
            break
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
        removed += prefix
    ignored: tuple[str, ...] = ()
    if any(key.startswith(_BACKBONE) for key in tensors):
        removed += _BACKBONE
        kept = tensors
        if not _has_classifier(tensors):
            # Without a classifier, whatever else there is belongs to another network.
            kept = {key: value for key, value in tensors.items() if key.startswith(_BACKBONE)}
            ignored = tuple(key for key in tensors if key not in kept)
        tensors = {key.removeprefix(_BACKBONE): value for key, value in kept.items()}
        if len(tensors) < len(kept):
            raise ValueError(f"some tensors are there with and without {_BACKBONE!r}")
    return Weights(tensors, place + (f", after {removed!r}" if removed else ""), ignored)


def _has_classifier(tensors: Mapping[str, StoredTensor]) -> bool:
    weights = (tensors.get(f"{name}.weight") for name in _CLASSIFIERS)
    return any(weight is not None and len(weight.shape) == 2 for weight in weights)


def _describe(contents: Any) -> str:
    return "an empty dictionary" if contents == {} else f"a {type(contents).__name__}"
