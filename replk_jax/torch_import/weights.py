"""Finds the weights of one network among the contents of a PyTorch file.

Training scripts save a state dict within dictionaries of their own (`model_state_dict`, `net`,
`student`, ...), and modules around a network put prefixes before the names of its tensors
(`module.`, `backbone.`, `encoder.`, ...). Neither has to be known: every dictionary of the file
is searched for names that only a known family of networks has, and what precedes them is the
prefix.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from replk_jax.torch_import import other_networks
from replk_jax.torch_import.families import FAMILIES, Family, known_families
from replk_jax.torch_import.names import CLASSIFIER
from replk_jax.torch_import.tensors import (
    Placeholder,
    StoredTensor,
    UnreadableTensor,
    brief,
    check_total_size,
)

_MOST_LEVELS = 8  # of dictionaries around a state dict
# Entries whose tensors may be named as weights are, but are not weights: they are searched last.
_NOT_WEIGHTS = re.compile(
    r"(?:\w+_)?optim(?:izer)?s?(?:_states?|_state_dict)?|(?:\w+_)?schedulers?(?:_\w+)?|exp_avg\w*"
    r"|momentum_buffers?|(?:grad_)?scaler(?:_\w+)?|grad(?:ient)?s?|callbacks|loops",
    re.IGNORECASE,
)
# Names of entries and prefixes of an exponential moving average (EMA) of the weights.
_EMA = re.compile(
    r"(?:^|[._/-])(?i:ema|swa|avg|averaged?|polyak|shadow)(?:$|[._/-])|(?:^|[._/])ema(?=[A-Z])"
    r"|(?<=[a-z])E(?:MA|ma)(?![a-z])"
)

# Modules that wrap another one, of torch.compile, DistributedDataParallel, FSDP, activation
# checkpointing and DeepSpeed. No family has parts of these names.
_WRAPPER_MODULE = re.compile(
    r"(?<![^.])(?:module|_orig_mod|_forward_module|_fsdp_wrapped_module"
    r"|_checkpoint_wrapped_module)\."
)
_BACKBONE = "backbone."
# What the families call their classifiers, whose weights have two dimensions.
_CLASSIFIERS = ("head", "head.fc", "linear", "classifier.1", "classifier", "fc")
# The number of steps that went into an average; PyTorch and mmengine save it with the weights.
_STEP_COUNTERS = ("n_averaged", "steps")
_PROFILER_COUNTERS = ("total_ops", "total_params")  # of the package thop

_MOST_LISTED = 6  # candidates in an error message


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


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of one network.

    Attributes:
      tensors: by names without a prefix.
      family: the family of networks that the names belong to.
      place: where in the file they are, in words.
      ignored: names of tensors of other networks in the same state dict, such as the decoder of
        a segmenter.
      ignores_convolutions: whether convolutions are among them, as in the head of a segmenter or
        detector.
      is_ema: whether they are an EMA.
      has_ema: whether the file holds an EMA of the weights, these or others.
    """

    tensors: dict[str, StoredTensor]
    family: Family
    place: str
    ignored: tuple[str, ...]
    ignores_convolutions: bool
    is_ema: bool
    has_ema: bool


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """A network among the contents of a file.

    Attributes:
      entry: path of the dictionary that its tensors are in.
      prefix: of its tensors' names, without wrapper modules.
      family: of the network.
      values: everything in the dictionary that has the prefix and no longer one of another
        candidate, by name with the prefix and without wrapper modules.
      others: everything else in the dictionary, but for other candidates' values.
      original_prefix: with wrapper modules, as the file has it.
    """

    entry: tuple[str, ...]
    prefix: str
    family: Family
    values: Mapping[str, Any]
    others: Mapping[str, Any]
    original_prefix: str

    @cached_property
    def place(self) -> str:
        place = "".join(f"[{key!r}]" for key in self.entry) or "at the top"
        return place + (f", after {self.original_prefix!r}" if self.original_prefix else "")

    @cached_property
    def tensors(self) -> dict[str, Any]:
        """What the candidate holds, by names without the prefix, and the classifier beside it."""
        tensors = {name.removeprefix(self.prefix): v for name, v in self.values.items()}
        classifier = self._classifier()
        twice = classifier.keys() & tensors.keys()
        twice |= {name for name in tensors if _BACKBONE + name in tensors}
        if twice:
            name = min(twice)
            raise ValueError(
                f"some tensors are there with and without {_BACKBONE!r}, such as {name!r}: choose "
                f"by prefix={_BACKBONE!r}, or by rename."
            )
        return tensors | classifier

    @cached_property
    def ignored(self) -> tuple[str, ...]:
        """Names of the tensors in the same dictionary that are not the network's."""
        before = self.prefix.removesuffix(_BACKBONE)
        used = {before + name for name in self._classifier()}
        return tuple(
            name
            for name, value in self.others.items()
            if _is_tensor(value) and name not in used and not _is_step_counter(name)
        )

    def _classifier(self) -> dict[str, Any]:
        """That of mmpretrain's naming, which is next to the backbone, not in it."""
        if not self.prefix.endswith(_BACKBONE):
            return {}
        before = self.prefix.removesuffix(_BACKBONE)
        beside = {
            name.removeprefix(before): value
            for name, value in self.others.items()
            if name.startswith(before)
        }
        weights = (beside.get(f"{name}.weight") for name in _CLASSIFIERS)
        if not any(isinstance(w, StoredTensor) and len(w.shape) == 2 for w in weights):
            return {}
        return {name: value for name, value in beside.items() if CLASSIFIER.match(name)}


def find_weights(contents: Any, selection: Selection = Selection()) -> Weights:
    """Finds the one network that is wanted.

    Args:
      contents: of a file, as `read` gives them.
      selection: which weights to take; with several that fit it, the error lists them.

    Raises:
      ValueError: no weights of a network known here; several networks to choose from; no EMA
        where one is wanted; no entry or no tensors of the name that is asked for; or weights whose
        values are not in the file as arrays, or that are pruned or parametrized.
    """
    for everywhere in (False, True):
        entries = _selected_entries(contents, selection, everywhere)
        candidates = [
            c for path, entry in entries.items() for c in _candidates(path, entry, selection)
        ]
        if candidates:
            break
    if not candidates:
        raise ValueError(_nothing_found(contents, entries))
    averages = [c for c in candidates if _is_ema(c, contents)]
    others = [c for c in candidates if c not in averages]
    if selection.prefer_ema and not averages:
        raise ValueError(
            "there is no moving average (EMA) of the weights: no entry is called ema, model_ema, "
            "state_dict_ema, ema_state_dict or the like."
        )
    found = _only(averages if selection.prefer_ema or not others else others)
    if name := other_networks.identify(found.tensors):
        raise ValueError(other_networks.message(name, known_families()))
    return Weights(
        tensors=_checked(found.tensors),
        family=found.family,
        place=found.place,
        ignored=found.ignored,
        ignores_convolutions=any(
            isinstance(t, StoredTensor) and len(t.shape) == 4
            for t in map(found.others.get, found.ignored)
        ),
        is_ema=found in averages,
        has_ema=bool(averages),
    )


def _only(candidates: list[_Candidate]) -> _Candidate:
    if len(candidates) == 1:
        return candidates[0]
    listed = [
        f"\n  {c.family.NETWORK.__name__}, {len(c.values)} tensors: {_how_to_select(c)}"
        for c in candidates[:_MOST_LISTED]
    ]
    if len(candidates) > _MOST_LISTED:
        listed.append(f"\n  and {len(candidates) - _MOST_LISTED} more")
    raise ValueError(
        f"it holds {len(candidates)} networks. Choose one by key and prefix (--key and --prefix "
        f"at the command line):{''.join(listed)}"
    )


def _how_to_select(candidate: _Candidate) -> str:
    key = f"key={'/'.join(candidate.entry)!r}" if candidate.entry else ""
    # Also an empty one, where the prefix is all that distinguishes candidates of one entry.
    return ", ".join(filter(None, (key, f"prefix={candidate.original_prefix!r}")))


# --- Entries -----------------------------------------------------------------------------


def _selected_entries(
    contents: Any, selection: Selection, everywhere: bool
) -> dict[tuple[str, ...], dict[str, Any]]:
    """The dictionaries that hold tensors, by their path, as the selection names their tensors.

    Args:
      contents, selection: as of `find_weights`.
      everywhere: look also into entries whose names are those of optimizers and the like.

    Raises:
      ValueError: nothing has the key or prefix.
    """
    if (_mapping(contents) is None and not isinstance(contents, list | tuple)) or not contents:
        raise ValueError(
            f"there is no state dict but {_describe(contents)}. In PyTorch: "
            "torch.save(model.state_dict(), path)."
        )
    path: tuple[str, ...] = ()
    if selection.key is not None:
        path, contents = _at(contents, selection.key)
    entries = dict(_entries(contents, path, everywhere))
    if selection.prefix is not None:
        entries = {
            path: kept for path, entry in entries.items() if (kept := _after(entry, selection))
        }
        if not entries:
            raise ValueError(f"no tensor has a name that begins with {selection.prefix!r}.")
    if selection.rename is not None:
        entries = {path: _renamed(entry, selection.rename) for path, entry in entries.items()}
    return entries


def _at(contents: Any, key: str) -> tuple[tuple[str, ...], Any]:
    """The entry of this key, and its path; "/" separates keys unless it is part of one."""
    by_name = {str(name): value for name, value in _items(contents)}
    if key in by_name:
        return (key,), by_name[key]
    for name, value in by_name.items():
        if key.startswith(f"{name}/"):
            path, inner = _at(value, key.removeprefix(f"{name}/"))
            return (name, *path), inner
    there = f"there are {brief(list(by_name))}" if by_name else f"it is {_describe(contents)}"
    raise ValueError(f"there is no entry {key!r}; {there}.")


def _after(entry: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """What has the prefix that is asked for, without it."""
    prefix = selection.prefix or ""
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
    items = _items(value)
    direct = {name: inner for name, inner in items if isinstance(name, str)}
    if any(map(_is_tensor, direct.values())):
        yield path, direct
    if len(path) < _MOST_LEVELS:
        for name, inner in items:
            if everywhere or not _NOT_WEIGHTS.fullmatch(str(name)):
                yield from _entries(inner, (*path, str(name)), everywhere)


def _items(value: Any) -> list[tuple[Any, Any]]:
    """What a dictionary holds by keys, or a list by numbers; nothing for other values."""
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    return list((_mapping(value) or {}).items())


def _mapping(value: Any) -> Mapping[Any, Any] | None:
    """A dictionary, also one of a class that is not known here."""
    if isinstance(value, Placeholder):
        return value.entries or None
    return value if isinstance(value, Mapping) else None


def _is_tensor(value: Any) -> bool:
    return isinstance(value, StoredTensor | UnreadableTensor)


# --- Candidates --------------------------------------------------------------------------


def _candidates(
    path: tuple[str, ...], entry: Mapping[str, Any], selection: Selection
) -> Iterator[_Candidate]:
    """The networks in one dictionary, from whose names the selection's prefix has been removed."""
    names = _without_wrapper_modules(entry)
    families: dict[str, Family] = {}
    for name in names:
        for family in FAMILIES:
            if match := _KEYS[family].match(name):
                families.setdefault(match[1], family)
    # A name belongs to the longest prefix that it has.
    prefixes = sorted(families, key=len, reverse=True)
    owners = {name: next((p for p in prefixes if name.startswith(p)), None) for name in names}
    others = {name: entry[names[name]] for name, owner in owners.items() if owner is None}
    exact = selection.prefix is not None and "" in families
    for prefix in [""] if exact else families:
        own = [name for name, owner in owners.items() if owner == prefix]
        yield _Candidate(
            entry=path,
            prefix=prefix,
            family=families[prefix],
            values={name: entry[names[name]] for name in own},
            others=others,
            original_prefix=(selection.prefix or "") + _prefix_in_file(own, names, prefix),
        )


# The prefix, as short as possible, and after it what only names of the family begin with.
_KEYS = {
    family: re.compile(rf"((?:.*?\.)?)(?:{family.KEYS.pattern})", re.DOTALL) for family in FAMILIES
}


def _without_wrapper_modules(names: Iterable[str]) -> dict[str, str]:
    """From names without the wrapper modules in them to those in the file.

    A name that would come to be there twice keeps its wrapper modules.
    """
    names = list(names)
    plain = {name: name for name in names if not _WRAPPER_MODULE.search(name)}
    for name in names:
        short = _WRAPPER_MODULE.sub("", name)
        plain[name if plain.get(short, name) != name else short] = name
    return plain


def _prefix_in_file(own: Iterable[str], names: Mapping[str, str], prefix: str) -> str:
    """What precedes the names of a network's tensors, with the wrapper modules before it."""
    for name in own:
        rest = name.removeprefix(prefix)
        if names[name].endswith(rest):  # no wrapper module within the network
            return names[name].removesuffix(rest)
    return prefix


def _is_ema(candidate: _Candidate, contents: Any) -> bool:
    top = candidate.entry[0] if candidate.entry else None
    swapped = _entry_of_raw_weights(contents)
    if swapped and top in ("state_dict", swapped):
        return top == "state_dict"
    return bool(_EMA.search("/".join((*candidate.entry, candidate.prefix))))


def _entry_of_raw_weights(contents: Any) -> str | None:
    """Of a file that has the EMA under "state_dict": the entry of the weights themselves.

    mmengine's EMAHook swaps the two before it saves (`ema_state_dict` holds the raw weights), and
    so does Lightning's WeightAveraging.
    """
    contents = _mapping(contents) or {}
    meta = _mapping(contents.get("meta")) or {}
    if "mmengine_version" in meta or "message_hub" in contents:
        return "ema_state_dict" if "ema_state_dict" in contents else None
    if "averaging_state" in contents and "current_model_state" in contents:
        return "current_model_state"
    return None


def _is_step_counter(name: str) -> bool:
    return name.rpartition(".")[2] in (*_STEP_COUNTERS, *_PROFILER_COUNTERS)


def _checked(values: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """The tensors that are weights: no counters, and nothing else that is saved with them.

    Raises:
      ValueError: a tensor that stands for another one, or whose values are not in the file; or
        tensors that take more memory than the file justifies.
    """
    tensors = {n: v for n, v in values.items() if _is_tensor(v) and not _is_step_counter(n)}
    if reason := _unreadable_reason(tensors) or _rewritten_reason(values):
        raise ValueError(reason)
    check_total_size(tensors.values())
    return tensors


# By a name among the tensors that PyTorch saves in the place of a weight, from which it computes
# the weight in each call: what has been done to the weight, and how to undo it.
_REWRITTEN = (
    (re.compile(r"(.+)_mask"), "pruned", "torch.nn.utils.prune.remove(module, 'weight')"),
    (
        re.compile(r"(.+\.weight)_g"),
        "weight-normalised",
        "torch.nn.utils.remove_weight_norm(module)",
    ),
    (
        re.compile(r"(.+\.weight)_u"),
        "spectrally normalised",
        "torch.nn.utils.remove_spectral_norm(module)",
    ),
    (
        re.compile(r"(.+)\.parametrizations\..+"),
        "parametrized",
        "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')",
    ),
    (
        re.compile(r"(.+)\.(?:zero_point|_packed_params\..+)"),
        "quantized",
        "take the float model, from before it was quantized,",
    ),
)


def _rewritten_reason(names: Iterable[str]) -> str | None:
    """What is said of weights that PyTorch computes from what is saved; None without any."""
    names = list(names)
    for pattern, kind, remedy in _REWRITTEN:
        if found := [name for name in names if pattern.fullmatch(name)]:
            where = pattern.fullmatch(found[0])[1]
            return (
                f"{where} is {kind} ({brief(found)}). In PyTorch: {remedy} before the state dict "
                "is saved."
            )
    return None


def _unreadable_reason(values: Mapping[str, Any]) -> str | None:
    """What is said of tensors whose values are not in the file; None if there are none."""
    tensors = {name: value for name, value in values.items() if _is_tensor(value)}
    unreadable = {n: v for n, v in tensors.items() if isinstance(v, UnreadableTensor)}
    if not unreadable:
        return None
    first = next(iter(unreadable.values()))
    return (
        f"{len(unreadable)} of its {len(tensors)} tensors are {first.kind}: "
        f"{brief(list(unreadable))}. {first.remedy}"
    )


# --- Nothing found -----------------------------------------------------------------------


def _nothing_found(contents: Any, entries: Mapping[tuple[str, ...], Mapping[str, Any]]) -> str:
    if found := next(_pickled_modules(contents), None):
        path, module = found
        where = f"its entry {'/'.join(path)!r}" if path else "it"
        return (
            f"{where} holds a pickled {module.path} object, a whole module, not a state dict. In "
            "PyTorch: torch.save(model.state_dict(), ...)."
        )
    names = [name for entry in entries.values() for name in entry]
    if not names:
        return (
            f"there is no state dict but {_describe(contents)}. In PyTorch: "
            "torch.save(model.state_dict(), path)."
        )
    for entry in entries.values():
        if reason := _unreadable_reason(entry) or _rewritten_reason(entry):
            return reason
    if name := other_networks.identify_with_prefix(names):
        return other_networks.message(name, known_families())
    return f"these are not the weights of a network known here, {known_families()}: {brief(names)}"


def _pickled_modules(
    value: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Placeholder]]:
    """The whole modules among the contents, by their path."""
    if isinstance(value, Placeholder) and value.is_module:
        yield path, value
    elif len(path) < _MOST_LEVELS:
        for name, inner in _items(value):
            yield from _pickled_modules(inner, (*path, str(name)))


def _describe(contents: Any) -> str:
    if contents == {}:
        return "an empty dictionary"
    items = _items(contents)
    if items and all(_is_numpy(value) for _, value in items):
        return "NumPy arrays, which PyTorch pickles as objects (torch.from_numpy makes tensors)"
    if isinstance(contents, Mapping):
        return f"a dictionary without tensors, of the entries {brief(list(contents))}"
    return f"a {type(contents).__name__}"


def _is_numpy(value: Any) -> bool:
    return isinstance(value, Placeholder) and value.module.partition(".")[0] == "numpy"
