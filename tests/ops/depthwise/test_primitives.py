"""What JAX's transformations make of the operator, whichever implementation runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from replk_jax import depthwise_conv2d
from tests.helpers import data_mesh

IMPLEMENTATIONS = ("xla", "dft", "shift", "toeplitz")
every = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X, KERNEL = draw(2, 6, 5, 3), draw(3, 5, 1, 3, seed=1)


def loss(x, kernel, implementation):
    """Curved in y, so that every second derivative is there."""
    y = depthwise_conv2d(x, kernel, implementation=implementation)
    return jnp.sum(jnp.sin(y))


def loss_of_lax(x, kernel):
    y = lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )
    return jnp.sum(jnp.sin(y))


def assert_trees_close(actual, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


@every
def test_forward_mode(implementation):
    tangents = draw(*X.shape, seed=2), draw(*KERNEL.shape, seed=3)
    actual = jax.jvp(lambda *args: loss(*args, implementation), (X, KERNEL), tangents)
    assert_trees_close(actual, jax.jvp(loss_of_lax, (X, KERNEL), tangents))


@every
@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
def test_second_derivatives(implementation, outer):
    """All four blocks of the Hessian, by forward and by reverse mode over reverse mode."""
    x, kernel = draw(1, 4, 3, 2), draw(3, 2, 1, 2, seed=1)

    def hessian(function):
        return jax.jit(outer(jax.grad(function, (0, 1)), (0, 1)))(x, kernel)

    actual = hessian(lambda *args: loss(*args, implementation))
    assert_trees_close(actual, hessian(loss_of_lax))


@every
@pytest.mark.parametrize("axes", [(1, None), (None, 2), (1, 2)])
def test_vmap(implementation, axes):
    """Over x, over the kernel and over both; the gradients are those of every member."""
    x = draw(2, 4, 6, 5, 3) if axes[0] == 1 else X
    kernel = draw(3, 5, 4, 1, 3, seed=1) if axes[1] == 2 else KERNEL
    grad = jax.grad(lambda *args: loss(*args, implementation), (0, 1))
    dx, dk = jax.jit(jax.vmap(grad, axes))(x, kernel)
    for i in range(4):
        x_i = x[:, i] if axes[0] == 1 else x
        kernel_i = kernel[:, :, i] if axes[1] == 2 else kernel
        expected = jax.grad(loss_of_lax, (0, 1))(x_i, kernel_i)
        assert_trees_close((dx[i], dk[i]), expected)


@every
def test_backward_pass_keeps_the_two_operands(implementation):
    _, backward = jax.vjp(
        lambda x, kernel: depthwise_conv2d(x, kernel, implementation=implementation), X, KERNEL
    )
    kept = [leaf for leaf in jax.tree.leaves(backward) if hasattr(leaf, "shape")]
    assert sorted(leaf.shape for leaf in kept) == sorted([X.shape, KERNEL.shape])


def collectives(compiled):
    """How often each operation that communicates occurs in a program."""
    text = compiled.as_text()
    names = "all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter"
    counts = {name: text.count(f" {name}(") + text.count(f" {name}-start(") for name in names}
    return {name: count for name, count in counts.items() if count}


SHARDED_BY = {"batch": (P("data"), P()), "channels": (P(None, None, None, "data"),) * 2}


@every
@pytest.mark.parametrize("by", SHARDED_BY)
def test_sharded_over_a_mesh_of_eight(implementation, by):
    """Nothing is gathered: the only communication is the sum of the kernel's gradient over
    shards of the batch. The arrays' shapes in the program are those of one shard."""
    mesh = data_mesh(8)
    x, kernel = draw(16, 9, 7, 24), draw(5, 5, 1, 24, seed=1)
    shardings = [NamedSharding(mesh, spec) for spec in SHARDED_BY[by]]

    def step(x, kernel):
        y, transpose = jax.vjp(
            lambda x, kernel: depthwise_conv2d(x, kernel, implementation=implementation), x, kernel
        )
        return y, *transpose(jnp.sin(y))

    program = jax.jit(step, in_shardings=shardings, out_shardings=(shardings[0], *shardings)).lower(
        x, kernel
    )
    compiled = program.compile()
    assert collectives(compiled) == ({"all-reduce": 1} if by == "batch" else {})
    assert_trees_close(compiled(*jax.device_put((x, kernel), tuple(shardings))), step(x, kernel))


@every
@pytest.mark.parametrize(
    ("x_spec", "kernel_spec"),
    [
        (P("data"), P()),
        (P(None, None, None, "model"), P(None, None, None, "model")),
        (P("data"), P(None, None, None, "data")),
        (P("data", None, None, "model"), P()),
    ],
    ids=str,
)
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh_of_two_axes(implementation, axis_type, x_spec, kernel_spec):
    """Where XLA's own division of its kernel gradient is wrong, and where sharding is a part of
    types, as it is on `jax.make_mesh`'s meshes if nothing else is said."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), (axis_type,) * 2)
    x, kernel = draw(8, 6, 5, 8), draw(3, 5, 1, 8, seed=1)
    shardings = NamedSharding(mesh, x_spec), NamedSharding(mesh, kernel_spec)
    grad = jax.jit(jax.grad(lambda *args: loss(*args, implementation), (0, 1)))
    explicit_sum = axis_type == AxisType.Explicit and x_spec[0] == "data"
    with jax.set_mesh(mesh):
        if implementation == "xla" and explicit_sum and jax.__version_info__ >= (0, 12):
            # JAX 0.12 lowers the sum over devices to what its CPU backend does not know.
            with pytest.raises(jax.errors.JaxRuntimeError, match="Unsupported reduction"):
                grad(*jax.device_put((x, kernel), shardings))
            return
        actual = grad(*jax.device_put((x, kernel), shardings))
    assert_trees_close(actual, jax.grad(loss_of_lax, (0, 1))(x, kernel))


@every
def test_without_jit(implementation):
    with jax.disable_jit():
        actual = jax.grad(lambda *args: loss(*args, implementation), (0, 1))(X, KERNEL)
    assert_trees_close(actual, jax.grad(loss_of_lax, (0, 1))(X, KERNEL))


@every
@pytest.mark.parametrize("by", SHARDED_BY)
def test_without_jit_on_a_mesh_of_two_axes(implementation, by):
    """`JAX_DISABLE_JIT=1` is how sharded code is debugged."""
    mesh = data_mesh(8, fsdp=2)
    x, kernel = draw(8, 6, 5, 8), draw(3, 5, 1, 8, seed=1)
    operands = [
        jax.device_put(operand, NamedSharding(mesh, spec))
        for operand, spec in zip((x, kernel), SHARDED_BY[by], strict=True)
    ]
    with jax.disable_jit():
        y = depthwise_conv2d(*operands, implementation=implementation)
        actual = jax.grad(lambda *args: loss(*args, implementation), (0, 1))(*operands)
        assert jax.config.jax_disable_jit
    assert y.sharding.is_equivalent_to(operands[0].sharding, y.ndim)
    assert_trees_close(actual, jax.grad(loss_of_lax, (0, 1))(x, kernel))


@every
def test_inside_shard_map(implementation):
    """The kernel is the same on all devices and x is not; its gradient is the sum over them."""
    mesh = data_mesh(8)
    x = draw(16, 6, 5, 3)

    def local(x, kernel):
        total = lambda x, kernel: lax.psum(loss(x, kernel, implementation), "data")  # noqa: E731
        return jax.grad(total, (0, 1))(x, kernel)

    sharded = jax.shard_map(local, mesh=mesh, in_specs=(P("data"), P()), out_specs=(P("data"), P()))
    assert_trees_close(jax.jit(sharded)(x, KERNEL), jax.grad(loss_of_lax, (0, 1))(x, KERNEL))


def test_export_with_a_symbolic_batch():
    """One program for all batch sizes and platforms."""
    kernel = draw(13, 13, 1, 3)
    function = jax.jit(lambda x: depthwise_conv2d(x, kernel))
    x = jax.ShapeDtypeStruct(export.symbolic_shape("n, 14, 14, 3"), jnp.float32)
    exported = export.export(function, platforms=("cpu", "cuda", "tpu"))(x)
    for batch in (1, 5):
        x = draw(batch, 14, 14, 3)
        expected = depthwise_conv2d(x, kernel, implementation="xla")
        assert_trees_close(exported.call(x), expected)


@pytest.mark.parametrize("implementation", [None, "portable", "xla"])
@pytest.mark.parametrize("stride", [1, 2])
def test_export_with_a_symbolic_map(stride, implementation):
    """XLA computes them; the other implementations need a fixed size."""
    kernel = draw(13, 13, 1, 3)
    x = jax.ShapeDtypeStruct(export.symbolic_shape("n, h, w, 3"), jnp.float32)
    how = dict(stride=stride, implementation=implementation)
    function = jax.jit(lambda x: depthwise_conv2d(x, kernel, **how))
    exported = export.export(function)(x)
    with pytest.raises(ValueError, match="needs a fixed height and width"):
        export.export(jax.jit(lambda x: depthwise_conv2d(x, kernel, implementation="dft")))(x)
    x = draw(2, 11, 9, 3)
    assert_trees_close(exported.call(x), function(x))


def test_remat_computes_the_same_gradients():
    step = jax.checkpoint(lambda x, kernel: loss(x, kernel, "dft"))
    assert_trees_close(
        jax.jit(jax.grad(step, (0, 1)))(X, KERNEL), jax.grad(loss_of_lax, (0, 1))(X, KERNEL)
    )


def test_lowered_for_a_gpu_that_is_not_there():
    """The Hopper kernels, forward and both gradients, in a program for no device in particular."""
    x, kernel = jnp.ones((16, 16, 16, 2), jnp.bfloat16), jnp.ones((9, 9, 1, 2), jnp.bfloat16)

    def step(x, kernel):
        y, transpose = jax.vjp(
            lambda x, kernel: depthwise_conv2d(x, kernel, implementation="mosaic_gpu"), x, kernel
        )
        return y, *transpose(y)

    traced = jax.jit(step).trace(x, kernel)
    assert traced.lower(lowering_platforms=("cuda",)).as_text().count("mosaic_gpu_v2") == 3
    exported = export.export(
        jax.jit(step),
        platforms=("cuda",),
        disabled_checks=[export.DisabledSafetyCheck.custom_call("mosaic_gpu_v2")],
    )(x, kernel)
    assert exported.mlir_module().count("mosaic_gpu_v2") == 3
