"""`create_detector`: names, defaults, and what it refuses; and the initial weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax import create_detector, create_model, list_detectors
from replk_jax.detection.fcos import FCOSHead
from replk_jax.detection.fpn import FPN
from replk_jax.detection.registry import KINDS, find_detector
from replk_jax.detection.table import DETECTORS
from replk_jax.models.variables import by_path
from tests.helpers import TINY


def test_fcos_of_the_paper():
    """mmdetection's defaults, and RepLKNet's four feature maps."""
    model = create_detector("fcos_replknet_31b_coco")
    assert model == create_detector("fcos", "replknet_31b", 80)
    assert model.backbone.out_indices == (0, 1, 2, 3)
    assert model.neck == FPN(
        start_level=1, extra_convs=True, relu_before_extra_convs=True, num_outputs=5, channels=256
    )
    assert model.bbox_head == FCOSHead(num_classes=80)
    assert model.pyramid_strides == (8, 16, 32, 64, 128)
    assert DETECTORS["fcos_replknet_31b_coco"].image_size == (800, 1280)


@pytest.mark.parametrize("name", ["FCOS", "fcos", "FCOS-RepLKNet-31B-COCO"])
def test_names_however_they_are_spelt(name):
    backbone = TINY if len(name) == 4 else None
    fields = {} if backbone is None else {"neck_start_level": 0}
    assert create_detector(name, backbone, 7, **fields).num_classes == 7


def test_lists_of_networks():
    assert list_detectors() == [*DETECTORS]
    assert list_detectors("fcos*") == list_detectors("FCOS*") == ["fcos_replknet_31b_coco"]
    assert find_detector("FCOS_replknet-31b_coco") == "fcos_replknet_31b_coco"
    assert find_detector("fcos") is None


def test_fields_reach_their_parts():
    model = create_detector(
        "fcos", "mobilenet_v2", 3, neck_channels=64, channels=96, max_detections=300,
        dtype=jnp.bfloat16, backbone_options={"dropout_rate": 0.1},
    )  # fmt: skip
    assert (model.neck.channels, model.bbox_head.channels) == (64, 96)
    assert model.bbox_head.max_detections == 300
    assert model.backbone.out_indices == (1, 2, 4, 6)
    assert model.backbone.dropout_rate == 0.1
    assert {model.dtype, model.neck.dtype} == {jnp.dtype("bfloat16")}


def test_a_backbone_that_is_built():
    backbone = create_model(TINY, out_indices=(0, 1))
    model = create_detector("fcos", backbone, 3)
    assert model.backbone == backbone
    assert model.pyramid_strides == (8, 16, 32, 64, 128)


def test_arguments_for_parts_are_unambiguous():
    """No two parts of a kind of network, and no part and the network, take one name."""
    for kind in KINDS.values():
        fields = kind.part_fields()
        count = sum(len([f for f in fields.values() if f[0] == part]) for part in kind.parts)
        assert count == len(fields)
        assert {part for part, _ in fields.values()} == set(kind.parts)
        assert set(kind.defaults) <= set(fields)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("fcoss", TINY, 5), {}, ValueError, "network 'fcoss'. Did you mean 'fcos'"),
        (("upernet", TINY, 5), {}, ValueError, r"Kinds are fcos.*list_detectors\(\)"),
        (("fcos",), {}, TypeError, "needs a backbone"),
        (("fcos", TINY), {}, TypeError, r"create_detector\('fcos', ...\) needs num_classes"),
        (("fcos_replknet_31b_coco", TINY), {}, TypeError, "has the backbone replknet_31b"),
        (("fcos", TINY, 5), {"pool_scales": 1}, TypeError, "Unknown field pool_scales. The parts"),
        (("fcos", TINY, 5), {"drop_path_rate": 0.1}, TypeError, "go into backbone_options"),
        (
            ("fcos", TINY, 5),
            {"backbone_options": {"dtype": jnp.bfloat16}},
            TypeError,
            "give it to create_detector itself",
        ),
        (
            ("fcos", create_model(TINY, out_indices=(0, 1)), 5),
            {"backbone_options": {"drop_path_rate": 0.1}},
            TypeError,
            "backbone_options are for a backbone by name",
        ),
        (("fcos", create_model(TINY), 5), {}, ValueError, "needs the feature maps of its backbone"),
        (("fcos", "replknet_99", 5), {}, ValueError, "Unknown model 'replknet_99'"),
        (("fcos", TINY, 0), {}, ValueError, "needs num_classes"),
        (("fcos", TINY, 5), {"neck_channels": 0}, ValueError, "channels of a FPN cannot be 0"),
        (("fcos", TINY, 5), {"channels": 40}, ValueError, "multiple of num_groups, 32; got 40"),
        (("fcos", TINY, 5), {"score_threshold": 1.5}, ValueError, "threshold .* cannot be 1.5"),
        (("fcos", TINY, 5), {"max_detections": 0}, ValueError, "max_detections .* cannot be 0"),
        (
            ("fcos", TINY, 5),
            {"regression_limits": (64, 32, 128, 256)},
            ValueError,
            "regression_limits must be in ascending order",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        create_detector(*arguments, **options)


@pytest.mark.parametrize("name", ["fcos", "faster_rcnn", "Cascade-Mask-RCNN"])
def test_create_model_names_the_right_function(name):
    with pytest.raises(ValueError, match=r"a detection network, which replk_jax\.create_detector "):
        create_model(name)


def test_initialisation():
    """As mmdetection's: the neck uniform by Xavier, the head normal with a deviation of 0.01.

    The bounds on deviations of normal kernels are four standard errors.
    """
    neck = FPN(channels=64, start_level=1, extra_convs=True, num_outputs=4)
    head = FCOSHead(channels=64, num_convs=1, num_classes=100, regression_limits=(64, 128, 256))
    maps = [jnp.zeros((1, size, size, 32)) for size in (8, 4, 2)]

    @jax.jit
    def init(key):
        pyramid, variables = neck.init_with_output(key, maps)
        return {"neck": variables["params"], "head": head.init(key, pyramid)["params"]}

    params = jax.tree.map(np.asarray, by_path(init(jax.random.key(0))))
    for path, value in params.items():
        if path.startswith("head/scales"):
            assert value == 1, path
        elif path.endswith("gn/scale"):
            assert (value == 1).all(), path
        elif path == "head/conv_cls/bias":
            np.testing.assert_allclose(value, -4.59512, rtol=1e-6)
        elif path.endswith("bias"):
            assert not value.any(), path
        elif path.startswith("neck"):
            rows, columns, inputs, outputs = value.shape
            bound = np.sqrt(6 / (rows * columns * (inputs + outputs)))
            assert 0.98 * bound < np.abs(value).max() <= bound, path
            np.testing.assert_allclose(value.std(), bound / np.sqrt(3), rtol=0.05)
        else:
            rtol = 4 / np.sqrt(2 * value.size)
            np.testing.assert_allclose(value.std(), 0.01, rtol=rtol, err_msg=path)
            assert np.abs(value).max() > 0.025, path  # not uniform
    assert sum(path.endswith("kernel") for path in params) == 2 + 4 + 2 + 3
