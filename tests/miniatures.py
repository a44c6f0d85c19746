"""Every registered network at a size for tests."""

import dataclasses

import pytest

from replk_jax.models import registry
from replk_jax.models.mobilenet_v2 import MobileNetV2Architecture
from replk_jax.models.replknet import RepLKNetArchitecture
from replk_jax.models.repvgg import BLOCKS, RepVGGArchitecture
from replk_jax.models.resnet import ResNetArchitecture

# Few layers and channels; what tells one variant from another stays.
_SMALLER = {
    RepLKNetArchitecture: lambda a: dict(
        kernel_sizes=(a.kernel_sizes[0], a.kernel_sizes[-1]), layers=(1, 1), channels=(8, 12)
    ),
    RepVGGArchitecture: lambda a: dict(layers=(2, 2, 1), channels=(16, 16, 24, 32)),
    MobileNetV2Architecture: lambda a: dict(
        kernel_sizes=(a.kernel_sizes[0], a.kernel_sizes[-1]),
        layers=(1, 2),
        channels=(8, 12),
        strides=(1, 2),
        expansions=(1, 3),
        stem_channels=8,
        last_channels=16,
    ),
    ResNetArchitecture: lambda a: dict(layers=(1, 2), channels=(4, 8)),
}


def miniature(architecture):
    """The same network with few layers and channels.

    A family that is registered must have an entry here, or nothing would test it.
    """
    return dataclasses.replace(architecture, **_SMALLER[type(architecture)](architecture))


def registered():
    """Name to miniature, each once: what differs in size alone comes to the same."""
    seen = {}
    for name, architecture in registry.ARCHITECTURES.items():
        seen.setdefault(miniature(architecture), name)
    return {name: architecture for architecture, name in seen.items()}


# They differ from others in the size of kernels or the number of groups alone.
ALIKE = {
    "replknet_3", "replknet_7", "replknet_13", "replknet_25", "mobilenet_v2_9", "mobilenet_v2_13",
    "mobilenet_v2_9_reparam", "mobilenet_v2_13_no_shortcuts", "mobilenet_v2_last_7",
    "mobilenet_v2_last_13", "mobilenet_v2_dilated_6", "repvgg_b1g4", "repvgg repvgg",
}  # fmt: skip


def every_day(names):
    """The names as values of a parameter, of which `ALIKE` are left out every day."""
    return [pytest.param(n, marks=pytest.mark.exhaustive) if n in ALIKE else n for n in names]


def repvgg_variants():
    """Name to miniature of every kind of block that a RepVGG layer may be while it trains."""
    layers = {"residual": (2, 2, 1)}
    return {
        f"repvgg {block}": RepVGGArchitecture(
            layers.get(block, (2, 1)), (8, 8, 12, 16)[: 1 + len(layers.get(block, (2, 1)))],
            block=block, groups=2,
        )
        for block in BLOCKS
    }  # fmt: skip
