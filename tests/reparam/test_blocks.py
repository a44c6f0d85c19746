"""The table of blocks: networks and blocks of one's own, and what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax.models.layers import BatchNorm, ConvNorm, ReparameterizableModule
from replk_jax.models.reparam_convs import AsymmetricConvBlock, DiverseBranchBlock
from replk_jax.reparam import Block, Form, algebra, conv_of, register_block, reparameterize
from replk_jax.reparam.table import BLOCKS
from tests.helpers import draw_variables


class TwoKernels(ReparameterizableModule):
    """A block that the package does not know: the difference of a 5 x 5 and a 3 x 3 branch."""

    @nn.compact
    def __call__(self, x, train=False):
        if self.deploy:
            return nn.Conv(x.shape[-1], (5, 5), padding=2, name="difference")(x)
        plus = ConvNorm(features=x.shape[-1], kernel_size=5, name="plus")
        minus = ConvNorm(features=x.shape[-1], kernel_size=3, name="minus")
        return plus(x, train) - minus(x, train)


class OwnNetwork(ReparameterizableModule):
    """Blocks of the package and others, in an arrangement of one's own."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (4, 4), strides=4, name="patches")(x)
        x = nn.LayerNorm(name="layer_norm")(x)
        x = AsymmetricConvBlock(features=8, kernel_size=5, **self.common_kwargs(), name="acb")(
            x, train
        )
        x = nn.relu(BatchNorm(**self.common_kwargs(), name="lone_norm")(x, train))
        x = DiverseBranchBlock(features=12, stride=2, **self.common_kwargs(), name="dbb")(x, train)
        x = TwoKernels(**self.common_kwargs(), name="own")(nn.relu(x), train)
        return nn.Dense(3, name="classifier")(x.mean((1, 2)))


@pytest.fixture
def registered(monkeypatch):
    """The table with the block above, for one test."""

    def merge(parts):
        plus, minus = conv_of(parts, "plus"), conv_of(parts, "minus")
        negative = algebra.Linear(-minus.kernel, -minus.bias)
        padded = algebra.pad_kernel(negative, plus.kernel.shape[:2])
        return {"difference": algebra.add(plus, padded)}

    monkeypatch.setattr("replk_jax.reparam.table.BLOCKS", list(BLOCKS))
    block = Block("TwoKernels", "plus minus", (Form("plus minus"),), merge)
    register_block(block)
    return block


def own_variables(images):
    abstract = jax.eval_shape(OwnNetwork().init, jax.random.key(0), images)
    return draw_variables(abstract, seed=0)


IMAGES = np.random.default_rng(0).standard_normal((2, 32, 20, 3)).astype(np.float32)


def test_a_network_of_ones_own_with_a_block_of_ones_own(registered):
    variables = own_variables(IMAGES)
    expected = jax.jit(OwnNetwork().apply)(variables, IMAGES)
    merged = jax.jit(reparameterize)(variables)
    assert set(merged["params"]["own"]) == {"difference"}
    assert set(merged["params"]["lone_norm"]) == {"scale", "bias"}
    actual = jax.jit(OwnNetwork(deploy=True).apply)(merged, IMAGES)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert np.ptp(expected, 0).max() > 1e-3
    again = jax.jit(reparameterize)(merged)
    jax.tree.map(np.testing.assert_array_equal, again, merged)


def test_without_registration_the_parts_are_merged_each_for_itself():
    """Exact, if not what the deploy model wants: nothing is guessed."""
    merged = jax.eval_shape(lambda variables: reparameterize(variables), own_variables(IMAGES))
    assert set(merged["params"]["own"]) == {"plus", "minus"}


def test_a_name_is_registered_once(registered):
    with pytest.raises(ValueError, match="'TwoKernels' is already registered"):
        register_block(registered)


CONV = {"conv": {"kernel": jnp.ones((3, 3, 4, 4))}}
MERGED = {"kernel": jnp.ones((3, 3, 4, 4)), "bias": jnp.ones(4)}
NORM = {name: jnp.ones(4) for name in ("scale", "bias", "mean", "var")}
NORMED = {**CONV, "bn": NORM}
POINTWISE = {"conv": {"kernel": jnp.ones((1, 1, 4, 4))}, "bn": NORM}


OTHERS = {
    "VAE": {"mean": {"kernel": jnp.ones((4, 2))}, "logvar": {"kernel": jnp.ones((4, 2))}},
    "submodules by the names of arrays": {"scale": CONV, "bias": CONV, "kernel": CONV},
    "dense layer of two axes": {"kernel": jnp.ones((4, 3, 2, 5)), "bias": jnp.ones((2, 5))},
    "transposed convolution": {"kernel": jnp.ones((3, 3, 5, 4)), "bias": jnp.ones(5)},
    "layer norm of two axes": {"scale": jnp.ones((8, 4)), "bias": jnp.ones((8, 4))},
    "1-D convolution": {"conv": {"kernel": jnp.ones((3, 4, 4)), "bias": jnp.ones(4)}},
    "embedding": {"embedding": jnp.ones((7, 4))},
    "names of blocks": {"stages_0": CONV, "stem_0": CONV, "vertical": CONV, "post_bn": CONV},
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_block_passes(name):
    """Beside a ConvNorm, so that the tree is one that is being merged."""
    variables = {"params": {"other": OTHERS[name], "stem": NORMED}}
    merged = reparameterize(variables)["params"]
    jax.tree.map(np.testing.assert_array_equal, merged["other"], OTHERS[name])
    assert set(merged["stem"]["conv"]) == {"kernel", "bias"}


def tree(**params):
    return {"params": {"block": params}}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (tree(rbr_dense=NORMED, rbr_reparam=MERGED), "block: not known here: rbr_reparam"),
        (tree(rbr_dense=NORMED, rbr_3x3=NORMED), "block: not known here: rbr_3x3"),
        (tree(rbr_1x1=POINTWISE), "block: missing rbr_dense"),
        (tree(rbr_dense=CONV, rbr_1x1=POINTWISE), "rbr_dense/conv: missing bias"),
        (tree(rbr_dense=NORMED, rbr_identity={"scale": jnp.ones(4), "bias": jnp.ones(4)}),
         "block: rbr_identity: missing mean, var"),
        (tree(rbr_dense=NORMED, rbr_identity={n: jnp.ones(6) for n in NORM}), "6 channels|shape"),
        (tree(rbr_dense=CONV, rbr_1x1=CONV), "missing the running statistics"),
        (tree(rbr_dense_relu=NORMED, rbr_1x1_relu=POINTWISE), "ReLU in the branches.*not linear"),
        (tree(dbb_origin=NORMED, dbb_1x1=POINTWISE, dbb_avg=CONV,
              dbb_1x1_kxk={"conv1": CONV, "bn1": NORM, "conv2": CONV, "bn2": NORM}),
         "block: dbb_1x1_kxk: missing idconv1; not known here: conv1"),
        (tree(prelkb_bn=NORM, pw1=POINTWISE, pw2=POINTWISE, large_kernel=NORMED),
         "block: large_kernel: missing lkb_reparam"),
        (tree(dirac_kernel=CONV, a=jnp.ones(4), b=jnp.ones(4)), "dirac_kernel: expected an array"),
        (tree(dbb_origin=NORMED, dbb_1x1=POINTWISE), "missing dbb_1x1_kxk, dbb_avg"),
        (tree(conv={"kernel": jnp.ones((3, 3, 4, 6))}, bn=NORM), "block: the batch norm after it"),
        (tree(lkb_origin=NORMED, small_conv=NORMED, extra=NORMED), "not known here: extra"),
        (tree(dirac_kernel=jnp.ones((3, 3, 4, 4)), a=jnp.ones(4)), "block: missing b"),
    ],
)  # fmt: skip
def test_incomplete_blocks_are_refused(variables, message):
    with pytest.raises(ValueError, match=message):
        reparameterize(variables)
