"""Evaluation of a network in a file, without training."""

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from replk_jax.files import replace_json
from replk_jax.preprocessing import Preprocessing
from replk_jax.saved import SavedNetwork, load
from train import config as configuration
from train import parallel
from train.classification import accuracy
from train.data.images import EvaluationImages, preprocessing_of
from train.data.sources import prepare
from train.errors import RunError
from train.evaluation import Evaluator
from train.reporting import in_words


def evaluate_checkpoint(config: ConfigDict, workdir: Path | None) -> dict[str, Any]:
    """Counts the hits of the network in `config.init_from` on the evaluation split.

    With the images prepared as is known of the checkpoint, or as the configuration says if
    nothing is known or `config.data.eval_as_configured` is set. In float32 at the highest
    precision, whatever `config.model` says.

    Args:
      config: see configs/common.py.
      workdir: where `result.json` is written, or None.

    Returns:
      What `Evaluator.compare` gives; or, for a network that is re-parameterized already, `merged`
      as from `Evaluator.evaluate`.

    Raises:
      RunError: for a reason that the user can mend.
    """
    configuration.check(config)
    parallel.start_processes(config.distributed)
    mesh = parallel.device_mesh(config.eval_batch_size)
    network = parallel.together(lambda: _load(config))
    preprocessing = network.preprocessing
    if preprocessing is None or config.data.eval_as_configured:
        preprocessing = preprocessing_of(config.data)
    parallel.in_turn(lambda: prepare(config.data))
    images = parallel.together(lambda: _images(config, network, preprocessing))
    evaluator = Evaluator(network.model, accuracy(preprocessing.mean, preprocessing.std), mesh)
    batches = parallel.global_batches(images.batches(), mesh)
    if network.model.deploy:
        with jax.default_matmul_precision("highest"):
            result = {"merged": evaluator.evaluate(network.variables, batches)}
    else:
        result = evaluator.compare(network.variables, batches)
    result["preprocessing"] = preprocessing.as_dict()
    if parallel.is_main_process():
        if workdir:
            replace_json(workdir / "result.json", result)
        print(_in_words(config.init_from, result), flush=True)
    return result


def _load(config: ConfigDict) -> SavedNetwork:
    if not config.init_from:
        raise RunError("Mode eval wants to know what to evaluate: --config.init_from=FILE.")
    try:
        network = load(config.init_from, prefer_ema=config.init_ema)
    except ValueError as error:
        raise RunError(f"config.init_from: {error}") from error
    if not network.model.num_classes or network.model.out_indices is not None:
        raise RunError(f"{config.init_from} is of a network without classifier.")
    return network


def _images(
    config: ConfigDict, network: SavedNetwork, preprocessing: Preprocessing
) -> EvaluationImages:
    images = EvaluationImages(config, preprocessing)
    if len(images.class_names) != network.model.num_classes:
        raise RunError(
            f"{config.init_from} tells {network.model.num_classes} classes apart; the split "
            f"{config.data.eval_split!r} has {len(images.class_names)}."
        )
    if network.class_names not in (None, tuple(images.class_names)):
        raise RunError(
            f"{config.init_from} was trained on other classes than those of the split "
            f"{config.data.eval_split!r}: {_first_difference(network.class_names, images)}."
        )
    return images


def _first_difference(class_names: tuple[str, ...], images: EvaluationImages) -> str:
    pairs = zip(class_names, images.class_names, strict=True)
    number, (ours, theirs) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    return f"number {number} is {ours!r} there and {theirs!r} here"


def _in_words(name: str, result: dict[str, Any]) -> str:
    scores = result.get("merged") or result["training"]
    lines = [f"{name} on {scores['examples']} images, prepared so: "]
    lines[0] += ", ".join(f"{k} {v}" for k, v in result["preprocessing"].items())
    for structure in ("training", "merged"):
        if scores := result.get(structure):
            words = [in_words(k, v) for k, v in scores.items() if k != "examples"]
            lines.append(f"{structure:9} {', '.join(words)}")
    if "not_merged" in result:
        lines.append(f"not re-parameterized: {result['not_merged']}")
    if "largest_difference" in result:
        lines.append(f"largest difference of any output {result['largest_difference']:.1e}")
    return "\n".join(lines)
