"""ResNet against a network of `lax` operations that reads torchvision's tensors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import replk_jax
from replk_jax.export.program import plain_function
from replk_jax.models.resnet import ResNetArchitecture
from replk_jax.models.variables import abstract_variables
from tests.helpers import assert_equal_in_float64, random_images, random_variables

# Stage 1 has a block that adds its input as it is, and one that must widen it.
TINY = ResNetArchitecture(layers=(2, 1, 1), channels=(4, 5, 6))


def make(**fields):
    return replk_jax.create_model(TINY, **{"num_classes": 3, **fields})


def torchvision_state(variables):
    """Tensors by torchvision's names and in its layout, written apart from the importer."""
    params, stats = variables["params"], variables["batch_stats"]
    state = {"fc.weight": params["fc"]["kernel"].T, "fc.bias": params["fc"]["bias"]}

    def conv_norm(conv, norm, params, stats):
        state[f"{conv}.weight"] = params["conv"]["kernel"].transpose(3, 2, 0, 1)
        state[f"{norm}.weight"], state[f"{norm}.bias"] = params["bn"]["scale"], params["bn"]["bias"]
        for statistic, leaf in stats["bn"].items():
            state[f"{norm}.running_{statistic}"] = leaf

    conv_norm("conv1", "bn1", params["conv1"], stats["conv1"])
    for stage, depth in enumerate(TINY.layers, 1):
        for i in range(depth):
            block, name = f"layer{stage}_{i}", f"layer{stage}.{i}"
            for part in params[block]:
                conv, norm = f"{name}.{part}", f"{name}.{part.replace('conv', 'bn')}"
                if part == "downsample":
                    conv, norm = f"{name}.downsample.0", f"{name}.downsample.1"
                conv_norm(conv, norm, params[block][part], stats[block][part])
    return state


def reference(state, x, stride_in_1x1=False):
    """torchvision's network on NHWC images: logits and the feature map of the last stage.

    A block with `conv3` is a bottleneck, another one basic; `stride_in_1x1` is Caffe's variant.
    """

    def conv_norm(x, conv, norm, stride=1):
        weight = state[f"{conv}.weight"]
        padding = weight.shape[-1] // 2
        y = lax.conv_general_dilated(x, weight, (stride, stride), [(padding, padding)] * 2)
        names = ("running_mean", "running_var", "weight", "bias")
        mean, var, scale, bias = (state[f"{norm}.{name}"][None, :, None, None] for name in names)
        return scale * (y - mean) / jnp.sqrt(var + 1e-5) + bias

    def relu(x):
        return jnp.where(x > 0, x, 0)

    x = relu(conv_norm(x.transpose(0, 3, 1, 2), "conv1", "bn1", 2))
    # After a ReLU, zeros around the map are never more than what is in a window.
    padded = jnp.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    rows, columns = ((size - 1) // 2 + 1 for size in x.shape[2:])
    windows = [
        padded[:, :, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
        for i in range(3)
        for j in range(3)
    ]
    x = jnp.max(jnp.stack(windows), 0)
    for stage, depth in enumerate(TINY.layers, 1):
        for i in range(depth):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            first, second = (stride, 1) if stride_in_1x1 else (1, stride)
            if f"{name}.conv3.weight" in state:
                y = relu(conv_norm(x, f"{name}.conv1", f"{name}.bn1", first))
                y = relu(conv_norm(y, f"{name}.conv2", f"{name}.bn2", second))
                y = conv_norm(y, f"{name}.conv3", f"{name}.bn3")
            else:
                y = relu(conv_norm(x, f"{name}.conv1", f"{name}.bn1", stride))
                y = conv_norm(y, f"{name}.conv2", f"{name}.bn2")
            if f"{name}.downsample.0.weight" in state:
                x = conv_norm(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = relu(x + y)
    logits = x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"][None]
    return logits, x.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("fields", [{}, {"block": "basic"}, {"stride_in_1x1": True}], ids=str)
def test_logits_maps_and_gradients_are_the_references(fields):
    """The gradients are those of a receptive field: of the last map's centre, by the image."""
    with jax.enable_x64(True):
        model = make(dtype=jnp.float64, param_dtype=jnp.float64, **fields)
        in_1x1 = model.architecture.stride_in_1x1
        variables, images = random_variables(model), random_images(model, 2, (49, 64))
        backbone = model.clone(out_indices=(2,))

        def centre(maps):
            return jnp.sum(jax.nn.relu(maps[:, maps.shape[1] // 2, maps.shape[2] // 2]))

        @jax.jit
        def both(variables, images):
            state = torchvision_state(variables)
            ours = jax.grad(lambda x: centre(backbone.apply(variables, x)[0]))(images)
            theirs = jax.grad(lambda x: centre(reference(state, x, in_1x1)[1]))(images)
            maps = backbone.apply(variables, images)
            actual = model.apply(variables, images), *maps, ours
            return actual, (*reference(state, images, in_1x1), theirs)

        actual, expected = both(variables, images)
        assert np.abs(expected[2]).max() > 0
        for ours, theirs in zip(actual, expected, strict=True):
            assert_equal_in_float64(ours, theirs)


def test_pools_as_converters_understand(monkeypatch):
    """jax2onnx replaces Flax's pooling by a function that takes the window by name, and for which
    all padding is either "SAME" or "VALID"."""

    def max_pool(inputs, *, window_shape, strides, padding):
        assert padding == "VALID"
        return flax_max_pool(inputs, window_shape, strides, padding)

    model = make()
    variables = random_variables(model)
    images = random_images(model, 1, (33, 32))
    expected = jax.jit(model.apply)(variables, images)
    flax_max_pool = nn.max_pool
    monkeypatch.setattr("flax.linen.max_pool", max_pool)
    actual = jax.jit(plain_function(model, variables))(images)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters", "convolutions", "gflops"),
    [
        ("resnet_18", 11_689_512, 20, 1.814),
        pytest.param("resnet_34", 21_797_672, 36, 3.664, marks=pytest.mark.exhaustive),
        ("resnet_50", 25_557_032, 53, 4.089),
        pytest.param("resnet_101", 44_549_160, 104, 7.801, marks=pytest.mark.exhaustive),
        pytest.param("resnet_152", 60_192_808, 155, 11.514, marks=pytest.mark.exhaustive),
    ],
)
def test_counts_are_torchvisions(name, parameters, convolutions, gflops):
    """As in the metadata of its weights: multiply-adds of convolutions and classifier."""
    model = replk_jax.create_model(name)
    variables = abstract_variables(model)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters
    assert len(jax.tree.leaves(variables)) == 5 * convolutions + 2
    merged = jax.tree.leaves(abstract_variables(model.clone(deploy=True)))
    # A bias in place of a scale and a bias.
    norms = sum(leaf.size for leaf in jax.tree.leaves(variables["batch_stats"])) // 2
    assert sum(leaf.size for leaf in merged) == parameters - norms
    assert len(merged) == 2 * convolutions + 2
    counts = replk_jax.summary(model, 224)
    assert counts.training.parameters == parameters
    assert round((counts.training.convolution + counts.training.linear) / 1e9, 3) == gflops


def test_output_shapes():
    model = make(out_indices=(2, 0, 1), dtype=jnp.bfloat16)
    images = random_images(model, 2, (49, 33))

    def outputs(model, **settings):
        variables = abstract_variables(model)
        result = jax.eval_shape(lambda v: model.apply(v, images, **settings), variables)
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), result)

    assert outputs(model) == (
        ((2, 4, 3, 24), jnp.bfloat16),
        ((2, 13, 9, 16), jnp.bfloat16),
        ((2, 7, 5, 20), jnp.bfloat16),
    )
    classifier = model.clone(out_indices=None)
    assert outputs(classifier) == ((2, 3), jnp.float32)
    assert outputs(classifier, features=True) == ((2, 24), jnp.float32)
    assert outputs(classifier.clone(num_classes=None, deploy=True)) == ((2, 24), jnp.float32)


def test_variables_do_not_depend_on_the_image():
    """Neither the stride nor the width of stage 2's first block can be seen on a 1 x 1 map."""
    model = make(channels=(4, 4, 4))
    small, large = (abstract_variables(model, (size, size)) for size in (4, 64))
    assert small == large
    assert "downsample" in small["params"]["layer2_0"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": (2, 1)}, "one entry per stage"),
        ({"layers": (), "channels": ()}, "one entry per stage"),
        ({"layers": (2, 0, 1)}, "layers must be positive whole"),
        ({"channels": (4, 5.5, 6)}, "channels must be positive whole"),
        ({"in_channels": 0}, "in_channels must be positive whole"),
        ({"block": "basi"}, "block must be one of basic, bottleneck; got 'basi'"),
        ({"stride_in_1x1": 1}, "stride_in_1x1 must be True or False; got 1"),
        ({"stride_in_1x1": True, "block": "basic"}, "no 1 x 1 convolution"),
    ],
)
def test_impossible_architectures(change, message):
    with pytest.raises(ValueError, match=message):
        replk_jax.create_model(TINY, **change)
