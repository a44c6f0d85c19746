"""The training run: steps, reports, evaluations and checkpoints, and the final evaluation."""

import functools
from collections import deque
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from replk_jax.io.files import replace_json
from train.engine import config as configuration
from train.engine import parallel
from train.engine.checkpoints import Checkpoints
from train.engine.evaluation import require_finite_scores
from train.engine.interruption import Interrupted, Interruption
from train.engine.setup import Setup, set_up
from train.engine.step import StepMetrics, TrainState
from train.engine.step_programs import StepPrograms
from train.engine.task import TaskKind
from train.engine.workdir import locked
from train.errors import RunError
from train.reporting.closing import closing_summary
from train.reporting.console import say, warn
from train.reporting.profiling import Profiler
from train.reporting.reporter import Reporter
from train.reporting.step_metrics import MetricWindow, NotFiniteError, require_finite
from train.reporting.utilization import Utilization


def run(config: ConfigDict, workdir: Path, kind: TaskKind) -> dict[str, Any]:
    """Trains as the configuration says, or resumes from the latest checkpoint in `workdir`.

    Args:
      config: see configs/common.py.
      workdir: folder for checkpoints, metrics and the curve; all processes of a run must see the
        same one.
      kind: of task, `train.tasks.TASKS["classification"]` for example.

    Returns:
      The final evaluation, from `Evaluations.compare`.

    Raises:
      RunError: for an error that the user can fix.
      Interrupted: the run was asked to stop; its state is saved.
    """
    configuration.check(config)
    kind.check(config)
    parallel.start_processes(config.distributed)
    with locked(workdir):
        setup = set_up(config, workdir, kind.task(config))
        with Checkpoints(
            workdir / "checkpoints",
            config.checkpoints.keep,
            setup.task.description,
            on_failure=config.checkpoints.on_failure,
            report=warn,
        ) as checkpoints:
            state, first_step = setup.first_state(checkpoints)
            main, total = parallel.is_main_process(), setup.plan.total_steps
            if main:
                for change in configuration.store(config, workdir):
                    say(f"Since the last start {change}.")
            # If Weights & Biases cannot be reached from the main process, all processes stop.
            reporter = parallel.on_all_processes(
                lambda: Reporter(workdir, first_step, total, active=main, wandb=config.wandb)
            )
            profile = workdir / "profile"
            with (
                reporter,
                Profiler(profile, first_step, total, active=config.profile and main) as profiler,
                Interruption() as interruption,
            ):
                training = _Training(setup, checkpoints, reporter, profiler, interruption)
                state = training.run(state, first_step)
                reporter.draw_curve()
            result = setup.evaluations.compare(state)
            if main:
                replace_json(workdir / "result.json", result)
                print(closing_summary(result, checkpoints, reporter), flush=True)
            require_finite_scores(result)
    return result


# Steps that are dispatched at a time: one runs, the next is queued. Each has a batch in the memory
# of the devices, and a run that is asked to stop waits for all of them.
_MAX_DISPATCHED = 2


class _Training:
    """The steps of a run, with their reports, evaluations and checkpoints."""

    def __init__(
        self,
        setup: Setup,
        checkpoints: Checkpoints,
        reporter: Reporter,
        profiler: Profiler,
        interruption: Interruption,
    ):
        self._setup, self._task, self._plan = setup, setup.task, setup.plan
        self._checkpoints, self._reporter = checkpoints, reporter
        self._profiler, self._interruption = profiler, interruption

    def run(self, state: TrainState, first_step: int) -> TrainState:
        """Trains from `first_step` to the last step.

        Raises:
          RunError: a metric is NaN or infinite.
          Interrupted: the run was asked to stop; its state is saved.
        """
        checkpoint = self._checkpoints.path(first_step)
        if first_step == self._plan.total_steps:
            self._reporter.say(
                f"{checkpoint} is the end of this run; evaluating it again. To train from the "
                "start, use another --workdir."
            )
        elif first_step:
            self._reporter.say(f"Resuming from {checkpoint}.")
        try:
            # The run may have been stopped between a save and its evaluation.
            due = first_step and self._plan.is_evaluation(first_step)
            if due and not self._checkpoints.scored(first_step):
                self._evaluate_and_score(state, first_step)
                self._checkpoints.wait()
            if first_step < self._plan.total_steps:
                state = self._steps(state, first_step)
        except NotFiniteError as error:
            raise RunError(_diverged(error, self._checkpoints)) from error
        return state

    def _steps(self, state: TrainState, first_step: int) -> TrainState:
        setup, plan = self._setup, self._plan
        rows = self._task.training.batches(first_step, setup.unreadable)
        batches = parallel.global_batches(rows, setup.mesh)
        window = MetricWindow(setup.batch_size)
        with window.waiting():
            batch = next(batches)
        programs = StepPrograms(setup.step, self._reporter.say)
        program = programs(state, batch)
        # Errors and memory needs of the evaluations are found before training.
        setup.evaluations.check(state)
        self._require_finite_outputs(state, first_step)
        dispatched: deque[StepMetrics] = deque()
        for step in range(first_step + 1, plan.total_steps + 1):
            if len(dispatched) == _MAX_DISPATCHED:
                jax.block_until_ready(dispatched.popleft())
            state, metrics = program(state, batch)
            dispatched.append(metrics)
            window.add(step, metrics)
            self._profiler.step(step, metrics)
            self._reporter.advance()
            stop = self._interruption.requested(step)
            if stop or plan.is_report(step):
                self._reporter.scalars(step, self._averages(window, step))
            if stop or plan.is_save(step):
                self._require_finite_outputs(state, step)
                self._checkpoints.save(step, state)
                if stop:
                    raise _interrupted(step, self._checkpoints)
                if plan.is_evaluation(step):
                    self._evaluate_and_score(state, step)
                window.restart_clock()
            if step < plan.total_steps:
                with window.waiting():
                    batch = next(batches)
                known = len(programs)
                program = programs(state, batch)
                if len(programs) > known:  # compiling is not training
                    window.restart_clock()
        self._checkpoints.wait()
        return state

    def _averages(self, window: MetricWindow, step: int) -> dict[str, float]:
        """The metrics of the steps since the last report."""
        averages = window.close()
        if speed := averages.get("images_per_second"):
            averages.update(self._utilization.metrics(speed))
        averages["learning_rate"] = float(self._setup.schedule(step - 1))
        averages["epoch"] = step / self._plan.steps_per_epoch
        return averages

    @functools.cached_property
    def _utilization(self) -> Utilization:
        return Utilization(self._task.model, self._task.image_size)

    def _require_finite_outputs(self, state: TrainState, step: int) -> None:
        """Raises NotFiniteError if the network's outputs for some images are NaN or infinite.

        Run before each save: the loss of a step says nothing about the parameters after it.
        """
        largest = self._setup.evaluations.largest_output(state)
        require_finite(step, "the largest output of the network", largest)

    def _evaluate_and_score(self, state: TrainState, step: int) -> None:
        """Evaluates a state whose checkpoint is being written, and adds the score to it."""
        evaluations = self._setup.evaluations
        scores = evaluations.scores(state)
        self._reporter.scalars(step, scores, evaluations.notes())
        self._checkpoints.score(step, evaluations.best_score(scores))
        self._reporter.pictures(step, evaluations.pictures(state))


def _interrupted(step: int, checkpoints: Checkpoints) -> Exception:
    """The exception that ends a run that was asked to stop, once its state is saved."""
    checkpoints.wait()
    latest = checkpoints.latest()
    if latest == step:
        return Interrupted(step)
    # The save failed, with `config.checkpoints.on_failure = continue`.
    last = (
        f"The last checkpoint is {checkpoints.path(latest)}."
        if latest
        else "There is no checkpoint."
    )
    return RunError(f"The run was asked to stop, and could not save step {step}. {last}")


def _diverged(error: NotFiniteError, checkpoints: Checkpoints) -> str:
    checkpoints.wait()  # the last one may still be being written
    latest = checkpoints.latest()
    last = "There is no checkpoint yet."
    if latest:
        last = (
            f"The last good checkpoint is {checkpoints.path(latest)}; the same command resumes "
            "from it."
        )
    return (
        f"{error}. {last} Lower --config.optimizer.peak_lr, or lengthen the warm-up "
        "(--config.optimizer.warmup_epochs or warmup_steps)."
    )
