"""RepLKNet against what the official PyTorch code computes with the same weights."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import replk_jax
from replk_jax import merge_branches
from replk_jax.torch_import import convert_state_dict, load_torch, save_torch
from replk_jax.torch_import.writer import write_torch
from tests import reference_data
from tests.reference_data import assert_close

pytestmark = reference_data.required

CASES = reference_data.small_cases()
FULL = reference_data.full_cases()


def build(case):
    """The model that a case of the small folder describes."""
    arch = {**case["arch"]}
    arch["kernel_sizes"] = arch.pop("large_kernel_sizes")
    if "out_indices" in arch:
        arch["out_indices"] = tuple(arch["out_indices"])
    return replk_jax.create_model("replknet_31b", **arch)


def load(name):
    model = build(CASES[name])
    return model, convert_state_dict(reference_data.state_dict(f"small/{name}.train.pth"), model)


def run(model, variables, x):
    """Outputs, and the maps of the parts that the reference data name."""
    result, state = jax.jit(
        lambda v, x: model.apply(v, x, capture_intermediates=True, mutable=["intermediates"])
    )(variables, x)
    outputs = state["intermediates"]
    last = len(model.architecture.layers) - 1
    maps = {"stem": jax.nn.relu(outputs["stem_3"]["__call__"][0])}
    for s in range(last + 1):
        maps[f"stage{s}"] = outputs[f"stages_{s}"]["__call__"][0][0]
        if s < last:
            maps[f"transition{s}"] = jax.nn.relu(outputs[f"transitions_{s}_1"]["__call__"][0])
    if "norm" in outputs:
        maps["norm"] = outputs["norm"]["__call__"][0]
    return result, maps


def test_there_are_cases():
    assert len(CASES) == 7
    assert len(FULL) == 6


# tests/test_parity.py has the numbers of the first, and replk_3_7_13 also has 3 x 3 kernels.
LIKE_OTHERS = ("replk_13_7_5", "replk_3_no_small")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.exhaustive) if n in LIKE_OTHERS else n for n in CASES],
)
def test_eval_outputs_and_every_map(name):
    """1e-5 times the largest value: ten times the rounding of either side, and a tenth of
    what the smallest known slip (batch-norm epsilon 1e-6) changes."""
    model, variables = load(name)
    expected = reference_data.arrays(f"small/{name}.npz")
    maps = {}
    for inputs in CASES[name]["input_shapes"]:
        outputs, maps[inputs] = run(model, variables, reference_data.nhwc(expected[inputs]))
        if model.out_indices is None:
            assert_close(outputs, expected[f"{inputs}.logits.train_form"], 1e-5, inputs)
            continue
        assert len(outputs) == len(model.out_indices)
        for i, output in enumerate(outputs):
            assert_close(
                output,
                reference_data.nhwc(expected[f"{inputs}.out{i}.train_form"]),
                1e-5,
                f"{inputs} {i}",
            )
    named = {key.removeprefix("x1.feature.") for key in expected if key.startswith("x1.feature.")}
    assert named - {"pooled"} == set(maps["x1"])
    for part, actual in maps["x1"].items():
        assert_close(actual, reference_data.nhwc(expected[f"x1.feature.{part}"]), 1e-5, part)
    if "pooled" in named:
        x = reference_data.nhwc(expected["x1"])
        features = jax.jit(lambda v, x: model.apply(v, x, features=True))(variables, x)
        assert_close(features, expected["x1.feature.pooled"][:, :, 0, 0], 1e-5, "pooled")


def loss_of(case, expected):
    """The training loss that the case names, of the model's outputs."""
    if case["arch"]["num_classes"] is None:
        targets = [reference_data.nhwc(expected[f"train.target{i}"]) for i in range(4)]
        return lambda outputs: sum(
            jnp.mean(jnp.square(o - t)) for o, t in zip(outputs, targets, strict=True)
        )
    return lambda logits: optax.softmax_cross_entropy_with_integer_labels(
        logits, expected["train.labels"]
    ).mean()


# In training, that one has nothing that the others lack.
TRAINED_LIKE_OTHERS = (*LIKE_OTHERS, "replk_3_7_13")
TRAINED = [name for name in CASES if "train_loss" in CASES[name]]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.exhaustive) if n in TRAINED_LIKE_OTHERS else n
        for n in TRAINED
    ],
)
def test_train_mode(name):
    """Outputs, loss, gradients and running statistics after one step.

    The bounds are multiples of how far the reference itself, in float32, is from a float64
    run (`noise`), with a floor of 1e-5 where that is luckily small.
    """
    case, expected = CASES[name], reference_data.arrays(f"small/{name}.npz")
    model, variables = load(name)
    noise = {key: max(4 * value, 1e-5) for key, value in case["noise"].items()}
    outputs_to_loss = loss_of(case, expected)

    def loss_of_parameters(params):
        outputs, state = model.apply(
            {**variables, "params": params},
            reference_data.nhwc(expected["train.x"]),
            train=True,
            mutable=["batch_stats"],
        )
        return outputs_to_loss(outputs), (outputs, state)

    loss_and_grads = jax.jit(jax.value_and_grad(loss_of_parameters, has_aux=True))
    (loss, (outputs, state)), grads = loss_and_grads(variables["params"])

    tolerance = noise["train.logits_f32_minus_f64"]
    if model.out_indices is None:
        assert_close(outputs, expected["train.logits"], tolerance, "logits")
    else:
        for i, output in enumerate(outputs):
            assert_close(
                output, reference_data.nhwc(expected[f"train.out{i}"]), tolerance, f"out{i}"
            )
    assert_close(loss, expected["train.loss"], noise["train.loss_f32_minus_f64"], "loss")

    stats_tolerance = noise["train.running_stats_f32_minus_f64"]
    after = reference_data.by_official_name({"batch_stats": state["batch_stats"]})
    checked = 0
    for key, value in expected.items():
        if key.startswith("train.after.") and "num_batches" not in key:
            assert_close(after[key.removeprefix("train.after.")], value, stats_tolerance, key)
            checked += 1
    assert checked == len(after)

    # Where the true gradient is zero, both sides hold rounding noise.
    grads = reference_data.by_official_name({"params": grads})
    zero = set(case["zero_gradient"])
    grad_tolerance = noise["train.grad_worst_relative_norm_error_f32_vs_f64"]
    for key, norm in zip(case["grad_norms_order"], expected["train.grad_norms"], strict=True):
        if key not in zero:
            actual = np.linalg.norm(np.asarray(grads[key], np.float64))
            assert abs(actual - norm) <= grad_tolerance * norm, (key, actual, norm)
    for key, value in expected.items():
        name_of_parameter = key.removeprefix("train.grad.")
        if key.startswith("train.grad.") and name_of_parameter not in zero:
            error = np.linalg.norm(np.asarray(grads[name_of_parameter], np.float64) - value)
            assert error <= grad_tolerance * np.linalg.norm(value), (key, error)


# At another resolution, or 31B again but for widths and small kernels: minutes that add little.
AGAIN = (
    "replknet_31b_384", "replknet_31l_224", "replknet_xl_224", "replknet_xl_320",
    "replknet_xl_backbone_224",
)  # fmt: skip
ONCE = set(FULL) - {"replknet_31b_224", *AGAIN}


@pytest.mark.parametrize(
    "name",
    [
        "replknet_31b_224",
        *(pytest.param(name, marks=pytest.mark.slow) for name in FULL if name in ONCE),
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in FULL if name in AGAIN),
    ],
)
def test_full_size(name, tmp_path):
    """Through files, in both structures, the model told from the file. 1e-4 absolute: below every
    slip that the reference tried, above all rounding."""
    case, expected = FULL[name], reference_data.arrays(f"full/{name}.npz")
    backbone = "backbone" in name
    model = replk_jax.create_model(
        case["model"].replace("RepLKNet-", "replknet_").lower(),
        num_classes=None if backbone else 1000,
        out_indices=(0, 1, 2, 3) if backbone else None,
        norm_intermediate_features=backbone,
    )
    rule = reference_data.weights_rule()
    weights = rule.make_weights(reference_data.manifest(case["manifest"]), case["seed"])
    write_torch(tmp_path / "training.pth", weights)
    told, variables = load_torch(tmp_path / "training.pth")
    assert told == model
    save_torch(variables, model, tmp_path / "merged.pth", merged=True)
    x = reference_data.nhwc(rule.make_input(case["input_shape"], case["seed"]))

    outputs, maps = run(model, variables, x)
    told, merged_variables = load_torch(tmp_path / "merged.pth")
    assert told == model.clone(deploy=True)
    merged = jax.jit(told.apply)(merged_variables, x)
    if backbone:
        for structure in (outputs, merged):
            for i, output in enumerate(structure):
                assert_sample(output, expected, f"out{i}")
        return
    for form, actual in (("logits_train", outputs), ("logits_deploy", merged)):
        np.testing.assert_allclose(actual, expected[form], rtol=0, atol=1e-4)
    for part, actual in maps.items():
        assert_sample(actual, expected, part)
    stage, block = merged_layer(case)
    kernel = merge_branches(variables)["params"][stage][block]["large_kernel"]["lkb_reparam"]
    # As a batch of kernels (C, K, K, 1), whose last axis moves forward like a map's.
    assert_sample(kernel["kernel"].transpose(3, 0, 1, 2), expected, "merged_weight")
    assert_sample(kernel["bias"], expected, "merged_bias")


def test_full_size_in_the_names_of_mmpretrain(tmp_path):
    case = FULL["replknet_31b_224"]
    official = reference_data.weights_rule().make_weights(
        reference_data.manifest(case["manifest"]), case["seed"]
    )
    renamed = {}
    for key, value in official.items():
        key = re.sub(r"^(stem|stages|transitions)\.", r"backbone.\1.", key)
        key = re.sub(r"^norm\.", "backbone.stages.3.norm.", key)
        renamed[re.sub(r"^head\.", "head.fc.", key)] = value
    manifest = reference_data.manifest("replknet_31b.mmpretrain.train.json")
    assert {key: value.shape for key, value in renamed.items()} == {k: s for k, s, _ in manifest}
    write_torch(tmp_path / "mmpretrain.pth", renamed)
    model, variables = load_torch(tmp_path / "mmpretrain.pth")
    wanted = convert_state_dict(official, replk_jax.create_model("replknet_31b"))
    chex.assert_trees_all_equal(variables, wanted)
    assert model == replk_jax.create_model("replknet_31b")


def assert_sample(actual, expected, part):
    """Shape, and the 64 values that were kept, within 1e-4."""
    nchw = np.asarray(actual)
    nchw = nchw.transpose(0, 3, 1, 2) if nchw.ndim == 4 else nchw
    assert nchw.shape == tuple(expected[f"{part}.shape"]), part
    sample = nchw.reshape(-1)[expected[f"{part}.index"]]
    np.testing.assert_allclose(sample, expected[f"{part}.sample"], rtol=0, atol=1e-4, err_msg=part)


def merged_layer(case):
    """The stage and block whose merged kernel the case holds."""
    _, stage, _, block, *_ = case["merged_layer"].split(".")
    return f"stages_{stage}", f"blocks_{block}"
