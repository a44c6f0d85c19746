"""The course of a run, from the data to the re-parameterized network."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from replk_jax.files import replace_json
from replk_jax.saved import SavedNetwork, load_into
from train import config as configuration
from train import parallel
from train.checkpoints import Checkpoints
from train.data.images import ImageData
from train.data.sources import prepare
from train.errors import RunError
from train.evaluation import Evaluator
from train.metrics import MetricWindow, NotFiniteError, require_finite
from train.optimizer import make_optimizer, warmup_cosine
from train.regularization import make_penalty
from train.reporting import Reporter
from train.step import Batch, TrainState, init_state, make_train_step


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains as the configuration says, or goes on from the latest checkpoint in `workdir`.

    Args:
      config: see configs/common.py.
      workdir: where checkpoints, metrics and the curve are written; all processes of a run
        must see the same folder.

    Returns:
      The final evaluation, as from `Evaluator.compare`.

    Raises:
      RunError: for a reason that the user can mend.
    """
    configuration.check(config)
    parallel.start_processes(config.distributed)
    training = _Training(config)
    folder, keep = workdir / "checkpoints", config.checkpoints.keep
    with Checkpoints(folder, keep, training.description) as checkpoints:
        state, first_step = training.start(checkpoints)
        main = parallel.is_main_process()
        with Reporter(workdir, first_step, training.total_steps, active=main) as reporter:
            if first_step == training.total_steps:
                reporter.say(
                    f"{checkpoints.path(first_step)} is the end of this run, which is only "
                    "evaluated again; to train anew, name another --workdir."
                )
            elif first_step:
                reporter.say(f"Going on from {checkpoints.path(first_step)}.")
            for change in configuration.remember(config, workdir) if main else ():
                reporter.say(f"Since the last start {change}.")
            try:
                state = training.train(state, first_step, checkpoints, reporter)
            except NotFiniteError as error:
                raise RunError(_diverged(error, checkpoints)) from error
            reporter.draw_curve()
        result = training.evaluator.compare(state.variables, training.eval_batches())
        if main:
            replace_json(workdir / "result.json", result)
            print(_closing_words(result, checkpoints, reporter), flush=True)
    return result


class _Training:
    """What a configuration comes to: data, model, steps and what is due when."""

    def __init__(self, config: ConfigDict):
        self._config = config
        self._mesh = parallel.data_mesh(config.batch_size, config.eval_batch_size)
        model = configuration.build_model(config)
        parallel.in_turn(lambda: prepare(config.data))
        self._data = parallel.together(lambda: ImageData(config, model.architecture.in_channels))
        class_names = tuple(self._data.class_names)
        self._model = model.clone(num_classes=len(class_names))
        self.description = SavedNetwork(
            self._model, {}, self._data.preprocessing, class_names
        ).description()

        per_epoch = self._data.steps_per_epoch
        self.total_steps = max(1, round(config.epochs * per_epoch))
        self._steps_per_evaluation = max(1, round(config.eval_every_epochs * per_epoch))
        recipe = config.optimizer
        warmup_steps = round(recipe.warmup_epochs * per_epoch)
        self._schedule = warmup_cosine(
            recipe.peak_lr, recipe.final_lr, warmup_steps, self.total_steps
        )
        self._optimizer = make_optimizer(recipe, self._schedule)
        mean, std = config.data.mean, config.data.std
        self._train_step = make_train_step(
            self._model,
            self._optimizer,
            mean=mean,
            std=std,
            label_smoothing=config.label_smoothing,
            seed=config.seed,
            mesh=self._mesh,
            penalty=make_penalty(recipe),
        )
        self.evaluator = Evaluator(self._model, mean, std, self._mesh)

    def start(self, checkpoints: Checkpoints) -> tuple[TrainState, int]:
        """The state to begin with, and how many steps it has behind it."""
        config = self._config
        step = checkpoints.latest() or 0
        if step > self.total_steps:
            raise RunError(
                f"{checkpoints.path(step)} is beyond the {self.total_steps} steps that "
                f"config.epochs = {config.epochs} comes to; raise it, or use another --workdir."
            )
        loaded = None
        if config.init_from and not step:
            loaded = jax.device_get(parallel.together(self._load))
        state = init_state(
            self._model, self._optimizer, config.data.image_size, config.seed, self._mesh
        )
        if step:
            state = checkpoints.restore(step, state)
        elif loaded:
            whole = parallel.replicated(self._mesh)
            state = state.replace(**jax.jit(lambda tree: tree, out_shardings=whole)(loaded))
        return state, step

    def _load(self) -> dict[str, Any]:
        """The variables of the network in the file `config.init_from`."""
        config = self._config
        try:
            network = load_into(
                self._model,
                config.init_from,
                reset_head=config.init_reset_head,
                prefer_ema=config.init_ema,
                seed=config.seed,
            )
        except ValueError as error:
            raise RunError(
                f"config.init_from: {error}\nThe network is that of config.model; for another "
                "number of classes set --config.init_reset_head."
            ) from error
        _expect_same_normalisation(config, network)
        return network.variables

    def train(
        self, state: TrainState, first_step: int, checkpoints: Checkpoints, reporter: Reporter
    ) -> TrainState:
        """Trains to the last step, with its reports, evaluations and checkpoints.

        Raises:
          NotFiniteError: a metric is NaN or infinite.
        """
        rows = self._data.train_batches(first_step)
        batches = parallel.global_batches(rows, self._mesh)
        window = MetricWindow(self._config.batch_size)
        for step in range(first_step + 1, self.total_steps + 1):
            state, metrics = self._train_step(state, next(batches))
            window.add(step, metrics)
            reporter.advance()
            if not self._is_report(step):
                continue
            averages = window.close()
            averages["learning_rate"] = float(self._schedule(step - 1))
            averages["epoch"] = step / self._data.steps_per_epoch
            reporter.scalars(step, averages)
            if self._is_save(step):
                whole = self._is_evaluation(step)
                scores = self._evaluate(state, step, whole=whole)
                if whole:
                    reporter.scalars(step, {f"eval/{k}": v for k, v in scores.items()})
                checkpoints.save(step, state, scores if whole else None)
            window.restart_clock()
        checkpoints.wait()
        return state

    def eval_batches(self) -> Iterator[Batch]:
        """The evaluation images once."""
        return parallel.global_batches(self._data.evaluation.batches(), self._mesh)

    def _evaluate(self, state: TrainState, step: int, *, whole: bool) -> dict[str, float]:
        """Scores on the evaluation images, or on their first batch.

        The loss of a step is that of the parameters before it, so what the step made of them
        must be tried before it is saved as good.
        """
        batches = self.eval_batches() if whole else [self._first_eval_batch]
        scores = self.evaluator.evaluate(state.variables, batches)
        require_finite(step, "eval/loss", scores["loss"])
        return scores

    @functools.cached_property
    def _first_eval_batch(self) -> Batch:
        return next(self.eval_batches())

    def _is_evaluation(self, step: int) -> bool:
        return step == self.total_steps or step % self._steps_per_evaluation == 0

    def _is_save(self, step: int) -> bool:
        """With every evaluation, so that the best is kept, and at steps of its own."""
        return self._is_evaluation(step) or step % self._config.checkpoints.every_steps == 0

    def _is_report(self, step: int) -> bool:
        """Before every save too: what is saved must have been found finite."""
        return self._is_save(step) or step % self._config.log_every_steps == 0


def _expect_same_normalisation(config: ConfigDict, network: SavedNetwork) -> None:
    """Raises where it is known that the network has only seen images of another mean or std."""
    data, known = config.data, network.preprocessing
    if known and (known.mean, known.std) != (tuple(data.mean), tuple(data.std)):
        raise RunError(
            f"The images of {config.init_from} have mean {known.mean} and std {known.std}: set "
            f"--config.data.mean='{known.mean}' --config.data.std='{known.std}'."
        )


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
    training = result["training"]
    if merged := result.get("merged"):
        difference = f"largest difference of any logit {result['largest_difference']:.1e}"
        reparameterized = f"{merged['top1']:.2%}, {difference}"
    else:
        reparameterized = f"not possible: {result['not_merged']}"
    rows = {
        "test accuracy": f"{training['top1']:.2%} of {training['examples']} images",
        "re-parameterized": reparameterized,
        "checkpoint": checkpoints.path(checkpoints.latest()),
        "best checkpoint": checkpoints.path(checkpoints.best() or checkpoints.latest()),
        "metrics": reporter.metrics_path,
        "TensorBoard": reporter.tensorboard_path,
        "curve": reporter.curve_path,
    }
    return "\n" + "\n".join(f"{name:17} {value}" for name, value in rows.items())
