"""The state of a run, and the one step that advances it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from train.engine import parallel
from train.engine.regularization import Penalty

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Variables = dict[str, Any]


@flax.struct.dataclass
class TrainState:
    """All that changes from step to step; randomness follows from `step` and the seed.

    `ema` is the moving average of the variables, {"params": ..., "batch_stats": ...}, or None.
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


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a network is to make small: all that a step need not know.

    Attributes:
      prepare: (key, batch) -> (what the network takes, targets), with the augmentation.
      loss: (what the network gives, targets) -> the mean over the batch, float32. Of several
        micro-batches each counts alike, however much of it the mean is taken over.
    """

    prepare: Callable[[jax.Array, Batch], tuple[jax.Array, Any]]
    loss: Callable[[Any, Any], jax.Array]


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_size: tuple[int, int],
    seed: int,
    mesh: Mesh,
    *,
    average: bool = False,
    variables: Variables | None = None,
) -> TrainState:
    """The state before the first step, on the devices as `parallel.state_sharding` says.

    Args:
      model: the network.
      optimizer: its optimiser.
      image_size: height and width; the parameters do not depend on it.
      seed: of the parameters.
      mesh: of the devices.
      average: whether the state has a moving average of the variables.
      variables: to begin with, in place of those that are drawn.
    """

    def begin(start: jax.Array | Variables) -> TrainState:
        drawn = _draw(model, image_size, start) if variables is None else start
        return _first(drawn, optimizer, average)

    start = jax.random.key(seed) if variables is None else variables
    shardings = parallel.state_sharding(mesh, jax.eval_shape(begin, start))
    return jax.jit(begin, out_shardings=shardings)(start)


def abstract_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_size: tuple[int, int],
    mesh: Mesh,
    *,
    average: bool = False,
) -> TrainState:
    """Shapes, types and shardings of the state, at no cost; arguments as those of `init_state`."""
    state = jax.eval_shape(
        lambda key: _first(_draw(model, image_size, key), optimizer, average), jax.random.key(0)
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        parallel.state_sharding(mesh, state),
    )


def _draw(model: nn.Module, image_size: tuple[int, int], key: jax.Array) -> Variables:
    shape = (1, *image_size, model.in_channels)
    return model.init(key, jnp.zeros(shape, model.dtype))


def _first(
    variables: Variables, optimizer: optax.GradientTransformation, average: bool
) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        **variables,
        opt_state=optimizer.init(variables["params"]),
        ema=jax.tree.map(jnp.copy, variables) if average else None,
    )


def random_keys(
    seed: int, step: int | jax.Array, micro_batch: int | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The keys of the augmentation and of what is dropped at random, for one micro-batch.

    Args:
      seed: of the run.
      step: how many steps are done.
      micro_batch: its number within the step.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    return tuple(jax.random.split(jax.random.fold_in(key, micro_batch)))


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    *,
    seed: int,
    mesh: Mesh,
    accumulation: int = 1,
    ema_decay: float = 0.0,
    penalty: Penalty | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Builds the compiled function (state, batch) -> (state, metrics).

    The batch is a dictionary of arrays (N, ...). The metrics are float32 scalars: `loss`,
    `grad_norm` (before it is clipped) and `param_norm`, both of the parameters before the step. The
    old state's memory is given to the new one.

    With M micro-batches, rows m, m + M, m + 2M, ... of the batch are the m-th, so that every device
    finds its part of each among its own rows, and which images go together does not depend on the
    devices. A batch norm sees one micro-batch at a time, and its running statistics move M times a
    step; gradients and loss are means over the micro-batches.

    Args:
      model: the network.
      optimizer: its optimiser.
      objective: what it is to make small.
      seed: of the augmentation and of what is dropped at random.
      mesh: of the devices, from `parallel.device_mesh`.
      accumulation: M.
      ema_decay: d of the moving average a := d a + (1 - d) v of parameters and statistics.
      penalty: a term of the loss, given the running statistics after the micro-batch.
    """
    whole = parallel.replicated(mesh)

    def gradients(params, batch_stats, keys: tuple[jax.Array, jax.Array], batch: Batch):
        """Of the loss of one micro-batch, with the statistics after it."""
        augmentation_key, dropout_key = keys
        inputs, targets = objective.prepare(augmentation_key, batch)

        def loss_of(params):
            outputs, updates = model.apply(
                {"params": params, "batch_stats": batch_stats},
                inputs,
                train=True,
                rngs={"dropout": dropout_key},
                mutable=["batch_stats"],
            )
            loss = objective.loss(outputs, targets)
            if penalty is not None:
                loss += penalty(params, updates["batch_stats"])
            return loss, updates["batch_stats"]

        (loss, batch_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        return grads, loss, batch_stats

    def accumulated(params, batch_stats, step: jax.Array, batch: Batch):
        """The same over all micro-batches, one after another."""
        if accumulation == 1:
            return gradients(params, batch_stats, random_keys(seed, step, 0), batch)

        def split(rows: jax.Array) -> jax.Array:
            rows = rows.reshape(-1, accumulation, *rows.shape[1:]).swapaxes(0, 1)
            return jax.lax.with_sharding_constraint(rows, parallel.micro_batch_sharding(mesh))

        def add(sums, micro):
            grads, loss, batch_stats = sums
            number, rows = micro
            more, further, batch_stats = gradients(
                params, batch_stats, random_keys(seed, step, number), rows
            )
            return (jax.tree.map(jnp.add, grads, more), loss + further, batch_stats), None

        zeros = jax.tree.map(jnp.zeros_like, params), jnp.zeros(()), batch_stats
        micro_batches = jnp.arange(accumulation), jax.tree.map(split, batch)
        (grads, loss, batch_stats), _ = jax.lax.scan(add, zeros, micro_batches)
        mean = jax.tree.map(lambda total: total / accumulation, (grads, loss))
        return *mean, batch_stats

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        shardings = parallel.state_sharding(mesh, state)
        # The parts of each parameter are fetched once a step; its gradient is summed part by part.
        params = jax.lax.with_sharding_constraint(state.params, whole)
        grads, loss, batch_stats = accumulated(params, state.batch_stats, state.step, batch)
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
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(state.params),
        }
        return jax.lax.with_sharding_constraint(after, shardings), metrics

    return jax.jit(step, out_shardings=(None, whole), donate_argnums=0)
