"""The contract of every network: a classifier, a backbone, or one with heads on a backbone."""

import operator
from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from replk_jax.models.architecture import LARGEST
from replk_jax.models.layers import ReparameterizableModule
from replk_jax.models.stored import COUNT_OR_NONE, FLAG, PARAM_DTYPE, StoredField

# Of a parameter, without its collection: ("stages_0", "blocks_0", "pw1", "conv", "kernel").
Path = tuple[str, ...]
NetworkClass = TypeVar("NetworkClass", bound="type[Network]")
Variables = Mapping[str, Any]


class Network(ReparameterizableModule, kw_only=True):
    """The interface that training, evaluation, checkpoints, export, inference and summaries use.

    There are two kinds: `Backbone`, described by one architecture, and `CompositeNetwork`, a
    backbone with heads. `__call__(x, train)` takes normalised images (N, H, W, in_channels). With
    `train`, batch norms use the statistics of the batch and update `batch_stats`; dropout and
    stochastic depth draw from the `dropout` stream. `reparameterize` maps the variables of
    `clone(deploy=False)` to those of `clone(deploy=True)`.

    Attributes:
      num_classes: number of classes; None for a network without classes. 0 means None.
      remat: what each block keeps for the backward pass, which recomputes the rest: a name in
        `layers.REMAT_POLICIES`. None keeps everything.
      deploy, dtype, param_dtype, implementation: see `ReparameterizableModule`.
    """

    # The fields that `describe` stores. It omits those that affect only training or the way the
    # outputs are computed.
    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        "deploy": FLAG,
        "num_classes": COUNT_OR_NONE,
        "param_dtype": PARAM_DTYPE,
    }

    num_classes: int | None = None
    remat: str | None = None

    def __post_init__(self):
        self.normalise_fields()
        super().__post_init__()

    @nn.nowrap
    def normalise_fields(self) -> None:
        """Makes networks compare equal and hash alike however their fields are spelt."""
        self.dtype, self.param_dtype = jnp.dtype(self.dtype), jnp.dtype(self.param_dtype)
        self.num_classes = builtin_int(self.num_classes)
        if type(self.num_classes) is int and self.num_classes == 0:
            self.num_classes = None

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
        """Size of the image over the size of each stage's feature map."""
        raise NotImplementedError

    @property
    def mergeable(self) -> bool:
        """Whether the network has a merged structure."""
        raise NotImplementedError

    @property
    def num_layers(self) -> int:
        """Number of layers, for learning rates that depend on the layer."""
        raise NotImplementedError

    @nn.nowrap
    def layer_of(self, path: Path) -> int:
        """The layer of a parameter: 0 at the image, `num_layers` - 1 at the outputs.

        Args:
          path: of the parameter, such as ("stages_0", "blocks_0", "pw1", "conv", "kernel").

        Raises:
          ValueError: the network has no such parameter.
        """
        raise NotImplementedError

    @property
    def num_stage_groups(self) -> int:
        """Number of groups of `stage_of`."""
        return len(self.stage_channels) + 2

    @nn.nowrap
    def stage_of(self, path: Path) -> int:
        """The group of a parameter, one group per stage.

        The stem is group 0, stage s with its transition 1 + s, the rest `num_stage_groups` - 1.

        Args:
          path: as of `layer_of`.

        Raises:
          ValueError: the network has no such parameter.
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
    def without_auxiliary_head(self, variables: Variables) -> tuple[Self, Variables]:
        """The network and its variables without the heads that only training runs.

        A network without such heads is returned as it is.

        Args:
          variables: of the network, in either structure.
        """
        return self, variables

    def comparable(self, x: jax.Array) -> Any:
        """Outputs in eval mode that change little if the weights do.

        They are what is compared between the training-time and the merged structure. A detector
        returns the outputs of its heads, since rounding can change which boxes it selects.

        Args:
          x: as of `__call__`.

        Returns:
          A tree of arrays; by default what the network returns.
        """
        return self(x)

    @nn.nowrap
    def hyperparameters(self) -> dict[str, Any]:
        """Widths, depths and the like by name, for display."""
        raise NotImplementedError

    @nn.nowrap
    def check_call(self, x: jax.Array) -> None:
        """Checks images (N, H, W, in_channels), and the fields of the module.

        Raises:
          ValueError: images of another shape, or invalid fields.
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
        """Raises ValueError for invalid fields."""
        classes = self.num_classes
        if classes is not None and not (type(classes) is int and 1 <= classes <= LARGEST):
            raise ValueError(
                f"num_classes must be positive, at most {LARGEST:,}, or None; got {classes}."
            )

    @nn.nowrap
    def describe(self) -> dict[str, Any]:
        """The network as plain data for JSON, from which `from_description` rebuilds it."""
        fields = {
            name: stored.encode(getattr(self, name)) for name, stored in self.stored_fields.items()
        }
        return {"family": type(self).__name__, **fields}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Self:
        """Rebuilds a network from the result of `describe`, with the default computation dtype.

        Raises:
          KeyError, TypeError, ValueError: an invalid description, or one of another class.
        """
        fields = dict(description)
        name = fields.pop("family")
        if name not in _NETWORKS:
            raise ValueError(
                f"no network of this name is registered; import the module that defines it: {name}"
            )
        network = _NETWORKS[name]
        if not issubclass(network, cls):
            raise ValueError(f"{network.__name__} is no {cls.__name__}")
        for name, value in fields.items():
            stored = network.stored_fields[name]
            if not stored.is_valid(value):
                raise ValueError(f"{name} cannot be {value!r}")
            fields[name] = stored.decode(value)
        return network(**fields)


def builtin_int(value: Any) -> Any:
    """An integer of any type as `int`. Other values stay: `check_fields` reports them."""
    if isinstance(value, bool):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


_NETWORKS: dict[str, type[Network]] = {}  # the registered classes by name


def register_network(network: NetworkClass) -> NetworkClass:
    """A class decorator that registers a network for `from_description`, by its name.

    Raises:
      ValueError: a class of another module has that name.
    """
    known = _NETWORKS.setdefault(network.__name__, network)
    if known.__module__ != network.__module__:
        raise ValueError(f"There is a network {network.__name__} already, in {known.__module__}.")
    _NETWORKS[network.__name__] = network
    return network
