"""Heads and networks against mmsegmentation's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from replk_jax.ops.resize import resize_bilinear
from replk_jax.segmentation.deeplab import DeepLabV3PlusHead
from replk_jax.segmentation.fcn import FCNHead
from replk_jax.segmentation.pspnet import PSPHead
from replk_jax.torch_import import names
from tests import reference_data
from tests.downstream import assert_close
from tests.segmentation import golden

pytestmark = reference_data.required

BOTH = pytest.mark.parametrize("align_corners", [False, True], ids=["ac0", "ac1"])
# Of the largest value of an array; the README of the reference data.
OUTPUTS, GRADIENTS = 5e-5, 1e-3


def captured(module, variables, x):
    """What `module(x)` returns, and the outputs of its submodules by path."""
    output, state = jax.jit(
        lambda variables, x: module.apply(variables, x, capture_intermediates=True)
    )(variables, x)
    flat = traverse_util.flatten_dict(state["intermediates"], sep="/")
    return output, {path: value[0] for path, value in flat.items()}


@BOTH
def test_a_whole_network(align_corners):
    """The feature maps of the backbone, of the head, and the logits of both heads."""
    arrays, suffix = golden.load("whole_even"), f"ac{int(align_corners)}"
    model, variables = golden.tiny_upernet(align_corners=align_corners)
    images = jnp.asarray(arrays["input"])
    logits, inner = captured(model, variables, images)
    assert_close(logits, arrays[f"decode_logits_{suffix}"], OUTPUTS, "logits")
    feature_maps = inner["backbone/__call__"]
    for i, feature_map in enumerate(feature_maps):
        assert_close(feature_map, arrays[f"backbone_{i}"], OUTPUTS, f"feature map {i}")
    for module, name in (("bottleneck", "psp"), ("fpn_bottleneck", "decode_feature")):
        after_relu = np.maximum(inner[f"decode_head/{module}/__call__"], 0)
        assert_close(after_relu, arrays[f"{name}_{suffix}"], OUTPUTS, name)
    if not align_corners:
        head = {name: tree["auxiliary_head"] for name, tree in variables.items()}
        auxiliary = model.auxiliary_head.clone(parent=None).apply(head, feature_maps)
        assert_close(auxiliary, arrays["aux_logits"], OUTPUTS, "auxiliary logits")


HEADS = {
    "psp": PSPHead(channels=16, num_classes=7),
    "deeplabv3plus": DeepLabV3PlusHead(channels=16, num_classes=7, low_level_channels=8),
    "deeplabv3plus_small_dilation": DeepLabV3PlusHead(
        channels=16, num_classes=7, low_level_channels=8, dilations=(1, 2, 3, 5)
    ),
    "fcn_concat": FCNHead(channels=16, num_classes=7, in_index=2),
}


def head_and_variables(name, arrays, **fields):
    weights = golden.section(arrays, f"{name}/weights/")
    head = HEADS[name].clone(**fields)
    # The one with small dilations sees the third map, of 32 channels.
    count = 3 if name == "deeplabv3plus_small_dilation" else 4
    maps = [jnp.asarray(arrays[f"map_{i}"]) for i in range(count)]
    return head, golden.fill(head, weights, maps), maps


@BOTH
@pytest.mark.parametrize("name", HEADS)
def test_heads(name, align_corners):
    arrays, suffix = golden.load("heads"), f"ac{int(align_corners)}"
    head, variables, maps = head_and_variables(name, arrays, align_corners=align_corners)
    logits, inner = captured(head, variables, maps)
    expected = arrays.get(f"{name}/logits_{suffix}", arrays.get(f"{name}/logits"))
    assert_close(logits, expected, OUTPUTS, name)
    if name == "psp":
        feature = np.maximum(inner["bottleneck/__call__"], 0)
        assert_close(feature, arrays[f"psp/feature_{suffix}"], OUTPUTS, "feature")


def cross_entropy(logits, labels, align_corners):
    """Resized to the labels; ignored pixels add 0, and the mean divides by all."""
    logits = resize_bilinear(logits, labels.shape[1:], align_corners)
    log_probabilities = jax.nn.log_softmax(logits)
    valid = labels != 255
    picked = jnp.take_along_axis(
        log_probabilities, jnp.where(valid, labels, 0)[..., None], axis=-1
    )[..., 0]
    return -jnp.sum(jnp.where(valid, picked, 0)) / labels.size


def trained(align_corners=False):
    """Losses, gradients and new statistics of a step with batch statistics, without dropout."""
    arrays = golden.load("train")
    model, variables = golden.tiny_upernet(align_corners=align_corners, dropout_rate=0.0)
    images = jnp.asarray(arrays["input"])
    labels = jnp.asarray(arrays["label"]).reshape(2, 64, 96)

    @jax.jit
    def run(params):
        def loss(params):
            (logits, auxiliary), updated = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            decode, aux = (cross_entropy(x, labels, align_corners) for x in (logits, auxiliary))
            return decode + 0.4 * aux, (decode, 0.4 * aux, updated)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (total, (decode, auxiliary, updated)), gradients = run(variables["params"])
    return arrays, (total, decode, auxiliary), updated, {"params": gradients}


# The same through the loss of the task is tests/train/tasks/test_segmentation_losses.py.
@pytest.mark.exhaustive
def test_a_training_step():
    arrays, losses, updated, gradients = trained()
    expected = [arrays[name] for name in ("total", "loss/decode.loss_ce", "loss/aux.loss_ce")]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)

    by_name = names.by_key(gradients, str)
    checked = golden.section(arrays, "grad/")
    for name, value in checked.items():
        assert_close(names.to_torch(np.asarray(by_name[name][1])), value, GRADIENTS, name)
    squares = sum(float(jnp.sum(jnp.square(leaf))) for leaf in jax.tree.leaves(gradients))
    np.testing.assert_allclose(np.sqrt(squares), arrays["grad_norm_all"], rtol=1e-4)

    statistics = names.by_key(updated, str)
    after = golden.section(arrays, "after/")
    for name, value in after.items():
        assert_close(statistics[name][1], value, OUTPUTS, name)
    assert (len(checked), len(after)) == (37, 12)


@pytest.mark.exhaustive
def test_a_training_step_with_aligned_corners():
    arrays, losses, _, _ = trained(align_corners=True)
    expected = [arrays[f"loss_ac1/{head}.loss_ce"] for head in ("decode", "aux")]
    np.testing.assert_allclose(losses[1:], expected, rtol=1e-5)
