"""Whole networks as compiled programs of JAX's, ready to be timed or traced."""

import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from replk_jax.accounting import planned_memory
from replk_jax.benchmark.timing import Program
from replk_jax.models.variables import abstract_variables
from replk_jax.reparam import reparameterize

MODES = ("inference", "inference-merged", "gradients", "training")


def draw_inputs(model: nn.Module, batch_size: int, image_size: int) -> tuple[Any, jax.Array]:
    """Random variables, and images (N, H, W, C), float32; speed does not depend on them.

    The model's own initialisation is not used: to compile it takes long.
    """
    rng = np.random.default_rng(0)
    shape = (batch_size, image_size, image_size, model.architecture.in_channels)
    images = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    abstract = abstract_variables(model)

    def draw(path, leaf):
        value = rng.standard_normal(leaf.shape, np.float32) * 0.02
        return jnp.asarray(value + (path[-1].key in ("scale", "var")), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract), images


def network_program(mode: str, model: nn.Module, variables: Any, images: jax.Array) -> Program:
    """What a network does in one of `MODES`.

    "inference" is of the training-time structure, "inference-merged" of the re-parameterized one;
    "gradients" is forward and backward of the training-time structure; a "training" step adds
    stochastic depth and AdamW, and gives its memory to the next, whose state its result is.
    """
    if mode == "inference":
        return _compiled(model.apply, (variables,), images)
    if mode == "inference-merged":
        merged = jax.jit(reparameterize)(variables)
        return _compiled(model.clone(deploy=True).apply, (merged,), images)
    if mode == "gradients":
        return _compiled(_differentiated(model), (variables,), images)

    optimizer = optax.adamw(1e-3)
    has_drop_path = hasattr(model, "drop_path_rate")
    differentiated = _differentiated(model.clone(drop_path_rate=0.1) if has_drop_path else model)

    def train_step(variables, opt_state, images):
        grads, updates = differentiated(variables, images)
        with jax.named_scope("optimizer"):
            steps, opt_state = optimizer.update(grads, opt_state, variables["params"])
            params = optax.apply_updates(variables["params"], steps)
        return {"params": params, **updates}, opt_state

    own = jax.tree.map(jnp.copy, variables)  # the first step gives its memory away
    return _compiled(train_step, (own, optimizer.init(own["params"])), images, carries=True)


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
    function: Callable[..., Any], state: tuple[Any, ...], images: jax.Array, carries: bool = False
) -> Program:
    """`function(*state, images)`; with `carries`, what it returns is the next state."""
    donated = tuple(range(len(state))) if carries else ()
    begin = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=donated).lower(*state, images).compile()
    seconds = time.perf_counter() - begin

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
