"""The loss of detection: the sum of the losses that the network computes itself."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.detection.structures import Truths
from train.engine.task import Batch, Forward
from train.tasks.padded_images import normalized


@dataclasses.dataclass(frozen=True)
class DetectionLoss:
    """The loss of a detection network; a `train.engine.task.Loss`.

    Batches have `image`, uint8 (N, H, W, C); `size`, int32 (N, 2), the height and width that are
    not padding; and the annotated objects, `boxes`, `classes`, `valid` and perhaps `masks`, as
    `replk_jax.detection.structures.Truths` has them.

    The terms have mmdetection's names, `loss_cls` for example. Those that have "loss" in their
    names add up to the total; the others, such as `s0.acc`, are only reported.

    The network divides its losses by numbers of objects or of samples in the batch. With
    accumulation these are of a micro-batch, as mmdetection's are of a GPU (of all GPUs for FCOS).

    Attributes:
      mean, std: of the images, one per channel, for values in [0, 1].
      dtype: of the images that the network gets.
    """

    mean: Sequence[float]
    std: Sequence[float]
    dtype: np.dtype

    def __call__(
        self, forward: Forward, key: jax.Array, batch: Batch
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """See `train.engine.task.Loss`. The key is that of the random samples of boxes."""
        images = normalized(batch["image"], batch["size"], self.mean, self.std)
        truths = Truths(batch["boxes"], batch["classes"], batch["valid"], batch.get("masks"))
        terms = forward(images.astype(self.dtype), sizes=batch["size"], truths=truths, key=key)
        losses = [term for name, term in terms.items() if "loss" in name]
        return jnp.stack(losses).sum(), terms
