"""Whole networks as compiled programs of JAX's, ready to be timed or traced."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from replk_jax.benchmark.compiling import compile_program
from replk_jax.benchmark.timing import Program
from replk_jax.models.summary import planned_memory
from replk_jax.models.variables import abstract_variables
from replk_jax.reparam import reparameterize

MODES = ("inference", "inference-merged", "gradients", "training")
DROP_PATH_RATE = 0.1  # of a training step, where the network has stochastic depth
SCOPES = ("loss", "optimizer")  # of a training step, beside those of the network


def draw_inputs(model: nn.Module, batch_size: int, image_size: int) -> tuple[Any, jax.Array]:
    """Random variables, and images (N, H, W, C), float32; speed does not depend on them.

    The model's own initialisation is not used: to compile it takes long.
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
    mode: str, model: nn.Module, variables: Any, images: jax.Array, *, traceable: bool = False
) -> Program:
    """What a network does in one of `MODES`.

    "inference" is of the training-time structure, "inference-merged" of the re-parameterized one,
    both with weights in the type of the computation. "gradients" is forward and backward of the
    training-time structure; a "training" step adds stochastic depth and AdamW, and gives its memory
    to the next, whose state its result is.

    Args:
      mode, model, variables, images: of `MODES`; as from `draw_inputs`.
      traceable: whether a trace shall tell each operation apart, which on a GPU costs a little.

    Raises:
      ValueError: an unknown mode.
    """
    # A GPU runs a command buffer as one operation.
    on_gpu = images.devices().pop().platform == "gpu"
    options = {"xla_gpu_enable_command_buffer": ""} if traceable and on_gpu else None
    compiled = partial(_compiled, images=images, options=options)
    in_type = partial(jax.tree.map, lambda leaf: leaf.astype(model.dtype))
    if mode == "inference":
        return compiled(model.apply, (in_type(variables),))
    if mode == "inference-merged":
        merged = in_type(jax.jit(reparameterize)(variables))
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

    own = jax.tree.map(jnp.copy, variables)  # the first step gives its memory away
    return compiled(train_step, (own, optimizer.init(own["params"])), carries=True)


def _differentiated(model: nn.Module) -> Callable[..., Any]:
    """(variables, images) to the gradients of a cross entropy and the new statistics."""

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
    """`function(*state, images)`; with `carries`, what it returns is the next state."""
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
