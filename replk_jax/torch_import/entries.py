"""The dictionaries of tensors among the contents of a PyTorch file."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from replk_jax.io.tensors import StoredTensor
from replk_jax.io.text import brief
from replk_jax.torch_import.placeholders import Placeholder, UnreadableTensor

_MOST_LEVELS = 8  # of dictionaries around a state dict
# Entries whose tensors may be named as weights are, but are not weights: they are searched last.
_NOT_WEIGHTS = re.compile(
    r"(?:\w+_)?optim(?:izer)?s?(?:_states?|_state_dict)?|(?:\w+_)?schedulers?(?:_\w+)?|exp_avg\w*"
    r"|momentum_buffers?|(?:grad_)?scaler(?:_\w+)?|grad(?:ient)?s?|callbacks|loops",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which weights to take from a file that holds several networks, or names of its own.

    Attributes:
      prefer_ema: take the exponential moving average (EMA) that was saved with the weights.
      key: of the entry that holds the state dict, such as "model"; of an entry within another
        one, "checkpoint/model". None searches all entries.
      prefix: of the names of the network's tensors, such as "encoder."; it is removed. "" takes
        the names without one. None searches for it.
      rename: from the name of a tensor, after the prefix, to its name in a naming known here;
        None in place of a name leaves the tensor out.
    """

    prefer_ema: bool = False
    key: str | None = None
    prefix: str | None = None
    rename: Callable[[str], str | None] | None = None

    def __post_init__(self):
        for name in ("key", "prefix"):
            value = getattr(self, name)
            if not isinstance(value, str | None):
                raise ValueError(f"{name} must be a string, or None; got {value!r}.")


ANY = Selection()  # the one network of a file that holds one


def selected_entries(
    contents: Any, selection: Selection, everywhere: bool
) -> dict[tuple[str, ...], dict[str, Any]]:
    """The dictionaries that hold tensors, by their path, as the selection names their tensors.

    Args:
      contents, selection: as of `find_weights`.
      everywhere: look also into entries whose names are those of optimizers and the like.

    Raises:
      ValueError: nothing has the key or prefix.
    """
    if (mapping_of(contents) is None and not isinstance(contents, list | tuple)) or not contents:
        raise ValueError(no_state_dict(contents))
    path: tuple[str, ...] = ()
    if selection.key is not None:
        path, contents = _at(contents, selection.key)
    entries = dict(_entries(contents, path, everywhere))
    if selection.prefix is not None:
        entries = {
            path: kept
            for path, entry in entries.items()
            if (kept := _after(entry, selection.prefix))
        }
        if not entries:
            raise ValueError(f"no tensor has a name that begins with {selection.prefix!r}.")
    if selection.rename is not None:
        entries = {path: _renamed(entry, selection.rename) for path, entry in entries.items()}
    return entries


def _at(contents: Any, key: str) -> tuple[tuple[str, ...], Any]:
    """The entry of this key, and its path; "/" separates keys unless it is part of one."""
    by_name = {str(name): value for name, value in items_of(contents)}
    if key in by_name:
        return (key,), by_name[key]
    for name, value in by_name.items():
        if key.startswith(f"{name}/"):
            path, inner = _at(value, key.removeprefix(f"{name}/"))
            return (name, *path), inner
    there = f"there are {brief(list(by_name))}" if by_name else f"it is {_describe(contents)}"
    raise ValueError(f"there is no entry {key!r}; {there}.")


def _after(entry: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What has the prefix in an entry, without it."""
    return {
        name.removeprefix(prefix): value for name, value in entry.items() if name.startswith(prefix)
    }


def _renamed(entry: Mapping[str, Any], rename: Callable[[str], str | None]) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for name, value in entry.items():
        new = rename(name)
        if new in renamed:
            raise ValueError(f"rename gives {new!r} to two tensors, one of them {name!r}.")
        if new is not None:
            renamed[new] = value
    return renamed


def _entries(
    value: Any, path: tuple[str, ...], everywhere: bool
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every dictionary that holds tensors, the outer ones first."""
    items = items_of(value)
    direct = {name: inner for name, inner in items if isinstance(name, str)}
    if any(map(is_tensor, direct.values())):
        yield path, direct
    if len(path) < _MOST_LEVELS:
        for name, inner in items:
            if everywhere or not _NOT_WEIGHTS.fullmatch(str(name)):
                yield from _entries(inner, (*path, str(name)), everywhere)


def items_of(value: Any) -> list[tuple[Any, Any]]:
    """What a dictionary holds by keys, or a list by numbers; nothing for other values."""
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    return list((mapping_of(value) or {}).items())


def mapping_of(value: Any) -> Mapping[Any, Any] | None:
    """A dictionary, also one of a class that is not known here."""
    if isinstance(value, Placeholder):
        return value.entries or None
    return value if isinstance(value, Mapping) else None


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor, also one whose values are not in the file as an array."""
    return isinstance(value, StoredTensor | UnreadableTensor)


def pickled_modules(
    value: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Placeholder]]:
    """The whole modules among the contents, by their path."""
    if isinstance(value, Placeholder) and value.is_module:
        yield path, value
    elif len(path) < _MOST_LEVELS:
        for name, inner in items_of(value):
            yield from pickled_modules(inner, (*path, str(name)))


def no_state_dict(contents: Any) -> str:
    """What is said of contents without a state dict."""
    return (
        f"there is no state dict but {_describe(contents)}. In PyTorch: "
        "torch.save(model.state_dict(), path)."
    )


def _describe(contents: Any) -> str:
    if contents == {}:
        return "an empty dictionary"
    items = items_of(contents)
    if items and all(_is_numpy(value) for _, value in items):
        return "NumPy arrays, which PyTorch pickles as objects (torch.from_numpy makes tensors)"
    if isinstance(contents, Mapping):
        return f"a dictionary without tensors, of the entries {brief(list(contents))}"
    return f"a {type(contents).__name__}"


def _is_numpy(value: Any) -> bool:
    return isinstance(value, Placeholder) and value.module.partition(".")[0] == "numpy"
