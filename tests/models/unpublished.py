"""A family of networks that has no PyTorch files."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax

from replk_jax.models.architecture import Architecture, Count, PerStage
from replk_jax.models.backbone import Backbone
from replk_jax.models.layers import ConvNorm
from replk_jax.models.network import register_network
from replk_jax.models.stored import StoredField, stored_architecture


@dataclasses.dataclass(frozen=True)
class PlainNetArchitecture(Architecture):
    """A stem of stride 2, and one convolution per stage."""

    stem_stride: ClassVar[int] = 2

    layers: PerStage = (1, 1)
    channels: PerStage = (4, 6)
    in_channels: Count = 3

    @property
    def stage_channels(self) -> tuple[int, ...]:
        return self.channels


@register_network
class PlainNet(Backbone, kw_only=True):
    """3 x 3 convolutions with batch norm and ReLU; the module `last` follows the stages."""

    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        **Backbone.stored_fields,
        "architecture": stored_architecture(PlainNetArchitecture),
    }
    head_name: ClassVar[str] = "scores"

    architecture: PlainNetArchitecture = PlainNetArchitecture()

    @nn.nowrap
    def run_stages(self, x: jax.Array, train: bool) -> tuple[list[jax.Array], jax.Array]:
        arch = self.architecture
        x = self._conv("stem", arch.channels[0], 2)(x, train)
        outputs = []
        for s, stage in enumerate(self.stage_samplings()):
            x = self._conv(f"stage_{s}", arch.channels[s], stage.stride)(nn.relu(x), train)
            outputs.append(x)
        return outputs, x

    @nn.nowrap
    def final_feature_map(self, x: jax.Array, train: bool) -> jax.Array:
        return self._conv("last", 8, 1)(nn.relu(x), train)

    @nn.nowrap
    def _conv(self, name: str, features: int, stride: int) -> ConvNorm:
        return ConvNorm(
            features=features, kernel_size=3, stride=stride, **self.common_kwargs(), name=name
        )
