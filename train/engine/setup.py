"""Builds the objects of a run from its configuration. They do not see the `ConfigDict`."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from replk_jax.checkpoint import Checkpoint, load_into
from train.engine import config as configuration
from train.engine import parallel
from train.engine.checkpoints import Checkpoints
from train.engine.evaluations import Evaluations
from train.engine.schedules import Schedule
from train.engine.step import TrainState, TrainStep, abstract_state, init_state, make_train_step
from train.engine.task import Task
from train.errors import RunError
from train.reporting.console import warn
from train.reporting.unreadable import UnreadableList


@dataclasses.dataclass(frozen=True)
class Plan:
    """The number of steps of a run, and after which of them it reports, saves and evaluates.

    Attributes:
      total_steps: of the run.
      steps_per_epoch: whole batches in the training data.
      log_every, save_every, evaluate_every: intervals, in steps.
    """

    total_steps: int
    steps_per_epoch: int
    log_every: int
    save_every: int
    evaluate_every: int

    def is_evaluation(self, step: int) -> bool:
        return step == self.total_steps or step % self.evaluate_every == 0

    def is_save(self, step: int) -> bool:
        """Before every evaluation too, so that the best state has a checkpoint."""
        return self.is_evaluation(step) or step % self.save_every == 0

    def is_report(self, step: int) -> bool:
        """Before every save too, so that no state is saved if metrics are NaN or infinite."""
        return self.is_save(step) or step % self.log_every == 0


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """The checkpoint that a run starts from, and options for reading it; see `config.init_from`."""

    path: str
    prefer_ema: bool
    key: str | None
    prefix: str | None
    reset_head: bool
    adapt_input: bool

    def load(self, task: Task, seed: int) -> dict[str, Any]:
        """The variables of the task's network, from the checkpoint.

        Args:
          task: with the network.
          seed: of the new classifier, with `reset_head`.

        Raises:
          RunError: the checkpoint does not fit the network, or expects another normalisation.
        """
        try:
            network = load_into(
                task.model,
                self.path,
                reset_head=self.reset_head,
                prefer_ema=self.prefer_ema,
                key=self.key,
                prefix=self.prefix,
                adapt_input=self.adapt_input,
                seed=seed,
            )
        except ValueError as error:
            raise RunError(
                f"config.init_from: {error}\nThe network is that of config.model; for another "
                "number of classes set --config.init_reset_head."
            ) from error
        self._expect_same_normalisation(network, task)
        return dict(network.variables)

    def _expect_same_normalisation(self, network: Checkpoint, task: Task) -> None:
        """Raises RunError if the checkpoint has another mean or std."""
        theirs, ours = network.preprocessing, task.preprocessing
        if theirs is None or theirs.channels != ours.channels:
            return  # not known, or adapted to other channels by `init_adapt_input`
        if (theirs.mean, theirs.std) != (ours.mean, ours.std):
            raise RunError(
                f"{self.path} was trained on images with mean {theirs.mean} and std {theirs.std}: "
                f"set --config.data.mean='{theirs.mean}' --config.data.std='{theirs.std}'."
            )


@dataclasses.dataclass(frozen=True)
class Setup:
    """The objects of a run.

    Attributes:
      task: of the run.
      plan: of the steps.
      mesh: of the devices.
      optimizer: of the parameters.
      schedule: learning rate by step.
      step: the compiled training step.
      evaluations: of the network.
      batch_size: images in a step.
      seed: of the parameters, the order of the data, augmentation and dropout.
      ema: whether the state has an EMA of the variables.
      initial: the checkpoint to start from; None for random parameters.
      unreadable: the list of images that could not be read.
    """

    task: Task
    plan: Plan
    mesh: Mesh
    optimizer: optax.GradientTransformation
    schedule: Schedule
    step: TrainStep
    evaluations: Evaluations
    batch_size: int
    seed: int
    ema: bool
    initial: InitialWeights | None
    unreadable: UnreadableList

    def first_state(self, checkpoints: Checkpoints) -> tuple[TrainState, int]:
        """The latest checkpoint of the run, or a new state; and the number of steps done.

        Raises:
          RunError: the latest checkpoint is after the last step, or cannot be read; or `initial`
            does not fit the network.
        """
        parallel.on_all_processes(lambda: self._expect_steps_left(checkpoints))
        network = self.task.model, self.optimizer, self.task.image_size
        like = abstract_state(*network, self.mesh, ema=self.ema)
        if restored := checkpoints.restore_latest(like):
            return restored
        variables = None
        if (initial := self.initial) is not None:
            load = parallel.on_all_processes(lambda: initial.load(self.task, self.seed))
            variables = jax.device_get(load)
        return init_state(*network, self.seed, self.mesh, ema=self.ema, variables=variables), 0

    def _expect_steps_left(self, checkpoints: Checkpoints) -> None:
        latest, total = checkpoints.latest() or 0, self.plan.total_steps
        if latest > total:
            raise RunError(
                f"{checkpoints.path(latest)} is after the last of the {total} steps of this run "
                "(config.epochs or config.steps): raise that, or use another --workdir."
            )


def set_up(config: ConfigDict, workdir: Path, task: Task) -> Setup:
    """Builds the objects of a run.

    Args:
      config: see configs/common.py.
      workdir: folder of the run.
      task: of the run.

    Raises:
      RunError: the number of devices does not divide the batch, the warm-up is longer than the
        run, or there are fewer stages than are to be frozen.
    """
    mesh = parallel.device_mesh(
        config.batch_size // config.accumulation, config.eval_batch_size, fsdp=config.mesh.fsdp
    )
    steps_per_epoch = task.training.steps_per_epoch
    length = configuration.run_length(config, steps_per_epoch)
    plan = Plan(
        total_steps=length.total,
        steps_per_epoch=steps_per_epoch,
        log_every=config.log_every_steps,
        save_every=config.checkpoints.every_steps,
        evaluate_every=length.evaluation,
    )
    schedule = configuration.build_schedule(config.optimizer, length)
    freezing = configuration.build_freezing(config, task.model)
    optimizer = configuration.build_optimizer(config.optimizer, schedule, freezing)
    step = make_train_step(
        task.model,
        optimizer,
        task.loss,
        seed=config.seed,
        mesh=mesh,
        accumulation=config.accumulation,
        ema_decay=config.ema_decay,
        penalty=configuration.build_penalty(config.optimizer),
        freezing=freezing,
    )
    unreadable = UnreadableList(workdir / "unreadable.txt", warn)
    return Setup(
        task=task,
        plan=plan,
        mesh=mesh,
        optimizer=optimizer,
        schedule=schedule,
        step=step,
        evaluations=Evaluations(task.model, task.evaluations, mesh, unreadable),
        batch_size=config.batch_size,
        seed=config.seed,
        ema=config.ema_decay > 0,
        initial=initial_weights(config),
        unreadable=unreadable,
    )


def initial_weights(config: ConfigDict) -> InitialWeights | None:
    """The checkpoint of `config.init_from`; None if that is not set."""
    if not config.init_from:
        return None
    return InitialWeights(
        path=config.init_from,
        prefer_ema=config.init_ema,
        key=config.init_key,
        prefix=config.init_prefix,
        reset_head=config.init_reset_head,
        adapt_input=config.init_adapt_input,
    )
