"""Loops whose number of iterations depends on data, for use under `jax.vmap`.

`jax.vmap` of a loop with a batched condition copies the whole state in every iteration, to keep it
for the members of the batch that have finished. A loop whose condition is the largest of the batch
does not, if an iteration changes nothing for those that have finished.
"""

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap


@custom_vmap
def largest_of_batch(x: jax.Array) -> jax.Array:
    """The identity; under `jax.vmap`, the largest value of the batch, the same for all.

    Args:
      x: a scalar, a number or a condition (which holds if it holds for any).
    """
    return x


@largest_of_batch.def_vmap
def _largest(axis_size: int, in_batched: list[bool], x: jax.Array) -> tuple[jax.Array, bool]:
    # Once more for the next batch axis, if there are several.
    return largest_of_batch(jnp.max(x, axis=0)), False
