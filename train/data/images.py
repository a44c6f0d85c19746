"""The images of a run: its splits, and batches of each as the configuration wants them."""

from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from replk_jax.preprocessing import Preprocessing
from train.data import pipeline
from train.data.randaugment import RandAugment
from train.data.sources import open_source
from train.data.transforms import Prepare, TrainTransform
from train.data.unreadable import reported
from train.errors import RunError
from train.reporting import warn

Report = Callable[[str], None]


class EvaluationImages:
    """The evaluation split that a configuration names.

    Args:
      config: see configs/common.py.
      preprocessing: of the images.

    Raises:
      RunError: data that are not there.
    """

    def __init__(self, config: ConfigDict, preprocessing: Preprocessing):
        self._config = config
        self._source = open_source(config.data, config.data.eval_split)
        self._transform = Prepare(preprocessing)
        self.class_names = self._source.class_names

    def batches(self, report: Report = warn) -> Iterator[pipeline.Batch]:
        """This process's rows of batches that hold every image once.

        Args:
          report: is told of images that cannot be read, whose `mask` is False, if
            `config.data.unreadable` is "replace".
        """
        data = self._config.data
        batches = pipeline.eval_batches(
            self._source,
            self._transform,
            batch_size=self._config.eval_batch_size,
            reading=data.reading,
            replace=data.unreadable == "replace",
        )
        return reported(batches, report)


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
        self.preprocessing = preprocessing_of(data)
        self.evaluation = EvaluationImages(config, self.preprocessing)
        self.class_names = self._train.class_names
        if self.class_names != self.evaluation.class_names:
            raise RunError(
                f"The splits {data.train_split!r} and {data.eval_split!r} do not have the same "
                f"classes: {_first(self.class_names)} and {_first(self.evaluation.class_names)}."
            )
        self.steps_per_epoch = len(self._train) // config.batch_size
        if not self.steps_per_epoch:
            raise RunError(
                f"{len(self._train)} training examples do not fill one batch of "
                f"{config.batch_size}; lower --config.batch_size."
            )
        self._train_transform = train_transform_of(data, channels)

    def train_batches(self, start_step: int, report: Report = warn) -> Iterator[pipeline.Batch]:
        """This process's rows of the batches from `start_step` on, without end.

        Args:
          start_step: how many batches to pass over, at no cost.
          report: is told of images that cannot be read, in whose place others are taken, if
            `config.data.unreadable` is "replace".
        """
        data = self._config.data
        batches = pipeline.train_batches(
            self._train,
            self._train_transform,
            batch_size=self._config.batch_size,
            seed=self._config.seed,
            start_step=start_step,
            reading=data.reading,
            replace=data.unreadable == "replace",
        )
        return reported(batches, report)


def preprocessing_of(data: ConfigDict) -> Preprocessing:
    """Of the images to evaluate on, as the `data` part of a configuration says.

    Raises:
      RunError: fields that make no sense.
    """
    try:
        return Preprocessing(
            image_size=data.image_size,
            crop_fraction=data.eval_crop_fraction,
            mean=data.mean,
            std=data.std,
        )
    except ValueError as error:
        raise RunError(f"config.data: {error}") from error


def train_transform_of(data: ConfigDict, channels: int) -> TrainTransform:
    """What training images go through on the host, as the `data` part of a configuration says.

    Raises:
      RunError: a RandAugment that is not understood.
    """
    rand_augment = None
    if data.rand_augment != "none":
        # Pillow's "bicubic" and OpenCV's alike; timm moves images as it resizes them.
        interpolation = "bilinear" if data.resizing == "bilinear" else "bicubic"
        rand_augment = RandAugment.parse(data.rand_augment, data.mean, interpolation)
    return TrainTransform(
        size=data.image_size,
        channels=channels,
        scale=data.crop_scale,
        ratio=data.crop_ratio,
        flip=data.flip,
        resizing=data.resizing,
        rand_augment=rand_augment,
        color_jitter=data.color_jitter,
    )


def _first(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{len(names)} ({shown}{', ...' if len(names) > 3 else ''})"
