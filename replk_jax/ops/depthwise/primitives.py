"""The convolution as three JAX primitives, closed under differentiation.

F(x, k, g) of `Convolution` is linear in each of its arguments. Its three partial derivatives,
y, dx and dk, are each linear in the two arguments that are left, and the partial derivatives of
these are the same three again:

    y  = forward(x, k)           transposed in x: input_gradient,  in k: kernel_gradient
    dx = input_gradient(g, k)    transposed in g: forward,         in k: kernel_gradient
    dk = kernel_gradient(x, g)   transposed in x: input_gradient,  in g: forward

So every implementation is differentiable to any order, in forward and in reverse mode, with its
own three functions and nothing else, and keeps only its two operands for the backward pass.

Which implementation runs is decided when a program is lowered for a platform, which one that is
traced on a CPU and exported for a GPU needs.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from replk_jax.compat import lowering_devices_known, require_devices_during_lowering
from replk_jax.ops.depthwise import xla
from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.dispatch import IMPLEMENTATIONS, PLATFORMS, Case
from replk_jax.ops.depthwise.implementation import Direction
from replk_jax.ops.depthwise.partitioning import divided, parts
from replk_jax.ops.dtypes import accumulation_dtype


def convolve(
    x: jax.Array, kernel: jax.Array, convolution: Convolution, implementation: str | None
) -> jax.Array:
    """y (N, OH, OW, C) of x (N, H, W, C) and kernel (KH, KW, 1, C), all of one dtype.

    `implementation` is a name of `IMPLEMENTATIONS`, or None or `PORTABLE` for the fastest known.
    """
    params = dict(convolution=convolution, implementation=implementation)
    bind = partial(forward_p.bind, **params)
    operands = _varying_alike(x, kernel)
    out_sharding = _explicit_sharding(x, kernel)
    if out_sharding is None:
        return bind(*operands)
    return jax.sharding.auto_axes(bind, out_sharding=out_sharding)(*operands)  # pyright: ignore[reportCallIssue]  # it declares no return type


def _primitive(direction: Direction) -> Primitive:
    """The primitive that computes one partial derivative; differentiation comes after."""
    primitive = Primitive(f"depthwise_conv2d_{direction}")

    @partial(jax.jit, static_argnames=("convolution", "implementation"))
    def compiled(a, b, *, convolution, implementation):
        return primitive.bind(a, b, convolution=convolution, implementation=implementation)

    @primitive.def_impl
    def compute_eagerly(a, b, *, convolution, implementation):
        # JAX compiles its own primitives under `jax.disable_jit` too. Here a compiled program is
        # what divides the work over the devices of the operands.
        with jax.disable_jit(False):
            return compiled(a, b, convolution=convolution, implementation=implementation)

    @primitive.def_abstract_eval
    def type_of_result(a, b, *, convolution, implementation):
        # That of XLA's convolution, with all that a type says: symbolic sizes, sharding, and
        # the mesh axes of `shard_map`.
        reference = partial(getattr(xla, direction), convolution=convolution)
        return jax.make_jaxpr(reference)(a, b).out_avals[0]

    def compute(a, b, *, convolution, implementation, platform, devices_known):
        case = Case(convolution, a.shape[0], a.shape[3], a.dtype, platform)
        chosen = IMPLEMENTATIONS[case.choose(implementation, direction).name]
        if devices_known and not chosen.PROPERTIES.partitioned_by_xla:
            # A device's part is smaller, and another implementation may be the one for it.
            how = dict(convolution=convolution, implementation=implementation, platform=platform)
            return divided(direction, partial(compute, **how, devices_known=False))(a, b)
        return getattr(chosen, direction)(a, b, convolution)

    def lower(ctx, a, b, *, platform, **how):
        # What is lowered for a machine that is not there, or to be exported, has no devices yet
        # over which it could be divided.
        how |= dict(platform=platform, devices_known=lowering_devices_known(ctx))
        return mlir.lower_fun(compute, multiple_results=False)(ctx, a, b, **how)

    for platform in PLATFORMS:
        mlir.register_lowering(primitive, partial(lower, platform=platform), platform=platform)
    require_devices_during_lowering(primitive)
    return primitive


forward_p = _primitive("forward")
input_gradient_p = _primitive("input_gradient")
kernel_gradient_p = _primitive("kernel_gradient")

# The cotangent comes first; the operand that is differentiated is a placeholder.
ad.defbilinear(
    forward_p,
    lambda g, x, kernel, **how: input_gradient_p.bind(g, kernel, **how),
    lambda g, x, kernel, **how: kernel_gradient_p.bind(x, g, **how),
)
ad.defbilinear(
    input_gradient_p,
    lambda dx, g, kernel, **how: forward_p.bind(dx, kernel, **how),
    lambda dx, g, kernel, **how: kernel_gradient_p.bind(dx, g, **how),
)
ad.defbilinear(
    kernel_gradient_p,
    lambda dk, x, g, **how: input_gradient_p.bind(g, dk, **how),
    lambda dk, x, g, **how: forward_p.bind(x, dk, **how),
)


def _map_over_kernels(primitive: Primitive, operands, dims, **how) -> tuple[jax.Array, int]:
    """`vmap` of a map-like operand and a kernel, to a map-like result.

    One kernel for all: the mapped axis joins the batch. A kernel each: it joins the channels.
    """
    (a, kernel), (a_dim, kernel_dim) = operands, dims
    if kernel_dim is None:
        return _map_over_batch(partial(primitive.bind, **how), a, a_dim, kernel)
    count = kernel.shape[kernel_dim]
    result = primitive.bind(
        _into_channels(a, a_dim, count), _into_channels(kernel, kernel_dim, count), **how
    )
    return _out_of_channels(result, count)


def _map_over_kernel_gradients(operands, dims, **how) -> tuple[jax.Array, int]:
    """`vmap` of `kernel_gradient`, which has a result for every member: by the channels."""
    count = next(
        operand.shape[dim] for operand, dim in zip(operands, dims, strict=True) if dim is not None
    )
    x, g = (_into_channels(a, dim, count) for a, dim in zip(operands, dims, strict=True))
    return _out_of_channels(kernel_gradient_p.bind(x, g, **how), count)


def _map_over_batch(function, a: jax.Array, dim: int, kernel: jax.Array) -> tuple[jax.Array, int]:
    a = jnp.moveaxis(a, dim, 0)
    count, n = a.shape[:2]
    result = function(a.reshape(count * n, *a.shape[2:]), kernel)
    return result.reshape(count, n, *result.shape[1:]), 0


def _into_channels(a: jax.Array, dim: Any, count: int) -> jax.Array:
    """(..., C) with a mapped axis to (..., count C)."""
    if dim is None:
        # The gradient is a sum over the members.
        wide = a[..., None, :].astype(accumulation_dtype(a.dtype))
        a = jnp.broadcast_to(wide, (*a.shape[:-1], count, a.shape[-1])).astype(a.dtype)
    else:
        a = jnp.moveaxis(a, dim, -2)
    return a.reshape(*a.shape[:-2], a.shape[-2] * a.shape[-1])


def _out_of_channels(a: jax.Array, count: int) -> tuple[jax.Array, int]:
    return a.reshape(*a.shape[:-1], count, a.shape[-1] // count), a.ndim - 1


batching.primitive_batchers[forward_p] = partial(_map_over_kernels, forward_p)
batching.primitive_batchers[input_gradient_p] = partial(_map_over_kernels, input_gradient_p)
batching.primitive_batchers[kernel_gradient_p] = _map_over_kernel_gradients


def _varying_alike(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Under `shard_map`, both operands as varying over every mesh axis that one varies over.

    The derivative of this step is the sum of the kernel's gradients over the devices.
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
    """That of y, where a mesh with explicit axes makes sharding a part of types; the operations
    inside the convolution are left to the compiler."""
    mesh = next((m for m in map(_mesh, (x, kernel)) if m is not None), None)
    if mesh is None:
        return None
    images, other = (jax.typeof(operand).sharding.spec for operand in (x, kernel))
    return NamedSharding(mesh, P(*parts(images, other)))


def _mesh(operand: jax.Array):
    mesh = jax.typeof(operand).sharding.mesh
    return mesh if AxisType.Explicit in mesh.axis_types else None
