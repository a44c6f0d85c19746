"""RepLKNet's interface: structures, outputs, precision, training and errors."""

import json
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import replk_jax
from replk_jax import RepLKNetArchitecture
from replk_jax.models.reparam_convs import ReparamLargeKernelConv
from replk_jax.models.variables import abstract_variables
from tests import reference_data
from tests.helpers import ONE_STAGE, TINY, random_images, random_variables


def make(**fields):
    return replk_jax.create_model(TINY, num_classes=4, **fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel_sizes": (7, 6)}, r"odd.*\[6\]"),
        ({"small_kernel": 7}, "small_kernel=7"),
        ({"small_kernel": 2}, "odd"),
        ({"small_kernel": -1}, "small_kernel must be positive whole"),
        ({"small_kernel": 3.0}, "small_kernel must be positive whole"),
        ({"layers": (1, 1, 1)}, "one entry per stage"),
        ({"kernel_sizes": (), "layers": (), "channels": ()}, "one entry per stage"),
        ({"channels": (8, 0)}, "positive whole numbers"),
        ({"channels": (8, 12.5)}, "positive whole numbers"),
        ({"dw_ratio": 0.1}, "needs a channel"),
        ({"ffn_ratio": float("nan")}, "needs a channel"),
        ({"ffn_ratio": 1e8}, "at most 16,777,216"),
        ({"in_channels": 0}, "in_channels must be positive"),
        ({"kernel_sizes": (7, None)}, "kernel_sizes must be positive"),
        ({"dilated_branches": ((3, 0),)}, "dilated_branches must be positive whole"),
        ({"dilated_branches": (3, 2)}, "dilated_branches must be positive whole"),
        ({"dilated_branches": ((2, 2),)}, r"odd kernel size, dilation\); got \(\(2, 2\),\)"),
        ({"dilated_branches": ((3, 1, 1),)}, "pairs"),
        ({"dilated_branches": ((3, 2), (3, 2))}, "differ"),
        ({"dilated_branches": ((3, 2), (3, 3))}, r"\[\(3, 3\)\].*kernel_sizes=\(7, 5\)"),
    ],
)
def test_impossible_architectures(change, message):
    with pytest.raises(ValueError, match=message):
        replk_jax.create_model(TINY, **change)


def test_lists_and_numpys_integers_are_as_good():
    sizes = np.array([7, 5])
    assert RepLKNetArchitecture(sizes, [1, 1], [8, 12], small_kernel=np.int64(3)) == TINY


@pytest.mark.parametrize(
    "fields", [{"drop_path_rate": 1.0}, {"drop_path_rate": -0.5}, {"num_classes": -1}]
)
def test_fields_that_make_no_sense(fields):
    model = replk_jax.create_model(TINY, **fields)
    with pytest.raises(ValueError, match=next(iter(fields))):
        model.init(jax.random.key(0), random_images(model))


@reference_data.required
def test_drop_path_rates_are_the_official_ones():
    """float32 values written out there, so a rounding of float32 apart."""
    cases = json.loads((reference_data.ROOT / "training/drop_path_rates.json").read_text())
    assert cases
    for name, expected in cases.items():
        rate, layers = name.removeprefix("rate ").split(", layers ")
        layers = tuple(json.loads(layers))
        arch = RepLKNetArchitecture((3,) * len(layers), layers, (8,) * len(layers), 3)
        rates = arch.drop_path_rates(float(rate))
        pairs = [[r for r in stage for _ in range(2)] for stage in rates]
        chex.assert_trees_all_close(pairs, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (2, 4)),
        ({"num_classes": None}, (2, 12)),
        ({"out_indices": (0, 1)}, ((2, 9, 6, 8), (2, 5, 3, 12))),
        ({"out_indices": (1,)}, ((2, 5, 3, 12),)),
        ({"out_indices": (1, 0), "norm_intermediate_features": True},
         ((2, 5, 3, 12), (2, 9, 6, 8))),
    ],
)  # fmt: skip
@pytest.mark.parametrize("deploy", [False, True])
def test_output_shapes(fields, expected, deploy):
    model = replk_jax.create_model(TINY, **{"num_classes": 4, **fields, "deploy": deploy})
    x = random_images(model, 2, (33, 21))
    shapes = jax.tree.map(jnp.shape, model.apply(random_variables(model), x))
    assert shapes == expected


@pytest.mark.parametrize("deploy", [False, True])
def test_implementation_is_that_of_every_depthwise_convolution(deploy):
    """Of the stem's two, the transition's, and each stage's one or two."""
    model = make(deploy=deploy, implementation="dft")
    program = jax.make_jaxpr(model.apply)(random_variables(model), random_images(model))
    text = str(program)
    assert text.count("implementation=dft") == (5 if deploy else 7)
    assert "implementation=None" not in text


def test_features_are_what_enters_the_head():
    model = make()
    variables, x = random_variables(model), random_images(model)
    features = model.apply(variables, x, features=True)
    head = variables["params"]["head"]
    np.testing.assert_allclose(
        features @ head["kernel"] + head["bias"][None],
        model.apply(variables, x),
        rtol=1e-5,
        atol=1e-5,
    )


def test_merged_features_need_a_model_without_head():
    model = make()
    variables, x = random_variables(model), random_images(model)
    with pytest.raises(ValueError, match="num_classes=None"):
        make(deploy=True).apply(replk_jax.reparameterize(variables), x, features=True)
    params = {name: part for name, part in variables["params"].items() if name != "head"}
    merged = replk_jax.reparameterize({**variables, "params": params})
    headless = replk_jax.create_model(TINY, num_classes=None, deploy=True)
    np.testing.assert_allclose(
        headless.apply(merged, x), model.apply(variables, x, features=True), rtol=1e-4, atol=1e-5
    )


def test_the_merged_classifier_applies_to_the_final_feature_map():
    """The classifier at every position gives a map of class scores, whose mean are the logits."""
    model = make(deploy=True)
    variables, x = random_variables(model), random_images(model)
    run = jax.jit(lambda v, x: model.apply(v, x, mutable=["intermediates"]))
    logits, state = run(variables, x)
    (final,), head = state["intermediates"]["final_feature_map"], variables["params"]["head"]
    assert final.shape == (2, 4, 4, 12)
    scores = final @ head["kernel"] + head["bias"][None, None, None]
    np.testing.assert_allclose(scores.mean((1, 2)), logits, rtol=0, atol=1e-5)


def test_stage_norm_does_not_touch_the_next_stage():
    """Only what is emitted passes the norm, so a change of it leaves the later map alone."""
    model = make(out_indices=(0, 1), norm_intermediate_features=True)
    variables, x = random_variables(model), random_images(model)
    before = model.apply(variables, x)
    changed = jax.tree.map(lambda leaf: leaf, variables)
    changed["params"]["stages_0"]["norm"]["bias"] += 1
    after = model.apply(changed, x)
    np.testing.assert_allclose(after[0], before[0] + 1, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(after[1], before[1])


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize(("out_indices", "normed"), [((1,), {1}), ((0,), {0}), (None, {0, 1})])
def test_only_stages_that_are_returned_have_a_norm(out_indices, normed, deploy):
    model = make(out_indices=out_indices, norm_intermediate_features=True, deploy=deploy)
    params = abstract_variables(model)["params"]
    assert {s for s in (0, 1) if "norm" in params[f"stages_{s}"]} == normed


def test_remat_changes_nothing_but_what_is_kept():
    # Quick to compile.
    plain = replk_jax.create_model(
        ONE_STAGE, num_classes=4, drop_path_rate=0.5, implementation="xla"
    )
    variables, x = random_variables(plain), random_images(plain)

    def loss_and_grads(model):
        def loss(params):
            logits, _ = model.apply(
                {**variables, "params": params},
                x,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(0)},
            )
            return jnp.sum(logits**2)

        return jax.value_and_grad(loss)

    def convolutions(model):
        """How many depthwise ones are computed forwards, with those that are computed again."""
        program = str(jax.make_jaxpr(loss_and_grads(model))(variables["params"]))
        return len(re.findall(r"= depthwise_conv2d_forward\[", program))

    blocks = sum(ONE_STAGE.layers)
    results = jax.jit(loss_and_grads(plain))(variables["params"])
    for policy, again in (("full", 2 * blocks), ("save_depthwise", 0)):
        model = plain.clone(remat=policy)
        # The same operations in another order of fusion.
        chex.assert_trees_all_close(
            jax.jit(loss_and_grads(model))(variables["params"]), results, rtol=1e-3, atol=1e-4
        )
        assert convolutions(model) == convolutions(plain) + again
        program = str(jax.make_jaxpr(model.apply)(variables, x))
        assert program.count("prevent_cse") == 2 * blocks
        chex.assert_trees_all_equal_shapes_and_dtypes(
            abstract_variables(model), abstract_variables(plain)
        )


def test_an_unknown_remat_policy():
    with pytest.raises(ValueError, match="one of \\['full', 'save_depthwise'\\]; got 'block'"):
        make(remat="block").init(jax.random.key(0), random_images(make()))


def test_stochastic_depth_follows_its_key():
    model = make(drop_path_rate=0.5)
    variables, x = random_variables(model), random_images(model, 8)

    def run(seed):
        return model.apply(
            variables,
            x,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(seed)},
        )[0]

    np.testing.assert_array_equal(run(0), run(0))
    assert not np.allclose(run(0), run(1))
    # In eval mode there is none.
    np.testing.assert_array_equal(
        model.apply(variables, x), make(drop_path_rate=0.0).apply(variables, x)
    )


@pytest.mark.parametrize("deploy", [False, True])
def test_bfloat16_is_close_to_float32(deploy):
    """Twelve layers, each a rounding of 2^-9 of values of about one: 5 % of the largest logit
    is ten times what that adds up to, and far below what a wrong layer does."""
    model = make(deploy=deploy)
    variables, x = random_variables(model), random_images(model)
    half = make(deploy=deploy, dtype=jnp.bfloat16)
    expected, actual = model.apply(variables, x), half.apply(variables, x.astype(jnp.bfloat16))
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=0.05 * np.abs(expected).max())
    maps = make(deploy=deploy, dtype=jnp.bfloat16, out_indices=(0,)).apply(variables, x)
    assert maps[0].dtype == jnp.bfloat16


def test_param_dtype():
    leaves = jax.tree.leaves(abstract_variables(make(param_dtype=jnp.bfloat16))["params"])
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}


def test_kernels_larger_than_the_map():
    """13 x 13 on 1 x 1: all taps but one see padding."""
    model = replk_jax.create_model(TINY, kernel_sizes=(31, 13), num_classes=4)
    variables = random_variables(model)
    logits = model.apply(variables, random_images(model, 2, (4, 2)))
    assert np.isfinite(logits).all()


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((1, 32, 32, 1), np.float32), ValueError, r"\(N, H, W, 3\)"),
        (np.zeros((32, 32, 3), np.float32), ValueError, r"\(N, H, W, 3\)"),
        (np.zeros((1, 32, 32, 3), np.uint8), TypeError, "normalised"),
    ],
)
def test_bad_images(x, error, message):
    model = make()
    with pytest.raises(error, match=message):
        model.apply(random_variables(model), x)


def test_bad_stages():
    model = make(out_indices=(0, 2))
    with pytest.raises(ValueError, match=r"stages \[2\].*\[0, 1\]"):
        model.apply({}, random_images(model))
    backbone = make(out_indices=(0,))
    with pytest.raises(ValueError, match="no features"):
        backbone.apply(random_variables(backbone), random_images(backbone), features=True)


def test_dilated_branches_are_in_every_stage():
    model = make(dilated_branches=[[3, 2], [5, 1]], small_kernel=None)
    assert model.architecture.dilated_branches == ((3, 2), (5, 1))
    params = abstract_variables(model)["params"]
    for stage in ("stages_0", "stages_1"):
        branches = params[stage]["blocks_0"]["large_kernel"]
        assert set(branches) == {"lkb_origin", "dilated_3x3_2", "dilated_5x5_1"}


def test_dilated_branches_by_lax():
    """Both structures, in float64 with room for the rounding of some hundred products."""
    dilations = {"lkb_origin": 1, "small_conv": 1, "dilated_3x3_3": 3, "dilated_5x5_1": 1}
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = rng.standard_normal(leaf.shape)
        return np.abs(values) + 0.1 if path[-1].key == "var" else values

    with jax.enable_x64(True):
        layer = ReparamLargeKernelConv(
            kernel_size=7,
            small_kernel=3,
            dilated_branches=((3, 3), (5, 1)),
            dtype=jnp.float64,
            param_dtype=jnp.float64,
        )
        x = rng.standard_normal((1, 9, 6, 4))
        shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
        variables = jax.tree_util.tree_map_with_path(draw, shapes)
        assert set(variables["params"]) == set(dilations)
        expected = 0
        for name, dilation in dilations.items():
            p = {**variables["params"][name]["bn"], **variables["batch_stats"][name]["bn"]}
            kernel = variables["params"][name]["conv"]["kernel"]
            margin = dilation * (kernel.shape[0] // 2)
            y = jax.lax.conv_general_dilated(
                x,
                kernel,
                (1, 1),
                [(margin, margin)] * 2,
                rhs_dilation=(dilation, dilation),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=4,
            )
            p = {name: leaf[None, None, None] for name, leaf in p.items()}
            expected += (y - p["mean"]) / np.sqrt(p["var"] + 1e-5) * p["scale"] + p["bias"]
        merged = replk_jax.reparameterize(variables)
        for actual in (
            layer.apply(variables, x),
            layer.clone(deploy=True).apply(merged, x),
        ):
            np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)
