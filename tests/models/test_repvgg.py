"""RepVGG: sizes, the paper's variants against plain formulas in float64, and errors."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import replk_jax
from replk_jax.models.description import describe, from_description
from replk_jax.models.repvgg import BLOCKS, Layer, RepVGGArchitecture, RepVGGBlock
from tests import helpers, reference_data
from tests.helpers import random_images, random_variables

TINY = RepVGGArchitecture((2, 1), (16, 16, 32), groups=2)
NAMES = replk_jax.list_models("repvgg_*")


def make(**fields):
    return replk_jax.create_model(TINY, num_classes=4, **fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": (2, 1, 1)}, "one entry more than layers"),
        ({"layers": (), "channels": (16,)}, "one entry more than layers"),
        ({"layers": (2, 0)}, "layers must be positive whole"),
        ({"channels": (16, 16, 3.5)}, "channels must be positive whole"),
        ({"in_channels": 0}, "in_channels must be positive whole"),
        ({"groups": 0}, "groups must be positive whole"),
        ({"groups": 3}, r"groups=3 must divide.*\[16\]"),
        ({"groups": (1, 2, 1)}, "one for each of the 4 layers, stage 0 first; got 3"),
        ({"groups": (1, 2, 0, 1)}, "groups must be positive whole"),
        ({"groups": (1, 2, 1, 3)}, r"groups=\(1, 2, 1, 3\) must divide.*\[16, 32\]"),
        ({"groups": "2"}, "groups must be positive whole"),
        ({"squeeze_excite": 1}, "squeeze_excite must be True or False; got 1"),
        ({"squeeze_excite": True, "channels": (8, 16, 32)}, "at least 16"),
        ({"block": "repvg"}, "block must be one of repvgg, plain.*'repvg'"),
        ({"block": "residual", "layers": (2, 2)}, r"even but for a last 1.*\(2, 2\)"),
        ({"block": "residual", "layers": (3, 1)}, r"even but for a last 1.*\(3, 1\)"),
        ({"block": "residual", "squeeze_excite": True}, "no squeeze-excite"),
    ],
)
def test_impossible_architectures(change, message):
    with pytest.raises(ValueError, match=message):
        replk_jax.create_model(TINY, **change)


def test_lists_and_numpys_integers_are_as_good():
    assert RepVGGArchitecture([2, 1], np.array([16, 16, 32]), np.int64(2)) == TINY


def test_groups_are_those_of_every_second_layer():
    """The official code has them in layers 2, 4, 6, ..., 26; B1 is 1 + 4 + 6 + 16 + 1 layers."""
    stages = replk_jax.create_model("repvgg_b1g4").architecture.stages()
    layers = [layer for stage in stages for layer in stage]
    assert len(layers) == 28
    assert [i for i, layer in enumerate(layers) if layer.groups == 4] == list(range(2, 28, 2))
    assert {layer.groups for layer in layers} == {1, 4}
    # Only the layers with groups must have widths that these divide.
    RepVGGArchitecture((1, 1), (16, 15, 33), groups=3, in_channels=4)


def test_groups_by_layer():
    """With an entry for each layer, stage 0 first; what one number says is that number."""
    by_layer = dataclasses.replace(TINY, groups=[1, 2, 1, 4])
    assert by_layer.groups == (1, 2, 1, 4)
    assert [layer.groups for stage in by_layer.stages() for layer in stage] == [1, 2, 1, 4]
    assert dataclasses.replace(TINY, groups=(1, 1, 2, 1)) == TINY
    assert dataclasses.replace(TINY, groups=np.ones(4, int)).groups == 1
    assert dataclasses.replace(TINY, groups=(1, 1, 2, 2)).groups == (1, 1, 2, 2)

    counts = replk_jax.summary(replk_jax.create_model(by_layer, num_classes=None), 32)
    widths = [(3, 16, 1, 16), (16, 16, 2, 8), (16, 16, 1, 8), (16, 32, 4, 4)]
    kernels = [9 * i * o // groups for i, o, groups, _ in widths]
    assert counts.merged.parameters == sum(kernels) + 16 + 16 + 16 + 32
    sizes = [size**2 for *_, size in widths]
    assert counts.merged.convolution == np.dot(kernels, sizes)

    model = replk_jax.create_model(by_layer, num_classes=4)
    stored = json.loads(json.dumps(describe(model)))
    assert from_description(stored) == model


@reference_data.required
@pytest.mark.parametrize(
    "name",
    [
        # The others differ in sizes alone.
        name
        if name in ("repvgg_a0", "repvgg_b1g2", "repvgg_d2se")
        else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in NAMES
    ],
)
def test_parameters_and_multiply_adds(name):
    """Those of the official models, exactly."""
    macs = json.loads((reference_data.ROOT / "manifests/macs.json").read_text())
    official = name.replace("repvgg_", "").capitalize()
    expected = macs[f"RepVGG-{official}"]["224"]
    summary = replk_jax.summary(replk_jax.create_model(name))
    for count, form in ((summary.training, "train"), (summary.merged, "deploy")):
        assert count.parameters == expected[form]["params"]
        assert count.convolution == expected[form]["conv_macs"]
        assert count.linear == expected[form]["linear_macs"]
        assert count.batch_norm_elements == expected[form]["batchnorm_elements"]
        assert count.pooled_elements == expected[form]["global_pool_input_elements"]


def test_all_fourteen_are_there():
    assert len(NAMES) == 14


# --- The variants, by their formulas -----------------------------------------------------


def conv(x, kernel, layer):
    """By PyTorch's padding, in float64."""
    half = tuple(size // 2 for size in kernel.shape[:2])
    return helpers.conv(x, kernel, layer.stride, layer.groups, half)


def norm(x, p):
    mean, var, scale, bias = (
        p[name][None, None, None] for name in ("mean", "var", "scale", "bias")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def conv_norm(x, p, layer):
    return norm(conv(x, p["conv"]["kernel"], layer), p["bn"])


def three_branches(x, p, layer, suffix="", activation=lambda y: y):
    y = activation(conv_norm(x, p[f"rbr_dense{suffix}"], layer))
    if f"rbr_1x1{suffix}" in p:
        y += activation(conv_norm(x, p[f"rbr_1x1{suffix}"], layer))
    if f"rbr_identity{suffix}" in p:
        y += activation(norm(x, p[f"rbr_identity{suffix}"]))
    return y


def dense_and_identity(x, p, layer):
    """The convolution beside which x is added, and what is added."""
    if layer.keeps_shape:
        return p["rbr_dense_and_identity"], x
    return p["rbr_dense"], 0


def identity_without_norm(x, p, layer):
    dense, identity = dense_and_identity(x, p, layer)
    return conv_norm(x, dense, layer) + conv_norm(x, p["rbr_1x1"], layer) + identity


def norm_after_addition(x, p, layer):
    dense, identity = dense_and_identity(x, p, layer)
    y = conv(x, dense["conv"]["kernel"], layer) + identity
    return norm(y + conv(x, p["rbr_1x1"]["conv"]["kernel"], layer), p["post_bn"])


def relu_in_branches(x, p, layer):
    return three_branches(x, p, layer, "_relu", lambda y: np.maximum(y, 0))


def trivial(x, p, layer):
    if not layer.keeps_shape:
        return three_branches(x, p, layer)
    p = p["rbr_dense"]
    return norm(x + conv(x, p["conv"]["residual_kernel"], layer), p["bn"])


def diracnet(x, p, layer):
    if not layer.keeps_shape:
        return three_branches(x, p, layer)
    p, bn = p["rbr_dense"]["conv"], p["rbr_dense"]["bn"]
    kernel = np.asarray(p["dirac_kernel"])
    unit = kernel / np.sqrt((kernel**2).sum((0, 1, 2)))
    a, b = (p[name][None, None, None] for name in "ab")
    return norm(a * x + b * conv(x, unit, layer), bn)


def acb(x, p, layer):
    return sum(
        conv_norm(x, p["rbr_acb"][name], layer) for name in ("square", "vertical", "horizontal")
    )


def dbb(x, p, layer):
    """With zeros around what enters, no border is an exception: `valid` has no padding."""
    p = p["rbr_dbb"]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    same = layer._replace(stride=1)
    chain, pool = p["dbb_1x1_kxk"], p["dbb_avg"]
    first = padded + conv(padded, chain["idconv1"]["residual_kernel"], same)
    chained = conv(norm(first, chain["bn1"]), chain["conv2"]["kernel"], same)
    first = norm(conv(padded, pool["conv"]["kernel"], same), pool["bn"])
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(first), (3, 3), (1, 2))
    strided = slice(None, None, layer.stride)
    return (
        conv_norm(x, p["dbb_origin"], layer)
        + conv_norm(x, p["dbb_1x1"], layer)
        + norm(chained[:, 1:-1, 1:-1][:, strided, strided], chain["bn2"])
        + norm(windows.mean((-2, -1))[:, strided, strided], pool["avgbn"])
    )


REFERENCES = {
    **dict.fromkeys(("repvgg", "plain", "without_identity", "without_1x1"), three_branches),
    "identity_without_norm": identity_without_norm,
    "norm_after_addition": norm_after_addition,
    "relu_in_branches": relu_in_branches,
    "diracnet": diracnet,
    "trivial": trivial,
    "acb": acb,
    "dbb": dbb,
}
# Which branches there are, of a layer that keeps its shape.
BRANCHES = {
    "repvgg": {"rbr_dense", "rbr_1x1", "rbr_identity"},
    "plain": {"rbr_dense"},
    "without_identity": {"rbr_dense", "rbr_1x1"},
    "without_1x1": {"rbr_dense", "rbr_identity"},
}


def squeeze_excite(y, p):
    mean = y.mean((1, 2))
    hidden = np.maximum(mean @ p["down"]["kernel"][0, 0] + p["down"]["bias"][None], 0)
    gate = hidden @ p["up"]["kernel"][0, 0] + p["up"]["bias"][None]
    return y / (1 + np.exp(-gate))[:, None, None]


def joined(variables):
    """Parameters and statistics in one tree, in float64."""

    def join(params, stats):
        if not isinstance(params, dict):
            return np.asarray(params, np.float64)
        stats = {k: v for k, v in stats.items() if not isinstance(v, dict)} | {
            k: join(v, stats.get(k, {})) for k, v in params.items()
        }
        return stats

    return join(variables["params"], variables.get("batch_stats", {}))


def random_block(block, layer, squeeze_excite, dtype):
    """A block and its variables: batch norms with negative scales, nothing at its initial value."""
    module = RepVGGBlock(
        layer=layer, block=block, squeeze_excite=squeeze_excite, dtype=dtype, param_dtype=dtype
    )
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = rng.standard_normal(leaf.shape) / (3 if leaf.ndim == 4 else 1)
        return (np.abs(values) + 0.1 if path[-1].key == "var" else values).astype(leaf.dtype)

    x = rng.standard_normal((2, 7, 4, layer.inputs)).astype(dtype)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return module, jax.tree_util.tree_map_with_path(draw, shapes), x


@pytest.mark.parametrize("block", REFERENCES)
def test_variant_by_its_formula(block):
    """1e-10 of the largest value: float64, with room for the rounding of a few hundred products."""
    for layer in (Layer(32, 32, 1, 2), Layer(6, 32, 2, 1)):
        with jax.enable_x64(True):
            module, variables, x = random_block(block, layer, True, jnp.float64)
            p = joined(variables)
            y = REFERENCES[block](x, p, layer)
            expected = squeeze_excite(np.asarray(y), p["se"])
            actual = module.apply(variables, x)
        helpers.assert_equal_in_float64(actual, expected)
        if block in BRANCHES:
            branches = BRANCHES[block] - (set() if layer.keeps_shape else {"rbr_identity"})
            assert set(p) - {"se"} == branches
    assert set(REFERENCES) == set(BLOCKS) - {"residual"}


@pytest.mark.parametrize(
    ("block", "deploy"),
    [
        *((block, False) for block in REFERENCES),
        # Merged, they are the same convolution.
        ("repvgg", True),
        *(
            pytest.param(block, True, marks=pytest.mark.exhaustive)
            for block in REFERENCES
            if block not in ("repvgg", "relu_in_branches")  # the latter cannot be merged
        ),
    ],
)
def test_a_dilated_variant_is_the_plain_one_on_every_second_pixel(block, deploy):
    """Each of the four subsamples of a feature map passes by itself, values and gradients."""
    layer = Layer(8, 8, 1, 2)
    with jax.enable_x64(True):
        module, variables, x = random_block(block, layer, False, jnp.float64)
        weights = np.random.default_rng(1).standard_normal(x.shape)
        if deploy:
            module, variables = module.clone(deploy=True), replk_jax.reparameterize(variables)
        stats = {k: v for k, v in variables.items() if k != "params"}
        dilated = module.clone(layer=layer._replace(dilation=2))

        def values_and_gradients(apply):
            def loss(params):
                y = apply({"params": params, **stats})
                return jnp.sum(y * weights), y

            return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

        def one_by_one(variables):
            y = jnp.zeros_like(x)
            for i, j in np.ndindex(2, 2):
                subsample = (slice(None), slice(i, None, 2), slice(j, None, 2))
                y = y.at[subsample].set(module.apply(variables, x[subsample]))
            return y

        actual = values_and_gradients(lambda variables: dilated.apply(variables, x))
        expected = values_and_gradients(one_by_one)
    jax.tree.map(helpers.assert_equal_in_float64, actual, expected)


def test_residual_network_by_its_formula():
    with jax.enable_x64(True):
        model = make(block="residual", dtype=jnp.float64, param_dtype=jnp.float64, out_indices=(1,))
        variables, x = random_variables(model), random_images(model, 2, (19, 10))
        p = joined(variables)
        (stem,), (first, second), (last,) = TINY.stages()
        y = np.maximum(conv_norm(x, p["stage0"], stem), 0)
        pair = p["stage1_0"]
        shortcut = conv_norm(y, pair["downsample"], first)
        y = np.maximum(conv_norm(y, pair["conv1"], first), 0)
        y = np.maximum(conv_norm(y, pair["conv2"], second) + shortcut, 0)
        expected = np.maximum(conv_norm(y, p["stage2_0"], last), 0)
        (actual,) = model.apply(variables, x)
    helpers.assert_equal_in_float64(actual, expected)


def test_later_residual_pairs_add_what_entered():
    """Beyond the first pair of a stage, the shortcut has no parameters."""
    arch = RepVGGArchitecture((4, 1), (8, 8, 8), block="residual")
    model = replk_jax.create_model(arch, out_indices=(0,))
    variables, x = random_variables(model), random_images(model)
    pair = variables["params"]["stage1_1"]
    assert set(pair) == {"conv1", "conv2"}
    variables["params"]["stage1_1"] = jax.tree.map(np.zeros_like, pair)
    (actual,) = model.apply(variables, x)
    arch = RepVGGArchitecture((2, 1), (8, 8, 8), block="residual")
    del variables["params"]["stage1_1"]
    (expected,) = replk_jax.create_model(arch, out_indices=(0,)).apply(variables, x)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("block", REFERENCES)
def test_every_parameter_has_a_gradient(block):
    module, variables, x = random_block(block, Layer(8, 8, 1, 2), False, jnp.float32)
    weights = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)

    @jax.jit
    @jax.grad
    def gradients(params):
        y, _ = module.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.square(y) * weights)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients(variables["params"])):
        assert np.isfinite(leaf).all(), path
        assert (np.abs(leaf) > 0).any(), path


# --- The network -------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["repvgg", "residual"])
@pytest.mark.parametrize("deploy", [False, True])
def test_output_shapes(block, deploy):
    model = make(block=block, deploy=deploy)
    x = jax.ShapeDtypeStruct((2, 33, 21, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert variables["params"]["linear"]["kernel"].shape == (32, 4)

    def shapes(**fields):
        clone = model.clone(**fields)
        return jax.tree.map(jnp.shape, jax.eval_shape(clone.apply, variables, x))

    assert shapes() == (2, 4)
    assert shapes(num_classes=None) == (2, 32)
    assert shapes(out_indices=(1, 0)) == ((2, 5, 3, 32), (2, 9, 6, 16))


def test_features_are_what_enters_the_classifier():
    model = make(squeeze_excite=True)
    variables, x = random_variables(model), random_images(model, 2, (19, 33))
    features = model.apply(variables, x, features=True)
    linear = variables["params"]["linear"]
    np.testing.assert_allclose(
        features @ linear["kernel"] + linear["bias"][None],
        model.apply(variables, x),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(("block", "recomputed"), [("repvgg", 4), ("residual", 3)])
def test_remat_recomputes_every_block_and_changes_no_variable(block, recomputed):
    model = make(block=block, remat="full")
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert variables == jax.eval_shape(model.clone(remat=None).init, jax.random.key(0), x)
    assert str(jax.make_jaxpr(model.apply)(variables, x)).count("prevent_cse") == recomputed


def test_relu_in_branches_cannot_be_merged():
    model = make(block="relu_in_branches", deploy=True)
    with pytest.raises(ValueError, match="no merged structure: a sum of ReLUs is not linear"):
        model.init(jax.random.key(0), random_images(model))
    variables = random_variables(make(block="relu_in_branches"))
    with pytest.raises(ValueError, match="not linear"):
        replk_jax.reparameterize(variables)


def test_bad_stages():
    model = make(out_indices=(2,))
    with pytest.raises(ValueError, match=r"stages \[2\].*\[0, 1\]"):
        model.init(jax.random.key(0), random_images(model))
