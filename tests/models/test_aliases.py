"""Arguments as users of timm and torchvision write them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import replk_jax
from replk_jax.models.description import describe, from_description

create_model = replk_jax.create_model


def test_channels_and_dropout():
    assert create_model("resnet18", in_chans=1) == create_model("resnet_18", in_channels=1)
    dropped = create_model("mobilenetv2_100", drop_rate=0.2)
    assert dropped == create_model("mobilenet_v2", dropout_rate=0.2)
    assert create_model("replknet_31b", drop_path_rate=0.3).drop_path_rate == 0.3


def test_no_classifier():
    model = create_model("resnet18", num_classes=0)
    assert model == create_model("resnet18", num_classes=None)
    assert model.num_classes is None
    assert create_model("resnet18").clone(num_classes=0) == model
    assert from_description(describe(model)) == model


@pytest.mark.parametrize(("name", "stages"), [("repvgg_a0", 4), ("mobilenet_v2", 7)])
def test_features_only(name, stages):
    every_stage = tuple(range(stages))
    assert create_model(name, features_only=True).out_indices == every_stage
    assert create_model(name, features_only=True, out_indices=[1, 2]).out_indices == (1, 2)
    assert create_model(name, features_only=False).out_indices is None
    short = create_model(name, features_only=True, out_indices=(-1,))
    assert short.out_indices == every_stage[-1:]
    # None is the default of timm's models, and of a field in a configuration.
    assert create_model(name, features_only=True, out_indices=None).out_indices == every_stage
    assert create_model(name, features_only=False, out_indices=None).out_indices is None


def test_features_of_every_stage_of_another_depth():
    model = create_model("resnet50", layers=(1, 1), channels=(4, 8), features_only=True)
    assert model.out_indices == (0, 1)


@pytest.mark.parametrize(
    "given",
    [
        [-1], (-1,), (3,), [np.int64(3)], range(3, 4), range(-1, 0),
        np.array([3]), np.array([-1], np.int8), jnp.array([3]), [np.array(3)],
    ],
)  # fmt: skip
def test_out_indices_are_normalised(given):
    """In create_model and in clone, to what compares, hashes and is stored alike."""
    model = create_model("resnet18", out_indices=(3,))
    for other in (
        create_model("resnet18", out_indices=given),
        create_model("resnet18").clone(out_indices=given),
    ):
        assert other == model
        assert hash(other) == hash(model)
        assert other.out_indices == (3,)
        assert from_description(describe(other)) == model


@pytest.mark.parametrize(
    "given",
    [
        (4,), (-5,), ("a",), (1.5,), 3, "3", {3}, [True], (False,), [np.True_], np.array([True]),
        np.array([1.0]), np.array(3), np.array([[3]]), (0, True),
    ],
)  # fmt: skip
def test_stages_that_are_none(given):
    model = create_model("resnet18", out_indices=given)
    image = jnp.zeros((1, 32, 32, 3))
    with pytest.raises(ValueError, match="out_indices"):
        jax.eval_shape(model.init, jax.random.key(0), image)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"pretrained": True}, ValueError, r"load_torch\(path\)"),
        ({"weights": "IMAGENET1K_V1"}, ValueError, "so weights cannot be set"),
        ({"checkpoint_path": "x.pth"}, ValueError, "so checkpoint_path cannot be set"),
        ({"in_chans": 1, "in_channels": 3}, TypeError, "in_chans and in_channels are the same"),
        ({"drop_rate": 0.1}, TypeError, r"ResNet has no dropout.*leave out drop_rate\.$"),
        ({"dropout_rate": 0.1}, TypeError, r"ResNet has no dropout.*leave out dropout_rate\.$"),
        ({"drop_path_rate": 0.1}, TypeError, "ResNet has no stochastic depth"),
        (
            {"replace_stride_with_dilation": [False, True, True]},
            TypeError,
            "output_stride=8 the last two",
        ),
        ({"global_pool": "avg"}, TypeError, "Unknown field global_pool"),
    ],
)
def test_what_cannot_be_meant(fields, error, message):
    with pytest.raises(error, match=message):
        create_model("resnet18", **fields)


def test_arguments_that_ask_for_nothing():
    plain = create_model("resnet18")
    assert create_model("resnet18", pretrained=False, weights=None) == plain
    assert create_model("resnet18", drop_rate=0.0, drop_path_rate=0.0) == plain
    assert create_model("resnet18", drop_rate=None, drop_path_rate=None, in_chans=None) == plain
    small = create_model("replknet_3", drop_path_rate=None)
    assert small == create_model("replknet_3")
