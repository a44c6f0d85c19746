"""Partitions the operations that XLA must not partition itself: each device computes its shard."""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from replk_jax.ops.depthwise.implementation import Direction
from replk_jax.ops.dtypes import accumulation_dtype

# Shardy rules. Images and channels are independent, so both may be sharded. The other dimensions
# are replicated.
SHARDING_RULES = {
    "forward": "n h w c, u v o c -> n i j c",
    "input_gradient": "n i j c, u v o c -> n h w c",
    "kernel_gradient": "n h w c, n i j c -> u v o c",
}


def output_spec(images: P, other: P) -> P:
    """How a result (N, H, W, C) is sharded.

    The batch is sharded like the batch of the images. The channels are sharded like the channels
    of either operand, over mesh axes that do not shard the batch.

    Args:
      images: how the operand (N, H, W, C) is sharded.
      other: how the other operand is sharded.
    """
    batch_axes = _axes(images, 0)
    used = batch_axes if isinstance(batch_axes, tuple) else (batch_axes,)
    for channel_axes in (_axes(images, 3), _axes(other, 3)):
        names = channel_axes if isinstance(channel_axes, tuple) else (channel_axes,)
        if channel_axes is not None and not set(names) & set(used):
            return P(batch_axes, None, None, channel_axes)
    return P(batch_axes, None, None, None)


def partitioned(
    direction: Direction, function: Callable[[jax.Array, jax.Array], jax.Array]
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`function`, which computes `direction`, applied by every device to its shards.

    The only communication is the sum of the kernel gradient over the shards of the batch.
    """
    wrapped = custom_partitioning(lambda a, b: function(a, b))

    def partition(mesh, arguments, result):
        images, other = (argument.sharding.spec for argument in arguments)
        spec = output_spec(images, other)
        batch_axes, *_, channel_axes = spec
        image_sharding = NamedSharding(mesh, spec)
        kernel_sharding = NamedSharding(mesh, P(None, None, None, channel_axes))
        if direction != "kernel_gradient":
            return mesh, function, image_sharding, (image_sharding, kernel_sharding)

        def summed_over_batch(x, g):
            dk = function(x, g)
            if batch_axes is None:
                return dk
            wide = dk.astype(accumulation_dtype(dk.dtype))
            return jax.lax.psum(wide, batch_axes).astype(dk.dtype)

        return mesh, summed_over_batch, kernel_sharding, (image_sharding, image_sharding)

    wrapped.def_partition(partition, sharding_rule=SHARDING_RULES[direction])
    return wrapped


def _axes(spec: P, dimension: int) -> Any:
    """The mesh axis or axes that shard a dimension; None for none."""
    return spec[dimension] if dimension < len(spec) else None
