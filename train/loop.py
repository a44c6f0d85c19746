"""The course of a run, from the data to the re-parameterized network."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import replk_jax
from train import parallel
from train.checkpoints import Checkpoints
from train.data.images import ImageData
from train.errors import RunError
from train.evaluation import Evaluator
from train.optimizer import adamw, warmup_cosine
from train.reporting import Reporter, first_not_finite
from train.step import Batch, init_state, make_train_step


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains as the configuration says, or goes on from the latest checkpoint in `workdir`.

    Args:
      config: see configs/common.py.
      workdir: where checkpoints, metrics and the curve are written.

    Returns:
      The final evaluation: `training`, `merged` and `largest_difference` as from
      `Evaluator.compare`.

    Raises:
      RunError: for a reason that the user can mend.
    """
    parallel.start_processes(config.distributed)
    mesh = parallel.data_mesh(config.batch_size, config.eval_batch_size)
    model = _build_model(config)
    data = ImageData(config, model.architecture.in_channels)
    model = model.clone(num_classes=data.num_classes)

    total_steps = round(config.epochs * data.steps_per_epoch)
    warmup_steps = round(config.optimizer.warmup_epochs * data.steps_per_epoch)
    schedule = warmup_cosine(
        config.optimizer.peak_lr, config.optimizer.final_lr, warmup_steps, total_steps
    )
    optimizer = adamw(config.optimizer, schedule)
    state = init_state(model, optimizer, config.data.image_size, config.seed, mesh)
    train_step = make_train_step(
        model,
        optimizer,
        mean=config.data.mean,
        std=config.data.std,
        label_smoothing=config.label_smoothing,
        seed=config.seed,
        mesh=mesh,
    )
    evaluator = Evaluator(model, config.data.mean, config.data.std, mesh)

    def eval_batches() -> Iterator[Batch]:
        return parallel.global_batches(data.eval_batches(), mesh)

    description = {"model": config.model.to_dict(), "num_classes": data.num_classes}
    with Checkpoints(workdir / "checkpoints", config.checkpoints.keep, description) as checkpoints:
        first_step = checkpoints.latest() or 0
        if first_step:
            state = checkpoints.restore(first_step, state)
        with Reporter(workdir, first_step, total_steps, parallel.is_main_process()) as reporter:
            if first_step:
                reporter.say(f"Going on from {checkpoints.path(first_step)}.")
            if parallel.is_main_process():
                _remember_config(config, workdir, reporter)
            batches = parallel.global_batches(data.train_batches(first_step), mesh)
            steps = _Steps(config, data.steps_per_epoch, total_steps)
            window = _Window(config.batch_size)

            for step in range(first_step + 1, total_steps + 1):
                state, metrics = train_step(state, next(batches))
                window.add(step, metrics)
                reporter.advance()
                if not steps.report(step):
                    continue
                averages = window.close()
                if window.broken:
                    raise RunError(_diverged(window.broken, checkpoints))
                averages["learning_rate"] = float(schedule(step - 1))
                averages["epoch"] = step / data.steps_per_epoch
                reporter.scalars(step, averages)
                scores = None
                if steps.evaluate(step):
                    scores = evaluator.evaluate(state.variables, eval_batches())
                    reporter.scalars(step, {f"eval/{k}": v for k, v in scores.items()})
                if steps.save(step):
                    checkpoints.save(step, state, scores)
                window.restart_clock()

            checkpoints.wait()
            result = evaluator.compare(state.variables, eval_batches())
            if parallel.is_main_process():
                reporter.draw_curve()
                (workdir / "result.json").write_text(json.dumps(result, indent=2) + "\n")
                reporter.say(_closing_words(result, checkpoints, reporter))
    return result


class _Steps:
    """What is due after which step."""

    def __init__(self, config: ConfigDict, steps_per_epoch: int, total_steps: int):
        self._total = total_steps
        self._log = config.log_every_steps
        self._evaluate = max(1, round(config.eval_every_epochs * steps_per_epoch))
        self._save = config.checkpoints.every_steps

    def evaluate(self, step: int) -> bool:
        return step == self._total or step % self._evaluate == 0

    def save(self, step: int) -> bool:
        """With every evaluation, so that the best is kept, and at steps of its own."""
        return self.evaluate(step) or step % self._save == 0

    def report(self, step: int) -> bool:
        """Before every save too: what is saved must have been found finite."""
        return self.save(step) or step % self._log == 0


class _Window:
    """Metrics of the steps since the last report, fetched from the devices at once.

    Attributes:
      broken: (step, name, value) of the first metric that was not finite, or None.
    """

    def __init__(self, batch_size: int):
        self.broken: tuple[int, str, float] | None = None
        self._batch_size = batch_size
        self._steps: dict[int, dict[str, jax.Array]] = {}
        self._timed_steps = 0
        self._clock: float | None = None

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step, without waiting for them."""
        self._steps[step] = metrics
        if self._clock is None:  # the first step compiles and is not timed
            jax.block_until_ready(metrics)
            self.restart_clock()
        else:
            self._timed_steps += 1

    def close(self) -> dict[str, float]:
        """Averages over the window; the next one begins."""
        window = jax.tree.map(float, jax.device_get(self._steps))
        seconds = time.perf_counter() - self._clock
        self.broken = first_not_finite(window)
        averages = {
            f"train/{name}": sum(metrics[name] for metrics in window.values()) / len(window)
            for name in ("loss", "grad_norm")
        }
        if self._timed_steps:
            averages["images_per_second"] = self._timed_steps * self._batch_size / seconds
        self._steps = {}
        return averages

    def restart_clock(self) -> None:
        """Leaves out the time since the last step: evaluating and saving are no training."""
        self._clock, self._timed_steps = time.perf_counter(), 0


def _build_model(config: ConfigDict) -> nn.Module:
    fields = {name: value for name, value in config.model.items() if value is not None}
    if fields.get("small_kernel") == 0:
        fields["small_kernel"] = None
    name = fields.pop("name")
    try:
        return replk_jax.create_model(name, **{**fields, "dtype": jnp.dtype(fields["dtype"])})
    except (ValueError, TypeError) as error:
        raise RunError(f"config.model: {error}") from error


def _diverged(broken: tuple[int, str, float], checkpoints: Checkpoints) -> str:
    step, name, value = broken
    checkpoints.wait()  # one may still be on its way, of a state that was found finite
    latest = checkpoints.latest()
    last = (
        f"The last good checkpoint is {checkpoints.path(latest)}."
        if latest
        else ("There is no checkpoint yet.")
    )
    return (
        f"{name} became {value} at step {step}. {last} Lower --config.optimizer.peak_lr or "
        "lengthen --config.optimizer.warmup_epochs; the same command goes on from there."
    )


def _remember_config(config: ConfigDict, workdir: Path, reporter: Reporter) -> None:
    """Keeps the configuration beside the results, and says what changed since the last start."""
    path = workdir / "config.json"
    text = config.to_json_best_effort(indent=2)
    if path.exists():
        before, now = _flat(json.loads(path.read_text())), _flat(json.loads(text))
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                reporter.say(f"Changed: config.{name}, {before.get(name)} to {now.get(name)}.")
    path.write_text(text + "\n")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        nested = isinstance(value, dict)
        flat.update(_flat(value, f"{prefix}{name}.") if nested else {prefix + name: value})
    return flat


def _closing_words(result: dict[str, Any], checkpoints: Checkpoints, reporter: Reporter) -> str:
    training, merged = result["training"], result["merged"]
    latest, best = checkpoints.latest(), checkpoints.best()
    rows = {
        "test accuracy": f"{training['top1']:.2%} of {training['examples']} images",
        "re-parameterized": f"{merged['top1']:.2%}, "
        f"largest difference of any logit {result['largest_difference']:.1e}",
        "checkpoint": checkpoints.path(latest),
        "best checkpoint": checkpoints.path(best),
        "metrics": reporter.metrics_path,
        "TensorBoard": reporter.tensorboard_path,
        "curve": reporter.curve_path,
    }
    return "\n" + "\n".join(f"{name:17} {value}" for name, value in rows.items())
