"""Augmentation of batches on the devices: normalisation, random erasing, mixup and cutmix.

Semantics and order are those of timm's loader and training script, with which RepLKNet was trained.
All functions are pure, of a key and arrays, for use under `jax.jit`: results do not depend on the
number of devices. Random draws are separate functions. Normalisation and erasing are for any task;
mixing is for classification.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from replk_jax.vision.base_preprocessing import normalize
from train.errors import RunError

ERASED_SHARE = (0.02, 1 / 3)  # of an image's area
ERASED_ASPECT = (0.3, 1 / 0.3)  # height over width
_ATTEMPTS = 10  # to draw a rectangle that is smaller than the image


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Makes the images and targets of a classifier from a batch of the data pipeline.

        images, targets = augmentation(key, batch)

    Attributes:
      num_classes: K.
      mean, std: of the images, one value per channel, for values in [0, 1].
      label_smoothing: s; a target is s / K for each class, plus 1 - s for the label.
      erasing_probability: of an image.
      mixup_alpha, cutmix_alpha, mix_probability, switch_probability: see `draw_mixing`.
      mixup_group_size: number of consecutive images that are mixed with one another, by one draw.
      dtype: of the network's computation. Images are computed in float32 and rounded to it at the
        end. The network would do so anyway; bfloat16 images take half the memory.
    """

    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    label_smoothing: float
    erasing_probability: float
    mixup_alpha: float
    cutmix_alpha: float
    mix_probability: float
    switch_probability: float
    mixup_group_size: int
    dtype: Any = jnp.float32

    @property
    def mixes(self) -> bool:
        """Whether images are ever mixed."""
        return self.mix_probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

    def __call__(
        self, key: jax.Array, batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Maps {"image": uint8 (N, H, W, C), "label": int32 (N,)} to images and targets.

        Returns:
          The images, `dtype` (N, H, W, C), and the class probabilities, float32 (N, K).

        Raises:
          RunError: the batch cannot be divided into groups; see `count_groups`.
        """
        erasing_key, mixing_key = jax.random.split(key)
        images = normalize(batch["image"], self.mean, self.std)
        targets = optax.smooth_labels(
            jax.nn.one_hot(batch["label"], self.num_classes), self.label_smoothing
        )
        if self.erasing_probability:
            images = erase(erasing_key, images, self.erasing_probability)
        if self.mixes:
            count, height, width, _ = images.shape
            mixing = draw_mixing(
                mixing_key,
                count_groups(count, self.mixup_group_size),
                (height, width),
                mixup_alpha=self.mixup_alpha,
                cutmix_alpha=self.cutmix_alpha,
                mix_probability=self.mix_probability,
                switch_probability=self.switch_probability,
            )
            images, targets = mix(mixing, images, targets)
        return images.astype(self.dtype), targets


class Boxes(NamedTuple):
    """Boxes of pixels: the rows [top, bottom) and the columns [left, right), int32 (...)."""

    top: jax.Array
    bottom: jax.Array
    left: jax.Array
    right: jax.Array

    @property
    def area(self) -> jax.Array:
        """In pixels, int32 (...)."""
        return (self.bottom - self.top) * (self.right - self.left)

    def mask(self, height: int, width: int) -> jax.Array:
        """Which pixels of an image are in the box, bool (..., H, W, 1)."""
        top, bottom, left, right = (jnp.expand_dims(edge, (-3, -2, -1)) for edge in self)
        every_box = (1,) * jnp.ndim(self.top)
        rows = jnp.arange(height).reshape(*every_box, height, 1, 1)
        columns = jnp.arange(width).reshape(*every_box, 1, width, 1)
        return (top <= rows) & (rows < bottom) & (left <= columns) & (columns < right)


def erase(key: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Random erasing: replaces a box of an image by standard normal noise.

    Zhong et al., "Random Erasing Data Augmentation" (arXiv:1708.04896).

    Args:
      key: random key.
      images: float32 (N, H, W, C), normalised.
      probability: of erasing, for each image.
    """
    box_key, noise_key = jax.random.split(key)
    count, height, width, _ = images.shape
    boxes = draw_erasing(box_key, count, (height, width), probability)
    # For all pixels, since the shape of an array cannot depend on the drawn boxes.
    noise = jax.random.normal(noise_key, images.shape, images.dtype)
    return jnp.where(boxes.mask(height, width), noise, images)


def draw_erasing(key: jax.Array, count: int, size: tuple[int, int], probability: float) -> Boxes:
    """Draws the box (count,) to erase in each image; it is empty if nothing is erased.

    The area relative to the image's is uniform in `ERASED_SHARE`, the logarithm of the aspect ratio
    is uniform between those of `ERASED_ASPECT`, the position is uniform. There are ten attempts for
    a box that is smaller than the image in both directions; if all fail, nothing is erased.

    Args:
      key: random key.
      count: number of images.
      size: their (height, width).
      probability: of erasing, for each image.
    """
    height, width = size
    shape_key, position_key = jax.random.split(key)
    share, aspect = _uniform(shape_key, (count, _ATTEMPTS), 2)
    decision, row, column = _uniform(position_key, (count,), 3)

    smallest, largest = ERASED_SHARE
    flattest, steepest = map(math.log, ERASED_ASPECT)
    area = height * width * (smallest + share * (largest - smallest))
    aspect = jnp.exp(flattest + aspect * (steepest - flattest))
    h = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    w = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)

    fits = (h < height) & (w < width)
    first = jnp.argmax(fits, axis=1, keepdims=True)
    erased = (decision < probability) & fits.any(axis=1)
    h, w = (jnp.where(erased, jnp.take_along_axis(x, first, 1)[:, 0], 0) for x in (h, w))
    top, left = _uniform_integer(height - h + 1, row), _uniform_integer(width - w + 1, column)
    return Boxes(top, top + h, left, left + w)


class Mixing(NamedTuple):
    """Draws of mixup or cutmix, for G groups of images; each image is mixed with its partner.

    In the box, the mixture is the partner; outside, it is `opacity` times the image plus
    1 - `opacity` times the partner. In cutmix the opacity is 1, in mixup the box is empty.

    Attributes:
      opacity: float32 (G,), in [0, 1].
      boxes: (G,).
    """

    opacity: jax.Array
    boxes: Boxes

    def weights(self, height: int, width: int) -> jax.Array:
        """The weight of the image in each pixel of the mixture, float32 (G, H, W, 1)."""
        opacity = self.opacity[:, None, None, None]
        return jnp.where(self.boxes.mask(height, width), 0.0, opacity)

    def share(self, height: int, width: int) -> jax.Array:
        """Lambda: the mean weight of the image in the mixture, float32 (G,)."""
        return self.opacity * ((height * width - self.boxes.area) / (height * width))


def mix(mixing: Mixing, images: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mixup or cutmix of images and their targets.

    The batch is G groups of consecutive images. Partners are an image of a group and the one at
    the same place from the group's end.
    Zhang et al., "mixup" (arXiv:1710.09412); Yun et al., "CutMix" (arXiv:1905.04899).

    Args:
      mixing: for each of the G groups.
      images: floating point (N, H, W, C); N a multiple of G.
      targets: floating point (N, K).
    """
    _, height, width, _ = images.shape
    image_weights = mixing.weights(height, width)[:, None]
    target_weights = mixing.share(height, width)[:, None, None]
    return _blend(images, image_weights), _blend(targets, target_weights)


def draw_mixing(
    key: jax.Array,
    groups: int,
    size: tuple[int, int],
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    mix_probability: float,
    switch_probability: float,
) -> Mixing:
    """Draws mixup or cutmix for each group: lambda ~ Beta(alpha, alpha), and the box of cutmix.

    The sides of the box are sqrt(1 - lambda) of the image's, rounded down to even numbers. Its
    centre is uniform among the pixels, and it is clipped to the image.

    Args:
      key: random key.
      groups: G.
      size: (height, width) of the images.
      mixup_alpha, cutmix_alpha: alpha of each; one of them, but not both, may be 0 to turn it off.
      mix_probability: of mixing a group.
      switch_probability: of cutmix, if both are on.
    """
    height, width = size
    share_key, other_key = jax.random.split(key)
    decision, switch, row, column = _uniform(other_key, (groups,), 4)
    if not (mixup_alpha and cutmix_alpha):
        switch_probability = float(cutmix_alpha > 0)
    is_cutmix = switch < switch_probability
    alpha = jnp.where(is_cutmix, cutmix_alpha, mixup_alpha)
    drawn = jax.random.beta(share_key, alpha, alpha)
    share = jnp.where(decision < mix_probability, drawn, 1.0)

    ratio = jnp.where(is_cutmix, jnp.sqrt(1 - share), 0.0)
    top, bottom = _interval(height, ratio, row)
    left, right = _interval(width, ratio, column)
    return Mixing(jnp.where(is_cutmix, 1.0, share), Boxes(top, bottom, left, right))


def count_groups(batch_size: int, mixup_group_size: int) -> int:
    """The number of mixup groups of a batch; a batch that is smaller than a group is one group.

    Raises:
      RunError: a larger batch is no multiple of `mixup_group_size`.
    """
    if batch_size <= mixup_group_size:
        return 1
    if batch_size % mixup_group_size:
        raise RunError(
            f"A batch of {batch_size} images (config.batch_size / config.accumulation) is no "
            f"multiple of config.augmentation.mixup_group_size = {mixup_group_size}; set that to a "
            f"divisor of {batch_size}, or choose another batch."
        )
    return batch_size // mixup_group_size


def _uniform(key: jax.Array, shape: tuple[int, ...], number: int) -> jax.Array:
    """`number` arrays of `shape`, uniform in [0, 1). One draw for all compiles faster."""
    return jnp.moveaxis(jax.random.uniform(key, (*shape, number)), -1, 0)


def _uniform_integer(end: int | jax.Array, uniform: jax.Array) -> jax.Array:
    """A uniform integer in [0, end), int32, from a uniform number in [0, 1)."""
    return jnp.floor(jnp.asarray(end, uniform.dtype) * uniform).astype(jnp.int32)


def _interval(length: int, ratio: jax.Array, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First and last + 1 pixel of a box along an axis.

    Args:
      length: of the axis.
      ratio: of the box's side to the axis.
      uniform: in [0, 1); the position of the centre.
    """
    half = jnp.floor(length * ratio).astype(jnp.int32) // 2
    centre = _uniform_integer(length, uniform)
    return jnp.maximum(centre - half, 0), jnp.minimum(centre + half, length)


def _blend(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Blends (N, ...) with its partners; weights (G, 1, ...) are those of x itself."""
    groups = x.reshape(len(weights), -1, *x.shape[1:])
    return (weights * groups + (1 - weights) * groups[:, ::-1]).reshape(x.shape)
