"""Evaluation of a network in a file, without training."""

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from replk_jax.checkpoint import Checkpoint, load
from replk_jax.io.files import replace_json
from replk_jax.io.text import escaped
from train.engine import config as configuration
from train.engine import parallel
from train.engine.evaluation import Evaluator, require_finite_scores
from train.engine.task import MakeEvaluation
from train.errors import RunError
from train.reporting.console import in_words


def evaluate_checkpoint(
    config: ConfigDict, workdir: Path | None, make_evaluation: MakeEvaluation
) -> dict[str, Any]:
    """Finds how good the network in `config.init_from` is on the evaluation split.

    With the images prepared as is known of the checkpoint, or as the configuration says if
    nothing is known or `config.data.eval_as_configured` is set. In float32 at the highest
    precision, whatever `config.model` says.

    Args:
      config: see configs/common.py.
      workdir: where `evaluation.json` is written, or None.
      make_evaluation: of what, `train.tasks.classification.evaluation` for example.

    Returns:
      What `Evaluator.compare` gives; or, for a network that is re-parameterized already, `merged`
      as from `Evaluator.evaluate`.

    Raises:
      RunError: for a reason that the user can fix; or, once the result is written, because
        values in it are NaN or infinite, which are null in `evaluation.json`.
    """
    configuration.check(config)
    parallel.start_processes(config.distributed)
    mesh = parallel.device_mesh(config.eval_batch_size)
    network = parallel.on_all_processes(lambda: _load(config))
    preprocessing = network.preprocessing
    if preprocessing is None or config.data.eval_as_configured:
        channels = network.model.in_channels
        preprocessing = configuration.build_preprocessing(config.data, channels)
    measure, split = make_evaluation(config, network, preprocessing)
    evaluator = Evaluator(network.model, measure, mesh)
    batches = parallel.global_batches(split.batches(), mesh)
    if network.model.deploy:
        with jax.default_matmul_precision("highest"):
            result = {"merged": evaluator.evaluate(network.variables, batches)}
    else:
        result = evaluator.compare(network.variables, batches)
    result["preprocessing"] = preprocessing.as_dict()
    if parallel.is_main_process():
        if workdir:
            replace_json(workdir / "evaluation.json", result)
        print(_in_words(escaped(config.init_from), result), flush=True)
    require_finite_scores(result)
    return result


def _load(config: ConfigDict) -> Checkpoint:
    if not config.init_from:
        raise RunError("config.mode=eval needs the network to evaluate: --config.init_from=FILE.")
    try:
        return load(
            config.init_from,
            prefer_ema=config.init_ema,
            key=config.init_key,
            prefix=config.init_prefix,
        )
    except ValueError as error:
        raise RunError(f"config.init_from: {error}") from error


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
