"""Finds the weights of one network among the contents of a PyTorch file.

Training scripts save a state dict within dictionaries of their own (`model_state_dict`, `net`,
`student`, ...), and modules around a network put prefixes before the names of its tensors
(`module.`, `backbone.`, `encoder.`, ...). Neither has to be known: every dictionary of the file
is searched for names that only a known family of networks has, and what precedes them is the
prefix.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from replk_jax.io.tensors import StoredTensor, check_total_size
from replk_jax.io.text import brief
from replk_jax.torch_import import other_networks
from replk_jax.torch_import.candidates import Candidate, candidates_in, is_ema, is_step_counter
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

    def by_official_names(self) -> tuple[dict[str, StoredTensor], str]:
        """The tensors by official names, and whose names they had, as in `Recognized`.

        Raises:
          ValueError: as `Family.official_names`.
        """
        tensors, naming = self.family.official_names(self.tensors)
        return with_classifier_called(tensors, self.family.CLASSIFIER), naming


def find_weights(contents: Contents, selection: Selection = ANY) -> Weights:
    """Finds the one network that is wanted.

    Args:
      contents: of a file.
      selection: which weights to take; with several that fit it, the error lists them.

    Raises:
      ValueError: no weights of a network known here; several networks to choose from; no EMA
        where one is wanted; no entry or no tensors of the name that is asked for; or weights whose
        values are not in the file as arrays, or that are pruned or parametrized.
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
            "there is no moving average (EMA) of the weights: no entry is called ema, model_ema, "
            "state_dict_ema, ema_state_dict or the like."
        )
    found = _only(emas if selection.prefer_ema or not others else others)
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
        is_ema=found in emas,
        has_ema=bool(emas),
    )


def _only(candidates: list[Candidate]) -> Candidate:
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


def _how_to_select(candidate: Candidate) -> str:
    key = f"key={'/'.join(candidate.entry)!r}" if candidate.entry else ""
    # Also an empty one, where the prefix is all that distinguishes candidates of one entry.
    return ", ".join(filter(None, (key, f"prefix={candidate.original_prefix!r}")))


def _checked(values: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """The tensors that are weights: no counters, and nothing else that is saved with them.

    Raises:
      ValueError: a tensor that stands for another one, or whose values are not in the file; or
        tensors that take more memory than the file justifies.
    """
    tensors = {n: v for n, v in values.items() if is_tensor(v) and not is_step_counter(n)}
    if reason := _unreadable_reason(tensors) or _rewritten_reason(values):
        raise ValueError(reason)
    check_total_size(tensors.values())
    return tensors


# By a name among the tensors that PyTorch saves in the place of a weight, from which it computes
# the weight in each call: what has been done to the weight, and how to undo it.
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
