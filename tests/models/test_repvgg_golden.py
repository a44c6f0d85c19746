"""RepVGG against what the official PyTorch code computes with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import replk_jax
from tests import reference_data
from tests.reference_data import assert_close

pytestmark = reference_data.required

CASES = reference_data.small_cases("repvgg_")
FULL = reference_data.full_cases("repvgg_")


def build(case):
    """The model that a case of the small folder describes."""
    arch = case["arch"]
    multipliers = arch["width_multiplier"]
    widths = [int(base * a) for base, a in zip((64, 128, 256, 512), multipliers, strict=True)]
    return replk_jax.create_model(
        "repvgg_a0",
        layers=arch["num_blocks"],
        channels=(min(64, widths[0]), *widths),
        groups=max(arch.get("override_groups_map", {"": 1}).values()),
        squeeze_excite=arch.get("use_se", False),
        num_classes=arch["num_classes"],
    )


def place(key):
    """Collection and path of the leaf that an official name stands for."""
    *modules, last = reference_data.flax_path(key)
    if last.startswith("running_"):
        return ("batch_stats", *modules, last.removeprefix("running_"))
    is_norm = modules[-1] in ("bn", "rbr_identity")
    names = {"weight": "scale" if is_norm else "kernel", "bias": "bias"}
    return ("params", *modules, names[last])


def to_variables(state_dict):
    """The variables of official tensors, written apart from the importer."""
    variables = {}
    for key, tensor in state_dict.items():
        if key.endswith("num_batches_tracked"):
            continue
        *path, last = place(key)
        node = variables
        for name in path:
            node = node.setdefault(name, {})
        node[last] = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
    return variables


def leaf(variables, key):
    """The leaf that an official name stands for, in PyTorch's layout and float64."""
    for name in place(key):
        variables = variables[name]
    array = np.asarray(variables, np.float64)
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def load(name, form="train"):
    model = build(CASES[name]).clone(deploy=form == "deploy")
    return model, to_variables(reference_data.state_dict(f"small/{name}.{form}.pth"))


def run(model, variables, x):
    """Logits, and the maps of the parts that the reference data name."""

    @jax.jit
    def apply(variables, x):
        logits, state = model.apply(
            variables, x, capture_intermediates=True, mutable=["intermediates"]
        )
        outputs = state["intermediates"]
        maps = {f"stage{s + 1}": outputs[f"stage_{s}"][0] for s in range(4)}
        maps["stage0"] = jax.nn.relu(outputs["stage0"]["__call__"][0])
        maps["pooled"] = jnp.mean(maps["stage4"], (1, 2), keepdims=True)
        return logits, maps

    return apply(variables, x)


# One has nothing that the others lack, and tests/test_parity.py has the numbers of the other.
LIKE_OTHERS = ("repvgg_plain", "repvgg_g2")
SMALL = [
    pytest.param(name, marks=pytest.mark.exhaustive if name in LIKE_OTHERS else ())
    for name in CASES
]


def test_there_are_cases():
    assert len(CASES) == 3
    assert sorted(FULL) == ["repvgg_a0_224", "repvgg_b1g2_224", "repvgg_d2se_224"]


@pytest.mark.parametrize("name", SMALL)
def test_eval_outputs_and_every_map(name):
    """1e-5 times the largest value: ten times the rounding of either side, and a third of
    what the smallest known slip (batch-norm epsilon 1e-6) changes."""
    model, variables = load(name)
    expected = reference_data.arrays(f"small/{name}.npz")
    maps = {}
    for inputs in CASES[name]["input_shapes"]:
        x = reference_data.nhwc(expected[inputs])
        logits, maps[inputs] = run(model, variables, x)
        assert_close(logits, expected[f"{inputs}.logits.train_form"], 1e-5, inputs)
    named = {key for key in expected if key.startswith("x1.feature.")}
    assert named == {f"x1.feature.{part}" for part in maps["x1"]}
    for part, actual in maps["x1"].items():
        assert_close(actual, reference_data.nhwc(expected[f"x1.feature.{part}"]), 1e-5, part)

    merged = jax.jit(replk_jax.reparameterize)(variables)
    _, official_merged = load(name, "deploy")
    assert jax.tree.structure(merged) == jax.tree.structure(official_merged)
    deploy = jax.jit(model.clone(deploy=True).apply)
    for merger, tree in (("ours", merged), ("the official", official_merged)):
        logits = deploy(tree, reference_data.nhwc(expected["x1"]))
        assert_close(logits, expected["x1.logits.deploy_form"], 1e-5, f"merged, {merger}")
    merged_keys = [key for key in expected if key.startswith("merged.")]
    assert merged_keys
    for key in merged_keys:
        assert_close(leaf(merged, key.removeprefix("merged.")), expected[key], 1e-5, key)


@pytest.mark.parametrize("name", SMALL)
def test_train_mode(name):
    """Logits, loss, gradients and running statistics after one step.

    The bounds are multiples of how far the reference itself, in float32, is from a float64
    run (`noise`), with a floor of 1e-5 where that is luckily small.
    """
    case, expected = CASES[name], reference_data.arrays(f"small/{name}.npz")
    model, variables = load(name)
    noise = {key: max(4 * value, 1e-5) for key, value in case["noise"].items()}

    @jax.jit
    def step(params):
        def loss(params):
            logits, state = model.apply(
                {**variables, "params": params},
                reference_data.nhwc(expected["train.x"]),
                train=True,
                mutable=["batch_stats"],
            )
            entropies = optax.softmax_cross_entropy_with_integer_labels
            return entropies(logits, expected["train.labels"]).mean(), (logits, state)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, (logits, state)), grads = step(variables["params"])
    assert_close(logits, expected["train.logits"], noise["train.logits_f32_minus_f64"], "logits")
    assert_close(loss, expected["train.loss"], noise["train.loss_f32_minus_f64"], "loss")

    tolerance = noise["train.running_stats_f32_minus_f64"]
    statistics = [
        key
        for key in expected
        if key.startswith("train.after.") and not key.endswith("num_batches_tracked")
    ]
    assert len(statistics) == len(jax.tree.leaves(state))
    for key in statistics:
        assert_close(leaf(state, key.removeprefix("train.after.")), expected[key], tolerance, key)

    grads = {"params": grads}
    assert not case["zero_gradient"]
    assert len(case["grad_norms_order"]) == len(jax.tree.leaves(grads))
    tolerance = noise["train.grad_worst_relative_norm_error_f32_vs_f64"]
    for key, norm in zip(case["grad_norms_order"], expected["train.grad_norms"], strict=True):
        actual = np.linalg.norm(leaf(grads, key))
        assert abs(actual - norm) <= tolerance * norm, (key, actual, norm)
    for key, value in expected.items():
        if key.startswith("train.grad."):
            error = np.linalg.norm(leaf(grads, key.removeprefix("train.grad.")) - value)
            assert error <= tolerance * np.linalg.norm(value), (key, error)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("repvgg_a0_224", marks=pytest.mark.slow),
        pytest.param("repvgg_d2se_224", marks=pytest.mark.exhaustive),
        pytest.param("repvgg_b1g2_224", marks=pytest.mark.exhaustive),
    ],
)
def test_full_size(name):
    """Both structures. 1e-4 absolute: below every slip that the reference tried, above all
    rounding."""
    case, expected = FULL[name], reference_data.arrays(f"full/{name}.npz")
    model = replk_jax.create_model(case["model"].replace("RepVGG-", "repvgg_").lower())
    rule = reference_data.weights_rule()
    variables = to_variables(
        rule.make_weights(reference_data.manifest(case["manifest"]), case["seed"])
    )
    x = reference_data.nhwc(rule.make_input(case["input_shape"], case["seed"]))

    logits, maps = run(model, variables, x)
    merged = jax.jit(replk_jax.reparameterize)(variables)
    deploy_logits = jax.jit(model.clone(deploy=True).apply)(merged, x)
    for form, actual in (("logits_train", logits), ("logits_deploy", deploy_logits)):
        np.testing.assert_allclose(actual, expected[form], rtol=0, atol=1e-4, err_msg=form)
    parts = {part: np.asarray(value).transpose(0, 3, 1, 2) for part, value in maps.items()}
    parts["merged_weight"] = leaf(merged, f"{case['merged_layer']}.weight")
    parts["merged_bias"] = leaf(merged, f"{case['merged_layer']}.bias")
    assert {f"{part}.sample" for part in parts} == {k for k in expected if k.endswith(".sample")}
    for part, actual in parts.items():
        assert actual.shape == tuple(expected[f"{part}.shape"]), part
        sample = actual.reshape(-1)[expected[f"{part}.index"]]
        np.testing.assert_allclose(
            sample, expected[f"{part}.sample"], rtol=0, atol=1e-4, err_msg=part
        )
