"""The contract of every network: a classifier, a backbone, or one with heads on a backbone."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from replk_jax.models.layers import ReparameterizableModule
from replk_jax.models.stored import COUNT_OR_NONE, FLAG, PARAM_DTYPE, StoredField

Path = tuple[str, ...]  # of a parameter: the names from the top of `params` down to the array
NetworkClass = TypeVar("NetworkClass", bound="type[Network]")


class Network(ReparameterizableModule, kw_only=True):
    """What training, evaluation, checkpoints, export, inference and summaries rely on.

    Of two kinds: a `Backbone`, which one architecture describes, and a `CompositeNetwork`, a
    backbone with heads. Both are called with normalised images (N, H, W, in_channels) and
    `train`, which makes batch norms use the batch and update `batch_stats`; what is dropped at
    random draws from the `dropout` stream. `reparameterize` maps the variables of
    `clone(deploy=False)` onto those of `clone(deploy=True)`.

    Attributes:
      num_classes: classes that it distinguishes; None where it distinguishes none. 0 means None.
      remat: what each block keeps for the backward pass, which computes the rest anew: a name of
        `layers.REMAT_POLICIES`; None keeps everything.
      deploy, dtype, param_dtype, implementation: see `ReparameterizableModule`.
    """

    # The fields that `describe` stores. What only training and the way of computing depend on is
    # not among them.
    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        "deploy": FLAG,
        "num_classes": COUNT_OR_NONE,
        "param_dtype": PARAM_DTYPE,
    }

    num_classes: int | None = None
    remat: str | None = None

    def __post_init__(self):
        # Equal networks are equal and hashable whichever way they were written.
        if self.num_classes == 0 and not isinstance(self.num_classes, bool):
            self.num_classes = None
        super().__post_init__()

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        raise NotImplementedError

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of the feature map of each stage."""
        raise NotImplementedError

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """Size of the image over that of the feature map of each stage."""
        raise NotImplementedError

    @property
    def mergeable(self) -> bool:
        """Whether there is a merged structure."""
        raise NotImplementedError

    @property
    def num_layers(self) -> int:
        """Number of layers, for learning rates that depend on the layer."""
        raise NotImplementedError

    @nn.nowrap
    def layer_of(self, path: Path) -> int:
        """The layer of a parameter, from 0, nearest the image, to `num_layers` - 1.

        Args:
          path: of the parameter, such as ("stages_0", "blocks_0", "pw1", "conv", "kernel").

        Raises:
          ValueError: it is in no layer.
        """
        raise NotImplementedError

    @property
    def num_stage_groups(self) -> int:
        """Number of groups of `stage_of`."""
        return len(self.stage_channels) + 2

    @nn.nowrap
    def stage_of(self, path: Path) -> int:
        """The group of a parameter, where each stage is a group.

        The stem is 0, stage s with its transition 1 + s, and all else `num_stage_groups` - 1.

        Args:
          path: as of `layer_of`.

        Raises:
          ValueError: it is in no group.
        """
        raise NotImplementedError

    @nn.nowrap
    def in_backbone(self, path: Path) -> bool:
        """Whether a parameter or module is in the backbone, which is all of a simple network."""
        return True

    @nn.nowrap
    def part_of(self, path: Path) -> str:
        """The part of the network that a module belongs to, as in a `summary`.

        Args:
          path: of the module, at least one name.
        """
        raise NotImplementedError

    @nn.nowrap
    def hyperparameters(self) -> dict[str, Any]:
        """Widths, depths and the like by name, for people to read."""
        raise NotImplementedError

    @nn.nowrap
    def check_call(self, x: jax.Array) -> None:
        """Checks images (N, H, W, in_channels), and the fields of the module.

        Raises:
          ValueError: images of another shape, or fields that make no sense.
          TypeError: images that are not floating point.
        """
        name, channels = type(self).__name__, self.in_channels
        if x.ndim != 4 or x.shape[-1] != channels:
            raise ValueError(f"{name} takes images of shape (N, H, W, {channels}); got {x.shape}.")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"{name} takes normalised floating-point images; got {x.dtype}. "
                "Convert them, and apply the mean and standard deviation of the checkpoint."
            )
        self.check_fields()

    @nn.nowrap
    def check_fields(self) -> None:
        """Raises ValueError for fields that make no sense."""
        classes = self.num_classes
        if classes is not None and not (isinstance(classes, int) and classes > 0):
            raise ValueError(f"num_classes must be positive, or None; got {classes}.")

    @nn.nowrap
    def describe(self) -> dict[str, Any]:
        """What `from_description` builds the network from again, as JSON can hold it."""
        fields = {
            name: stored.encode(getattr(self, name)) for name, stored in self.stored_fields.items()
        }
        return {"family": type(self).__name__, **fields}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Self:
        """Builds the network that `describe` described, with the default type of computation.

        Raises:
          KeyError, TypeError, ValueError: something else, or a network of another class.
        """
        fields = dict(description)
        network = _NETWORKS[fields.pop("family")]
        if not issubclass(network, cls):
            raise ValueError(f"{network.__name__} is no {cls.__name__}")
        for name, value in fields.items():
            stored = network.stored_fields[name]
            if not stored.is_valid(value):
                raise ValueError(f"{name} cannot be {value!r}")
            fields[name] = stored.decode(value)
        return network(**fields)


_NETWORKS: dict[str, type[Network]] = {}  # those that a description may be of, by name


def register_network(network: NetworkClass) -> NetworkClass:
    """Makes `from_description` find a class of networks, by its name; decorates the class.

    Raises:
      ValueError: there is one of that name in another module.
    """
    known = _NETWORKS.setdefault(network.__name__, network)
    if known.__module__ != network.__module__:
        raise ValueError(f"There is a network {network.__name__} already, in {known.__module__}.")
    _NETWORKS[network.__name__] = network
    return network
