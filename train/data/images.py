"""The images of a run: its two splits, and batches of each as the configuration wants them."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from train.data import pipeline
from train.data.sources import open_source
from train.data.transforms import RandomResizedCropAndFlip, ResizeAndCentreCrop
from train.errors import RunError


class ImageData:
    """The training and evaluation splits that a configuration names.

    Args:
      config: see configs/common.py.
      channels: of the images, 1 or 3.

    Raises:
      RunError: data that are not there, or splits that do not belong together.
    """

    def __init__(self, config: ConfigDict, channels: int):
        if channels not in (1, 3):
            raise RunError(
                "Images have 1 (grey) or 3 (colour) channels; config.model.in_channels is "
                f"{channels}."
            )
        self._config = config
        data = config.data
        if not len(data.mean) == len(data.std) == channels:
            raise RunError(
                f"config.data.mean and config.data.std must have {channels} values, one for each "
                f"channel; they are {data.mean} and {data.std}."
            )
        self._train = open_source(data, data.train_split)
        self._eval = open_source(data, data.eval_split)
        if self._train.class_names != self._eval.class_names:
            raise RunError(
                f"The splits {data.train_split!r} and {data.eval_split!r} do not have the same "
                f"classes: {_first(self._train.class_names)} and {_first(self._eval.class_names)}."
            )
        self.num_classes = len(self._train.class_names)
        self.steps_per_epoch = len(self._train) // config.batch_size
        if not self.steps_per_epoch:
            raise RunError(
                f"{len(self._train)} training examples do not fill one batch of "
                f"{config.batch_size}; lower --config.batch_size."
            )
        self._train_transform = RandomResizedCropAndFlip(
            data.image_size, channels, data.crop_scale, data.crop_ratio, data.flip
        )
        self._eval_transform = ResizeAndCentreCrop(
            data.image_size, channels, data.eval_crop_fraction
        )

    def train_batches(self, start_step: int) -> Iterator[pipeline.Batch]:
        """This process's rows of the batches from `start_step` on, without end."""
        return pipeline.train_batches(
            self._train,
            self._train_transform,
            batch_size=self._config.batch_size,
            seed=self._config.seed,
            start_step=start_step,
            reading=self._config.data.reading,
        )

    def eval_batches(self) -> Iterator[pipeline.Batch]:
        """This process's rows of batches that hold every evaluation image once."""
        return pipeline.eval_batches(
            self._eval,
            self._eval_transform,
            batch_size=self._config.eval_batch_size,
            reading=self._config.data.reading,
        )


def _first(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{len(names)} ({shown}{', ...' if len(names) > 3 else ''})"
