"""The course of a run, from the data to the re-parameterized network."""

import functools
import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from replk_jax.checkpoint import Checkpoint, load_into
from replk_jax.io.files import replace_json
from replk_jax.io.text import escaped
from replk_jax.models.summary import planned_memory
from train.data.unreadable import UnreadableList
from train.engine import config as configuration
from train.engine import parallel
from train.engine.checkpoints import Checkpoints
from train.engine.evaluation import Evaluator, require_finite_scores
from train.engine.interruption import Interrupted, Interruption
from train.engine.optimizer import make_optimizer, warmup_cosine
from train.engine.regularization import make_penalty
from train.engine.step import (
    Batch,
    Metrics,
    TrainState,
    abstract_state,
    init_state,
    make_train_step,
)
from train.engine.task import MakeTask
from train.engine.workdir import locked
from train.errors import RunError
from train.reporting.console import in_words, say, warn
from train.reporting.profiling import Profiler
from train.reporting.reporter import Reporter
from train.reporting.step_metrics import MetricWindow, NotFiniteError, require_finite
from train.reporting.utilization import Utilization


def run(config: ConfigDict, workdir: Path, make_task: MakeTask) -> dict[str, Any]:
    """Trains as the configuration says, or goes on from the latest checkpoint in `workdir`.

    Args:
      config: see configs/common.py.
      workdir: where checkpoints, metrics and the curve are written; all processes of a run
        must see the same folder.
      make_task: what the run is about, `train.tasks.classification.task` for example.

    Returns:
      The final evaluation: as from `Evaluator.compare`, and as `ema` the same of the moving
      average, if there is one; and `best_by`, the name of the score that counts.

    Raises:
      RunError: for an error that the user can fix.
      Interrupted: the run was asked to stop; what it had is saved.
    """
    configuration.check(config)
    parallel.start_processes(config.distributed)
    with locked(workdir):
        return _run(config, workdir, make_task)


def _run(config: ConfigDict, workdir: Path, make_task: MakeTask) -> dict[str, Any]:
    training = _Training(config, workdir, make_task)
    main = parallel.is_main_process()
    with Checkpoints(
        workdir / "checkpoints",
        config.checkpoints.keep,
        training.task.description,
        on_failure=config.checkpoints.on_failure,
        report=warn,
    ) as checkpoints:
        state, first_step = training.start(checkpoints)
        if main:
            for change in configuration.remember(config, workdir):
                say(f"Since the last start {change}.")
        total = training.total_steps
        # In all processes or in none: a service that the main process reports to may be away.
        reporter = parallel.on_all_processes(
            lambda: Reporter(workdir, first_step, total, active=main, wandb=config.wandb)
        )
        tracing = config.profile and main
        with (
            reporter,
            Profiler(workdir / "profile", first_step, total, active=tracing) as profiler,
            Interruption() as interruption,
        ):
            if first_step == total:
                reporter.say(
                    f"{checkpoints.path(first_step)} is the end of this run, which is only "
                    "evaluated again; to train anew, name another --workdir."
                )
            elif first_step:
                reporter.say(f"Going on from {checkpoints.path(first_step)}.")
            try:
                state = training.train(
                    state, first_step, checkpoints, reporter, profiler, interruption
                )
            except NotFiniteError as error:
                raise RunError(_diverged(error, checkpoints)) from error
            reporter.draw_curve()
        result = training.compare(state)
        if main:
            replace_json(workdir / "result.json", result)
            print(_closing_words(result, checkpoints, reporter), flush=True)
        require_finite_scores(result)
    return result


# So many steps are under way at most: one runs while the next is ready. Each keeps a batch in the
# memory of the devices, and a run that is asked to stop waits for all.
_AHEAD = 2


class _Training:
    """What a configuration comes to: a task, steps and what is due when."""

    def __init__(self, config: ConfigDict, workdir: Path, make_task: MakeTask):
        self._config = config
        self._unreadable = UnreadableList(workdir / "unreadable.txt", warn)
        self._mesh = parallel.device_mesh(
            config.batch_size // config.accumulation, config.eval_batch_size, fsdp=config.mesh.fsdp
        )
        self.task = make_task(config)

        per_epoch = self.task.training.steps_per_epoch
        self.total_steps = max(1, round(config.epochs * per_epoch))
        self._steps_per_evaluation = max(1, round(config.eval_every_epochs * per_epoch))
        recipe = config.optimizer
        warmup_steps = round(recipe.warmup_epochs * per_epoch)
        self._schedule = warmup_cosine(
            recipe.peak_lr, recipe.final_lr, warmup_steps, self.total_steps
        )
        self._optimizer = make_optimizer(recipe, self._schedule)
        self._step = make_train_step(
            self.task.model,
            self._optimizer,
            self.task.objective,
            seed=config.seed,
            mesh=self._mesh,
            accumulation=config.accumulation,
            ema_decay=config.ema_decay,
            penalty=make_penalty(recipe),
        )
        self._evaluator = Evaluator(self.task.model, self.task.measure, self._mesh)

    def start(self, checkpoints: Checkpoints) -> tuple[TrainState, int]:
        """The state to begin with, and how many steps it has behind it."""
        config = self._config
        parallel.on_all_processes(lambda: self._expect_steps_left(checkpoints))
        of_state = self.task.model, self._optimizer, self.task.image_size
        average = config.ema_decay > 0
        like = abstract_state(*of_state, self._mesh, average=average)
        if restored := checkpoints.restore_latest(like):
            return restored
        variables = None
        if config.init_from:
            variables = jax.device_get(parallel.on_all_processes(self._load))
        state = init_state(*of_state, config.seed, self._mesh, average=average, variables=variables)
        return state, 0

    def _expect_steps_left(self, checkpoints: Checkpoints) -> None:
        latest = checkpoints.latest() or 0
        if latest > self.total_steps:
            raise RunError(
                f"{checkpoints.path(latest)} is beyond the {self.total_steps} steps that "
                f"config.epochs = {self._config.epochs} comes to; raise it, or use another "
                "--workdir."
            )

    def _load(self) -> dict[str, Any]:
        """The variables of the network in the file `config.init_from`."""
        config = self._config
        try:
            network = load_into(
                self.task.model,
                config.init_from,
                reset_head=config.init_reset_head,
                prefer_ema=config.init_ema,
                key=config.init_key,
                prefix=config.init_prefix,
                adapt_input=config.init_adapt_input,
                seed=config.seed,
            )
        except ValueError as error:
            raise RunError(
                f"config.init_from: {error}\nThe network is that of config.model; for another "
                "number of classes set --config.init_reset_head."
            ) from error
        self._expect_same_normalisation(network)
        return network.variables

    def _expect_same_normalisation(self, network: Checkpoint) -> None:
        """Raises where it is known that the network has only seen images of another mean or std."""
        known, own = network.preprocessing, self.task.preprocessing
        if known and known.channels != own.channels:
            return  # of images of other channels, for which `init_adapt_input` was set
        if known and (known.mean, known.std) != (own.mean, own.std):
            raise RunError(
                f"The images of {self._config.init_from} have mean {known.mean} and std "
                f"{known.std}: set --config.data.mean='{known.mean}' "
                f"--config.data.std='{known.std}'."
            )

    def train(
        self,
        state: TrainState,
        first_step: int,
        checkpoints: Checkpoints,
        reporter: Reporter,
        profiler: Profiler,
        interruption: Interruption,
    ) -> TrainState:
        """Trains to the last step, with its reports, evaluations and checkpoints.

        Raises:
          NotFiniteError: a metric is NaN or infinite.
          Interrupted: the run was asked to stop, and has saved what it had.
        """
        if first_step and self._is_evaluation(first_step) and not checkpoints.scored(first_step):
            # The run was stopped or killed there, before it came to that.
            self._evaluate_and_score(state, first_step, checkpoints, reporter)
            checkpoints.wait()
        if first_step == self.total_steps:
            return state
        rows = self.task.training.batches(first_step, self._unreadable)
        batches = parallel.global_batches(rows, self._mesh)
        window = MetricWindow(self._config.batch_size)
        with window.waiting():
            batch = next(batches)
        compiled = self._step.lower(state, batch).compile()
        memory = planned_memory(compiled) / 2**30
        reporter.say(f"A step takes up to {memory:.2f} GiB of memory on each device.")
        # What is wrong with the evaluation, or too large in it, shows before a day has passed.
        self._try(state, first_step)
        running: deque[Metrics] = deque()
        for step in range(first_step + 1, self.total_steps + 1):
            if len(running) == _AHEAD:
                jax.block_until_ready(running.popleft())
            state, metrics = compiled(state, batch)
            running.append(metrics)
            window.add(step, metrics)
            profiler.step(step, metrics)
            reporter.advance()
            stops = interruption.requested(step)
            if stops or self._is_report(step):
                reporter.scalars(step, self._averages(window, step))
            if stops or self._is_save(step):
                self._try(state, step)
                checkpoints.save(step, state)
                if stops:
                    raise _interrupted(step, checkpoints)
                if self._is_evaluation(step):
                    self._evaluate_and_score(state, step, checkpoints, reporter)
                window.restart_clock()
            if step < self.total_steps:
                with window.waiting():
                    batch = next(batches)
        checkpoints.wait()
        return state

    def _try(self, state: TrainState, step: int) -> None:
        """Finds out whether a state is good, on the first evaluation images.

        The loss of a step is that of the parameters before it, so what the step made of them must
        be tried before it is saved as good.

        Raises:
          NotFiniteError: it is not.
        """
        (batch,) = parallel.global_batches([self._first_eval_rows], self._mesh)
        largest = self._evaluator.largest_output(state.variables, batch)
        require_finite(step, "the largest output of the network", largest)

    @functools.cached_property
    def _first_eval_rows(self) -> dict[str, np.ndarray]:
        return next(self.task.evaluation.batches(self._unreadable))

    def _evaluate_and_score(
        self, state: TrainState, step: int, checkpoints: Checkpoints, reporter: Reporter
    ) -> None:
        """Evaluates a state that is saved already, however long that takes."""
        scores = self._evaluate(state)
        reporter.scalars(step, scores)
        checkpoints.score(step, self._best(scores))

    def _best(self, scores: dict[str, float]) -> float:
        """By which the best checkpoint is found: of the network or of its average, the higher.

        At the beginning the average lags far behind; at the end it is what one is after. What
        cannot be told, NaN, is worth nothing.
        """
        kinds = [f"{network}/{self.task.measure.best_by}" for network in ("eval", "eval_ema")]
        found = [scores[kind] for kind in kinds if kind in scores]
        return max(0.0 if math.isnan(score) else score for score in found)

    def _averages(self, window: MetricWindow, step: int) -> dict[str, float]:
        """What is reported of the steps since the last report."""
        averages = window.close()
        if speed := averages.get("images_per_second"):
            averages.update(self._utilization.of(speed))
        averages["learning_rate"] = float(self._schedule(step - 1))
        averages["epoch"] = step / self.task.training.steps_per_epoch
        return averages

    @functools.cached_property
    def _utilization(self) -> Utilization:
        return Utilization(self.task.model, self.task.image_size)

    def compare(self, state: TrainState) -> dict[str, Any]:
        """Both structures of the network, and of its moving average, on all evaluation images."""
        result = {"best_by": self.task.measure.best_by}
        result |= self._evaluator.compare(state.variables, self._eval_batches())
        if state.ema is not None:
            result["ema"] = self._evaluator.compare(state.ema, self._eval_batches())
        return result

    def _eval_batches(self) -> Iterator[Batch]:
        """The evaluation images once."""
        rows = self.task.evaluation.batches(self._unreadable)
        return parallel.global_batches(rows, self._mesh)

    def _evaluate(self, state: TrainState) -> dict[str, float]:
        """Scores on all evaluation images, named as they are reported."""
        networks = {"eval": state.variables, "eval_ema": state.ema}
        return {
            f"{name}/{key}": value
            for name, variables in networks.items()
            if variables is not None
            for key, value in self._evaluator.evaluate(variables, self._eval_batches()).items()
        }

    def _is_evaluation(self, step: int) -> bool:
        return step == self.total_steps or step % self._steps_per_evaluation == 0

    def _is_save(self, step: int) -> bool:
        """With every evaluation, so that the best is kept, and at steps of its own."""
        return self._is_evaluation(step) or step % self._config.checkpoints.every_steps == 0

    def _is_report(self, step: int) -> bool:
        """Before every save too: what is saved must have been found finite."""
        return self._is_save(step) or step % self._config.log_every_steps == 0


def _interrupted(step: int, checkpoints: Checkpoints) -> Exception:
    """What a run that was asked to stop leaves with, once it has saved."""
    checkpoints.wait()
    latest = checkpoints.latest()
    if latest == step:
        return Interrupted(step)
    # Where a failed save ends no run.
    rest = f"The last checkpoint is {checkpoints.path(latest)}." if latest else "There is none."
    return RunError(f"The run was asked to stop, and could not save step {step}. {rest}")


def _diverged(error: NotFiniteError, checkpoints: Checkpoints) -> str:
    checkpoints.wait()  # one may still be on its way, of a state that was found finite
    latest = checkpoints.latest()
    last = "There is no checkpoint yet."
    if latest:
        last = (
            f"The last good checkpoint is {checkpoints.path(latest)}; a run started again goes "
            "on from there."
        )
    return (
        f"{error}. {last} Lower --config.optimizer.peak_lr or lengthen "
        "--config.optimizer.warmup_epochs."
    )


def _closing_words(result: dict[str, Any], checkpoints: Checkpoints, reporter: Reporter) -> str:
    latest, best_by = checkpoints.latest(), result["best_by"]
    rows = [
        ("evaluation", _in_training(result, best_by)),
        ("re-parameterized", _after_merging(result, best_by)),
    ]
    if average := result.get("ema"):
        rows += [
            ("moving average", _in_training(average, best_by)),
            ("re-parameterized", _after_merging(average, best_by)),
        ]
    if latest is not None:  # each may have failed, for want of room
        rows += [
            ("checkpoint", checkpoints.path(latest)),
            ("best checkpoint", checkpoints.path(checkpoints.best() or latest)),
        ]
    rows += [
        ("metrics", reporter.metrics_path),
        ("TensorBoard", reporter.tensorboard_path),
        ("curve", reporter.curve_path),
    ]
    return "\n" + "\n".join(f"{name:17} {escaped(str(value))}" for name, value in rows)


def _in_training(result: dict[str, Any], best_by: str) -> str:
    scores = result["training"]
    return f"{in_words(best_by, scores[best_by])} of {scores['examples']} images"


def _after_merging(result: dict[str, Any], best_by: str) -> str:
    if merged := result.get("merged"):
        difference = f"largest difference of any output {result['largest_difference']:.1e}"
        return f"{in_words(best_by, merged[best_by])}, {difference}"
    return f"not possible: {result['not_merged']}"
