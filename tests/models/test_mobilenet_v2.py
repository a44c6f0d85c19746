"""MobileNet V2 against a network of `lax` operations that reads torchvision's tensors."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import replk_jax
from replk_jax.models.mobilenet_v2 import MobileNetV2Architecture
from replk_jax.models.variables import abstract_variables
from tests import reference_data
from tests.helpers import assert_equal_in_float64, random_images, random_variables

# A shortcut in the first block of all, and a stage that begins with a stride and keeps its width.
TINY = MobileNetV2Architecture(
    kernel_sizes=(3, 3, 3, 3, 3),
    layers=(1, 2, 1, 1, 2),
    channels=(4, 6, 6, 6, 8),
    strides=(1, 2, 2, 2, 2),
    expansions=(1, 3, 2, 2, 2),
    stem_channels=4,
    last_channels=16,
)
# Of its seven blocks, by output stride.
STRIDES = {
    32: (1, 2, 1, 2, 2, 2, 1),
    16: (1, 2, 1, 2, 2, 1, 1),
    8: (1, 2, 1, 2, 1, 1, 1),
}
DILATIONS = {
    32: (1, 1, 1, 1, 1, 1, 1),
    16: (1, 1, 1, 1, 1, 1, 2),
    8: (1, 1, 1, 1, 1, 2, 4),
}
MIXED = {"kernel_sizes": (5, 3, 7, 9, 13), "small_kernel": 3}
TWO_STAGES = {
    "kernel_sizes": (3, 9),
    "small_kernel": 3,
    "layers": (1, 1),
    "channels": (4, 6),
    "strides": (1, 2),
    "expansions": (1, 3),
}


def make(**fields):
    return replk_jax.create_model(TINY, **{"num_classes": 4, **fields})


def in_float64(**fields):
    """A model, variables with which its ReLU6 meet their ceiling, and images."""
    model = make(dtype=jnp.float64, param_dtype=jnp.float64, **fields)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 2 * leaf if path[-1].key == "scale" else leaf, random_variables(model)
    )
    return model, variables, random_images(model, 2, (49, 64))


def torchvision_state(variables, layers):
    """Tensors by torchvision's names, in its order and layout, written apart from the importer.

    A parallel small kernel, of which torchvision knows nothing, is `small` beside the large one.
    """
    state = {}

    def conv_norm(conv, norm, *path):
        params, stats = variables["params"], variables["batch_stats"]
        for name in path:
            params, stats = params[name], stats[name]
        state[f"{conv}.weight"] = params["conv"]["kernel"].transpose(3, 2, 0, 1)
        state[f"{norm}.weight"] = params["bn"]["scale"]
        state[f"{norm}.bias"] = params["bn"]["bias"]
        state[f"{norm}.running_mean"] = stats["bn"]["mean"]
        state[f"{norm}.running_var"] = stats["bn"]["var"]

    conv_norm("features.0.0", "features.0.1", "conv1")
    blocks = [f"layer{s}_{i}" for s, depth in enumerate(layers, 1) for i in range(depth)]
    for n, block in enumerate(blocks, 1):
        convs = variables["params"][block]
        last = len(convs) - 1
        for j in range(last):
            name, path = f"features.{n}.conv.{j}", (block, f"conv_{j}")
            if "lkb_origin" in convs[f"conv_{j}"]:
                conv_norm(f"{name}.0", f"{name}.1", *path, "lkb_origin")
                conv_norm(f"{name}.small.0", f"{name}.small.1", *path, "small_conv")
            else:
                conv_norm(f"{name}.0", f"{name}.1", *path)
        name = f"features.{n}.conv"
        conv_norm(f"{name}.{last}", f"{name}.{last + 1}", block, f"conv_{last}")
    n = len(blocks) + 1
    conv_norm(f"features.{n}.0", f"features.{n}.1", "conv2")
    classifier = variables["params"]["classifier"]
    state["classifier.1.weight"] = classifier["kernel"].T
    state["classifier.1.bias"] = classifier["bias"]
    return state


def reference(state, x, output_stride=32, shortcuts=True, dilation=1, train=False, blocks=7):
    """TINY, or its first blocks, as torchvision has it, on NHWC images; with dilated kernels.

    Returns the logits; the new running statistics by name; and what entered each ReLU6 at most.
    """
    statistics, peaks = {}, []

    def conv(x, name, stride=1, dilation=1):
        weight = state[f"{name}.weight"]
        padding = dilation * (weight.shape[-1] // 2)
        return lax.conv_general_dilated(
            x,
            weight,
            (stride, stride),
            [(padding, padding)] * 2,
            rhs_dilation=(dilation, dilation),
            feature_group_count=x.shape[1] // weight.shape[1],
        )

    def norm(x, name):
        means = {"running_mean": x.mean((0, 2, 3)), "running_var": x.var((0, 2, 3), ddof=1)}
        for statistic, new in means.items():
            statistics[f"{name}.{statistic}"] = 0.9 * state[f"{name}.{statistic}"] + 0.1 * new
        if train:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        else:
            mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        scale, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        mean, var, scale, bias = (v[None, :, None, None] for v in (mean, var, scale, bias))
        return scale * (x - mean) / jnp.sqrt(var + 1e-5) + bias

    def relu6(x):
        peaks.append(x.max())
        return jnp.clip(x, 0, 6)

    x = relu6(norm(conv(x.transpose(0, 3, 1, 2), "features.0.0", 2), "features.0.1"))
    geometry = zip(STRIDES[output_stride], DILATIONS[output_stride], STRIDES[32], strict=True)
    for n, (stride, of_block, stride_of_32) in enumerate(list(geometry)[:blocks], 1):
        name, y, j, dilated = f"features.{n}.conv", x, 0, dilation * of_block
        if f"{name}.1.0.weight" in state:
            y, j = relu6(norm(conv(y, f"{name}.0.0"), f"{name}.0.1")), 1
        wide = norm(conv(y, f"{name}.{j}.0", stride, dilated), f"{name}.{j}.1")
        if f"{name}.{j}.small.0.weight" in state:
            small = conv(y, f"{name}.{j}.small.0", stride, dilated)
            wide += norm(small, f"{name}.{j}.small.1")
        y = norm(conv(relu6(wide), f"{name}.{j + 1}"), f"{name}.{j + 2}")
        x = x + y if shortcuts and stride_of_32 == 1 and x.shape == y.shape else y
    n += 1
    x = relu6(norm(conv(x, f"features.{n}.0"), f"features.{n}.1")).mean((2, 3))
    logits = x @ state["classifier.1.weight"].T + state["classifier.1.bias"][None]
    return logits, statistics, jnp.stack(peaks)


@reference_data.required
def test_tensors_are_torchvisions():
    """All of them, in its order, but for the counters of batches."""
    model = replk_jax.create_model("mobilenet_v2")
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape), abstract_variables(model))
    state = torchvision_state(variables, model.architecture.layers)
    expected = [
        (name, shape)
        for name, shape, _ in reference_data.manifest("mobilenet_v2.torchvision.train.json")
        if not name.endswith("num_batches_tracked")
    ]
    assert [(name, leaf.shape) for name, leaf in state.items()] == expected
    assert len(jax.tree.leaves(variables)) == len(expected) == 314 - 52


@reference_data.required
def test_counts_are_torchvisions():
    facts = json.loads((reference_data.ROOT / "manifests/macs.json").read_text())["MobileNetV2-1.0"]
    facts = facts["224"]["train"]
    counts = replk_jax.summary(replk_jax.create_model("mobilenet_v2"), 224)
    assert counts.training.parameters == facts["params"] == 3_504_872
    assert counts.training.convolution == counts.merged.convolution == facts["conv_macs"]
    assert counts.training.linear == facts["linear_macs"]
    assert counts.training.batch_norm_elements == facts["batchnorm_elements"]
    assert counts.training.pooled_elements == facts["global_pool_input_elements"]
    # Each of the 17,056 channels has a bias in place of a scale and a bias.
    assert counts.merged.parameters == 3_504_872 - 17_056


# Channels and output size of the depthwise convolutions, stage by stage.
DEPTHWISE = [
    [(32, 112)],
    [(96, 56), (144, 56)],
    [(144, 28), (192, 28), (192, 28)],
    [(192, 14), (384, 14), (384, 14), (384, 14)],
    [(384, 14), (576, 14), (576, 14)],
    [(576, 7), (960, 7), (960, 7)],
    [(960, 7)],
]


@pytest.mark.parametrize(
    ("name", "kernel_sizes", "reparam"),
    [
        pytest.param("mobilenet_v2_9", (9,) * 7, False, marks=pytest.mark.exhaustive),
        ("mobilenet_v2_9_reparam", (9,) * 7, True),
        ("mobilenet_v2_13", (13,) * 7, False),
        pytest.param("mobilenet_v2_13_reparam", (13,) * 7, True, marks=pytest.mark.exhaustive),
        ("mobilenet_v2_last_7", (3, 3, 3, 3, 3, 7, 7), True),
        pytest.param(
            "mobilenet_v2_last_13", (3, 3, 3, 3, 3, 13, 13), True, marks=pytest.mark.exhaustive
        ),
    ],
)
def test_counts_of_the_papers_rows(name, kernel_sizes, reparam):
    """What the kernels have beyond 3 x 3, and a 3 x 3 kernel with batch norm beside them."""
    added = branch = added_macs = branch_macs = 0
    for k, blocks in zip(kernel_sizes, DEPTHWISE, strict=True):
        for channels, size in blocks:
            added += channels * (k**2 - 9)
            added_macs += channels * (k**2 - 9) * size**2
            if reparam and k > 3:
                branch += channels * (9 + 2)
                branch_macs += channels * 9 * size**2
    counts = replk_jax.summary(replk_jax.create_model(name), 224)
    assert counts.merged.parameters == 3_487_816 + added
    assert counts.training.parameters == 3_504_872 + added + branch
    assert counts.merged.convolution == 299_494_272 + added_macs
    assert counts.training.convolution == 299_494_272 + added_macs + branch_macs


@pytest.mark.parametrize(("name", "reach"), [("dilated_4", 9), ("dilated_6", 13)])
def test_dilated_rows_cost_what_3x3_kernels_do(name, reach):
    """Table 11: 3.5M parameters and 300M multiply-adds, at the reach of 9 x 9 and 13 x 13."""
    model = replk_jax.create_model(f"mobilenet_v2_{name}")
    assert model.architecture.kernel_sizes == (3,) * 7
    assert 2 * model.architecture.dilation + 1 == reach
    counts = replk_jax.summary(model, 224)
    assert counts.training.parameters == 3_504_872
    assert counts.training.convolution == counts.merged.convolution == 299_494_272
    assert abstract_variables(model) == abstract_variables(replk_jax.create_model("mobilenet_v2"))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"kernel_sizes": (13,) * 5, "shortcuts": False},
        {**MIXED, "output_stride": 8},
        {"dilation": 4},
        pytest.param({**MIXED, "output_stride": 16, "dilation": 2}, marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_logits_are_the_references(fields):
    """13 x 13 is larger than the maps of all stages but the first two."""
    with jax.enable_x64(True):
        model, variables, images = in_float64(**fields)

        @jax.jit
        def both(variables, images):
            state = torchvision_state(variables, TINY.layers)
            arch = model.architecture
            settings = (model.output_stride or 32, arch.shortcuts, arch.dilation)
            expected, _, peaks = reference(state, images, *settings)
            return model.apply(variables, images), expected, peaks

        logits, expected, peaks = both(variables, images)
        assert (peaks > 6).mean() > 0.8
        assert_equal_in_float64(logits, expected)


def test_training_is_the_references():
    """Logits, gradients and statistics of one batch."""
    layers = TWO_STAGES["layers"]
    with jax.enable_x64(True):
        model, variables, images = in_float64(**TWO_STAGES, implementation="xla")

        def ours(params):
            tree = {**variables, "params": params}
            logits, new = model.apply(tree, images, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(logits)), (logits, new["batch_stats"])

        def theirs(params):
            state = torchvision_state({**variables, "params": params}, layers)
            logits, statistics, _ = reference(state, images, train=True, blocks=2)
            return jnp.sum(jnp.sin(logits)), (logits, statistics)

        def run(function):
            differentiated = jax.jit(jax.grad(function, has_aux=True))
            grads, (logits, statistics) = differentiated(variables["params"])
            return logits, jax.tree.leaves(grads), statistics

        logits, grads, statistics = run(ours)
        expected_logits, expected_grads, expected_statistics = run(theirs)
    assert_equal_in_float64(logits, expected_logits)
    state = torchvision_state({**variables, "batch_stats": statistics}, layers)
    for name, expected in expected_statistics.items():
        assert_equal_in_float64(state[name], expected)
    largest = max(np.abs(expected).max() for expected in expected_grads)
    assert np.isfinite(largest)
    for grad, expected in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, expected, rtol=0, atol=1e-10 * largest)


def test_dilation_replaces_stride():
    """Every map of the dilated networks has that of the strided one among its points: exactly,
    borders too, since rows and columns are counted from the first and lie outside together."""
    with jax.enable_x64(True):
        model, variables, images = in_float64(**MIXED, out_indices=tuple(range(5)))
        by_stride = {stride: model.clone(output_stride=stride) for stride in (32, 16, 8)}
        maps = jax.jit(lambda v, x: {s: m.apply(v, x) for s, m in by_stride.items()})(
            variables, images
        )
    for output_stride, finer in maps.items():
        for coarse, fine in zip(maps[32], finer, strict=True):
            step = fine.shape[2] // coarse.shape[2]
            assert_equal_in_float64(fine[:, ::step, ::step], coarse)
        assert finer[-1].shape == (2, -(-49 // output_stride), 64 // output_stride, 8)


def test_output_stride_leaves_the_variables_alone():
    shapes = [abstract_variables(make(output_stride=stride, **MIXED)) for stride in (32, 16, 8)]
    assert shapes[0] == shapes[1] == shapes[2]


SIZES = {  # of the maps of 224 x 200 images
    32: [(112, 100), (56, 50), (28, 25), (14, 13), (14, 13), (7, 7), (7, 7)],
    16: [(112, 100), (56, 50), (28, 25), (14, 13), (14, 13), (14, 13), (14, 13)],
    8: [(112, 100), (56, 50), (28, 25), (28, 25), (28, 25), (28, 25), (28, 25)],
}


def shapes(model, images, **settings):
    """Shapes and dtypes of what a model returns."""
    result, _ = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), images, **settings)
    )
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), result)


@pytest.mark.parametrize(("output_stride", "deploy"), [(32, False), (16, True), (8, False)])
def test_maps(output_stride, deploy):
    stages = (6, 0, 1, 2, 3, 4, 5)
    model = replk_jax.create_model(
        "mobilenet_v2_last_7",
        output_stride=output_stride,
        out_indices=stages,
        deploy=deploy,
        dtype=jnp.bfloat16,
    )
    channels = (16, 24, 32, 64, 96, 160, 320)
    assert shapes(model, random_images(model, 2, (224, 200))) == tuple(
        ((2, *SIZES[output_stride][s], channels[s]), jnp.bfloat16) for s in stages
    )


@pytest.mark.parametrize("deploy", [False, True])
def test_logits_and_features_are_float32(deploy):
    model = make(deploy=deploy, dtype=jnp.bfloat16, **MIXED)
    headless, images = model.clone(num_classes=None), random_images(model, 2, (49, 33))
    assert shapes(model, images) == ((2, 4), jnp.float32)
    assert shapes(model, images, features=True) == ((2, 16), jnp.float32)
    assert shapes(headless, images) == ((2, 16), jnp.float32)


def test_features_enter_the_classifier_through_dropout():
    model = make(dropout_rate=0.5, **TWO_STAGES)
    headless = model.clone(num_classes=None)
    variables, x = random_variables(model), random_images(model, 8)

    def trained(model, seed=0):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)[0]

    @jax.jit
    def run(variables):
        in_eval = model.apply(variables, x), model.apply(variables, x, features=True)
        plain = trained(headless.clone(dropout_rate=0.0))
        return in_eval, plain, [trained(headless, seed) for seed in (0, 1)], trained(model)

    (logits, features), plain, drawn, trained_logits = run(variables)
    classifier = variables["params"]["classifier"]

    def classified(features):
        return features @ classifier["kernel"] + classifier["bias"][None]

    np.testing.assert_allclose(logits, classified(features), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(trained_logits, classified(drawn[0]), rtol=1e-5, atol=1e-5)
    for dropped in drawn:
        kept = dropped[plain > 0] > 0
        assert 0.3 < kept.mean() < 0.7
        np.testing.assert_allclose(dropped[plain > 0], 2 * plain[plain > 0] * kept, rtol=1e-5)
    assert not np.array_equal(*drawn)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel_sizes": (3, 3, 3, 3, 3, 3, 6)}, r"odd.*\[6\]"),
        ({"kernel_sizes": (9,) * 7, "small_kernel": 4}, r"odd.*\[4\]"),
        ({"kernel_sizes": (9, 9)}, "one entry per stage"),
        ({"strides": (1, 2)}, "one entry per stage"),
        ({"strides": (1, 2, 2, 3, 1, 2, 1)}, "strides must be 1 or 2"),
        ({"expansions": (1, 6, 6, 6, 6, 6, 0.5)}, "expansions must be positive whole"),
        ({"channels": (16, 24, 32, 64, 96, 160, 0)}, "channels must be positive whole"),
        ({"small_kernel": 3}, "None builds no small kernel"),
        ({"small_kernel": 0}, "small_kernel must be positive"),
        ({"stem_channels": 1.5}, "stem_channels must be positive whole"),
        ({"last_channels": None}, "last_channels must be positive whole"),
        ({"in_channels": 0}, "in_channels must be positive whole"),
        ({"dilation": 0}, "dilation must be positive whole"),
        ({"shortcuts": "no"}, "shortcuts must be True or False"),
        (dict.fromkeys(("kernel_sizes", "layers", "channels", "strides", "expansions"), ()),
         "one entry per stage"),
    ],
)  # fmt: skip
def test_impossible_architectures(change, message):
    with pytest.raises(ValueError, match=message):
        MobileNetV2Architecture(**change)


def test_lists_and_numpys_integers_are_as_good():
    kernel_sizes, last_channels = np.array([3] * 7), np.int64(1280)
    architecture = MobileNetV2Architecture(kernel_sizes, last_channels=last_channels)
    assert architecture == MobileNetV2Architecture()
    assert hash(architecture) == hash(MobileNetV2Architecture())


@pytest.mark.parametrize(
    "fields",
    [{"output_stride": 4}, {"output_stride": 24}, {"dropout_rate": 1.0}, {"dropout_rate": -0.1}],
)
def test_fields_that_make_no_sense(fields):
    model = make(**fields)
    with pytest.raises(ValueError, match=next(iter(fields))):
        model.init(jax.random.key(0), random_images(model))
