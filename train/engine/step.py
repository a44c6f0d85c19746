"""The state of a run, and the one step that advances it."""

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
TrainStep = Callable[["TrainState", Batch], tuple["TrainState", StepMetrics]]


@flax.struct.dataclass
class TrainState:
    """All that changes from step to step; randomness follows from `step` and the seed.

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

    def begin(start: jax.Array | Variables) -> TrainState:
        drawn = _draw(model, image_size, start) if variables is None else start
        return _first_state(drawn, optimizer, ema)

    start = jax.random.key(seed) if variables is None else variables
    shardings = parallel.state_sharding(mesh, jax.eval_shape(begin, start))
    return jax.jit(begin, out_shardings=shardings)(start)


def abstract_state(
    model: Network,
    optimizer: optax.GradientTransformation,
    image_size: tuple[int, int],
    mesh: Mesh,
    *,
    ema: bool = False,
) -> TrainState:
    """Shapes, types and shardings of the state, at no cost; arguments as those of `init_state`."""
    state = jax.eval_shape(
        lambda key: _first_state(_draw(model, image_size, key), optimizer, ema), jax.random.key(0)
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        parallel.state_sharding(mesh, state),
    )


def _draw(model: Network, image_size: tuple[int, int], key: jax.Array) -> Variables:
    shape = (1, *image_size, model.in_channels)
    return model.init(key, jnp.zeros(shape, model.dtype))


def _first_state(
    variables: Variables, optimizer: optax.GradientTransformation, ema: bool
) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        **variables,
        opt_state=optimizer.init(variables["params"]),
        ema=jax.tree.map(jnp.copy, variables) if ema else None,
    )


def random_keys(
    seed: int, step: int | jax.Array, micro_batch: int | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The keys of the loss, with its augmentation, and of dropout, for one micro-batch.

    Args:
      seed: of the run.
      step: number of steps done.
      micro_batch: its number within the step.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    return tuple(jax.random.split(jax.random.fold_in(key, micro_batch)))


class _Forward:
    """The network in training; see `task.Forward`.

    Attributes:
      batch_stats: the running statistics after the calls so far.
    """

    def __init__(self, model: Network, params: Any, batch_stats: Any, dropout_key: jax.Array):
        self._model, self._params, self._dropout_key = model, params, dropout_key
        self._calls = 0
        self.batch_stats = batch_stats

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
    both of the parameters before the step. The old state's memory is given to the new one.

    With M micro-batches, rows m, m + M, m + 2M, ... of the batch are the m-th, so that every device
    finds its shard of each among its own rows, and which images go together does not depend on the
    devices. A batch norm sees one micro-batch at a time, and its running statistics move M times a
    step; gradients and losses are means over the micro-batches.

    Args:
      model: the network.
      optimizer: its optimizer.
      loss: what is minimised.
      seed: of the augmentation and of dropout.
      mesh: of the devices, from `parallel.device_mesh`.
      accumulation: M.
      ema_decay: d of the EMA a := d a + (1 - d) v of parameters and statistics.
      penalty: added to the loss; takes the running statistics after the micro-batch.
      freezing: what stays as it is; None for nothing.

    Raises:
      ValueError: from a call, where a term of the loss has the name of another metric.
    """
    whole = parallel.replicated(mesh)
    freezing = freezing or Freezing(model)

    def gradients(
        params: Any, batch_stats: Any, keys: tuple[jax.Array, jax.Array], batch: Batch
    ) -> tuple[Any, StepMetrics, Any]:
        """Gradients and losses of one micro-batch, and the statistics after it."""
        loss_key, dropout_key = keys

        def total_loss(params: Any) -> tuple[jax.Array, tuple[StepMetrics, Any]]:
            params = freezing.constant(params)
            forward = _Forward(model, params, batch_stats, dropout_key)
            with freezing.eval_mode():
                total, terms = loss(forward, loss_key, batch)
            terms = dict(terms)
            if penalty is not None:
                terms["penalty"] = penalty(params, forward.batch_stats)
                total += terms["penalty"]
            return total, (_with_total(total, terms), forward.batch_stats)

        grads, (losses, batch_stats) = jax.grad(total_loss, has_aux=True)(params)
        return grads, losses, batch_stats

    def accumulated(
        params: Any, batch_stats: Any, step: jax.Array, batch: Batch
    ) -> tuple[Any, StepMetrics, Any]:
        """The same over all micro-batches, one after another."""
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
        # The shards of each parameter are gathered once a step; its gradient is summed by shard.
        params = jax.lax.with_sharding_constraint(state.params, whole)
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

    return jax.jit(step, out_shardings=(None, whole), donate_argnums=0)


_OTHER_METRICS = {"loss", "grad_norm", "param_norm"}


def _with_total(total: jax.Array, terms: Mapping[str, jax.Array]) -> StepMetrics:
    """The total loss and its terms, as they are logged."""
    if taken := _OTHER_METRICS & terms.keys():
        raise ValueError(f"A term of a loss cannot be called {', '.join(sorted(taken))}.")
    return {"loss": total, **terms}
