"""The task of telling classes apart: each image has one label."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from replk_jax.checkpoint import Checkpoint
from replk_jax.models.backbone import Backbone
from replk_jax.vision.preprocessing import Preprocessing, normalize
from train.data.augmentation import Augmentation, make_augmentation
from train.data.sources import LabelledImages, open_source, prepare
from train.data.splits import EvaluationSplit, TrainingSplit
from train.data.transforms import Prepare, make_train_transform
from train.engine import config as configuration
from train.engine import parallel
from train.engine.evaluation import Measure
from train.engine.step import Batch, Objective
from train.engine.task import Task
from train.errors import RunError


def task(config: ConfigDict) -> Task:
    """The classes of the configured images, told apart by the configured network.

    Args:
      config: see configs/common.py.

    Raises:
      RunError: data that are not there, or splits that do not belong together.
    """
    data = config.data
    model = configuration.build_model(config)
    channels = model.in_channels
    preprocessing = configuration.build_preprocessing(data, channels)
    transform = make_train_transform(data, channels)

    def splits() -> tuple[TrainingSplit, EvaluationSplit, tuple[str, ...]]:
        training, evaluation = (open_source(data, s) for s in (data.train_split, data.eval_split))
        _require_same_classes(config, training, evaluation)
        return (
            TrainingSplit(training, transform, config),
            EvaluationSplit(evaluation, Prepare(preprocessing), config),
            tuple(training.class_names),
        )

    parallel.one_process_at_a_time(lambda: prepare(data))
    training, evaluation, class_names = parallel.on_all_processes(splits)
    return Task(
        model=model.clone(num_classes=len(class_names)),
        image_size=(data.image_size, data.image_size),
        objective=cross_entropy(make_augmentation(config, len(class_names))),
        training=training,
        measure=accuracy(preprocessing.mean, preprocessing.std),
        evaluation=evaluation,
        preprocessing=preprocessing,
        class_names=class_names,
    )


def evaluation(
    config: ConfigDict, network: Checkpoint, preprocessing: Preprocessing
) -> tuple[Measure, EvaluationSplit]:
    """The accuracy of a classifier from a file, on the configured images.

    Args:
      config: see configs/common.py; `init_from` names the file.
      network: what it holds.
      preprocessing: of the images.

    Raises:
      RunError: no classifier, one of other classes, or data that are not there.
    """
    if not (isinstance(network.model, Backbone) and network.model.has_classifier):
        raise RunError(f"{config.init_from} is of a network without classifier.")

    def split() -> EvaluationSplit:
        source = open_source(config.data, config.data.eval_split)
        _require_classes_of(network, config, source)
        return EvaluationSplit(source, Prepare(preprocessing), config)

    parallel.one_process_at_a_time(lambda: prepare(config.data))
    return accuracy(preprocessing.mean, preprocessing.std), parallel.on_all_processes(split)


def cross_entropy(augmentation: Augmentation) -> Objective:
    """With the soft targets that the augmentation makes of the labels; the mean over the images."""

    def loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy(logits, targets).mean()

    return Objective(prepare=augmentation, loss=loss)


def accuracy(mean: tuple[float, ...], std: tuple[float, ...]) -> Measure:
    """`top1`, `top5` (shares of 1) and `loss` (mean cross entropy); the best has most `top1`.

    An image with a logit that is NaN or infinite is a miss, and makes the loss NaN.

    Of batches with `image`, uint8 (N, H, W, C), and `label`, int32 (N,), and logits (N, K).

    Args:
      mean, std: of the images, channel by channel, for values in [0, 1].
    """

    def inputs(batch: Batch) -> jax.Array:
        return normalize(batch["image"], mean, std)

    return Measure(inputs, _hits_and_losses, _means, best_by="top1")


def _hits_and_losses(logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    labels, mask = batch["label"], batch["mask"]
    _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    # Of NaN, the first class would count as the likeliest.
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


def _require_same_classes(
    config: ConfigDict, training: LabelledImages, evaluation: LabelledImages
) -> None:
    if training.class_names != evaluation.class_names:
        raise RunError(
            f"The splits {config.data.train_split!r} and {config.data.eval_split!r} do not have "
            f"the same classes: {_first(training.class_names)} and "
            f"{_first(evaluation.class_names)}."
        )


def _require_classes_of(network: Checkpoint, config: ConfigDict, source: LabelledImages) -> None:
    if len(source.class_names) != network.model.num_classes:
        raise RunError(
            f"{config.init_from} tells {network.model.num_classes} classes apart; the split "
            f"{config.data.eval_split!r} has {len(source.class_names)}."
        )
    if network.class_names not in (None, tuple(source.class_names)):
        pairs = enumerate(zip(network.class_names, source.class_names, strict=True))
        number, (theirs, ours) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        raise RunError(
            f"{config.init_from} was trained on other classes than those of the split "
            f"{config.data.eval_split!r}: number {number} is {theirs!r} there and {ours!r} here."
        )


def _first(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{len(names)} ({shown}{', ...' if len(names) > 3 else ''})"
