"""Finds the weights of one network among the contents of a PyTorch file.

Training scripts save a state dict inside other dictionaries (`model_state_dict`, `net`, `student`,
...), and modules around a network add prefixes to the names of its tensors (`module.`, `backbone.`,
`encoder.`, ...). Neither must be known in advance. Every dictionary of the file is searched for
names that only one family of networks has; the prefix is the text before them.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from replk_jax.io.tensors import StoredTensor, check_total_size
from replk_jax.io.text import brief
from replk_jax.torch_import import other_networks
from replk_jax.torch_import.candidates import Candidate, candidates_in, is_ema, is_step_counter
from replk_jax.torch_import.composites import Composite, joined
from replk_jax.torch_import.entries import (
    ANY,
    Selection,
    is_tensor,
    no_state_dict,
    pickled_modules,
    selected_entries,
)
from replk_jax.torch_import.families import Family, known_families
from replk_jax.torch_import.names import with_classifier_called
from replk_jax.torch_import.placeholders import UnreadableTensor
from replk_jax.torch_import.torch_files import Contents

_MOST_LISTED = 6  # candidates in an error message


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of one network.

    Attributes:
      tensors: by names without a prefix; of a composite network, those of its backbone.
      family: of the network or backbone, by the names.
      composite: of the network; None for a simple one, and for heads that are not known.
      heads: the tensors of a composite network beside its backbone, by names without a prefix.
      place: location in the file, in words.
      ignored: names of other tensors in the same state dict, such as the heads of a detector.
      ignores_convolutions: whether `ignored` includes convolutions, as in the head of a detector.
      is_ema: whether the weights are an exponential moving average (EMA).
      has_ema: whether the file has an EMA of any weights.
    """

    tensors: dict[str, StoredTensor]
    family: Family
    composite: Composite | None
    heads: dict[str, StoredTensor]
    place: str
    ignored: tuple[str, ...]
    ignores_convolutions: bool
    is_ema: bool
    has_ema: bool

    def by_official_names(self) -> tuple[dict[str, StoredTensor], str]:
        """`tensors` by official names, and their previous naming, as in `Recognized`.

        Raises:
          ValueError: as `Family.official_names`.
        """
        tensors, naming = self.family.official_names(self.tensors)
        return with_classifier_called(tensors, self.family.CLASSIFIER), naming

    def with_heads(self) -> dict[str, StoredTensor]:
        """All tensors of a composite network, by official names.

        Raises:
          ValueError: as `by_official_names`, and `Composite.official_names`.
        """
        assert self.composite is not None
        backbone, _ = self.by_official_names()
        return joined(backbone, self.composite.official_names(self.heads))

    def backbone_alone(self) -> "Weights":
        """These weights without the heads, which are among the ignored ones."""
        return dataclasses.replace(
            self,
            composite=None,
            heads={},
            ignored=(*self.ignored, *self.heads),
            ignores_convolutions=self.ignores_convolutions or _have_convolutions(self.heads),
        )


def find_weights(contents: Contents, selection: Selection = ANY) -> Weights:
    """Finds the one network that fits a selection.

    Args:
      contents: of a file.
      selection: which weights to read. If several networks fit it, the error lists them.

    Raises:
      ValueError: no weights of a supported network; several networks; no EMA, entry or tensors as
        selected; or weights whose values are not stored as arrays, or that are pruned or
        parametrized.
    """
    for everywhere in (False, True):
        entries = selected_entries(contents, selection, everywhere)
        candidates = [
            c for path, entry in entries.items() for c in candidates_in(path, entry, selection)
        ]
        if candidates:
            break
    if not candidates:
        raise ValueError(_nothing_found(contents, entries))
    emas = [c for c in candidates if is_ema(c, contents)]
    others = [c for c in candidates if c not in emas]
    if selection.prefer_ema and not emas:
        raise ValueError(
            "there is no EMA of the weights: no entry has the name ema, model_ema, state_dict_ema, "
            "ema_state_dict or the like."
        )
    found = _only(emas if selection.prefer_ema or not others else others)
    if name := other_networks.identify(found.tensors):
        raise ValueError(other_networks.message(name, known_families()))
    return Weights(
        tensors=_checked(found.tensors),
        family=found.family,
        composite=found.composite,
        heads=_checked(found.heads),
        place=found.place,
        ignored=found.ignored,
        ignores_convolutions=_have_convolutions(
            {name: found.others[name] for name in found.ignored}
        ),
        is_ema=found in emas,
        has_ema=bool(emas),
    )


def _have_convolutions(tensors: Mapping[str, Any]) -> bool:
    return any(isinstance(t, StoredTensor) and len(t.shape) == 4 for t in tensors.values())


def _only(candidates: list[Candidate]) -> Candidate:
    if len(candidates) == 1:
        return candidates[0]
    listed = [f"\n  {_describe(c)}: {_how_to_select(c)}" for c in candidates[:_MOST_LISTED]]
    if len(candidates) > _MOST_LISTED:
        listed.append(f"\n  and {len(candidates) - _MOST_LISTED} more")
    raise ValueError(
        f"it holds {len(candidates)} networks. Choose one by key and prefix (--key and --prefix "
        f"at the command line):{''.join(listed)}"
    )


def _describe(candidate: Candidate) -> str:
    network = (candidate.composite or candidate.family).NETWORK
    return f"{network.__name__}, {len(candidate.values) + len(candidate.heads)} tensors"


def _how_to_select(candidate: Candidate) -> str:
    key = f"key={'/'.join(candidate.entry)!r}" if candidate.entry else ""
    # Also an empty one, where the prefix is all that distinguishes candidates of one entry.
    return ", ".join(filter(None, (key, f"prefix={candidate.whole_prefix!r}")))


def _checked(values: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """The tensors that are weights, without counters and other saved values.

    Raises:
      ValueError: a tensor from which PyTorch computes a weight, or whose values are not stored as
        an array; or tensors that need too much memory for the size of the file.
    """
    tensors = {n: v for n, v in values.items() if is_tensor(v) and not is_step_counter(n)}
    if reason := _unreadable_reason(tensors) or _rewritten_reason(values):
        raise ValueError(reason)
    check_total_size(tensors.values())
    return tensors


# Tensors that PyTorch saves in place of a weight, and computes the weight from: a pattern of their
# names, the kind of weight, and how to restore it.
_REWRITTEN = (
    (
        re.compile(r"(.+\.(?:weight|bias))_mask"),
        "pruned",
        "torch.nn.utils.prune.remove(module, 'weight')",
    ),
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
    """The error for weights that PyTorch computes from saved tensors; None without any."""
    names = list(names)
    for pattern, kind, remedy in _REWRITTEN:
        if matches := [match for match in map(pattern.fullmatch, names) if match]:
            found = [match[0] for match in matches]
            return (
                f"{matches[0][1]} is {kind} ({brief(found)}). In PyTorch: {remedy} before the "
                "state dict is saved."
            )
    return None


def _unreadable_reason(values: Mapping[str, Any]) -> str | None:
    """The error for tensors whose values are not stored as arrays; None without any."""
    tensors = {name: value for name, value in values.items() if is_tensor(value)}
    unreadable = {n: v for n, v in tensors.items() if isinstance(v, UnreadableTensor)}
    if not unreadable:
        return None
    first = next(iter(unreadable.values()))
    return (
        f"{len(unreadable)} of its {len(tensors)} tensors are {first.kind}: "
        f"{brief(list(unreadable))}. {first.remedy}"
    )


def _nothing_found(contents: Any, entries: Mapping[tuple[str, ...], Mapping[str, Any]]) -> str:
    if found := next(pickled_modules(contents), None):
        path, module = found
        where = f"its entry {'/'.join(path)!r}" if path else "it"
        return (
            f"{where} holds a pickled {module.path} object, a whole module, not a state dict. In "
            "PyTorch: torch.save(model.state_dict(), ...)."
        )
    names = [name for entry in entries.values() for name in entry]
    if not names:
        return no_state_dict(contents)
    for entry in entries.values():
        if reason := _unreadable_reason(entry) or _rewritten_reason(entry):
            return reason
    if name := other_networks.identify_with_prefix(names):
        return other_networks.message(name, known_families())
    return f"these are not the weights of a network known here, {known_families()}: {brief(names)}"
