"""Semantic segmentation: each pixel has one class, or none."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from replk_jax.checkpoint import Checkpoint
from replk_jax.models.variables import abstract_image, abstract_variables
from replk_jax.segmentation.prediction import View, class_maps, finite_logits, side_by_side
from replk_jax.segmentation.protocol import SegmentationProtocol
from replk_jax.segmentation.segmenter import SegmentationNetwork
from replk_jax.vision import label_drawing
from replk_jax.vision.base_preprocessing import normalize
from replk_jax.vision.label_sets import LabelSet
from train.data.checks.segmentation import examine_masks
from train.data.mask_sample import only_one_class
from train.data.segmentation_sources import SegmentationSource, open_segmentation_source
from train.data.sized_evaluation import ProtocolTransform, SizedEvaluation
from train.data.sources import prepare
from train.data.splits import TrainingSplit
from train.engine import parallel
from train.engine.task import (
    Batch,
    Evaluation,
    Metrics,
    Pictures,
    Preview,
    Table,
    Task,
    TaskKind,
)
from train.errors import RunError
from train.reporting.console import warn
from train.reporting.examination import Examination
from train.tasks.data_sets import (
    evaluation_names,
    reading_options,
    require_classes_of,
    require_same_classes,
)
from train.tasks.segmentation_config import (
    build_loss,
    build_protocol,
    build_segmenter,
    build_transform,
    check,
    training_protocol,
)
from train.tasks.segmentation_metrics import by_class, confusion_matrix, scores
from train.tasks.segmentation_pictures import class_names_in, draw_inputs, draw_predictions


def make_task(config: ConfigDict) -> Task:
    """The segmentation task of a run.

    Args:
      config: see configs/segmentation/common.py.

    Raises:
      RunError: the data set does not exist, its splits have different classes, or the network
        cannot be built.
    """
    data = config.data

    def splits() -> tuple[TrainingSplit, dict[str, Evaluation], SegmentationNetwork, LabelSet]:
        training = open_segmentation_source(data, data.train_split)
        if parallel.is_main_process() and (suspicion := only_one_class(training)):
            warn(suspicion)
        labels = training.label_set
        network = build_segmenter(config, len(labels))
        sources = _evaluation_sources(data)
        for split, source in sources.values():
            require_same_classes(
                data.train_split, labels.class_names, split, source.label_set.class_names
            )
        examples = TrainingSplit(
            training,
            build_transform(data, labels),
            batch_size=config.batch_size,
            seed=config.seed,
            reading=reading_options(data),
        )
        evaluations = _evaluations(config, sources, network, training_protocol(config))
        return examples, evaluations, network, labels

    parallel.one_process_at_a_time(lambda: prepare(data))
    training, evaluations, network, labels = parallel.on_all_processes(splits)
    return Task(
        model=network,
        image_size=tuple(data.crop_size),
        loss=build_loss(config, network),
        training=training,
        evaluations=evaluations,
        preprocessing=build_protocol(config),
        class_names=labels.class_names,
    )


def make_evaluations(config: ConfigDict, network: Checkpoint) -> dict[str, Evaluation]:
    """The evaluations of a segmentation network from a file.

    The protocol is that of the file, or that of `config.test` if the file has none or
    `config.data.eval_as_configured` is set.

    Args:
      config: see configs/segmentation/common.py; `init_from` names the file.
      network: from the file.

    Raises:
      RunError: it is no segmentation network or has other classes, or the data set does not exist.
    """
    data, path, model = config.data, config.init_from, network.model
    if not isinstance(model, SegmentationNetwork):
        raise RunError(f"{path} has a {type(model).__name__}, which is no segmentation network.")
    protocol = network.preprocessing
    if not isinstance(protocol, SegmentationProtocol) or data.eval_as_configured:
        protocol = build_protocol(config)

    def evaluations() -> dict[str, Evaluation]:
        sources = _evaluation_sources(data)
        for split, source in sources.values():
            require_classes_of(network, path, split, source.label_set.class_names)
        return _evaluations(config, sources, model, protocol)

    parallel.one_process_at_a_time(lambda: prepare(data))
    return parallel.on_all_processes(evaluations)


def preview(config: ConfigDict, count: int) -> Preview:
    """The first `count` inputs of the network, each with its mask in colours, and a legend.

    Args:
      config: see configs/segmentation/common.py.
      count: number of images.

    Raises:
      RunError: see `make_task`; or `count` is larger than a (micro-)batch.
    """
    micro_batch = config.batch_size // config.accumulation
    if count > micro_batch:
        raise RunError(f"--count={count} is more than the {micro_batch} of a (micro-)batch.")
    training = open_segmentation_source(config.data, config.data.train_split)
    labels = training.label_set
    config = config.copy_and_resolve_references()
    config.batch_size = count * config.accumulation
    task = make_task(config)
    batch = next(task.training.batches(0, warn))
    rows = {name: array[:: config.accumulation][:count] for name, array in batch.items()}
    pictures, captions = draw_inputs(rows, labels)
    shown = class_names_in(rows["mask"], labels)

    def legend(width: int) -> np.ndarray:
        return label_drawing.legend(shown, labels.palette, width=width)

    return Preview(pictures, captions, legend)


def examine(config: ConfigDict) -> Examination:
    """Looks through the splits of a run; see `examine_masks`.

    Args:
      config: see configs/segmentation/common.py.

    Raises:
      RunError: an embedded data set cannot be prepared.
    """
    data = config.data
    parallel.one_process_at_a_time(lambda: prepare(data))
    evaluation_splits = evaluation_names(data.eval_split, data.more_eval_splits).values()
    return examine_masks(data, list(dict.fromkeys((data.train_split, *evaluation_splits))))


def mean_iou(labels: LabelSet, protocol: SegmentationProtocol) -> Metrics:
    """The metrics `mIoU`, `mAcc` and `aAcc`, between 0 and 1, at the original sizes of the images.

    Batches are those of `SizedEvaluation`; outputs are logits (N, h, w, K). If any logits are NaN
    or infinite, so are the scores.

    Args:
      labels: the classes.
      protocol: of the test.
    """
    num_classes = len(labels)

    def predict(forward: Callable[..., jax.Array], batch: Batch) -> dict[str, Any]:
        views = [
            view
            for i in range(len(protocol.ratios))
            for view in _views(forward, batch, protocol, i)
        ]
        return {
            "logits": [view.logits for view in views],
            "classes": class_maps(views),
            "finite": finite_logits(views),
        }

    def statistics(predictions: Any, batch: Batch) -> dict[str, jax.Array]:
        mask = batch["mask"]
        return {
            "confusion": confusion_matrix(
                predictions["classes"], batch["label"], mask, num_classes
            ),
            "not_finite": (mask & ~predictions["finite"]).sum(),
        }

    def of_all(sums: Mapping[str, np.ndarray], examples: int) -> dict[str, float]:
        del examples
        found = scores(sums["confusion"])
        return found if not sums["not_finite"] else dict.fromkeys(found, float("nan"))

    def table(sums: Mapping[str, np.ndarray], examples: int) -> Table:
        del examples
        return by_class(sums["confusion"], labels.class_names)

    return Metrics(
        predict,
        statistics,
        of_all,
        best_by="mIoU",
        checked=lambda forward, batch, predictions: predictions["logits"],
        table=table,
    )


def _views(
    forward: Callable[..., jax.Array], batch: Batch, protocol: SegmentationProtocol, ratio: int
) -> Iterator[View]:
    """The views of the images at one of the ratios of the protocol, from one call."""
    windows, rows, columns = (batch[f"{name}_{ratio}"] for name in ("windows", "rows", "columns"))
    images = normalize(windows, protocol.mean, protocol.std)
    logits = forward(images.reshape(-1, *images.shape[3:]))
    logits = logits.reshape(*images.shape[:3], *logits.shape[1:])
    grid = rows.shape[-1] // logits.shape[-3], columns.shape[-1] // logits.shape[-2]
    for flipped in range(images.shape[1]):
        of_view = logits[:, flipped].reshape(-1, *logits.shape[3:])
        yield View(side_by_side(of_view, grid), rows, columns[:, flipped])


def logits_stride(network: SegmentationNetwork) -> int:
    """The size of images over that of the logits, which is rounded up."""
    side = 256
    image = abstract_image(network, (side, side))
    variables = abstract_variables(network)
    logits = jax.eval_shape(network.apply, variables, image)
    return side // logits.shape[1]


def _evaluation_sources(data: ConfigDict) -> dict[str, tuple[str, SegmentationSource]]:
    """Split and source of each evaluation, by its name."""
    names = evaluation_names(data.eval_split, data.more_eval_splits)
    return {name: (split, open_segmentation_source(data, split)) for name, split in names.items()}


def _evaluations(
    config: ConfigDict,
    sources: Mapping[str, tuple[str, SegmentationSource]],
    network: SegmentationNetwork,
    protocol: SegmentationProtocol,
) -> dict[str, Evaluation]:
    stride, labels = logits_stride(network), next(iter(sources.values()))[1].label_set
    metrics = mean_iou(labels, protocol)

    def examples(source: SegmentationSource, count: int | None) -> SizedEvaluation:
        return SizedEvaluation(
            source,
            ProtocolTransform(
                protocol,
                source.label_set,
                stride,
                network.align_corners,
                with_image=count is not None,
            ),
            batch_size=config.eval_batch_size,
            reading=reading_options(config.data),
            count=count,
        )

    return {
        name: Evaluation(
            metrics,
            examples(source, None),
            protocol,
            Pictures(
                examples(source, config.test.pictures), partial(draw_predictions, source.label_set)
            )
            if config.test.pictures
            else None,
        )
        for name, (_, source) in sources.items()
    }


SEGMENTATION = TaskKind(
    check=check,
    task=make_task,
    evaluations=make_evaluations,
    preview=preview,
    examine=examine,
)
