"""The identity that XLA does not look into."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.ops.materialize import materialize

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


def test_is_the_identity_under_every_transformation():
    def function(x):
        return jnp.sum(materialize(jnp.sin(x)) ** 2)

    def plain(x):
        return jnp.sum(jnp.sin(x) ** 2)

    np.testing.assert_array_equal(jax.jit(materialize)(X), X)
    for transform in (jax.grad, jax.hessian, lambda f: jax.grad(jax.checkpoint(f))):
        np.testing.assert_allclose(transform(function)(X), transform(plain)(X), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.grad(function))(X), jax.grad(plain)(X), rtol=1e-6)
    np.testing.assert_allclose(
        jax.jvp(function, (X,), (X,))[1], jax.jvp(plain, (X,), (X,))[1], rtol=1e-6
    )
    np.testing.assert_allclose(jax.vmap(function)(X), jax.vmap(plain)(X), rtol=1e-6)


def largest_fusion(link, depth=12):
    """The most operands that a fused operation reads in the gradient of a residual path."""

    def network(weights, x):
        for weight in weights:
            x = link(x + jnp.tanh((x - x.mean(0, keepdims=True)) @ weight))
        return jnp.sum(x**2)

    weights = [jnp.ones((32, 32)) * i for i in range(depth)]
    text = jax.jit(jax.grad(network)).lower(weights, jnp.ones((64, 32))).compile().as_text()
    return max(call.count("%") for call in re.findall(r" fusion\(([^)]*)\)", text))


def test_bounds_what_a_fused_operation_reads():
    """However long the path is. JAX 0.10 without it: in proportion to the depth."""
    assert largest_fusion(materialize, depth=12) == largest_fusion(materialize, depth=6) <= 8
