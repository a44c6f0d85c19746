"""The loss of segmentation: cross entropy of every pixel, from logits at a lower resolution."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.ops.resize import apply_matrices, bilinear_matrix
from replk_jax.vision.label_sets import IGNORED
from train.engine.task import Batch, Forward
from train.tasks.padded_images import normalized

_EPS = float(np.finfo(np.float32).eps)  # as in mmsegmentation, in the denominators of means
# Resized logits that are computed at a time, per image.
_CHUNK_ELEMENTS = 2**22


@dataclasses.dataclass(frozen=True)
class HardPixels:
    """Online hard example mining (OHEM): only the hardest pixels of a batch count.

    It is mmsegmentation's OHEMPixelSampler, over the pixels of all images of a (micro-)batch on all
    devices. mmsegmentation chooses among those of one GPU.

    Attributes:
      min_kept: number of pixels to keep, times the number of images. Pixels with the same loss as
        the last one may be kept too, with a threshold.
      threshold: pixels whose class has a lower probability are kept too; None for no such pixels.
    """

    min_kept: int
    threshold: float | None = None

    def weights(self, losses: jax.Array, weighted: jax.Array, labelled: jax.Array) -> jax.Array:
        """1 for the pixels that count, 0 for the others.

        Args:
          losses: cross entropy, float32 (N, H, W).
          weighted: the same, weighted by class.
          labelled: bool (N, H, W), False for ignored pixels.

        Returns:
          Float32 (N, H, W), without gradients.
        """
        kept = self.min_kept * len(losses)
        if self.threshold is None:
            hardness = jnp.where(labelled, weighted, -jnp.inf).ravel()
            _, hardest = jax.lax.top_k(hardness, min(kept, hardness.size))
            chosen = jnp.zeros(hardness.shape, bool).at[hardest].set(True)
            return (chosen.reshape(labelled.shape) & labelled).astype(losses.dtype)
        probabilities = jnp.where(labelled, jnp.exp(-losses), jnp.inf)
        last = jnp.minimum(kept, jnp.maximum(labelled.sum() - 1, 0))
        threshold = jnp.maximum(jnp.sort(probabilities.ravel())[last], self.threshold)
        return (labelled & (probabilities < threshold)).astype(losses.dtype)


@dataclasses.dataclass(frozen=True)
class PixelCrossEntropy:
    """The mean cross entropy of pixels, whose labels may be `IGNORED`.

    Attributes:
      align_corners: of the resizing of logits to the size of the labels.
      avg_non_ignore: whether the mean is over the pixels that are not ignored. Otherwise, as by
        default in mmsegmentation, it is over all pixels, and ignored ones count as 0.
      class_weights: factor on the loss of the pixels of each class; () for 1. They do not change
        the denominator.
      hard_pixels: the only pixels that count, in the same denominator; None for all.
    """

    align_corners: bool = False
    avg_non_ignore: bool = False
    class_weights: tuple[float, ...] = ()
    hard_pixels: HardPixels | None = None

    def __call__(self, logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The loss and the accuracy.

        Args:
          logits: (N, h, w, K), at least float32.
          labels: integers (N, H, W), classes or `IGNORED`.

        Returns:
          The loss, (); and the per cent of correct pixels among those that are not ignored, ().
          Without any, the loss is 0 and the accuracy 100.
        """
        losses, correct = pixel_losses(logits, labels, self.align_corners)
        labelled = labels != IGNORED
        weighted = losses
        if self.class_weights:
            weights = jnp.asarray(self.class_weights, losses.dtype)
            weighted = losses * weights[jnp.where(labelled, labels, 0)]
        if self.hard_pixels is not None:
            weights = self.hard_pixels.weights(
                jax.lax.stop_gradient(losses), jax.lax.stop_gradient(weighted), labelled
            )
            weighted = weighted * weights
        count = labelled.sum().astype(losses.dtype)
        denominator = count + _EPS if self.avg_non_ignore else float(labels.size)
        accuracy = 100 * (correct.sum() + _EPS) / (count + _EPS)
        return weighted.sum() / denominator, accuracy


def pixel_losses(
    logits: jax.Array, labels: jax.Array, align_corners: bool
) -> tuple[jax.Array, jax.Array]:
    """The cross entropy of every pixel, with the logits resized to the size of the labels.

    The resized logits, (N, H, W, K), never exist as a whole: they are computed for some rows at a
    time, and again for their gradients. With 150 classes, two images of 512 x 512 and logits of
    128 x 128, the loss and its gradient take 104 MiB on a CPU, and 938 MiB with all resized logits.

    Args:
      logits: (N, h, w, K), at least float32.
      labels: integers (N, H, W), classes or `IGNORED`.
      align_corners: see `replk_jax.ops.resize.bilinear_matrix`.

    Returns:
      The losses, (N, H, W), 0 for ignored pixels; and whether a pixel is not ignored and its class
      has the largest logit, bool (N, H, W).
    """
    batch, height, width = labels.shape
    _, h, w, num_classes = logits.shape
    rows = max(1, min(height, _CHUNK_ELEMENTS // (width * num_classes)))
    chunks = -(-height // rows)
    padding = chunks * rows - height
    columns = bilinear_matrix(width, w, align_corners)
    to_rows = np.pad(bilinear_matrix(height, h, align_corners), ((0, padding), (0, 0)))
    labels = jnp.pad(labels, ((0, 0), (0, padding), (0, 0)), constant_values=IGNORED)
    labels = labels.reshape(batch, chunks, rows, width).swapaxes(0, 1)

    @jax.checkpoint
    def of_rows(logits: jax.Array, matrix: jax.Array, labels: jax.Array):
        return _losses(apply_matrices(logits, matrix, columns), labels)

    def step(_: None, chunk: tuple[jax.Array, jax.Array]):
        return None, of_rows(logits, *chunk)

    matrices = jnp.asarray(to_rows, logits.dtype).reshape(chunks, rows, h)
    _, results = jax.lax.scan(step, None, (matrices, labels))

    def joined(parts: jax.Array) -> jax.Array:
        return parts.swapaxes(0, 1).reshape(batch, chunks * rows, width)[:, :height]

    losses, correct = results
    return joined(losses), joined(correct)


def _losses(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As `pixel_losses`, for logits (N, H, W, K) of the size of the labels."""
    labels = labels.astype(jnp.int32)
    of_label = jnp.arange(logits.shape[-1])[None, None, None] == labels[..., None]
    picked = jnp.where(of_label, logits, 0).sum(axis=-1)
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    labelled = labels != IGNORED
    correct = labelled & (logits.argmax(axis=-1) == labels)
    return jnp.where(labelled, losses, 0), correct


@dataclasses.dataclass(frozen=True)
class SegmentationLoss:
    """The loss of a segmentation network with an optional auxiliary head; a `train.engine.Loss`.

    Batches have `image`, uint8 (N, H, W, C); `mask`, uint8 (N, H, W), classes or `IGNORED`; and
    `valid_size`, int32 (N, 2), the height and width that are not padding.

    The terms have mmsegmentation's names: `decode.loss_ce` and `aux.loss_ce`, which add up to the
    total, and `decode.acc_seg` and `aux.acc_seg`, in per cent.

    With accumulation and a mean over all pixels, the loss is that of the whole batch. With
    `avg_non_ignore`, it is the mean of the means of the micro-batches, as mmsegmentation's with
    several GPUs is that of the means of the GPUs: a labelled pixel weighs more where there are few.

    Attributes:
      mean, std: of the images, one per channel, for values in [0, 1].
      dtype: of the images that the network gets.
      decode: of the decode head.
      auxiliary: of the auxiliary head.
      auxiliary_weight: factor on the loss of the auxiliary head.
    """

    mean: Sequence[float]
    std: Sequence[float]
    dtype: np.dtype
    decode: PixelCrossEntropy
    auxiliary: PixelCrossEntropy
    auxiliary_weight: float = 0.4

    def __call__(
        self, forward: Forward, key: jax.Array, batch: Batch
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """See `train.engine.task.Loss`."""
        del key
        inputs = normalized(batch["image"], batch["valid_size"], self.mean, self.std)
        logits, auxiliary_logits = forward(inputs.astype(self.dtype))
        total, accuracy = self.decode(logits, batch["mask"])
        terms = {"decode.loss_ce": total, "decode.acc_seg": accuracy}
        if auxiliary_logits is not None:
            loss, accuracy = self.auxiliary(auxiliary_logits, batch["mask"])
            loss *= self.auxiliary_weight
            total += loss
            terms |= {"aux.loss_ce": loss, "aux.acc_seg": accuracy}
        return total, terms
