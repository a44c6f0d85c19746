"""Compiled JAX programs of networks, for timing and profiling."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from replk_jax.benchmark.compiling import compile_program
from replk_jax.benchmark.timing import Program
from replk_jax.models.network import Network
from replk_jax.models.summary import planned_memory
from replk_jax.models.variables import abstract_variables
from replk_jax.reparam import reparameterize

MODES = ("inference", "inference-merged", "gradients", "training")
DROP_PATH_RATE = 0.1  # of a training step, if the network has stochastic depth
SCOPES = ("loss", "optimizer")  # of a training step, in addition to those of the network


def draw_inputs(model: Network, batch_size: int, image_size: int) -> tuple[Any, jax.Array]:
    """Random variables and images (N, H, W, C), float32.

    It does not use the initialisation of the model, which takes long to compile.
    """
    rng = np.random.default_rng(0)
    shape = (batch_size, image_size, image_size, model.in_channels)
    images = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    abstract = abstract_variables(model)

    def draw(path, leaf):
        value = rng.standard_normal(leaf.shape, np.float32) * 0.02
        return jnp.asarray(value + (path[-1].key in ("scale", "var")), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract), images


def network_program(
    mode: str, model: Network, variables: Any, images: jax.Array, *, traceable: bool = False
) -> Program:
    """Compiles a network in one of `MODES`.

    - "inference": the training-time structure, with weights in the dtype of the computation.
    - "inference-merged": the re-parameterized structure, likewise.
    - "gradients": forward and backward pass of the training-time structure.
    - "training": a step with stochastic depth and AdamW. Its result is the state of the next step,
      which reuses its memory.

    Args:
      mode: one of `MODES`.
      model: the network.
      variables, images: as from `draw_inputs`.
      traceable: whether a trace must contain each operation separately, which is slightly slower
        on a GPU.

    Raises:
      ValueError: an unknown mode.
    """
    # A trace shows a command buffer of a GPU as one operation.
    on_gpu = images.devices().pop().platform == "gpu"
    options = {"xla_gpu_enable_command_buffer": ""} if traceable and on_gpu else None
    compiled = partial(_compiled, images=images, options=options)
    cast = partial(jax.tree.map, lambda leaf: leaf.astype(model.dtype))
    if mode == "inference":
        return compiled(model.apply, (cast(variables),))
    if mode == "inference-merged":
        merged = cast(jax.jit(reparameterize)(variables))
        return compiled(model.clone(deploy=True).apply, (merged,))
    if mode == "gradients":
        return compiled(_differentiated(model), (variables,))
    if mode != "training":
        raise ValueError(f"Unknown mode {mode}; known: {', '.join(MODES)}.")

    optimizer = optax.adamw(1e-3)
    if hasattr(model, "drop_path_rate"):
        model = model.clone(drop_path_rate=DROP_PATH_RATE)
    differentiated = _differentiated(model)

    def train_step(variables, opt_state, images):
        grads, updates = differentiated(variables, images)
        with jax.named_scope("optimizer"):
            steps, opt_state = optimizer.update(grads, opt_state, variables["params"])
            params = optax.apply_updates(variables["params"], steps)
        return {"params": params, **updates}, opt_state

    copies = jax.tree.map(jnp.copy, variables)  # the first step donates its operands
    return compiled(train_step, (copies, optimizer.init(copies["params"])), carries=True)


def _differentiated(model: Network) -> Callable[..., Any]:
    """A function (variables, images) -> (gradients of a cross entropy, new batch statistics)."""

    def run(variables, images):
        def loss_of(params):
            logits, updates = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                rngs={"dropout": jax.random.key(0)},
                mutable=["batch_stats"],
            )
            with jax.named_scope("loss"):
                labels = jnp.zeros(images.shape[0], jnp.int32)
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
                return losses.mean(), updates

        return jax.grad(loss_of, has_aux=True)(variables["params"])

    return run


def _compiled(
    function: Callable[..., Any],
    state: tuple[Any, ...],
    *,
    images: jax.Array,
    options: dict[str, Any] | None,
    carries: bool = False,
) -> Program:
    """Compiles `function(*state, images)`; with `carries`, its result is the next state."""
    donated = tuple(range(len(state))) if carries else ()
    compiled, seconds = compile_program(
        function, *state, images, donate_argnums=donated, options=options
    )

    def start():
        nonlocal state
        result = compiled(*state, images)
        state = result if carries else state
        return result

    return Program(
        start,
        compile_seconds=seconds,
        memory_bytes=planned_memory(compiled),
        compiled_text=compiled.as_text,
    )
