"""How an operation that XLA cannot look into, a kernel of ours, is divided over a mesh."""

from collections.abc import Callable

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

# Images and channels are independent of one another: devices may hold any part of either. The
# other dimensions are whole on every device.
RULES = {
    "forward": "n h w c, u v o c -> n i j c",
    "input_gradient": "n i j c, u v o c -> n h w c",
    "kernel_gradient": "n h w c, n i j c -> u v o c",
}


def divided(role: str, function: Callable) -> Callable:
    """`function(a, b)`, computing `role` ("forward", ...), as every device's work on its part.

    Nothing is communicated but, in the kernel's gradient, its sum over parts of the batch.
    """
    over_mesh = custom_partitioning(lambda a, b: function(a, b))

    def parts(mesh, arguments, result):
        images, other = (argument.sharding.spec for argument in arguments)
        by_batch, by_channels = _axes(images, 0), _axes(images, 3)
        if by_channels is None:
            by_channels = _axes(other, 3)
        map_like = NamedSharding(mesh, P(by_batch, None, None, by_channels))
        kernel_like = NamedSharding(mesh, P(None, None, None, by_channels))
        local, operands, output = function, (map_like, kernel_like), map_like
        if role == "kernel_gradient":
            operands, output = (map_like, map_like), kernel_like
            if by_batch is not None:
                local = lambda x, g: jax.lax.psum(function(x, g), by_batch)  # noqa: E731
        return mesh, local, output, operands

    over_mesh.def_partition(parts, sharding_rule=RULES[role])
    return over_mesh


def _axes(spec, dimension):
    return spec[dimension] if dimension < len(spec) else None
