"""Names of models: which exist, and how one is made from a name."""

import dataclasses
import difflib
import fnmatch
from typing import Any

from replk_jax.models.aliases import describe_other, plain_name, spelling, translate
from replk_jax.models.mobilenet_v2 import MobileNetV2, MobileNetV2Architecture
from replk_jax.models.network import Network
from replk_jax.models.replknet import RepLKNet, RepLKNetArchitecture
from replk_jax.models.repvgg import RepVGG, RepVGGArchitecture
from replk_jax.models.resnet import ResNet, ResNetArchitecture

Architecture = (
    RepLKNetArchitecture | RepVGGArchitecture | MobileNetV2Architecture | ResNetArchitecture
)

# Which network an architecture describes.
FAMILIES: dict[type, type[Network]] = {
    RepLKNetArchitecture: RepLKNet,
    RepVGGArchitecture: RepVGG,
    MobileNetV2Architecture: MobileNetV2,
    ResNetArchitecture: ResNet,
}


def _repvgg(layers: tuple[int, ...], a: float, b: float, **settings) -> RepVGGArchitecture:
    """By the paper's multipliers of the widths: a of all stages but the last, which has b."""
    channels = (min(64, int(64 * a)), int(64 * a), int(128 * a), int(256 * a), int(512 * b))
    return RepVGGArchitecture(layers, channels, **settings)


_DEPTHS = (2, 2, 18, 2)
_BASE = (128, 256, 512, 1024)
_LARGE = (192, 384, 768, 1536)
_XLARGE = (256, 512, 1024, 2048)
_VGG_A = (2, 4, 14, 1)
_VGG_B = (4, 6, 16, 1)
_LAST_STAGE_7 = (3, 3, 3, 3, 3, 7, 7)  # the last two of MobileNet V2 share the last resolution
_LAST_STAGE_13 = (3, 3, 3, 3, 3, 13, 13)

ARCHITECTURES: dict[str, Architecture] = {
    # RepLKNet: 31B, 31L and XL are the paper's section 4.1; the others its Table 5.
    "replknet_3": RepLKNetArchitecture((3, 3, 3, 3), _DEPTHS, _BASE, small_kernel=None),
    "replknet_7": RepLKNetArchitecture((7, 7, 7, 7), _DEPTHS, _BASE),
    "replknet_13": RepLKNetArchitecture((13, 13, 13, 13), _DEPTHS, _BASE),
    "replknet_25": RepLKNetArchitecture((25, 25, 25, 13), _DEPTHS, _BASE),
    "replknet_31b": RepLKNetArchitecture((31, 29, 27, 13), _DEPTHS, _BASE),
    "replknet_31l": RepLKNetArchitecture((31, 29, 27, 13), _DEPTHS, _LARGE),
    "replknet_xl": RepLKNetArchitecture(
        (27, 27, 27, 13), _DEPTHS, _XLARGE, small_kernel=None, dw_ratio=1.5
    ),
    # RepVGG: tables 2 and 3 of its paper; D2se is of the official code.
    "repvgg_a0": _repvgg(_VGG_A, 0.75, 2.5),
    "repvgg_a1": _repvgg(_VGG_A, 1, 2.5),
    "repvgg_a2": _repvgg(_VGG_A, 1.5, 2.75),
    "repvgg_b0": _repvgg(_VGG_B, 1, 2.5),
    "repvgg_b1": _repvgg(_VGG_B, 2, 4),
    "repvgg_b1g2": _repvgg(_VGG_B, 2, 4, groups=2),
    "repvgg_b1g4": _repvgg(_VGG_B, 2, 4, groups=4),
    "repvgg_b2": _repvgg(_VGG_B, 2.5, 5),
    "repvgg_b2g2": _repvgg(_VGG_B, 2.5, 5, groups=2),
    "repvgg_b2g4": _repvgg(_VGG_B, 2.5, 5, groups=4),
    "repvgg_b3": _repvgg(_VGG_B, 3, 5),
    "repvgg_b3g2": _repvgg(_VGG_B, 3, 5, groups=2),
    "repvgg_b3g4": _repvgg(_VGG_B, 3, 5, groups=4),
    "repvgg_d2se": _repvgg((8, 14, 24, 1), 2.5, 5, squeeze_excite=True),
    # MobileNet V2: the rows of tables 2, 3 and 4 of RepLKNet's paper, each once.
    "mobilenet_v2": MobileNetV2Architecture(),
    "mobilenet_v2_no_shortcuts": MobileNetV2Architecture(shortcuts=False),
    "mobilenet_v2_9": MobileNetV2Architecture((9,) * 7),
    "mobilenet_v2_9_reparam": MobileNetV2Architecture((9,) * 7, small_kernel=3),
    "mobilenet_v2_13": MobileNetV2Architecture((13,) * 7),
    "mobilenet_v2_13_no_shortcuts": MobileNetV2Architecture((13,) * 7, shortcuts=False),
    "mobilenet_v2_13_reparam": MobileNetV2Architecture((13,) * 7, small_kernel=3),
    "mobilenet_v2_last_7": MobileNetV2Architecture(_LAST_STAGE_7, small_kernel=3),
    "mobilenet_v2_last_13": MobileNetV2Architecture(_LAST_STAGE_13, small_kernel=3),
    # Table 11 of its first arXiv version: 3 x 3 kernels that reach as far as 9 x 9 and 13 x 13.
    "mobilenet_v2_dilated_4": MobileNetV2Architecture(dilation=4),
    "mobilenet_v2_dilated_6": MobileNetV2Architecture(dilation=6),
    # ResNet: table 1 of its paper. The last two are baselines of the effective receptive fields.
    "resnet_18": ResNetArchitecture((2, 2, 2, 2), block="basic"),
    "resnet_34": ResNetArchitecture((3, 4, 6, 3), block="basic"),
    "resnet_50": ResNetArchitecture((3, 4, 6, 3)),
    "resnet_101": ResNetArchitecture((3, 4, 23, 3)),
    "resnet_152": ResNetArchitecture((3, 8, 36, 3)),
}


def list_models(pattern: str = "*") -> list[str]:
    """The names that `create_model` knows, those that match a shell-style pattern.

    A pattern that matches none is tried without regard to case, hyphens and underscores.
    """
    exact = fnmatch.filter(ARCHITECTURES, pattern)
    return exact or [
        name for name in ARCHITECTURES if fnmatch.fnmatch(spelling(name), spelling(pattern))
    ]


def resolve_name(name: str) -> str:
    """The registered name that a name means.

    Case, hyphens and underscores do not matter, and neither does what others add to a name to say
    where its weights come from: `RepLKNet-31B`, `resnet101`, `timm/resnet101.tv_in1k`,
    `microsoft/resnet-101` and `google/mobilenet_v2_1.0_224` are registered models.

    Raises:
      ValueError: an unknown name, with the closest registered ones, or what it stands for.
    """
    if name in ARCHITECTURES:
        return name
    registered = {spelling(known): known for known in ARCHITECTURES}
    plain = plain_name(name)
    if plain in registered:
        return registered[plain]
    if other := describe_other(plain):
        raise ValueError(f"Unknown model {name!r}: {other} {_registered_names()}")
    close = difflib.get_close_matches(plain, registered, cutoff=0.75)
    hint = f" Did you mean {' or '.join(repr(registered[c]) for c in close)}?" if close else ""
    raise ValueError(f"Unknown model {name!r}.{hint} {_registered_names()}")


def _registered_names() -> str:
    """A pattern for each family, as a sentence."""
    families = dict.fromkeys(name.partition("_")[0] for name in ARCHITECTURES)
    patterns = ", ".join(f"{family}_*" for family in families)
    return f"Registered are {patterns}; list_models() has all names."


def name_of(architecture: Architecture) -> str | None:
    """The name under which an architecture is registered, if it is."""
    return next((name for name, known in ARCHITECTURES.items() if known == architecture), None)


def create_model(name: str | Architecture, **overrides: Any) -> Network:
    """Builds a model from its name, or from an architecture of your own.

        create_model("replknet_31b", num_classes=10, drop_path_rate=0.1)
        create_model("replknet_31b", kernel_sizes=(13, 13, 13, 7), dtype=jnp.bfloat16)
        create_model("resnet50", features_only=True, out_indices=[-2, -1], output_stride=8)
        create_model(RepLKNetArchitecture((7, 5), (1, 1), (32, 64)), num_classes=10)

    Args:
      name: one of `list_models()`, or what `resolve_name` takes for one; or an architecture, which
        needs no name.
      **overrides: fields of the module (`num_classes`, `deploy`, `dtype`, ...) or of the
        architecture (`kernel_sizes`, `channels`, ...). Of timm's arguments `in_chans`, `drop_rate`
        (MobileNet V2), `num_classes=0` (no classifier), `features_only` (a backbone of all stages,
        or those of `out_indices`, unless that is None) and `pretrained=False` are understood.
        `out_indices` counts stages from 0, without the stem, which timm counts as 0 in some
        networks.

    Raises:
      ValueError: an unknown name, an architecture that cannot exist, or weights asked for.
      TypeError: an unknown field, or one given by two names.
    """
    architecture = ARCHITECTURES[resolve_name(name)] if isinstance(name, str) else name
    if type(architecture) not in FAMILIES:
        raise TypeError(f"create_model takes a name or an architecture; got {name!r}.")
    family = FAMILIES[type(architecture)]

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
