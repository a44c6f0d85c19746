"""The registered models: their names, and how to build one."""

import dataclasses
import difflib
import re
from typing import Any

from replk_jax.models import mobilenet_v2, replknet, repvgg, resnet
from replk_jax.models.aliases import describe_other, matching, plain_name, spelling, translate
from replk_jax.models.architecture import Architecture
from replk_jax.models.backbone import Backbone
from replk_jax.models.family import ModelFamily
from replk_jax.models.network import Network

FAMILIES: tuple[ModelFamily, ...] = (
    replknet.FAMILY,
    repvgg.FAMILY,
    mobilenet_v2.FAMILY,
    resnet.FAMILY,
)

ARCHITECTURES: dict[str, Architecture] = {
    name: architecture for family in FAMILIES for name, architecture in family.architectures.items()
}
# The fields of `ModelFamily`, of all families.
_SYNONYMS = {theirs: ours for family in FAMILIES for theirs, ours in family.synonyms.items()}
_LOOKALIKES = {names: text for family in FAMILIES for names, text in family.lookalikes.items()}


def list_models(pattern: str = "*") -> list[str]:
    """The registered names that match a shell-style pattern.

    If none matches, case, hyphens and underscores are ignored.
    """
    return matching(pattern, ARCHITECTURES)


def resolve_name(name: str) -> str:
    """The registered name of a model.

    Ignores case, hyphens and underscores, and what other libraries add to name the origin of the
    weights: `RepLKNet-31B`, `resnet101`, `timm/resnet101.tv_in1k`, `microsoft/resnet-101` and
    `google/mobilenet_v2_1.0_224` are accepted.

    Raises:
      ValueError: an unknown name. The message has the closest registered ones, or explains it.
    """
    if name in ARCHITECTURES:
        return name
    registered = {spelling(known): known for known in ARCHITECTURES}
    plain = plain_name(name)
    if plain in registered:
        return registered[plain]
    for theirs, ours in _SYNONYMS.items():
        if re.fullmatch(theirs, plain):
            return ours
    if other := describe_other(plain, _LOOKALIKES):
        raise ValueError(f"Unknown model {name!r}: {other} {_registered_names()}")
    close = difflib.get_close_matches(plain, registered, cutoff=0.75)
    hint = f" Did you mean {' or '.join(repr(registered[c]) for c in close)}?" if close else ""
    raise ValueError(f"Unknown model {name!r}.{hint} {_registered_names()}")


def _registered_names() -> str:
    """A sentence with the pattern of each family's names."""
    families = dict.fromkeys(name.partition("_")[0] for name in ARCHITECTURES)
    patterns = ", ".join(f"{family}_*" for family in families)
    return f"Registered are {patterns}; list_models() has all names."


def name_of(network: Network) -> str | None:
    """The registered name of a network's architecture; None if it is not registered."""
    if not isinstance(network, Backbone):
        return None
    names = (name for name, known in ARCHITECTURES.items() if known == network.architecture)
    return next(names, None)


def family_of(name: str | Architecture) -> ModelFamily:
    """The family of a model.

    Args:
      name: as of `create_model`.

    Raises:
      ValueError: an unknown name.
      TypeError: neither a name nor an architecture.
    """
    architecture = ARCHITECTURES[resolve_name(name)] if isinstance(name, str) else name
    for family in FAMILIES:
        if type(architecture) is family.architecture:
            return family
    raise TypeError(f"create_model takes a name or an architecture; got {name!r}.")


def create_model(name: str | Architecture, **overrides: Any) -> Backbone:
    """Builds a model from its name, or from an architecture of your own.

        create_model("replknet_31b", num_classes=10, drop_path_rate=0.1)
        create_model("replknet_31b", kernel_sizes=(13, 13, 13, 7), dtype=jnp.bfloat16)
        create_model("resnet50", features_only=True, out_indices=[-2, -1], output_stride=8)
        create_model(RepLKNetArchitecture((7, 5), (1, 1), (32, 64)), num_classes=10)

    Args:
      name: a name that `resolve_name` accepts, or an architecture.
      **overrides: fields of the module (`num_classes`, `deploy`, `dtype`, ...) or of the
        architecture (`kernel_sizes`, `channels`, ...). These arguments of timm are accepted too:
        `in_chans`, `drop_rate` (MobileNet V2), `num_classes=0` (no classifier), `features_only` (a
        backbone that returns `out_indices`, by default all stages) and `pretrained=False`.
        `out_indices` counts stages from 0, without the stem, which is index 0 in some of timm's
        networks.

    Raises:
      ValueError: an unknown name, an invalid architecture, or a request for weights.
      TypeError: an unknown field, or a field given twice.
    """
    family = family_of(name).network
    architecture = ARCHITECTURES[resolve_name(name)] if isinstance(name, str) else name

    of_architecture = {field.name for field in dataclasses.fields(architecture)}
    of_module = {field.name for field in dataclasses.fields(family)}
    of_module -= {"architecture", "parent", "name"}
    stages = len(overrides.get("layers", architecture.layers))
    overrides = translate(overrides, family, stages, of_architecture | of_module)
    unknown = sorted(set(overrides) - of_architecture - of_module)
    if unknown:
        raise TypeError(
            f"Unknown field {', '.join(unknown)}. {family.__name__} takes "
            f"{', '.join(sorted(of_module))}, and of its architecture "
            f"{', '.join(sorted(of_architecture))}."
        )
    changes = {field: overrides.pop(field) for field in of_architecture & set(overrides)}
    return family(architecture=dataclasses.replace(architecture, **changes), **overrides)
