"""Evaluation of a network from a file, without training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from replk_jax.checkpoint import Checkpoint, load
from replk_jax.io.files import replace_json
from replk_jax.io.text import escaped
from train.engine import config as configuration
from train.engine import parallel
from train.engine.evaluation import Evaluator, require_finite_scores
from train.engine.evaluations import (
    check_names,
    draw_pictures,
    make_evaluators,
    preprocessing_of,
)
from train.engine.setup import InitialWeights, initial_weights
from train.engine.task import Evaluation, TaskKind
from train.errors import RunError
from train.reporting.console import format_metric, table_text, warn
from train.reporting.pictures import write_pictures


def evaluate_checkpoint(config: ConfigDict, workdir: Path | None, kind: TaskKind) -> dict[str, Any]:
    """Evaluates the network in `config.init_from`, in float32 at the highest precision.

    Args:
      config: see configs/common.py.
      workdir: folder for `evaluation.json` and pictures, or None.
      kind: of task, `train.tasks.TASKS["classification"]` for example.

    Returns:
      The result of the first evaluation of the task: that of `Evaluator.compare`, the
      `preprocessing` of the images and, if these differ in size, the same in words as `protocol`.
      The results of the other evaluations are in `evaluations`, by name.

    Raises:
      RunError: for an error that the user can fix. If scores are NaN or infinite, it is raised
        after `evaluation.json` is written, where they are null.
    """
    configuration.check(config)
    kind.check(config)
    parallel.start_processes(config.distributed)
    mesh = parallel.device_mesh(config.eval_batch_size)
    initial = initial_weights(config)
    if initial is None:
        raise RunError("config.mode=eval needs the network to evaluate: --config.init_from=FILE.")
    network = parallel.on_all_processes(lambda: _load(initial))
    evaluations = kind.evaluations(config, network)
    check_names(evaluations)
    evaluators = make_evaluators(network.model, evaluations, mesh)
    results = {
        name: _evaluate(network, evaluation, evaluators[name], mesh)
        for name, evaluation in evaluations.items()
    }
    if workdir:
        _write_pictures(network, evaluations, evaluators, mesh, workdir)
    first, *others = results
    result = results[first]
    if others:
        result = {**result, "evaluations": {name: results[name] for name in others}}
    if parallel.is_main_process():
        if workdir:
            replace_json(workdir / "evaluation.json", result)
        for name in results:
            title = initial.path if name == first else f"{initial.path} ({name})"
            print(_as_text(escaped(title), evaluations[name], results[name]), flush=True)
    require_finite_scores(result)
    return result


def _load(initial: InitialWeights) -> Checkpoint:
    try:
        return load(
            initial.path, prefer_ema=initial.prefer_ema, key=initial.key, prefix=initial.prefix
        )
    except ValueError as error:
        raise RunError(f"config.init_from: {error}") from error


def _evaluate(
    network: Checkpoint, evaluation: Evaluation, evaluator: Evaluator, mesh: Mesh
) -> dict[str, Any]:
    batches = parallel.global_batches(evaluation.examples.batches(warn), mesh)
    result = evaluator.compare(dict(network.variables), batches)
    return {**result, **preprocessing_of(evaluation)}


def _write_pictures(
    network: Checkpoint,
    evaluations: Mapping[str, Evaluation],
    evaluators: Mapping[str, Evaluator],
    mesh: Mesh,
    workdir: Path,
) -> None:
    """Writes the pictures of the evaluations to `workdir`, from the main process."""
    for name, evaluation in evaluations.items():
        drawn = draw_pictures(
            evaluation, evaluators[name], dict(network.variables), mesh, warn, prefix=name
        )
        if parallel.is_main_process():
            write_pictures(workdir, drawn)


def _as_text(name: str, evaluation: Evaluation, result: Mapping[str, Any]) -> str:
    scores = result.get("merged") or result["training"]
    words = evaluation.preprocessing.in_words()
    lines = [f"{name} on {scores['examples']} images, prepared with {words}"]
    if "table" in result:
        lines.append(table_text(result["table"]))
    for structure in ("training", "merged"):
        if scores := result.get(structure):
            metrics = [format_metric(k, v) for k, v in scores.items() if k != "examples"]
            lines.append(f"{structure:9} {', '.join(metrics)}")
    if "not_merged" in result:
        lines.append(f"not re-parameterized: {result['not_merged']}")
    if "largest_difference" in result:
        lines.append(f"largest difference of any output {result['largest_difference']:.1e}")
    return "\n".join(lines)
