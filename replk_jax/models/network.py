"""What the networks of all families have in common, from outside."""

import operator
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.models.layers import ReparameterizableModule, pytorch_init


class Network(ReparameterizableModule, kw_only=True):
    """A classifier, a feature extractor or a backbone.

    A family defines `__call__(x, train=False, *, features=False)`, which begins with
    `check_call`, passes the output of each stage to `sow_stage`, and ends with `classify`. With
    `out_indices` it returns a tuple of those outputs; with `features`, or without a classifier,
    what would enter the classifier.

    Attributes:
      architecture: widths, depths and kernels. Of every family it has `in_channels`, the channels
        of the images, and `layers`, one entry per stage.
      num_classes: outputs of the classifier; None builds no classifier, and the model
        returns what would enter it. 0 means None.
      out_indices: stages whose feature maps to return, in this order, counted from 0 (the stem
        is not among them), or from the end if negative: any sequence or array of integers, which
        is kept as a tuple of non-negative numbers. The model is then a backbone, without
        classifier whatever `num_classes` says.
      output_stride: size of the image over that of the last feature map, one of
        `output_strides`; None for that of the architecture. Strides beyond it become dilation
        (see `dilation.sample_stages`); the variables stay the same.
      remat: what each block keeps for the backward pass, which computes the rest anew: a name of
        `layers.REMAT_POLICIES`; None keeps everything.
      deploy, dtype, param_dtype, implementation: see `ReparameterizableModule`.
    """

    head_name: ClassVar[str] = "head"  # of the classifier among the parameters
    # Whether a batch norm precedes the classifier, into which it is folded.
    norm_joins_head: ClassVar[bool] = False
    output_strides: ClassVar[tuple[int, ...]] = (8, 16, 32)

    architecture: Any
    num_classes: int | None = 1000
    out_indices: tuple[int, ...] | None = None
    output_stride: int | None = None
    remat: str | None = None

    def __post_init__(self):
        # Equal models are equal and hashable whichever way they were written.
        if self.num_classes == 0 and not isinstance(self.num_classes, bool):
            self.num_classes = None
        given = self.out_indices
        is_array = isinstance(given, np.ndarray | jax.Array) and given.ndim == 1
        if is_array or (isinstance(given, Sequence) and not isinstance(given, str)):
            self.out_indices = tuple(map(self._stage, given))
        super().__post_init__()

    def _stage(self, index: Any) -> Any:
        """An index of a stage, counted from 0; what is none stays for `check_fields` to name."""
        if isinstance(index, bool):
            return index
        try:
            index = operator.index(index)
        except TypeError:
            return index
        count = len(self.architecture.layers)
        return index + count if -count <= index < 0 else index

    @property
    def mergeable(self) -> bool:
        """Whether there is a merged structure."""
        return True

    @nn.nowrap
    def check_call(self, x: jax.Array, features: bool) -> None:
        """Checks images (N, H, W, in_channels), and the fields of the module.

        Raises:
          ValueError: images of another shape, or fields that make no sense.
          TypeError: images that are not floating point.
        """
        family, channels = type(self).__name__, self.architecture.in_channels
        if x.ndim != 4 or x.shape[-1] != channels:
            raise ValueError(
                f"{family} takes images of shape (N, H, W, {channels}); got {x.shape}."
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"{family} takes normalised floating-point images; got {x.dtype}. "
                "Convert them, and apply the mean and standard deviation of the checkpoint."
            )
        self.check_fields()
        if features and self.out_indices is not None:
            raise ValueError(
                "A backbone (out_indices) returns feature maps of its stages; it has no features "
                "before a classifier. Leave out features=True, or use clone(out_indices=None)."
            )
        if features and self.deploy and self.norm_joins_head and self.num_classes is not None:
            raise ValueError(
                "The merged classifier holds the final batch norm, so its features are gone. "
                "Build the model with num_classes=None and re-parameterize the variables "
                f"without params/{self.head_name}: that keeps the norm as scale and bias."
            )

    @nn.nowrap
    def check_fields(self) -> None:
        """Raises ValueError for fields that make no sense."""
        classes = self.num_classes
        if classes is not None and not (isinstance(classes, int) and classes > 0):
            raise ValueError(f"num_classes must be positive, or None; got {classes}.")
        stages = range(len(self.architecture.layers))
        if not isinstance(self.out_indices, tuple | None):
            raise ValueError(
                f"out_indices must be a sequence of stages, or None; got {self.out_indices!r}."
            )
        # `True in range(4)` holds.
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

    @nn.nowrap
    def sow_stage(self, stage: int, output: jax.Array) -> None:
        """Stores the output of a stage, (N, H, W, C), in `intermediates` as `stage_0`, ..."""
        self.sow("intermediates", f"stage_{stage}", output)

    def classify(self, x: jax.Array, features: bool) -> jax.Array:
        """Features (N, C) to logits (N, num_classes); or back as they are, where they are wanted.

        Both in at least float32.
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
