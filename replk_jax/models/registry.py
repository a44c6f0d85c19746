"""Names of models: which exist, and how one is made from a name."""

import dataclasses
import difflib
import fnmatch
from typing import Any

import flax.linen as nn

from replk_jax.models.replknet import RepLKNet, RepLKNetArchitecture

_DEPTHS = (2, 2, 18, 2)
_BASE = (128, 256, 512, 1024)
_LARGE = (192, 384, 768, 1536)
_XLARGE = (256, 512, 1024, 2048)

# 31B, 31L and XL are the paper's section 4.1; the others its Table 5, on the kernel size.
ARCHITECTURES: dict[str, RepLKNetArchitecture] = {
    "replknet_3": RepLKNetArchitecture((3, 3, 3, 3), _DEPTHS, _BASE, small_kernel=None),
    "replknet_7": RepLKNetArchitecture((7, 7, 7, 7), _DEPTHS, _BASE),
    "replknet_13": RepLKNetArchitecture((13, 13, 13, 13), _DEPTHS, _BASE),
    "replknet_25": RepLKNetArchitecture((25, 25, 25, 13), _DEPTHS, _BASE),
    "replknet_31b": RepLKNetArchitecture((31, 29, 27, 13), _DEPTHS, _BASE),
    "replknet_31l": RepLKNetArchitecture((31, 29, 27, 13), _DEPTHS, _LARGE),
    "replknet_xl": RepLKNetArchitecture(
        (27, 27, 27, 13), _DEPTHS, _XLARGE, small_kernel=None, dw_ratio=1.5
    ),
}

# Which network an architecture describes.
FAMILIES: dict[type, type[nn.Module]] = {RepLKNetArchitecture: RepLKNet}


def list_models(pattern: str = "*") -> list[str]:
    """The names that `create_model` knows, those that match a shell-style pattern."""
    return fnmatch.filter(ARCHITECTURES, pattern)


def name_of(architecture: RepLKNetArchitecture) -> str | None:
    """The name under which an architecture is registered, if it is."""
    return next((name for name, known in ARCHITECTURES.items() if known == architecture), None)


def create_model(name: str | RepLKNetArchitecture, **overrides: Any) -> nn.Module:
    """Builds a model from its name, or from an architecture of your own.

        create_model("replknet_31b", num_classes=10, drop_path_rate=0.1)
        create_model("replknet_31b", kernel_sizes=(13, 13, 13, 7), dtype=jnp.bfloat16)
        create_model(RepLKNetArchitecture((7, 5), (1, 1), (32, 64)), num_classes=10)

    Args:
      name: one of `list_models()`; or an architecture, which needs no name.
      **overrides: fields of the module (`num_classes`, `deploy`, `dtype`, ...) or of the
        architecture (`kernel_sizes`, `channels`, ...).

    Raises:
      ValueError: an unknown name, or an architecture that cannot exist.
      TypeError: an unknown field.
    """
    architecture = name
    if isinstance(name, str):
        if name not in ARCHITECTURES:
            names = list_models()
            close = difflib.get_close_matches(name, names, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"Unknown model {name!r}.{hint} Known: {', '.join(names)}.")
        architecture = ARCHITECTURES[name]
    if type(architecture) not in FAMILIES:
        raise TypeError(f"create_model takes a name or an architecture; got {name!r}.")
    family = FAMILIES[type(architecture)]

    of_architecture = {field.name for field in dataclasses.fields(architecture)}
    of_module = {field.name for field in dataclasses.fields(family)}
    of_module -= {"architecture", "parent", "name"}
    unknown = sorted(set(overrides) - of_architecture - of_module)
    if unknown:
        raise TypeError(
            f"Unknown field {', '.join(unknown)}. {family.__name__} takes "
            f"{', '.join(sorted(of_module))}, and of its architecture "
            f"{', '.join(sorted(of_architecture))}."
        )
    changes = {field: overrides.pop(field) for field in of_architecture & set(overrides)}
    # A list, as JSON has them, would make the module unfit for `jax.jit`.
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    return family(architecture=dataclasses.replace(architecture, **changes), **fields)
