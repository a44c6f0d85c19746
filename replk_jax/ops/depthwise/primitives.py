"""The convolution as three JAX primitives, closed under differentiation.

F(x, k, g) of `Convolution` is linear in each argument. Its partial derivatives y, dx and dk are
bilinear, and their partial derivatives are again y, dx and dk:

    y  = forward(x, k)           transposed in x: input_gradient,  in k: kernel_gradient
    dx = input_gradient(g, k)    transposed in g: forward,         in k: kernel_gradient
    dk = kernel_gradient(x, g)   transposed in x: input_gradient,  in g: forward

So every implementation is differentiable to any order, in forward and reverse mode, by its own
three functions, and the backward pass stores only the two operands.

The implementation is chosen when a program is lowered for a platform, not when it is traced, so
that a program traced on a CPU can be exported for a GPU.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from replk_jax.compat import lowering_devices_known, require_devices_during_lowering
from replk_jax.ops.depthwise import xla
from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.dispatch import IMPLEMENTATIONS, PLATFORMS, Case
from replk_jax.ops.depthwise.implementation import Direction
from replk_jax.ops.depthwise.partitioning import output_spec, partitioned
from replk_jax.ops.dtypes import accumulation_dtype


def convolve(
    x: jax.Array, kernel: jax.Array, convolution: Convolution, implementation: str | None
) -> jax.Array:
    """Convolves x (N, H, W, C) with kernel (KH, KW, 1, C) of the same dtype.

    Args:
      x, kernel: the operands.
      convolution: the geometry.
      implementation: a name of `IMPLEMENTATIONS`, or None or `PORTABLE` for the fastest.

    Returns:
      (N, OH, OW, C) in the same dtype.
    """
    params = dict(convolution=convolution, implementation=implementation)
    bind = partial(forward_p.bind, **params)
    operands = _varying_alike(x, kernel)
    out_sharding = _explicit_sharding(x, kernel)
    if out_sharding is None:
        return bind(*operands)
    return jax.sharding.auto_axes(bind, out_sharding=out_sharding)(*operands)  # pyright: ignore[reportCallIssue]  # it declares no return type


def _primitive(direction: Direction) -> Primitive:
    """The primitive that computes one partial derivative, without its differentiation rule."""
    primitive = Primitive(f"depthwise_conv2d_{direction}")

    @partial(jax.jit, static_argnames=("convolution", "implementation"))
    def compiled(a, b, *, convolution, implementation):
        return primitive.bind(a, b, convolution=convolution, implementation=implementation)

    @primitive.def_impl
    def compute_eagerly(a, b, *, convolution, implementation):
        # Only a compiled program partitions the work over the devices of the operands. JAX also
        # compiles its own primitives under `jax.disable_jit`.
        with jax.disable_jit(False):
            return compiled(a, b, convolution=convolution, implementation=implementation)

    @primitive.def_abstract_eval
    def result_type(a, b, *, convolution, implementation):
        # The type of XLA's convolution, with symbolic sizes, sharding and the mesh axes of
        # `shard_map`.
        reference = partial(getattr(xla, direction), convolution=convolution)
        return jax.make_jaxpr(reference)(a, b).out_avals[0]

    def compute(a, b, *, convolution, implementation, platform, devices_known):
        case = Case(convolution, a.shape[0], a.shape[3], a.dtype, platform)
        chosen = IMPLEMENTATIONS[case.choose(implementation, direction).name]
        if devices_known and not chosen.PROPERTIES.partitioned_by_xla:
            # The shard of a device is smaller: another implementation may be the fastest for it.
            params = dict(convolution=convolution, implementation=implementation, platform=platform)
            return partitioned(direction, partial(compute, **params, devices_known=False))(a, b)
        return getattr(chosen, direction)(a, b, convolution)

    def lower(ctx, a, b, *, platform, **params):
        # A program for export, or for a machine that is absent, cannot be partitioned yet.
        params |= dict(platform=platform, devices_known=lowering_devices_known(ctx))
        return mlir.lower_fun(compute, multiple_results=False)(ctx, a, b, **params)

    for platform in PLATFORMS:
        mlir.register_lowering(primitive, partial(lower, platform=platform), platform=platform)
    require_devices_during_lowering(primitive)
    return primitive


forward_p = _primitive("forward")
input_gradient_p = _primitive("input_gradient")
kernel_gradient_p = _primitive("kernel_gradient")

# The cotangent is the first argument. The operand that is differentiated is a placeholder.
ad.defbilinear(
    forward_p,
    lambda g, x, kernel, **params: input_gradient_p.bind(g, kernel, **params),
    lambda g, x, kernel, **params: kernel_gradient_p.bind(x, g, **params),
)
ad.defbilinear(
    input_gradient_p,
    lambda dx, g, kernel, **params: forward_p.bind(dx, kernel, **params),
    lambda dx, g, kernel, **params: kernel_gradient_p.bind(dx, g, **params),
)
ad.defbilinear(
    kernel_gradient_p,
    lambda dk, x, g, **params: input_gradient_p.bind(g, dk, **params),
    lambda dk, x, g, **params: forward_p.bind(x, dk, **params),
)


def _vmap_image_result(primitive: Primitive, operands, dims, **params) -> tuple[jax.Array, int]:
    """The batching rule for a result of shape (N, H, W, C).

    If only the images are mapped, the mapped axis is merged into the batch; if the kernels are
    mapped, it is merged into the channels.
    """
    (a, kernel), (a_dim, kernel_dim) = operands, dims
    if kernel_dim is None:
        return _merge_into_batch(partial(primitive.bind, **params), a, a_dim, kernel)
    count = kernel.shape[kernel_dim]
    result = primitive.bind(
        _into_channels(a, a_dim, count), _into_channels(kernel, kernel_dim, count), **params
    )
    return _out_of_channels(result, count)


def _vmap_kernel_gradient(operands, dims, **params) -> tuple[jax.Array, int]:
    """The batching rule for `kernel_gradient`: the mapped axis is merged into the channels."""
    count = next(
        operand.shape[dim] for operand, dim in zip(operands, dims, strict=True) if dim is not None
    )
    x, g = (_into_channels(a, dim, count) for a, dim in zip(operands, dims, strict=True))
    return _out_of_channels(kernel_gradient_p.bind(x, g, **params), count)


def _merge_into_batch(
    function: Callable[..., jax.Array], a: jax.Array, dim: int, kernel: jax.Array
) -> tuple[jax.Array, int]:
    a = jnp.moveaxis(a, dim, 0)
    count, n = a.shape[:2]
    result = function(a.reshape(count * n, *a.shape[2:]), kernel)
    return result.reshape(count, n, *result.shape[1:]), 0


def _into_channels(a: jax.Array, dim: int | None, count: int) -> jax.Array:
    """Merges the mapped axis of an array (..., C) into the channels: (..., count C)."""
    if dim is None:
        # The gradient of the broadcast is a sum, which is accumulated in at least float32.
        wide = a[..., None, :].astype(accumulation_dtype(a.dtype))
        a = jnp.broadcast_to(wide, (*a.shape[:-1], count, a.shape[-1])).astype(a.dtype)
    else:
        a = jnp.moveaxis(a, dim, -2)
    return a.reshape(*a.shape[:-2], a.shape[-2] * a.shape[-1])


def _out_of_channels(a: jax.Array, count: int) -> tuple[jax.Array, int]:
    """The inverse: splits (..., count C) into (..., count, C); also returns the mapped axis."""
    return a.reshape(*a.shape[:-1], count, a.shape[-1] // count), a.ndim - 1


batching.primitive_batchers[forward_p] = partial(_vmap_image_result, forward_p)
batching.primitive_batchers[input_gradient_p] = partial(_vmap_image_result, input_gradient_p)
batching.primitive_batchers[kernel_gradient_p] = _vmap_kernel_gradient


def _varying_alike(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Under `shard_map`: makes both operands vary over every mesh axis that one varies over.

    The transpose of this step sums the kernel gradient over the devices.
    """

    def varying(operand: jax.Array, names: frozenset[str]) -> jax.Array:
        wide = operand.astype(accumulation_dtype(operand.dtype))
        return jax.lax.pcast(wide, tuple(names), to="varying").astype(operand.dtype)

    axes = [jax.typeof(operand).manual_axis_type.varying for operand in (x, kernel)]
    missing = axes[1] - axes[0], axes[0] - axes[1]
    x, kernel = (
        varying(operand, names) if names else operand
        for operand, names in zip((x, kernel), missing, strict=True)
    )
    return x, kernel


def _explicit_sharding(x: jax.Array, kernel: jax.Array) -> NamedSharding | None:
    """The sharding of y under a mesh with explicit axes, which is part of its type; else None."""
    mesh = next((m for m in map(_mesh, (x, kernel)) if m is not None), None)
    if mesh is None:
        return None
    images, other = (jax.typeof(operand).sharding.spec for operand in (x, kernel))
    return NamedSharding(mesh, output_spec(images, other))


def _mesh(operand: jax.Array) -> AbstractMesh | None:
    """The mesh of an operand, if it has explicit axes."""
    mesh = jax.typeof(operand).sharding.mesh
    return mesh if AxisType.Explicit in mesh.axis_types else None
