"""The state of a run, and the training step."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from replk_jax.models.network import Network
from train.engine import parallel
from train.engine.freezing import Freezing
from train.engine.regularization import Penalty
from train.engine.task import Batch, Loss

StepMetrics = dict[str, jax.Array]
Variables = dict[str, Any]
TrainStep = jax.stages.Wrapped  # (TrainState, Batch) -> (TrainState, StepMetrics)


class TrainState(flax.struct.PyTreeNode):
    """All that a step changes. Random keys are derived from `step` and the seed of the run.

    `ema` is the exponential moving average (EMA) of the variables, {"params": ...,
    "batch_stats": ...}, or None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Variables | None = None

    @property
    def variables(self) -> Variables:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
    model: Network,
    optimizer: optax.GradientTransformation,
    image_size: tuple[int, int],
    seed: int,
    mesh: Mesh,
    *,
    ema: bool = False,
    variables: Variables | None = None,
) -> TrainState:
    """The state before the first step, on the devices as `parallel.state_sharding` says.

    Args:
      model: the network.
      optimizer: its optimizer.
      image_size: height and width; the parameters do not depend on it.
      seed: of the parameters.
      mesh: of the devices.
      ema: whether the state has an EMA of the variables.
      variables: to start from, instead of those that `seed` draws.
    """

    def from_seed(key: jax.Array) -> TrainState:
        return _first_state(_init_variables(model, image_size, key), optimizer, ema)

    def from_variables(variables: Variables) -> TrainState:
        return _first_state(variables, optimizer, ema)

    if variables is None:
        return _sharded(from_seed, jax.random.key(seed), mesh)
    return _sharded(from_variables, variables, mesh)


def abstract_state(
    model: Network,
    optimizer: optax.GradientTransformation,
    image_size: tuple[int, int],
    mesh: Mesh,
    *,
    ema: bool = False,
) -> TrainState:
    """The state of `init_state` as `jax.ShapeDtypeStruct`, with shardings; nothing is computed."""
    state = jax.eval_shape(
        lambda key: _first_state(_init_variables(model, image_size, key), optimizer, ema),
        jax.random.key(0),
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        parallel.state_sharding(mesh, state),
    )


def _sharded(make_state: Callable[[Any], TrainState], argument: Any, mesh: Mesh) -> TrainState:
    """`make_state(argument)`, compiled, with the shardings of `parallel.state_sharding`."""
    shardings = parallel.state_sharding(mesh, jax.eval_shape(make_state, argument))
    return jax.jit(make_state, out_shardings=shardings)(argument)


def _init_variables(model: Network, image_size: tuple[int, int], key: jax.Array) -> Variables:
    shape = (1, *image_size, model.in_channels)
    return dict(model.init(key, jnp.zeros(shape, model.dtype)))


def _first_state(
    variables: Variables, optimizer: optax.GradientTransformation, ema: bool
) -> TrainState:
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(variables["params"]),
    )
    return state.replace(ema=jax.tree.map(jnp.copy, state.variables)) if ema else state


def random_keys(
    seed: int, step: int | jax.Array, micro_batch: int | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The loss key (for augmentation too) and the dropout key of a micro-batch.

    Args:
      seed: of the run.
      step: number of steps done.
      micro_batch: its index in the step.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    loss_key, dropout_key = jax.random.split(jax.random.fold_in(key, micro_batch))
    return loss_key, dropout_key


class _Forward:
    """The network in training; see `task.Forward`.

    Attributes:
      batch_stats: the running statistics after the calls so far.
    """

    def __init__(self, model: Network, params: Any, batch_stats: Any, dropout_key: jax.Array):
        self._model, self._params, self._dropout_key = model, params, dropout_key
        self._calls = 0
        self.batch_stats: Any = batch_stats

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        key = self._dropout_key
        if self._calls:
            key = jax.random.fold_in(key, self._calls)
        self._calls += 1
        outputs, updates = self._model.apply(
            {"params": self._params, "batch_stats": self.batch_stats},
            *args,
            **kwargs,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        self.batch_stats = updates.get("batch_stats", {})
        return outputs


def make_train_step(
    model: Network,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    *,
    seed: int,
    mesh: Mesh,
    accumulation: int = 1,
    ema_decay: float = 0.0,
    penalty: Penalty | None = None,
    freezing: Freezing | None = None,
) -> TrainStep:
    """Builds the compiled function (state, batch) -> (state, metrics).

    The batch is a dictionary of arrays (N, ...). The metrics are float32 scalars: `loss` (the
    total), each term of the loss under its name, `grad_norm` (before clipping) and `param_norm`,
    both of the parameters before the step. The old state is donated.

    Micro-batch m of M has rows m, m + M, m + 2M, ... of the batch. So its images do not depend on
    the number of devices, and each device has its shard of it already. Batch norm uses the
    statistics of one micro-batch, and updates its running statistics M times a step. Gradients and
    losses are means over the micro-batches.

    Args:
      model: the network.
      optimizer: its optimizer.
      loss: to minimise.
      seed: of the augmentation and of dropout.
      mesh: of the devices, from `parallel.device_mesh`.
      accumulation: M.
      ema_decay: d of the EMA a := d a + (1 - d) v of parameters and statistics.
      penalty: added to the loss; called with the running statistics after the micro-batch.
      freezing: the frozen parts of the network; None for none.

    Raises:
      ValueError: when called, if a term of the loss is not a scalar, or its name has a slash or is
        that of another metric.
    """
    replicated = parallel.replicated(mesh)
    freezing = freezing or Freezing(model)

    def gradients(
        params: Any, batch_stats: Any, keys: tuple[jax.Array, jax.Array], batch: Batch
    ) -> tuple[Any, StepMetrics, Any]:
        """Gradients and losses of one micro-batch, and the running statistics after it."""
        loss_key, dropout_key = keys

        def total_loss(params: Any) -> tuple[jax.Array, tuple[StepMetrics, Any]]:
            params = freezing.constant(params)
            forward = _Forward(model, params, batch_stats, dropout_key)
            with freezing.eval_mode():
                total, terms = loss(forward, loss_key, batch)
            losses = {"loss": total, **_checked(terms)}
            if penalty is not None:
                losses["penalty"] = penalty(params, forward.batch_stats)
                losses["loss"] += losses["penalty"]
            return losses["loss"], (losses, forward.batch_stats)

        grads, (losses, batch_stats) = jax.grad(total_loss, has_aux=True)(params)
        return grads, losses, batch_stats

    def accumulated(
        params: Any, batch_stats: Any, step: jax.Array, batch: Batch
    ) -> tuple[Any, StepMetrics, Any]:
        """As `gradients`, of all micro-batches in sequence."""
        if accumulation == 1:
            return gradients(params, batch_stats, random_keys(seed, step, 0), batch)

        def split(rows: jax.Array) -> jax.Array:
            rows = rows.reshape(-1, accumulation, *rows.shape[1:]).swapaxes(0, 1)
            return jax.lax.with_sharding_constraint(rows, parallel.micro_batch_sharding(mesh))

        def add(sums: tuple[Any, Any], micro: tuple[jax.Array, Batch]):
            grads, batch_stats = sums
            number, rows = micro
            more, losses, batch_stats = gradients(
                params, batch_stats, random_keys(seed, step, number), rows
            )
            return (jax.tree.map(jnp.add, grads, more), batch_stats), losses

        zeros = jax.tree.map(jnp.zeros_like, params), batch_stats
        micro_batches = jnp.arange(accumulation), jax.tree.map(split, batch)
        (grads, batch_stats), losses = jax.lax.scan(add, zeros, micro_batches)
        grads = jax.tree.map(lambda total: total / accumulation, grads)
        return grads, jax.tree.map(jnp.mean, losses), batch_stats

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        shardings = parallel.state_sharding(mesh, state)
        # Parameters are all-gathered once a step; gradients are reduce-scattered.
        params = jax.lax.with_sharding_constraint(state.params, replicated)
        grads, losses, batch_stats = accumulated(params, state.batch_stats, state.step, batch)
        grads = jax.lax.with_sharding_constraint(grads, shardings.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        after = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        if state.ema is not None:
            after = after.replace(
                ema=optax.incremental_update(after.variables, state.ema, 1 - ema_decay)
            )
        metrics = {
            **losses,
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(state.params),
        }
        return jax.lax.with_sharding_constraint(after, shardings), metrics

    return jax.jit(step, out_shardings=(None, replicated), donate_argnums=0)


_OTHER_METRICS = {"loss", "penalty", "grad_norm", "param_norm"}


def _checked(terms: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
    """The terms of a loss, whose names and shapes are checked."""
    for name, term in terms.items():
        if name in _OTHER_METRICS or "/" in name:
            raise ValueError(
                f"A term of a loss cannot be named {name!r}: without a slash, and none of "
                f"{', '.join(sorted(_OTHER_METRICS))}."
            )
        if jnp.shape(term):
            raise ValueError(f"The term {name} of a loss has shape {jnp.shape(term)}, not ().")
    return terms
