"""Finds the dictionaries of tensors in the contents of a PyTorch file."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from replk_jax.io.tensors import StoredTensor
from replk_jax.io.text import brief
from replk_jax.torch_import.placeholders import Placeholder, UnreadableTensor

_MOST_LEVELS = 8  # of dictionaries around a state dict
# Entries whose tensors are not weights, but may have the same names. They are searched last.
_NOT_WEIGHTS = re.compile(
    r"(?:\w+_)?optim(?:izer)?s?(?:_states?|_state_dict)?|(?:\w+_)?schedulers?(?:_\w+)?|exp_avg\w*"
    r"|momentum_buffers?|(?:grad_)?scaler(?:_\w+)?|grad(?:ient)?s?|callbacks|loops",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which weights to read from a file with several networks or other names.

    Attributes:
      prefer_ema: read the exponential moving average (EMA) of the weights.
      key: of the entry with the state dict, such as "model", or "checkpoint/model" for an entry
        inside another one. None searches all entries.
      prefix: of the names of the network's tensors, such as "encoder."; it is removed. "" selects
        the names without a prefix. None searches for it.
      rename: maps the name of a tensor, without the prefix, to its name in a supported naming, or
        to None to leave it out.
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


ANY = Selection()  # of a file with one network


def selected_entries(
    contents: Any, selection: Selection, everywhere: bool
) -> dict[tuple[str, ...], dict[str, Any]]:
    """The dictionaries of tensors by path, with the selection applied to their names.

    Args:
      contents, selection: as in `find_weights`.
      everywhere: search the entries of optimizers and the like too.

    Raises:
      ValueError: no entry has the key, or no tensor the prefix.
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
    """The path and the entry of a key. "/" separates nested keys, unless it is part of one."""
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
    """The values of an entry whose names have the prefix, by names without it."""
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
    """Every dictionary with tensors, outer ones first."""
    items = items_of(value)
    direct = {name: inner for name, inner in items if isinstance(name, str)}
    if any(map(is_tensor, direct.values())):
        yield path, direct
    if len(path) < _MOST_LEVELS:
        for name, inner in items:
            if everywhere or not _NOT_WEIGHTS.fullmatch(str(name)):
                yield from _entries(inner, (*path, str(name)), everywhere)


def items_of(value: Any) -> list[tuple[Any, Any]]:
    """The items of a dictionary or, by index, of a list; empty for other values."""
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    return list((mapping_of(value) or {}).items())


def mapping_of(value: Any) -> Mapping[Any, Any] | None:
    """A dictionary, even of an unknown class; None for other values."""
    if isinstance(value, Placeholder):
        return value.entries or None
    return value if isinstance(value, Mapping) else None


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor, even if it is not stored as an array."""
    return isinstance(value, StoredTensor | UnreadableTensor)


def pickled_modules(
    value: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Placeholder]]:
    """The pickled modules in the contents, by path."""
    if isinstance(value, Placeholder) and value.is_module:
        yield path, value
    elif len(path) < _MOST_LEVELS:
        for name, inner in items_of(value):
            yield from pickled_modules(inner, (*path, str(name)))


def no_state_dict(contents: Any) -> str:
    """The error for contents without a state dict."""
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
