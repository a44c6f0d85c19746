"""Object detection and instance segmentation: boxes of objects with classes, and their masks."""

from collections.abc import Mapping
from functools import partial

from ml_collections import ConfigDict

from replk_jax.checkpoint import Checkpoint
from replk_jax.detection.network import DetectionNetwork
from replk_jax.detection.protocol import DetectionProtocol
from train.data.annotated_images import DetectionSource
from train.data.bucketed_training import DetectionTraining
from train.data.checks.detection import examine_objects
from train.data.coco_truth import coco_truth
from train.data.detection_evaluation import DetectionEvaluation, DetectionTestTransform
from train.data.detection_examples import DetectionExamples
from train.data.detection_sources import open_detection_source
from train.data.sources import prepare
from train.engine import parallel
from train.engine.task import Evaluation, Pictures, Preview, Task, TaskKind
from train.errors import RunError
from train.reporting.console import warn
from train.reporting.examination import Examination
from train.tasks.data_sets import (
    evaluation_names,
    reading_options,
    require_classes_of,
    require_same_classes,
)
from train.tasks.detection_config import (
    build_augmentation,
    build_detector,
    build_protocol,
    check,
    evaluation_buckets,
    predicts_masks,
    training_buckets,
)
from train.tasks.detection_losses import DetectionLoss
from train.tasks.detection_metrics import average_precision
from train.tasks.detection_pictures import draw_inputs, draw_predictions


def make_task(config: ConfigDict) -> Task:
    """The detection task of a run.

    Args:
      config: see configs/detection/common.py.

    Raises:
      RunError: the data set does not exist, its splits have different classes, or the network
        cannot be built.
    """
    data = config.data
    protocol = build_protocol(config)
    buckets = training_buckets(config)

    def splits() -> tuple[
        DetectionTraining, dict[str, Evaluation], DetectionNetwork, tuple[str, ...]
    ]:
        source = open_detection_source(data, data.train_split)
        names = source.class_names
        network = build_detector(config, len(names))
        sources = _evaluation_sources(data)
        for split, other in sources.values():
            require_same_classes(data.train_split, names, split, other.class_names)
        examples = DetectionTraining(
            DetectionExamples.to_train_on(
                source,
                filter_empty=data.filter_empty,
                masks=data.masks,
                max_objects=data.max_objects,
            ),
            build_augmentation(data),
            max_objects=data.max_objects,
            masks=data.masks,
            buckets=buckets,
            batch_size=config.batch_size,
            seed=config.seed,
            reading=reading_options(data),
        )
        return examples, _evaluations(config, sources, network, protocol), network, names

    parallel.one_process_at_a_time(lambda: prepare(data))
    training, evaluations, network, names = parallel.on_all_processes(splits)
    return Task(
        model=network,
        image_size=buckets[0],
        loss=DetectionLoss(tuple(data.mean), tuple(data.std), network.dtype),
        training=training,
        evaluations=evaluations,
        preprocessing=protocol,
        class_names=names,
    )


def make_evaluations(config: ConfigDict, network: Checkpoint) -> dict[str, Evaluation]:
    """The evaluations of a detection network from a file.

    The protocol is that of the file, or that of `config.test` if the file has none or
    `config.data.eval_as_configured` is set.

    Args:
      config: see configs/detection/common.py; `init_from` names the file.
      network: from the file.

    Raises:
      RunError: it is no detection network or has other classes, or the data set does not exist.
    """
    data, path, model = config.data, config.init_from, network.model
    if not isinstance(model, DetectionNetwork):
        raise RunError(f"{path} has a {type(model).__name__}, which is no detector.")
    protocol = network.preprocessing
    if not isinstance(protocol, DetectionProtocol) or data.eval_as_configured:
        protocol = build_protocol(config)

    def evaluations() -> dict[str, Evaluation]:
        sources = _evaluation_sources(data)
        for split, source in sources.values():
            require_classes_of(network, path, split, source.class_names)
        return _evaluations(config, sources, model, protocol)

    parallel.one_process_at_a_time(lambda: prepare(data))
    return parallel.on_all_processes(evaluations)


def preview(config: ConfigDict, count: int) -> Preview:
    """The first `count` inputs of the network, each with its boxes, masks and names.

    Args:
      config: see configs/detection/common.py.
      count: number of images.

    Raises:
      RunError: see `make_task`; or `count` is larger than a (micro-)batch.
    """
    micro_batch = config.batch_size // config.accumulation
    if count > micro_batch:
        raise RunError(f"--count={count} is more than the {micro_batch} of a (micro-)batch.")
    config = config.copy_and_resolve_references()
    config.batch_size = count * config.accumulation
    task = make_task(config)
    batch = next(task.training.batches(0, warn))
    rows = {name: array[:: config.accumulation][:count] for name, array in batch.items()}
    assert task.class_names is not None
    return Preview(*draw_inputs(rows, task.class_names))


def examine(config: ConfigDict) -> Examination:
    """Looks through the splits of a run; see `examine_objects`.

    Args:
      config: see configs/detection/common.py.

    Raises:
      RunError: an embedded data set cannot be prepared.
    """
    data = config.data
    parallel.one_process_at_a_time(lambda: prepare(data))
    evaluation_splits = evaluation_names(data.eval_split, data.more_eval_splits).values()
    return examine_objects(data, list(dict.fromkeys((data.train_split, *evaluation_splits))))


def _evaluation_sources(data: ConfigDict) -> dict[str, tuple[str, DetectionSource]]:
    """Split and source of each evaluation, by its name."""
    names = evaluation_names(data.eval_split, data.more_eval_splits)
    return {name: (split, open_detection_source(data, split)) for name, split in names.items()}


def _evaluations(
    config: ConfigDict,
    sources: Mapping[str, tuple[str, DetectionSource]],
    network: DetectionNetwork,
    protocol: DetectionProtocol,
) -> dict[str, Evaluation]:
    data, test = config.data, config.test
    transform = DetectionTestTransform(protocol, evaluation_buckets(config, protocol))

    def evaluation(source: DetectionSource) -> Evaluation:
        masks = predicts_masks(network) and source.has_masks

        def examples(count: int | None) -> DetectionEvaluation:
            return DetectionEvaluation(
                DetectionExamples.to_evaluate_on(source),
                transform,
                batch_size=config.eval_batch_size,
                reading=reading_options(data),
                count=count,
            )

        truth = partial(coco_truth, source, masks=masks)
        pictures = None
        if test.pictures:
            draw = partial(draw_predictions, source)
            pictures = Pictures(examples(test.pictures), draw)
        metrics = average_precision(truth, protocol, masks=masks, library=test.library)
        return Evaluation(metrics, examples(None), protocol, pictures)

    return {name: evaluation(source) for name, (_, source) in sources.items()}


DETECTION = TaskKind(
    check=check,
    task=make_task,
    evaluations=make_evaluations,
    preview=preview,
    examine=examine,
)
