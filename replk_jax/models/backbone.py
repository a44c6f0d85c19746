"""The base of the networks of all families: classifiers, feature extractors and backbones."""

import dataclasses
import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from replk_jax.models.architecture import Architecture
from replk_jax.models.dilation import Sampling, sample_stages
from replk_jax.models.layers import GlobalAveragePool, pytorch_init
from replk_jax.models.network import Network, Path, builtin_int
from replk_jax.models.stored import COUNT_OR_NONE, FLAG, INDICES_OR_NONE, StoredField

# The name, in `intermediates`, of the feature map whose mean over the image is the features.
FINAL_FEATURE_MAP = "final_feature_map"


class ModuleGroup(NamedTuple):
    """Consecutive top-level modules.

    Attributes:
      name: the part of the network in a summary (`Network.part_of`).
      stage: the group in `Network.stage_of`.
      modules: names, in the order of the forward pass.
    """

    name: str
    stage: int
    modules: tuple[str, ...]


def stage_groups(prefix: str, blocks: Sequence[int]) -> list[ModuleGroup]:
    """Stages whose blocks are top-level modules.

    Args:
      prefix: of the modules' names, such as "layer" for layer1_0 (stage 1, block 0).
      blocks: number of blocks of each stage.
    """
    return [
        ModuleGroup(f"{prefix}{s}", s, tuple(f"{prefix}{s}_{i}" for i in range(count)))
        for s, count in enumerate(blocks, 1)
    ]


class Backbone(Network, kw_only=True):
    """A classifier, a feature extractor or a backbone, described by one architecture.

    It returns one of three outputs:
    - by default logits (N, num_classes), in at least float32;
    - with `num_classes=None`, or `features=True` in a call, the features (N, final_channels) that
      enter the classifier, in at least float32;
    - with `out_indices`, a tuple of feature maps (N, H / stride, W / stride, C) in `dtype`, one
      for each index, with the strides and channels of `stage_strides` and `stage_channels`.

    In all three cases the collection `intermediates`, if mutable, receives the feature map of
    every stage, by the names in `feature_names`. Without `out_indices` it also receives
    `FINAL_FEATURE_MAP` (N, H / stride, W / stride, final_channels), whose mean over the image is
    the features. It is the output of the final norm, if the network has one; a merged classifier
    contains that norm, and applies to the feature map before it.

    A family defines `run_stages`, `module_groups`, and `final_feature_map` if layers follow the
    stages.

    Attributes:
      architecture: widths, depths and kernels.
      num_classes: outputs of the classifier; None for a feature extractor. 0 means None.
      out_indices: stages whose feature maps are returned, in this order. Stage 0 follows the stem;
        negative numbers count from the end. Any sequence or array of integers is accepted, and
        stored as a tuple of non-negative numbers. The network then has no classifier, regardless
        of `num_classes`.
      output_stride: size of the image over the size of the last feature map, one of
        `output_strides`; None for that of the architecture. Dilation replaces the strides beyond
        it (see `dilation.sample_stages`); the variables stay the same.
      contract_dilation: whether a convolution whose stride dilation replaces keeps the dilation of
        the stage before, as in mmsegmentation's ResNet with the option of this name. False dilates
        it like the others of its stage, as in mmsegmentation's MobileNet V2. Only for an
        `output_stride`.
      remat, deploy, dtype, param_dtype, implementation: see `Network`.
    """

    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        **Network.stored_fields,
        "out_indices": INDICES_OR_NONE,
        "output_stride": COUNT_OR_NONE,
        "contract_dilation": FLAG,
    }
    head_name: ClassVar[str] = "head"  # of the classifier among the parameters
    # Whether merging folds a final batch norm into the classifier.
    norm_joins_head: ClassVar[bool] = False
    final_norm: ClassVar[Path] = ()  # the batch norm after the stages, in a family with stage norms
    output_strides: ClassVar[tuple[int, ...]] = (8, 16, 32)
    rates: ClassVar[tuple[str, ...]] = ()  # fields that are drop probabilities

    architecture: Architecture
    num_classes: int | None = 1000
    out_indices: tuple[int, ...] | None = None
    output_stride: int | None = None
    contract_dilation: bool = True

    def __post_init__(self):
        given: Any = self.out_indices
        is_array = isinstance(given, np.ndarray | jax.Array) and given.ndim == 1
        if is_array or (isinstance(given, Sequence) and not isinstance(given, str)):
            self.out_indices = tuple(map(self._stage, given))
        self.output_stride = builtin_int(self.output_stride)
        super().__post_init__()

    @nn.nowrap
    def _stage(self, index: Any) -> Any:
        """A stage's index counted from 0. Other values stay: `check_fields` reports them."""
        index, count = builtin_int(index), len(self.architecture.layers)
        return index + count if type(index) is int and -count <= index < 0 else index

    @property
    def in_channels(self) -> int:
        """See `Network`."""
        return self.architecture.in_channels

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """See `Network`."""
        return self.architecture.stage_channels

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """See `Network`."""
        strides = (sampling.stride for sampling in self.stage_samplings())
        stem_stride = self.architecture.stem_stride
        return tuple(itertools.accumulate(strides, operator.mul, initial=stem_stride))[1:]

    @property
    def final_channels(self) -> int:
        """Channels of the final feature map, and of the features."""
        return self.stage_channels[-1]

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the feature maps of the stages: "stage_0" and so on."""
        return tuple(f"stage_{s}" for s in range(len(self.architecture.layers)))

    @property
    def stage_norms(self) -> tuple[Path, ...]:
        """The module of each stage's optional output norm; empty in a family without such norms.

        In a backbone, the norm of the last stage takes the place of `final_norm`.
        """
        return ()

    @property
    def mergeable(self) -> bool:
        """See `Network`."""
        return True

    @property
    def has_classifier(self) -> bool:
        """Whether the network returns logits."""
        return self.num_classes is not None and self.out_indices is None

    @nn.nowrap
    def stage_samplings(self) -> list[Sampling]:
        """Stride and dilation of the first block of every stage."""
        arch = self.architecture
        return sample_stages(
            arch.entry_strides, arch.stem_stride, self.output_stride, self.contract_dilation
        )

    @nn.nowrap
    def module_groups(self) -> list[ModuleGroup]:
        """The top-level modules with parameters, from the image to the classifier."""
        raise NotImplementedError

    @property
    def num_layers(self) -> int:
        """The stem, each block of the stages, and everything after them as one layer."""
        last = self.num_stage_groups - 1
        blocks = [group.modules for group in self.module_groups() if 0 < group.stage < last]
        return sum(map(len, blocks)) + 2

    @nn.nowrap
    def layer_of(self, path: Path) -> int:
        """See `Network`. The stem is the first layer, each block one, and the rest the last.

        Raises:
          ValueError: the network has no such parameter.
        """
        group, last = self._group(path), self.num_stage_groups - 1
        if group.stage in (0, last):
            return 0 if group.stage == 0 else self.num_layers - 1
        groups = (each for each in self.module_groups() if 0 < each.stage < last)
        blocks = itertools.chain.from_iterable(each.modules for each in groups)
        return 1 + list(blocks).index(path[0])

    @nn.nowrap
    def stage_of(self, path: Path) -> int:
        """See `Network`."""
        return self._group(path).stage

    @nn.nowrap
    def part_of(self, path: Path) -> str:
        """See `Network`. Modules without parameters, such as the average pool, are in the head."""
        groups = (group.name for group in self.module_groups() if path[0] in group.modules)
        return next(groups, "head")

    @nn.nowrap
    def _group(self, path: Path) -> ModuleGroup:
        for group in self.module_groups():
            if path[0] in group.modules:
                return group
        raise ValueError(f"This {type(self).__name__} has no parameter {'/'.join(path)}.")

    @nn.nowrap
    def hyperparameters(self) -> dict[str, Any]:
        """See `Network`."""
        return dataclasses.asdict(self.architecture)

    @nn.nowrap
    def check_call(self, x: jax.Array, features: bool = False) -> None:
        """See `Network`. Also checks that `features` can be returned.

        Raises:
          ValueError: images of another shape, invalid fields, or `features` of a backbone or of a
            merged classifier that contains the final norm.
          TypeError: images that are not floating point.
        """
        super().check_call(x)
        if features and self.out_indices is not None:
            raise ValueError(
                "A backbone (out_indices) returns feature maps of its stages; it has no features "
                "before a classifier. Leave out features=True, or use clone(out_indices=None)."
            )
        if features and self.deploy and self.norm_joins_head and self.num_classes is not None:
            raise ValueError(
                "The merged classifier contains the final batch norm, so it has no features. "
                "Build the model with num_classes=None and re-parameterize the variables "
                f"without params/{self.head_name}: that keeps the norm as scale and bias."
            )

    @nn.nowrap
    def check_fields(self) -> None:
        """Raises ValueError for invalid fields."""
        super().check_fields()
        stages = range(len(self.architecture.layers))
        if not isinstance(self.out_indices, tuple | None):
            raise ValueError(
                f"out_indices must be a sequence of stages, or None; got {self.out_indices!r}."
            )
        # Not isinstance: `True` is an int.
        unknown = [s for s in self.out_indices or () if type(s) is not int or s not in stages]
        if unknown:
            raise ValueError(
                f"out_indices names stages {unknown}; this architecture has {list(stages)}."
            )
        if self.output_stride not in (None, *self.output_strides):
            *others, last = self.output_strides
            raise ValueError(
                f"output_stride must be {', '.join(map(str, others))}, {last} or None; got "
                f"{self.output_stride}."
            )
        if type(self.contract_dilation) is not bool:
            raise ValueError(
                f"contract_dilation must be True or False; got {self.contract_dilation!r}."
            )
        for rate in self.rates:
            if not 0 <= getattr(self, rate) < 1:
                raise ValueError(f"{rate} must be in [0, 1); got {getattr(self, rate)}.")

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, *, features: bool = False
    ) -> jax.Array | tuple[jax.Array, ...]:
        """Runs the network.

        Args:
          x: normalised images, (N, H, W, in_channels), floating point; any H and W.
          train: batch norms use the statistics of the batch and update `batch_stats`, which must
            be mutable; dropout and stochastic depth draw from the `dropout` stream.
          features: return the features that enter the classifier, as the network with
            `num_classes=None` does; the same variables serve for both.

        Returns:
          Logits, features or feature maps: see `Backbone`. The sizes of feature maps are rounded
          up.

        Raises:
          ValueError: as `check_call`.
          TypeError: images that are not floating point.
        """
        self.check_call(x, features)
        outputs, x = self.run_stages(x, train)
        for name, output in zip(self.feature_names, outputs, strict=True):
            self.sow("intermediates", name, output)
        if self.out_indices is not None:
            return tuple(outputs[s] for s in self.out_indices)
        x = self.final_feature_map(x, train)
        self.sow("intermediates", FINAL_FEATURE_MAP, x)
        return self.classify(self.pool(x, train), features)

    @nn.nowrap
    def run_stages(self, x: jax.Array, train: bool) -> tuple[list[jax.Array], jax.Array]:
        """Runs the stem and the stages.

        Args:
          x: images (N, H, W, in_channels).
          train: as of `__call__`.

        Returns:
          The feature map of each stage, (N, H / stride, W / stride, C), and the input of
          `final_feature_map`, which has the shape of the last one.
        """
        raise NotImplementedError

    @nn.nowrap
    def final_feature_map(self, x: jax.Array, train: bool) -> jax.Array:
        """Runs the layers between the stages and the average pool, which a backbone lacks."""
        return x

    @nn.nowrap
    def pool(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps the final feature map (N, H, W, C) to features (N, C)."""
        return GlobalAveragePool()(x)

    def classify(self, x: jax.Array, features: bool) -> jax.Array:
        """Maps features (N, C) to logits (N, num_classes), both in at least float32.

        Returns the features unchanged with `features=True` or without classes.
        """
        if features or self.num_classes is None:
            return x
        fan_in = x.shape[-1]
        return nn.Dense(
            self.num_classes,
            dtype=x.dtype,
            param_dtype=self.param_dtype,
            kernel_init=pytorch_init(fan_in),
            bias_init=pytorch_init(fan_in),
            name=self.head_name,
        )(x)
