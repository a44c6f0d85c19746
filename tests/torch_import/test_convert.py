"""Official state dicts: strict both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import replk_jax
from replk_jax.models.variables import abstract_variables
from replk_jax.torch_import import convert_state_dict
from tests import reference_data
from tests.helpers import TINY


def model():
    return replk_jax.create_model(TINY, num_classes=4)


def state_dict(seed=0):
    """A state dict of the tiny model, its names and shapes written out here by hand."""
    shapes = {"head.weight": (4, 12), "head.bias": (4,)}

    def conv(name, out, in_per_group, kernel):
        shapes[f"{name}.conv.weight"] = (out, in_per_group, kernel, kernel)
        norm(f"{name}.bn", out)

    def norm(name, channels):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{leaf}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    conv("stem.0", 8, 3, 3)
    conv("stem.1", 8, 1, 3)
    conv("stem.2", 8, 8, 1)
    conv("stem.3", 8, 1, 3)
    for stage, (width, kernel) in enumerate(((8, 7), (12, 5))):
        lk, ffn = f"stages.{stage}.blocks.0", f"stages.{stage}.blocks.1"
        norm(f"{lk}.prelkb_bn", width)
        conv(f"{lk}.pw1", width, width, 1)
        conv(f"{lk}.large_kernel.lkb_origin", width, 1, kernel)
        conv(f"{lk}.large_kernel.small_conv", width, 1, 3)
        conv(f"{lk}.pw2", width, width, 1)
        norm(f"{ffn}.preffn_bn", width)
        conv(f"{ffn}.pw1", 4 * width, width, 1)
        conv(f"{ffn}.pw2", width, 4 * width, 1)
    conv("transitions.0.0", 12, 8, 1)
    conv("transitions.0.1", 12, 1, 3)
    norm("norm", 12)
    rng = np.random.default_rng(seed)
    return {
        name: np.int64(7) if name.endswith("tracked") else rng.standard_normal(shape)
        for name, shape in shapes.items()
    }


def test_values_and_layouts():
    weights = state_dict()
    variables = convert_state_dict(weights, model())
    params, stats = variables["params"], variables["batch_stats"]
    np.testing.assert_allclose(
        params["transitions_0_1"]["conv"]["kernel"][2, 0, 0, 5],
        weights["transitions.0.1.conv.weight"][5, 0, 2, 0],
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        params["stages_1"]["blocks_1"]["pw1"]["conv"]["kernel"][0, 0, 3, 41],
        weights["stages.1.blocks.1.pw1.conv.weight"][41, 3, 0, 0],
        rtol=1e-6,
    )
    np.testing.assert_allclose(params["head"]["kernel"], weights["head.weight"].T, rtol=1e-6)
    bn = stats["stages_0"]["blocks_0"]["large_kernel"]["small_conv"]["bn"]
    name = "stages.0.blocks.0.large_kernel.small_conv.bn"
    np.testing.assert_allclose(bn["var"], weights[f"{name}.running_var"], rtol=1e-6)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        lambda leaf: leaf.shape, abstract_variables(model())
    )


def test_counters_are_optional():
    weights = {k: v for k, v in state_dict().items() if not k.endswith("tracked")}
    convert_state_dict(weights, model())


def test_dtype_is_the_models():
    half = replk_jax.create_model(TINY, num_classes=4, param_dtype=jnp.bfloat16)
    variables = convert_state_dict(state_dict(), half)
    assert variables["params"]["head"]["kernel"].dtype == jnp.bfloat16
    assert variables["batch_stats"]["norm"]["mean"].dtype == jnp.float32


def test_one_error_names_every_fault():
    weights = state_dict()
    del weights["stages.0.blocks.0.pw1.bn.running_var"]
    weights["head.weight"] = weights["head.weight"].T
    weights["surplus.weight"] = np.zeros(3)
    weights["stem.9.bn.num_batches_tracked"] = np.int64(1)
    weights["norm.bias"] = np.array(["a"] * 12)
    with pytest.raises(ValueError, match="do not fit this RepLKNet") as caught:
        convert_state_dict(weights, model())
    message = str(caught.value)
    for fault in (
        "missing: stages.0.blocks.0.pw1.bn.running_var (8,)",
        "wrong shape: head.weight is (12, 4), the model has (4, 12)",
        "not in the model: surplus.weight",
        "not in the model: stem.9.bn.num_batches_tracked",
        "not floating point: norm.bias",
    ):
        assert fault in message
    assert message.count("\n") == 5


def test_re_parameterized_for_a_merged_model():
    merged = convert_state_dict(state_dict(), model().clone(deploy=True))
    wanted = replk_jax.reparameterize(convert_state_dict(state_dict(), model()))
    jax.tree.map(np.testing.assert_array_equal, merged, wanted)


@reference_data.required
@pytest.mark.parametrize(
    ("name", "file", "fields"),
    [
        ("replknet_31b", "replknet_31b.official.train.json", {}),
        pytest.param(
            "replknet_31l", "replknet_31l.official.train.json", {}, marks=pytest.mark.exhaustive
        ),
        pytest.param(
            "replknet_xl", "replknet_xl.official.train.json", {}, marks=pytest.mark.exhaustive
        ),
        (
            "replknet_31b",
            "replknet_31b.official.backbone_train.json",
            {"out_indices": (0, 1, 2, 3), "norm_intermediate_features": True},
        ),
    ],
)
def test_names_and_shapes_of_the_full_models(name, file, fields):
    """Every tensor of the official models has its place, without making the tensors."""
    weights = {
        key: np.broadcast_to(np.zeros((), dtype), shape)
        for key, shape, dtype in reference_data.manifest(file)
    }
    convert_state_dict(weights, replk_jax.create_model(name, **fields))
    del weights["stages.3.blocks.0.pw1.conv.weight"]
    with pytest.raises(ValueError, match="missing"):
        convert_state_dict(weights, replk_jax.create_model(name, **fields))
