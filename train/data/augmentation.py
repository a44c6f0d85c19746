"""What the device does to a batch before the network sees it: normalise, erase, mix.

The semantics and their order are those of timm's loader and training script, in which RepLKNet was
trained. Everything is a pure function of a key and of arrays, for use under `jax.jit`: the result
is the same for any number of devices. What is drawn is apart from what is done with it.
Normalising and erasing are any task's; the mixing of targets is classification's.
"""

import dataclasses
import math
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
    """From a batch as the host reads it to a classifier's images and targets.

        images, targets = augmentation(key, batch)

    Attributes:
      num_classes: K.
      mean, std: of the images, channel by channel, for values in [0, 1].
      label_smoothing: s; a target is (1 - s) for its class and s / K for each.
      erasing_probability: of erasing a part of an image.
      mixup_alpha, cutmix_alpha, mix_probability, switch_probability: see `draw_mixing`.
      mixup_group_size: how many consecutive images are mixed alike, among themselves.
      dtype: that the network computes in. All arithmetic here is in float32, and the images are
        rounded at the end: the network would round them first, so it loses nothing, and where they
        have to be stored it is half the memory.
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

    def __call__(self, key: jax.Array, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Maps {"image": uint8 (N, H, W, C), "label": int32 (N,)} to images and targets.

        Returns:
          The images (N, H, W, C), in `dtype`, and the shares of the classes, float32 (N, K).

        Raises:
          RunError: a batch that cannot be divided into groups; see `count_groups`.
        """
        of_erasing, of_mixing = jax.random.split(key)
        images = normalize(batch["image"], self.mean, self.std)
        targets = optax.smooth_labels(
            jax.nn.one_hot(batch["label"], self.num_classes), self.label_smoothing
        )
        if self.erasing_probability:
            images = erase(of_erasing, images, self.erasing_probability)
        if self.mixes:
            mixing = draw_mixing(
                of_mixing,
                count_groups(len(images), self.mixup_group_size),
                images.shape[1:3],
                mixup_alpha=self.mixup_alpha,
                cutmix_alpha=self.cutmix_alpha,
                mix_probability=self.mix_probability,
                switch_probability=self.switch_probability,
            )
            images, targets = mix(mixing, images, targets)
        return images.astype(self.dtype), targets


class Boxes(NamedTuple):
    """Rectangles of pixels: the rows [top, bottom) and the columns [left, right), int32 (...)."""

    top: jax.Array
    bottom: jax.Array
    left: jax.Array
    right: jax.Array

    @property
    def area(self) -> jax.Array:
        """In pixels, int32 (...)."""
        return (self.bottom - self.top) * (self.right - self.left)

    def mask(self, height: int, width: int) -> jax.Array:
        """Which pixels of an image lie inside, bool (..., H, W, 1)."""
        top, bottom, left, right = (jnp.expand_dims(edge, (-3, -2, -1)) for edge in self)
        every_box = (1,) * jnp.ndim(self.top)
        rows = jnp.arange(height).reshape(*every_box, height, 1, 1)
        columns = jnp.arange(width).reshape(*every_box, 1, width, 1)
        return (top <= rows) & (rows < bottom) & (left <= columns) & (columns < right)


def erase(key: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Random erasing: a rectangle of an image becomes noise, a normal value for each number.

    Zhong et al., "Random Erasing Data Augmentation" (arXiv:1708.04896).

    Args:
      key: of the draws.
      images: (N, H, W, C), normalised.
      probability: that something of an image is erased.
    """
    of_boxes, of_noise = jax.random.split(key)
    count, height, width, _ = images.shape
    boxes = draw_erasing(of_boxes, count, (height, width), probability)
    # Of all pixels: the shape of an array cannot depend on what was drawn.
    noise = jax.random.normal(of_noise, images.shape, images.dtype)
    return jnp.where(boxes.mask(height, width), noise, images)


def draw_erasing(key: jax.Array, count: int, size: tuple[int, int], probability: float) -> Boxes:
    """What is erased of each of `count` images: one box (count,), empty where nothing is.

    Its share of the area is uniform in `ERASED_SHARE`, the logarithm of its aspect ratio in that
    of `ERASED_ASPECT`, its place uniform; the first of ten draws that is lower and narrower than
    the image counts, and if there is none, nothing is erased.

    Args:
      key: of the draws.
      count: of the images.
      size: their (height, width).
      probability: that something of an image is erased.
    """
    height, width = size
    of_shape, of_place = jax.random.split(key)
    share, aspect = _uniform(of_shape, (count, _ATTEMPTS), 2)
    whether, row, column = _uniform(of_place, (count,), 3)

    smallest, largest = ERASED_SHARE
    flattest, steepest = map(math.log, ERASED_ASPECT)
    area = height * width * (smallest + share * (largest - smallest))
    aspect = jnp.exp(flattest + aspect * (steepest - flattest))
    h = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    w = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)

    fits = (h < height) & (w < width)
    first = jnp.argmax(fits, axis=1, keepdims=True)
    erased = (whether < probability) & fits.any(axis=1)
    h, w = (jnp.where(erased, jnp.take_along_axis(x, first, 1)[:, 0], 0) for x in (h, w))
    top, left = _below(height - h + 1, row), _below(width - w + 1, column)
    return Boxes(top, top + h, left, left + w)


class Mixing(NamedTuple):
    """How images become mixtures with their partners, for G groups of images.

    Inside the box a mixture is the partner; outside it is `opacity` parts of the image and
    1 - `opacity` of the partner. In cutmix the opacity is 1, in mixup the box is empty.

    Attributes:
      opacity: float32 (G,), in [0, 1].
      boxes: (G,).
    """

    opacity: jax.Array
    boxes: Boxes

    def weights(self, height: int, width: int) -> jax.Array:
        """The share of the image in each pixel of the mixture, float32 (G, H, W, 1)."""
        opacity = self.opacity[:, None, None, None]
        return jnp.where(self.boxes.mask(height, width), 0.0, opacity)

    def share(self, height: int, width: int) -> jax.Array:
        """The share of the image in the whole mixture, lambda, float32 (G,): the mean weight."""
        return self.opacity * ((height * width - self.boxes.area) / (height * width))


def mix(mixing: Mixing, images: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mixup and cutmix: images and their targets become mixtures of two.

    The batch is G groups of consecutive images; the partner of a group's first image is its last,
    and so on, and that in the middle of an odd number has itself.
    Zhang et al., "mixup" (arXiv:1710.09412); Yun et al., "CutMix" (arXiv:1905.04899).

    Args:
      mixing: for each of the G groups.
      images: floating point (N, H, W, C); N a multiple of G.
      targets: floating point (N, K).
    """
    size = images.shape[1:3]
    image_weights = mixing.weights(*size)[:, None]
    target_weights = mixing.share(*size)[:, None, None]
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
    """Draws mixup or cutmix for each group: lambda ~ Beta(alpha, alpha), and cutmix's box.

    The box has sqrt(1 - lambda) of the height and of the width, rounded down to even numbers, and
    a centre that is uniform among the pixels; what of it lies outside the image is cut off.

    Args:
      key: of the draws.
      groups: G.
      size: (height, width) of the images.
      mixup_alpha, cutmix_alpha: alpha of either; at 0 there is only the other one. Not both.
      mix_probability: that a group is mixed at all.
      switch_probability: that it is cutmix, where both exist.
    """
    height, width = size
    of_share, of_rest = jax.random.split(key)
    whether, switch, row, column = _uniform(of_rest, (groups,), 4)
    if not (mixup_alpha and cutmix_alpha):
        switch_probability = float(cutmix_alpha > 0)
    cuts = switch < switch_probability
    alpha = jnp.where(cuts, cutmix_alpha, mixup_alpha)
    drawn = jax.random.beta(of_share, alpha, alpha)
    share = jnp.where(whether < mix_probability, drawn, 1.0)

    ratio = jnp.where(cuts, jnp.sqrt(1 - share), 0.0)
    top, bottom = _side(height, ratio, row)
    left, right = _side(width, ratio, column)
    return Mixing(jnp.where(cuts, 1.0, share), Boxes(top, bottom, left, right))


def count_groups(batch_size: int, mixup_group_size: int) -> int:
    """How many groups of `mixup_group_size` a batch has; one that is smaller is one group.

    Raises:
      RunError: a larger batch that is no multiple.
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
    """So many arrays of `shape`, uniform in [0, 1); drawn at once, which compiles sooner."""
    return jnp.moveaxis(jax.random.uniform(key, (*shape, number)), -1, 0)


def _below(end: int | jax.Array, uniform: jax.Array) -> jax.Array:
    """A whole number in [0, end), of a uniform one in [0, 1)."""
    return jnp.floor(end * uniform).astype(jnp.int32)


def _side(length: int, ratio: jax.Array, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where boxes with so much of an axis, and their centre somewhere on it, begin and end."""
    half = jnp.floor(length * ratio).astype(jnp.int32) // 2
    centre = _below(length, uniform)
    return jnp.maximum(centre - half, 0), jnp.minimum(centre + half, length)


def _blend(x: jax.Array, weights: jax.Array) -> jax.Array:
    """(N, ...) with itself, each of the G groups reversed, by weights (G, 1, ...) of the first."""
    groups = x.reshape(len(weights), -1, *x.shape[1:])
    return (weights * groups + (1 - weights) * groups[:, ::-1]).reshape(x.shape)
