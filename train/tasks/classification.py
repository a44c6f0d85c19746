"""Image classification: each image has one label."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from replk_jax.checkpoint import Checkpoint
from replk_jax.models.backbone import Backbone
from replk_jax.vision import imagenet
from replk_jax.vision.base_preprocessing import BasePreprocessing, normalize
from train.data.augmentation import Augmentation, count_groups
from train.data.checks.classification import examine_labelled_images
from train.data.randaugment import RandAugment
from train.data.sources import LabelledImages, open_source, prepare
from train.data.splits import EvaluationSplit, TrainingSplit
from train.data.transforms import Prepare, TrainTransform
from train.engine import config as configuration
from train.engine import parallel
from train.engine.step import random_keys
from train.engine.task import Batch, Evaluation, Forward, Loss, Metrics, Preview, Task, TaskKind
from train.errors import RunError
from train.reporting.console import warn
from train.reporting.examination import Examination
from train.tasks.classification_config import build_preprocessing, check
from train.tasks.data_sets import (
    evaluation_names,
    reading_options,
    require_classes_of,
    require_same_classes,
)


def make_task(config: ConfigDict) -> Task:
    """The classification task of a run.

    Args:
      config: see configs/common.py.

    Raises:
      RunError: the data set does not exist, or its splits have different classes.
    """
    data = config.data
    model = configuration.build_model(config)
    channels = model.in_channels
    preprocessing = build_preprocessing(data, channels)
    transform = make_train_transform(data, channels)
    names = evaluation_names(data.eval_split, data.more_eval_splits)

    def splits() -> tuple[TrainingSplit, dict[str, Evaluation], tuple[str, ...]]:
        training = open_source(data, data.train_split)
        sources = {name: open_source(data, split) for name, split in names.items()}
        for name, source in sources.items():
            require_same_classes(
                data.train_split, training.class_names, names[name], source.class_names
            )
        examples = TrainingSplit(
            training,
            transform,
            batch_size=config.batch_size,
            seed=config.seed,
            reading=reading_options(data),
        )
        evaluations = _evaluations(config, sources, preprocessing)
        return examples, evaluations, tuple(training.class_names)

    parallel.one_process_at_a_time(lambda: prepare(data))
    training, evaluations, class_names = parallel.on_all_processes(splits)
    return Task(
        model=model.clone(num_classes=len(class_names)),
        image_size=(data.image_size, data.image_size),
        loss=cross_entropy(make_augmentation(config, len(class_names))),
        training=training,
        evaluations=evaluations,
        preprocessing=preprocessing,
        class_names=class_names,
    )


def make_evaluations(config: ConfigDict, network: Checkpoint) -> dict[str, Evaluation]:
    """The evaluations of a classifier from a file.

    The preprocessing is that of the file, or that of the configuration if the file has none or
    `config.data.eval_as_configured` is set.

    Args:
      config: see configs/common.py; `init_from` names the file.
      network: from the file.

    Raises:
      RunError: the network has no classifier or other classes, or the data set does not exist.
    """
    data = config.data
    if not (isinstance(network.model, Backbone) and network.model.has_classifier):
        raise RunError(f"The network in {config.init_from} has no classifier.")
    preprocessing = network.preprocessing
    if preprocessing is None or data.eval_as_configured:
        channels = network.model.in_channels
        preprocessing = build_preprocessing(data, channels)
    names = evaluation_names(data.eval_split, data.more_eval_splits)

    def evaluations() -> dict[str, Evaluation]:
        sources = {name: open_source(data, split) for name, split in names.items()}
        for name, source in sources.items():
            require_classes_of(network, config.init_from, names[name], source.class_names)
        return _evaluations(config, sources, preprocessing)

    parallel.one_process_at_a_time(lambda: prepare(data))
    return parallel.on_all_processes(evaluations)


def preview(config: ConfigDict, count: int) -> Preview:
    """The first `count` inputs of the network, with their two most probable classes.

    Args:
      config: see configs/common.py.
      count: number of images.

    Raises:
      RunError: see `first_inputs`; or inputs are NaN or infinite.
    """
    images, targets, class_names = first_inputs(config, count)
    if not (np.isfinite(images).all() and np.isfinite(targets).all()):
        raise RunError(
            "The inputs of the first step are NaN or infinite: check config.data.mean, "
            "config.data.std and config.augmentation."
        )
    background = config.label_smoothing / len(class_names)
    captions = [list(_captions(row, class_names, background)) for row in targets]
    return Preview(_pixels(images, config.data.mean, config.data.std), captions)


def examine(config: ConfigDict) -> Examination:
    """Looks through the splits of a run; see `examine_labelled_images`.

    Args:
      config: see configs/common.py.

    Raises:
      RunError: an embedded data set cannot be prepared.
    """
    data = config.data
    parallel.one_process_at_a_time(lambda: prepare(data))
    evaluation_splits = evaluation_names(data.eval_split, data.more_eval_splits).values()
    splits = dict.fromkeys((data.train_split, *evaluation_splits))
    channels = configuration.build_model(config).in_channels
    return examine_labelled_images(data, list(splits), channels)


def first_inputs(config: ConfigDict, count: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The first images and targets of the network in training.

    An image depends only on the images before it and on its mixup group, so the rest of a large
    batch is not read.

    Args:
      config: see configs/common.py.
      count: number of images, at most a (micro-)batch.

    Returns:
      Normalised images, float32 (count, S, S, C); class probabilities, float32 (count, K); and the
      names of the classes.

    Raises:
      RunError: see `make_task`; or `count` is too large.
    """
    micro_batch = config.batch_size // config.accumulation
    if count > micro_batch:
        raise RunError(f"--count={count} is more than the {micro_batch} of a (micro-)batch.")
    group = config.augmentation.mixup_group_size
    needed = min(micro_batch, math.ceil(count / group) * group)
    config = config.copy_and_resolve_references()
    config.batch_size = needed * config.accumulation
    task = make_task(config)
    class_names = task.class_names or ()
    batch = next(task.training.batches(0, warn))
    rows = {name: array[:: config.accumulation] for name, array in batch.items()}

    key, _ = random_keys(config.seed, step=0, micro_batch=0)
    inputs = jax.jit(make_augmentation(config, len(class_names)))(key, rows)
    images, targets = (np.asarray(array[:count], np.float32) for array in inputs)
    return images, targets, class_names


def make_augmentation(config: ConfigDict, num_classes: int) -> Augmentation:
    """The augmentation of training batches on the devices.

    Args:
      config: see configs/common.py.
      num_classes: of the data.

    Raises:
      RunError: the batch cannot be divided into mixup groups; see `count_groups`.
    """
    augmentation = Augmentation(
        num_classes=num_classes,
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        label_smoothing=config.label_smoothing,
        dtype=jnp.dtype(config.model.dtype),
        **config.augmentation,
    )
    if augmentation.mixes:
        count_groups(config.batch_size // config.accumulation, augmentation.mixup_group_size)
    return augmentation


def make_train_transform(data: ConfigDict, channels: int) -> TrainTransform:
    """The transform of training images on the host.

    Args:
      data: the section `data` of configs/common.py.
      channels: 1 for grey, 3 for colour.

    Raises:
      RunError: `data.rand_augment` is wrong or unsupported.
    """
    rand_augment = None
    if data.rand_augment != "none":
        # As in timm, affine maps interpolate as the crop does; "opencv" is bicubic.
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


def cross_entropy(augmentation: Augmentation) -> Loss:
    """The mean cross entropy with the soft targets of the augmentation."""

    def loss(
        forward: Forward, key: jax.Array, batch: Batch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        images, targets = augmentation(key, batch)
        return optax.softmax_cross_entropy(forward(images), targets).mean(), {}

    return loss


def accuracy(mean: Sequence[float], std: Sequence[float]) -> Metrics:
    """The metrics `top1` and `top5` (between 0 and 1), and `loss` (the mean cross entropy).

    Batches have `image`, uint8 (N, H, W, C), and `label`, int32 (N,); outputs are logits (N, K).
    An image with a NaN or infinite logit counts as wrong, and makes the loss NaN.

    Args:
      mean, std: of the images, one value per channel, for values in [0, 1].
    """

    def predict(forward: Callable[..., jax.Array], batch: Batch) -> jax.Array:
        return forward(normalize(batch["image"], mean, std))

    return Metrics(predict, _hits_and_losses, _means, best_by="top1")


def _hits_and_losses(logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    labels, mask = batch["label"], batch["mask"]
    _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    # Among NaN, top_k finds the first class.
    finite = jnp.isfinite(logits).all(axis=-1)
    hits = (best == labels[:, None]) & (mask & finite)[:, None]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    losses = jnp.where(finite, losses, jnp.nan)
    return {
        "top1": hits[:, 0].sum(),
        "top5": hits.sum(),
        "loss": jnp.where(mask, losses, 0).sum(),
    }


def _means(sums: Mapping[str, np.ndarray], examples: int) -> dict[str, float]:
    return {name: float(sums[name] / examples) for name in ("top1", "top5", "loss")}


def _evaluations(
    config: ConfigDict, sources: Mapping[str, LabelledImages], preprocessing: BasePreprocessing
) -> dict[str, Evaluation]:
    metrics = accuracy(preprocessing.mean, preprocessing.std)
    return {
        name: Evaluation(
            metrics,
            EvaluationSplit(
                source,
                Prepare(preprocessing),
                batch_size=config.eval_batch_size,
                reading=reading_options(config.data),
            ),
            preprocessing,
        )
        for name, source in sources.items()
    }


def _captions(target: np.ndarray, class_names: Sequence[str], background: float) -> Iterator[str]:
    """Names and probabilities of at most two classes.

    Args:
      target: class probabilities, float32 (K,).
      class_names: K names.
      background: the probability that label smoothing gives to every class. Classes with no more
        are omitted.
    """
    imagenet_names = dict(zip(imagenet.wordnet_ids(), imagenet.class_names(), strict=True))
    for label in map(int, np.argsort(-target, kind="stable")[:2]):
        if target[label] - background >= 0.005:
            name = class_names[label]
            if name in imagenet_names:
                name = imagenet_names[name].split(",")[0]
            yield f"{name} {target[label]:.2f}"


def _pixels(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Normalised images as pixels, uint8 (N, H, W, 3), clipped at black and white."""
    values = np.rint(255 * (images * np.array(std, np.float32) + np.array(mean, np.float32)))
    coloured = np.broadcast_to(values, (*values.shape[:-1], 3))
    return coloured.clip(0, 255).astype(np.uint8)


CLASSIFICATION = TaskKind(
    check=check,
    task=make_task,
    evaluations=make_evaluations,
    preview=preview,
    examine=examine,
)
