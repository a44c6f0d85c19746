"""Finds networks in a dictionary of tensors, by the names of each family's tensors."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from replk_jax.io.tensors import StoredTensor
from replk_jax.torch_import.composites import BACKBONE, COMPOSITES, Composite
from replk_jax.torch_import.entries import Selection, is_tensor, mapping_of
from replk_jax.torch_import.families import FAMILIES, Family
from replk_jax.torch_import.names import CLASSIFIER

# Entries and prefixes of an exponential moving average (EMA) of the weights.
_EMA = re.compile(
    r"(?:^|[._/-])(?i:ema|swa|avg|averaged?|polyak|shadow)(?:$|[._/-])|(?:^|[._/])ema(?=[A-Z])"
    r"|(?<=[a-z])E(?:MA|ma)(?![a-z])"
)


# Wrapper modules of torch.compile, DistributedDataParallel, FSDP, activation checkpointing and
# DeepSpeed. No family uses these names.
_WRAPPER_MODULE = re.compile(
    r"(?<![^.])(?:module|_orig_mod|_forward_module|_fsdp_wrapped_module"
    r"|_checkpoint_wrapped_module)\."
)
# The families' names of classifiers, whose weights have two dimensions.
_CLASSIFIERS = ("head", "head.fc", "linear", "classifier.1", "classifier", "fc")
# The number of averaged steps, which PyTorch and mmengine save with the weights.
_STEP_COUNTERS = ("n_averaged", "steps")
_PROFILER_COUNTERS = ("total_ops", "total_params")  # of the package thop
_IMAGE_STATISTICS = "data_preprocessor."  # mean and std of the images, in files of mmengine


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A network among the contents of a file.

    Attributes:
      entry: path of the dictionary with the tensors.
      prefix: of the tensors' names, without wrapper modules.
      family: of the network.
      values: entries of the dictionary with this prefix, but not with a longer prefix of another
        candidate. The names keep the prefix, without wrapper modules.
      others: entries of the dictionary that belong to no candidate.
      original_prefix: the prefix in the file, with wrapper modules.
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
        return place + (f", after {self.whole_prefix!r}" if self.whole_prefix else "")

    @property
    def whole_prefix(self) -> str:
        """`original_prefix`; of a composite network, the prefix of all its tensors."""
        return self.original_prefix.removesuffix(BACKBONE if self.composite else "")

    @cached_property
    def tensors(self) -> dict[str, Any]:
        """The values by names without the prefix, and those of a classifier beside them."""
        tensors = {name.removeprefix(self.prefix): v for name, v in self.values.items()}
        classifier = self._classifier()
        twice = classifier.keys() & tensors.keys()
        twice |= {name for name in tensors if BACKBONE + name in tensors}
        if twice:
            name = min(twice)
            raise ValueError(
                f"some tensors exist with and without {BACKBONE!r}, such as {name!r}: choose by "
                f"prefix={BACKBONE!r}, or by rename."
            )
        return tensors | classifier

    @cached_property
    def composite(self) -> Composite | None:
        """The composite network with this one as its backbone; None without known heads."""
        names = self._beside() if self.prefix.endswith(BACKBONE) else {}
        return next((c for c in COMPOSITES if any(map(c.KEYS.match, names))), None)

    @cached_property
    def heads(self) -> dict[str, Any]:
        """The tensors of the heads of the composite network, by names without the prefix."""
        if self.composite is None:
            return {}
        starts = tuple(f"{module}." for module in self.composite.MODULES)
        return {name: value for name, value in self._beside().items() if name.startswith(starts)}

    @cached_property
    def ignored(self) -> tuple[str, ...]:
        """Names of tensors in the same dictionary that belong neither to the network nor to heads.

        Statistics of the images are not among them.
        """
        before = self.prefix.removesuffix(BACKBONE)
        used = {before + name for name in (*self._classifier(), *self.heads)}
        return tuple(
            name
            for name, value in self.others.items()
            if is_tensor(value)
            and name not in used
            and not is_step_counter(name)
            and not name.startswith(before + _IMAGE_STATISTICS)
        )

    def _beside(self) -> dict[str, Any]:
        """The values beside the backbone, by names without the prefix around it."""
        before = self.prefix.removesuffix(BACKBONE)
        return {
            name.removeprefix(before): value
            for name, value in self.others.items()
            if name.startswith(before)
        }

    def _classifier(self) -> dict[str, Any]:
        """The classifier in mmpretrain's naming, which is next to the backbone."""
        if not self.prefix.endswith(BACKBONE):
            return {}
        beside = self._beside()
        weights = (beside.get(f"{name}.weight") for name in _CLASSIFIERS)
        if not any(isinstance(w, StoredTensor) and len(w.shape) == 2 for w in weights):
            return {}
        return {name: value for name, value in beside.items() if CLASSIFIER.match(name)}


def candidates_in(
    path: tuple[str, ...], entry: Mapping[str, Any], selection: Selection
) -> Iterator[Candidate]:
    """The networks in one dictionary, from whose names the selection's prefix has been removed."""
    names = _without_wrapper_modules(entry)
    families: dict[str, Family] = {}
    for name in names:
        for family in FAMILIES:
            if match := _KEYS[family].match(name):
                families.setdefault(match[1], family)
    # A name belongs to the longest matching prefix.
    prefixes = sorted(families, key=len, reverse=True)
    owners = {name: next((p for p in prefixes if name.startswith(p)), None) for name in names}
    others = {name: entry[names[name]] for name, owner in owners.items() if owner is None}
    exact = [] if selection.prefix is None else [p for p in ("", BACKBONE) if p in families]
    for prefix in exact[:1] or families:
        own = [name for name, owner in owners.items() if owner == prefix]
        yield Candidate(
            entry=path,
            prefix=prefix,
            family=families[prefix],
            values={name: entry[names[name]] for name in own},
            others=others,
            original_prefix=(selection.prefix or "") + _prefix_in_file(own, names, prefix),
        )


# The shortest prefix, followed by the start of names that only the family has.
_KEYS = {
    family: re.compile(rf"((?:.*?\.)?)(?:{family.KEYS.pattern})", re.DOTALL) for family in FAMILIES
}


def _without_wrapper_modules(names: Iterable[str]) -> dict[str, str]:
    """Maps names without wrapper modules to the names in the file.

    A name that would not be unique keeps its wrapper modules.
    """
    names = list(names)
    plain = {name: name for name in names if not _WRAPPER_MODULE.search(name)}
    for name in names:
        short = _WRAPPER_MODULE.sub("", name)
        plain[name if plain.get(short, name) != name else short] = name
    return plain


def _prefix_in_file(own: Iterable[str], names: Mapping[str, str], prefix: str) -> str:
    """The prefix in the file of a network's tensors, with wrapper modules."""
    for name in own:
        rest = name.removeprefix(prefix)
        if names[name].endswith(rest):  # no wrapper module within the network
            return names[name].removesuffix(rest)
    return prefix


def is_ema(candidate: Candidate, contents: Any) -> bool:
    """Whether a network is an EMA of another one, by the names of its entry and prefix."""
    top = candidate.entry[0] if candidate.entry else None
    swapped = _entry_of_raw_weights(contents)
    if swapped and top in ("state_dict", swapped):
        return top == "state_dict"
    return bool(_EMA.search("/".join((*candidate.entry, candidate.prefix))))


def _entry_of_raw_weights(contents: Any) -> str | None:
    """The entry of the weights themselves, in a file with the EMA under "state_dict".

    mmengine's EMAHook swaps the two before saving, so that `ema_state_dict` has the raw weights.
    Lightning's WeightAveraging does likewise.
    """
    contents = mapping_of(contents) or {}
    meta = mapping_of(contents.get("meta")) or {}
    if "mmengine_version" in meta or "message_hub" in contents:
        return "ema_state_dict" if "ema_state_dict" in contents else None
    if "averaging_state" in contents and "current_model_state" in contents:
        return "current_model_state"
    return None


def is_step_counter(name: str) -> bool:
    """Whether a tensor counts steps or operations, and is no weight."""
    return name.rpartition(".")[2] in (*_STEP_COUNTERS, *_PROFILER_COUNTERS)
