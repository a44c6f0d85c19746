"""How an operation that is not left to XLA to divide is divided over a mesh."""

from collections.abc import Callable

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from replk_jax.ops.depthwise.implementation import Direction
from replk_jax.ops.dtypes import accumulation_dtype

# Images and channels are independent of one another: devices may hold any part of either. The
# other dimensions are whole on every device.
RULES = {
    "forward": "n h w c, u v o c -> n i j c",
    "input_gradient": "n i j c, u v o c -> n h w c",
    "kernel_gradient": "n h w c, n i j c -> u v o c",
}


def parts(images: P, other: P) -> tuple:
    """The mesh axes over which each dimension of a map-like result is divided: batch as the
    images are, channels as either operand's are, as far as the batch leaves these axes over."""
    by_batch = _axes(images, 0)
    taken = by_batch if isinstance(by_batch, tuple) else (by_batch,)
    for by_channels in (_axes(images, 3), _axes(other, 3)):
        names = by_channels if isinstance(by_channels, tuple) else (by_channels,)
        if by_channels is not None and not set(names) & set(taken):
            return by_batch, None, None, by_channels
    return by_batch, None, None, None


def divided(direction: Direction, function: Callable) -> Callable:
    """`function(a, b)`, computing `direction` ("forward", ...), as every device's work on its part.

    Nothing is communicated but, in the kernel's gradient, its sum over parts of the batch.
    """
    over_mesh = custom_partitioning(lambda a, b: function(a, b))

    def partition(mesh, arguments, result):
        images, other = (argument.sharding.spec for argument in arguments)
        by_batch, *_, by_channels = parts(images, other)
        map_like = NamedSharding(mesh, P(by_batch, None, None, by_channels))
        kernel_like = NamedSharding(mesh, P(None, None, None, by_channels))
        if direction != "kernel_gradient":
            return mesh, function, map_like, (map_like, kernel_like)

        def summed(x, g):
            dk = function(x, g)
            if by_batch is None:
                return dk
            wide = dk.astype(accumulation_dtype(dk.dtype))
            return jax.lax.psum(wide, by_batch).astype(dk.dtype)

        return mesh, summed, kernel_like, (map_like, map_like)

    over_mesh.def_partition(partition, sharding_rule=RULES[direction])
    return over_mesh


def _axes(spec: P, dimension: int):
    return spec[dimension] if dimension < len(spec) else None
