"""Networks that put heads on a backbone, such as segmenters and detectors."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn

from replk_jax.models.backbone import Backbone
from replk_jax.models.description import architecture_in_words
from replk_jax.models.network import Network, Path
from replk_jax.models.parts import NetworkPart, share_fields
from replk_jax.models.stored import StoredField

# The fields that the backbone takes from the network.
_SHARED = ("deploy", "dtype", "param_dtype", "implementation", "remat")

STORED_BACKBONE = StoredField(
    lambda value: isinstance(value, Mapping),
    encode=lambda backbone: backbone.describe(),
    decode=Backbone.from_description,
)


class CompositeNetwork(Network, kw_only=True):
    """A backbone, whose variables are under `backbone/`, and heads that a subclass adds.

    A subclass is decorated with `register_network`, stores its own fields (`stored_fields`), and
    defines

        @nn.compact
        def __call__(self, x, train=False):
            self.check_call(x)
            feature_maps = self.backbone(x, train)
            ...

    Heads are top-level modules: fields that are `NetworkPart`s, which take their `shared_fields`
    from the network, or modules built with `common_kwargs()`. Call a head that only training needs
    if `train or self.is_initializing()`, so that its variables always exist.

    Attributes:
      backbone: with `out_indices`, unless `needs_feature_maps` is False. Its `deploy`, `dtype`,
        `param_dtype`, `implementation` and `remat` are replaced by those of this network.
      num_classes, remat, deploy, dtype, param_dtype, implementation: see `Network`.

    Raises:
      TypeError: a backbone that is no `Backbone`.
    """

    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        **Network.stored_fields,
        "backbone": STORED_BACKBONE,
    }
    needs_feature_maps: ClassVar[bool] = True  # whether the backbone must have `out_indices`

    backbone: Backbone

    def __post_init__(self):
        if not isinstance(self.backbone, Backbone):
            raise TypeError(
                f"{type(self).__name__} needs a backbone, such as create_model(..., "
                f"out_indices=(0, 1, 2, 3)); got {type(self.backbone).__name__}."
            )
        self.normalise_fields()
        self.backbone = self.backbone.clone(**{name: getattr(self, name) for name in _SHARED})
        share_fields(self)
        super().__post_init__()

    @property
    def in_channels(self) -> int:
        """See `Network`."""
        return self.backbone.in_channels

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """See `Network`. Of the stages of the backbone."""
        return self.backbone.stage_channels

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """See `Network`. Of the stages of the backbone."""
        return self.backbone.stage_strides

    @property
    def mergeable(self) -> bool:
        """See `Network`."""
        return self.backbone.mergeable

    @property
    def num_layers(self) -> int:
        """That of the backbone. Its last layer also contains the heads."""
        return self.backbone.num_layers

    @nn.nowrap
    def layer_of(self, path: Path) -> int:
        """See `Network`."""
        return self.backbone.layer_of(path[1:]) if self.in_backbone(path) else self.num_layers - 1

    @nn.nowrap
    def stage_of(self, path: Path) -> int:
        """See `Network`."""
        if self.in_backbone(path):
            return self.backbone.stage_of(path[1:])
        return self.num_stage_groups - 1

    @nn.nowrap
    def in_backbone(self, path: Path) -> bool:
        """See `Network`."""
        return path[0] == "backbone"

    @nn.nowrap
    def part_of(self, path: Path) -> str:
        """See `Network`. The parts of the backbone, and every other top-level module."""
        return self.backbone.part_of(path[1:]) if self.in_backbone(path) else path[0]

    @nn.nowrap
    def hyperparameters(self) -> dict[str, Any]:
        """See `Network`. The fields of this network, and its backbone in words."""
        shared = CompositeNetwork.stored_fields
        own = {name: getattr(self, name) for name in self.stored_fields if name not in shared}
        parts = {
            name: part.in_words() for name, part in own.items() if isinstance(part, NetworkPart)
        }
        backbone = f"{type(self.backbone).__name__} ({architecture_in_words(self.backbone)})"
        return own | parts | {"backbone": backbone}

    @nn.nowrap
    def check_fields(self) -> None:
        """Raises ValueError for invalid fields, of the backbone too."""
        super().check_fields()
        self.backbone.check_fields()
        if self.needs_feature_maps and self.backbone.out_indices is None:
            raise ValueError(
                f"{type(self).__name__} needs the feature maps of its backbone: build that with "
                "out_indices, such as create_model(..., out_indices=(0, 1, 2, 3))."
            )
