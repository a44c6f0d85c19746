"""The state of a run, and the one step that advances it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from replk_jax.preprocessing import normalize
from train import parallel
from train.regularization import Penalty

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """All that changes from step to step; randomness follows from `step` and the seed."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_size: int,
    seed: int,
    mesh: Mesh,
) -> TrainState:
    """The state before the first step, replicated over the mesh.

    Args:
      model: the network.
      optimizer: its optimiser.
      image_size: height and width; the parameters do not depend on it.
      seed: of the parameters.
      mesh: of the devices.
    """

    def init(key: jax.Array) -> TrainState:
        shape = (1, image_size, image_size, model.architecture.in_channels)
        variables = model.init(key, jnp.zeros(shape, model.dtype))
        params = variables["params"]
        return TrainState(
            jnp.zeros((), jnp.int32), params, variables["batch_stats"], optimizer.init(params)
        )

    return jax.jit(init, out_shardings=parallel.replicated(mesh))(jax.random.key(seed))


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    label_smoothing: float,
    seed: int,
    mesh: Mesh,
    penalty: Penalty | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Builds the compiled function (state, batch) -> (state, metrics).

    The batch is {"image": uint8 (N, H, W, C), "label": int32 (N,)}; the metrics are the scalars
    `loss` and `grad_norm`, float32. The old state's memory is given to the new one.

    Args:
      model: the network.
      optimizer: its optimiser.
      mean, std: of the images, channel by channel, for values in [0, 1].
      label_smoothing: share of each target that is spread over all classes.
      seed: of what is dropped at random.
      mesh: of the devices.
      penalty: a term of the loss, given the running statistics after this batch.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        images = normalize(batch["image"], mean, std)
        targets = optax.smooth_labels(
            jax.nn.one_hot(batch["label"], model.num_classes), label_smoothing
        )
        dropout = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss_of(params):
            logits, updates = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                rngs={"dropout": dropout},
                mutable=["batch_stats"],
            )
            batch_stats = updates["batch_stats"]
            loss = optax.softmax_cross_entropy(logits, targets).mean()
            if penalty is not None:
                loss += penalty(params, batch_stats)
            return loss, batch_stats

        (loss, batch_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    whole, split = parallel.replicated(mesh), parallel.split_batch(mesh)
    return jax.jit(
        step, in_shardings=(whole, split), out_shardings=(whole, whole), donate_argnums=0
    )
