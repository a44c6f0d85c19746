"""Detectors from mmdetection's files and back."""

import functools
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import replk_jax
from replk_jax import Detector, check_equivalence, checkpoint
from replk_jax.detection.fcos import FCOSHead
from replk_jax.detection.fpn import FPN
from replk_jax.detection.pretrained_table import PRETRAINED_DETECTORS
from replk_jax.detection.protocol import DetectionProtocol
from replk_jax.detection.registry import create_detector
from replk_jax.detection.roi_heads import CascadeRoIHead, StandardRoIHead
from replk_jax.detection.rpn import RPNHead
from replk_jax.detection.single_stage import SingleStageDetector
from replk_jax.detection.two_stage import TwoStageDetector
from replk_jax.models.repvgg import RepVGGArchitecture
from replk_jax.models.resnet import ResNetArchitecture
from replk_jax.models.variables import abstract_variables
from replk_jax.torch_import import detectors, infer_architecture, load_torch, save_torch
from replk_jax.torch_import.composites import split
from replk_jax.torch_import.convert import by_official_name, to_state_dict
from replk_jax.torch_import.families import family_of
from replk_jax.torch_import.reader import read
from replk_jax.torch_import.structures import Structure
from replk_jax.torch_import.writer import write_torch
from replk_jax.vision import label_sets
from tests import reference_data
from tests.helpers import random_variables
from tests.torch_import.archives import add_entries
from tests.torch_import.full_size import weights_by_rule
from tests.vision.test_images import picture

FOLDERS = {"fcos": "downstream/fcos", "cascade": "downstream/cascade_mask_rcnn"}
MANIFESTS = sorted(reference_data.ROOT.glob("downstream/[fc][ca]*/manifests/*.json"))
REPLKNET = replk_jax.RepLKNetArchitecture((5, 3), (1, 1), (4, 6), small_kernel=3)
REPVGG = RepVGGArchitecture((1, 1, 1, 1), (4, 4, 6, 8, 10))
RESNET = ResNetArchitecture((1, 1, 1, 1), (4, 6, 8, 10))
SETTINGS = "assumed, since neither the weights, a configuration"


def load(path, *args, **kwargs):
    """Loads a file that has neither a configuration nor a known name."""
    with pytest.warns(UserWarning, match=SETTINGS):
        return load_torch(path, *args, **kwargs)


def assert_equal_trees(actual, wanted):
    assert jax.tree.structure(actual) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, actual, wanted)


@functools.cache
def tiny(kind="fcos", architecture=REPLKNET, **fields):
    """A small network with random variables.

    Args:
      kind: "fcos", or the RoI head of a two-stage detector: "standard" or "cascade".
      architecture: of the backbone.
      **fields: of the RoI head.
    """
    backbone = replk_jax.create_model(architecture, num_classes=None, features_only=True)
    common = {"backbone": backbone, "num_classes": 3}
    if kind == "fcos":
        model = SingleStageDetector(
            **common,
            neck=FPN(channels=4, start_level=1, extra_convs=True, relu_before_extra_convs=True),
            bbox_head=FCOSHead(channels=32, num_convs=1),
        )
    else:
        sizes = {
            "box_conv_channels": 256, "box_fc_channels": 5, "mask_channels": 4, "mask_convs": 1,
        }  # fmt: skip
        head = {"standard": StandardRoIHead, "cascade": CascadeRoIHead}[kind]
        model = TwoStageDetector(
            **common,
            neck=FPN(channels=4),
            rpn_head=RPNHead(channels=4),
            roi_head=head(**{**sizes, **fields}),
        )
    return model, random_variables(model)


def tiny_weights(kind="fcos", **changes):
    """The state dict of `tiny(kind)`; None leaves a tensor out."""
    model, variables = tiny(kind)
    weights = {**to_state_dict(variables, model), **changes}
    return {name: value for name, value in weights.items() if value is not None}


def written(path, weights, **entries):
    write_torch(path, weights)
    if entries:
        add_entries(path, **entries)
    return path


# --- Reference data ----------------------------------------------------------------------


def golden_weights(kind):
    return reference_data.arrays(f"{FOLDERS[kind]}/small/weights.npz")


@reference_data.required
class TestReferenceData:
    @pytest.mark.parametrize("kind", FOLDERS)
    def test_the_same_file_again(self, kind, tmp_path):
        weights = golden_weights(kind)
        model, variables = load(written(tmp_path / "f.pth", weights))
        save_torch(variables, model, tmp_path / "again.pth")
        again = read(tmp_path / "again.pth")
        manifest = reference_data.ROOT / FOLDERS[kind] / "small/weights_manifest.json"
        assert entries(again) == entries_of(manifest)
        for name, value in weights.items():
            if not name.endswith("num_batches_tracked"):  # they start anew
                np.testing.assert_array_equal(np.asarray(again[name]), value)

    def test_outputs_of_fcos(self, tmp_path):
        """Of the pyramid and the head, of a file that is loaded.

        mmdetection's README allows 5e-5 of the largest value for feature maps in float32.
        """
        model, variables = load(written(tmp_path / "f.pth", golden_weights("fcos")))
        stored = reference_data.arrays(f"{FOLDERS['fcos']}/small/backbone_maps.npz")
        images = reference_data.nhwc(stored["image"])
        _, found = jax.jit(functools.partial(model.apply, method="comparable"))(variables, images)
        wanted = reference_data.arrays(f"{FOLDERS['fcos']}/small/head_outputs.npz")
        for level in range(5):
            for ours, theirs in (
                (found.logits, "cls"), (found.distances, "reg"), (found.centerness, "centerness"),
            ):  # fmt: skip
                expected = reference_data.nhwc(wanted[f"{theirs}_{level}"])
                limit = 5e-5 * np.abs(expected).max()
                np.testing.assert_allclose(ours[level], expected, rtol=0, atol=limit)


def entries_of(path):
    """Keys, shapes and dtypes of a manifest."""
    listed = json.loads(path.read_text())
    return [(entry["key"], tuple(entry["shape"]), entry["dtype"]) for entry in listed]


def entries(state_dict):
    return [(key, tuple(value.shape), str(value.dtype)) for key, value in state_dict.items()]


def official(path):
    """The network that the manifest is of."""
    kind, size = path.stem.split("_")
    kind = {"fcos": "fcos", "cascade": "cascade_mask_rcnn"}[kind]
    return create_detector(f"{kind}_replknet_{size}_coco")


@reference_data.required
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
class TestManifests:
    def test_recognized(self, path):
        """By names and shapes, and, for losses alone, by the settings of what was published."""
        shapes = {key: jax.ShapeDtypeStruct(shape, kind) for key, shape, kind in entries_of(path)}
        backbone, heads = split(shapes)
        heads = detectors.official_names(heads)
        wanted = official(path)
        backbone = family_of(wanted.backbone).infer_model(backbone)
        (settings, *_) = (
            entry.settings
            for entry in PRETRAINED_DETECTORS
            if create_detector(entry.model).describe() == wanted.describe()
        )
        assert detectors.infer_model(heads, backbone, settings).describe() == wanted.describe()
        alone = detectors.infer_model(heads, backbone, {})
        if isinstance(alone, TwoStageDetector):
            losses = {"box_loss": "giou", "box_loss_weight": 10.0}
            alone = alone.clone(roi_head=alone.roi_head.clone(**losses))
        assert alone.describe() == wanted.describe()

    @pytest.mark.exhaustive
    def test_state_dict(self, path):
        """Names, shapes, dtypes and order."""
        model = official(path)
        variables = jax.tree.map(
            lambda leaf: np.broadcast_to(np.ones((), leaf.dtype), leaf.shape),
            abstract_variables(model),
        )
        assert entries(to_state_dict(variables, model)) == entries_of(path)


@reference_data.required
@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("manifest", "name", "like"),
    [
        ("fcos_31b", "model.pth", "fcos_replknet_31b_coco.in1k"),
        ("cascade_31b", "RepLKNet-31B_ImageNet-22K_CascMaskRCNN_COCO.pth", None),
    ],
)
def test_full_size(manifest, name, like, tmp_path):
    """An official file: its settings by its name or `like`, merged, and objects found with it."""
    (path,) = (path for path in MANIFESTS if path.stem == manifest)
    written(tmp_path / name, weights_by_rule(entries_of(path)))
    network = checkpoint.load(tmp_path / name, like=like)
    assert network.model.describe() == official(path).describe()
    assert network.class_names == label_sets.find("coco").class_names
    image = picture(160, 128)
    images = jnp.asarray(image[None], jnp.float32) / 128 - 1
    # Merging changes the order of float32 sums over 31 x 31 positions and 84 layers.
    assert check_equivalence(network.model, network.variables, images).max_rel < 1e-3
    protocol = DetectionProtocol((160, 128))
    detector = Detector(network.model, network.variables, protocol, network.class_names)
    masks = manifest == "cascade_31b"
    (found,) = detector(image, masks=masks)
    assert np.isfinite(found.boxes).all()
    assert not masks or found.masks.shape == (len(found.boxes), 128, 160)


# --- Round trips -------------------------------------------------------------------------


class TestRoundTrip:
    @pytest.mark.parametrize(
        ("kind", "architecture", "fields"),
        [
            ("fcos", REPVGG, {}),
            (
                "standard",
                RESNET,
                {"box_size": 3, "masks": False, "mask_convs": 4, "mask_channels": 256},
            ),
            ("standard", REPLKNET, {"class_agnostic": True, "box_size": 5}),
            ("cascade", REPLKNET, {"box_convs": 1, "box_conv_channels": 4, "box_fcs": 1}),
        ],
    )
    def test_kinds(self, kind, architecture, fields, tmp_path):
        model, variables = tiny(kind, architecture, **fields)
        save_torch(variables, model, tmp_path / "f.safetensors")
        loaded, again = load(tmp_path / "f.safetensors")
        assert loaded.describe() == model.describe()
        assert_equal_trees(again, variables)

    def test_merged(self, tmp_path):
        """The branches of the backbone; the heads have no batch norms to fold."""
        model, variables = tiny()
        save_torch(variables, model, tmp_path / "f.pth", merged=True)
        assert infer_architecture(tmp_path / "f.pth").structure is Structure.MERGED
        loaded, merged = load(tmp_path / "f.pth")
        assert loaded.bbox_head == model.clone(deploy=True).bbox_head
        wanted = replk_jax.reparameterize(variables)
        assert jax.tree.structure(merged) == jax.tree.structure(wanted)
        # The file's kernels are summed in PyTorch's order, and then folded.
        near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
        jax.tree.map(near, merged, wanted)

    def test_every_batch_norm_fused(self, tmp_path):
        """As another tool may write it."""
        model, variables = tiny("cascade", RESNET, box_convs=1, box_conv_channels=4)
        merged = replk_jax.reparameterize(variables)
        weights = by_official_name(merged, model.clone(deploy=True))
        assert not any("running_var" in name for name in weights)
        loaded, again = load(written(tmp_path / "f.pth", weights))
        assert loaded.deploy
        assert_equal_trees(again, merged)

    def test_not_published(self, tmp_path):
        with pytest.raises(ValueError, match="mmdetection has no heads without batch norms"):
            save_torch({}, tiny()[0].clone(deploy=True), tmp_path / "f.pth")

    def test_names_of_mmdetection_1(self, tmp_path):
        weights = {
            name.replace("bbox_head.conv_", "bbox_head.fcos_"): value
            for name, value in tiny_weights().items()
        }
        assert any("fcos_centerness" in name for name in weights)
        loaded, variables = load(written(tmp_path / "f.pth", weights))
        assert loaded == tiny()[0]
        assert_equal_trees(variables, tiny()[1])

    def test_other_classes(self, tmp_path):
        """All layers that depend on the number of classes are drawn anew."""
        path = written(tmp_path / "f.pth", tiny_weights("cascade"))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model, _ = load_torch(path, num_classes=5, reset_head=True)
        text = "\n".join(str(warning.message) for warning in caught)
        assert model.num_classes == 5
        for layer in ("fc_cls", "fc_reg"):
            assert f"roi_head/bbox_head_2/{layer}" in text
        assert "roi_head/mask_head_2/conv_logits" in text


# --- Configurations ----------------------------------------------------------------------


NORM = "mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]"
FCOS_2 = f"""
model = dict(
    type='FCOS',
    backbone=dict(type='RepLKNet', out_indices=(0, 1)),
    neck=dict(type='FPN', start_level=1, add_extra_convs='on_output', num_outs=5,
              relu_before_extra_convs=False),
    bbox_head=dict(type='FCOSHead', num_classes=3, strides=[8, 16, 32, 64, 128],
                   norm_cfg=dict(type='GN', num_groups=2, requires_grad=True),
                   norm_on_bbox=True, centerness_on_reg=True, center_sampling=True,
                   regress_ranges=((-1, 32), (32, 64), (64, 128), (128, 256), (256, 100000000.0))),
    test_cfg=dict(nms_pre=500, min_bbox_size=0, score_thr=0.1,
                  nms=dict(type='nms', iou_threshold=0.6), max_per_img=50))
data = dict(test=dict(pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(1333, 800), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True),
        dict(type='RandomFlip'),
        dict(type='Normalize', {NORM}, to_rgb=True),
        dict(type='Pad', size_divisor=32),
        dict(type='ImageToTensor', keys=['img']),
        dict(type='Collect', keys=['img'])])]))
"""
CASCADE_3 = f"""
model = dict(
    type='CascadeRCNN',
    data_preprocessor=dict(type='DetDataPreprocessor', {NORM}, bgr_to_rgb=True, pad_mask=True,
                           pad_size_divisor=32),
    backbone=dict(type='RepLKNet', out_indices=[0, 1]),
    neck=dict(type='FPN', num_outs=5),
    rpn_head=dict(type='RPNHead',
        anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[0.5, 1.0, 2.0],
                              strides=[4, 8, 16, 32, 64]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0],
                        target_stds=[1.0, 1.0, 1.0, 1.0])),
    roi_head=dict(type='CascadeRoIHead', num_stages=3,
        bbox_roi_extractor=dict(type='SingleRoIExtractor', featmap_strides=[4, 8, 16, 32],
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=2)),
        bbox_head=[
            dict(bbox_coder=dict(target_stds=[0.1, 0.1, 0.2, 0.2])),
            dict(bbox_coder=dict(target_stds=[0.05, 0.05, 0.1, 0.1])),
            dict(bbox_coder=dict(target_stds=[0.033, 0.033, 0.067, 0.067]))],
        mask_roi_extractor=dict(type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=2))),
    test_cfg=dict(
        rpn=dict(nms_pre=700, max_per_img=600, nms=dict(type='nms', iou_threshold=0.8),
                 min_bbox_size=0),
        rcnn=dict(score_thr=0.2, nms=dict(type='nms', iou_threshold=0.4), max_per_img=30,
                  mask_thr_binary=0.5)))
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='Resize', scale=(640, 480), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs')]
"""


class TestCheckpoints:
    def test_mmdetection_2(self, tmp_path):
        """The configuration determines everything, so nothing is assumed."""
        model, variables = tiny()
        meta = {"config": FCOS_2, "CLASSES": ("cat", "dog", "cow")}
        path = written(tmp_path / "f.pth", tiny_weights(), meta=meta)
        loaded = checkpoint.load(path)
        assert_equal_trees(loaded.variables, variables)
        head = model.bbox_head.clone(
            num_groups=2,
            norm_on_bbox=True,
            centerness_on_reg=True,
            center_sampling=True,
            regression_limits=(32.0, 64.0, 128.0, 256.0),
            candidates_per_level=500,
            score_threshold=0.1,
            nms_threshold=0.6,
            max_detections=50,
        )
        neck = model.neck.clone(relu_before_extra_convs=False)
        assert loaded.model == model.clone(bbox_head=head, neck=neck)
        assert loaded.class_names == ("cat", "dog", "cow")
        protocol = loaded.preprocessing
        assert (protocol.limits, protocol.pad_multiple) == ((1333, 800), 32)
        assert protocol.mean == (0.485, 0.456, 0.406)
        assert infer_architecture(path).assumed == ""

    def test_mmdetection_3(self, tmp_path):
        """With buffers of the preprocessor."""
        model, variables = tiny("cascade")
        buffers = {
            f"data_preprocessor.{name}": np.zeros((3, 1, 1), np.float32) for name in ("mean", "std")
        }
        meta = {
            "cfg": CASCADE_3,
            "dataset_meta": {"classes": ("a", "b", "c")},
            "mmengine_version": "0.10.1",
        }
        weights = tiny_weights("cascade", **buffers)
        path = written(tmp_path / "f.pth", weights, meta=meta, message_hub={})
        loaded = checkpoint.load(path)
        assert_equal_trees(loaded.variables, variables)
        rpn_head = model.rpn_head.clone(
            anchor_scale=4.0, test_pre_nms=700, test_post_nms=600, nms_threshold=0.8
        )
        roi_head = model.roi_head.clone(
            sampling_ratio=2, score_threshold=0.2, nms_threshold=0.4, max_detections=30
        )
        assert loaded.model == model.clone(rpn_head=rpn_head, roi_head=roi_head)
        assert loaded.class_names == ("a", "b", "c")
        assert (loaded.preprocessing.limits, loaded.preprocessing.pad_multiple) == ((640, 480), 32)
        found = infer_architecture(path)
        assert (found.assumed, found.ignored) == ("", ())

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (("scales=[4]", "scales=[4, 8]"), "scales must be one number"),
            (("num_outs=5)", "num_outs=6, add_extra_convs=True)"), "add_extra_convs must be"),
            (("0.033, 0.033, 0.067, 0.067", "0.05, 0.05, 0.1, 0.1"), "cannot be represented"),
            (("type='nms', iou_threshold=0.4", "type='soft_nms'"), "type of nms must be nms"),
            (("strides=[4, 8,", "strides=[8, 8,"), "heads with strides of 8-8-16-32-64"),
            (("ratios=[0.5, 1.0, 2.0]", "ratios=[1.0]"), "3 anchors per position"),
            (("sampling_ratio=2)),\n        bbox_head", "sampling_ratio=0)),\n        bbox_head"),
             "sampling_ratio of boxes and masks differ"),
            (("mask_thr_binary=0.5", "mask_thr_binary=0.4"), "mask_thr_binary must be 0.5"),
            (("iou_threshold=0.4", "iou_threshold=0.4, class_agnostic=True"),
             "class_agnostic must be False"),
            (("featmap_strides=[4,", "finest_scale=112, featmap_strides=[4,"),
             "finest_scale must be 56"),
            (("type='AnchorGenerator'", "type='LegacyAnchorGenerator'"),
             "anchor_generator must be AnchorGenerator"),
            (("scales=[4]", "scales=[4], center_offset=0.5"), "center_offset must be 0"),
            (("scales=[4]", "scales=[4], base_sizes=[8, 16, 32, 64, 128]"), "base_sizes must be"),
            (("type='DeltaXYWHBBoxCoder'", "type='LegacyDeltaXYWHBBoxCoder'"),
             "bbox_coder must be DeltaXYWHBBoxCoder"),
            (("dict(target_stds=[0.05,", "dict(clip_border=False, target_stds=[0.05,"),
             "clip_border must be True"),
            (("num_outs=5", "num_outs=5, act_cfg=dict(type='ReLU')"), "act_cfg of the neck"),
            (("num_outs=5", "num_outs=5, upsample_cfg=dict(mode='bilinear')"), "mode must be"),
        ],
    )  # fmt: skip
    def test_other_settings(self, change, match, tmp_path):
        """Those that cannot be read are left out, with a warning; those that do not fit raise."""
        config = CASCADE_3.replace(*change)
        assert config != CASCADE_3
        meta = {"cfg": config}
        path = written(tmp_path / "f.pth", tiny_weights("cascade"), meta=meta)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                load_torch(path)
                message = "\n".join(str(warning.message) for warning in caught)
            except ValueError as error:
                message = str(error)
        assert match in message

    def test_like(self, tmp_path):
        """The settings, the preprocessing and the class names of a published checkpoint."""
        path = written(tmp_path / "f.pth", tiny_weights("cascade"))
        with warnings.catch_warnings(action="error"):
            loaded = checkpoint.load(path, like="cascade_mask_rcnn_replknet_xl_coco.meg73m")
        assert loaded.preprocessing.mean == (0.5, 0.5, 0.5)
        assert loaded.class_names is None  # of other classes
        with pytest.raises(ValueError, match="name one of fcos_replknet_31b_coco"):
            checkpoint.load(path, like="upernet_replknet_31b_ade20k.in1k")


# --- Other networks and faults -----------------------------------------------------------


def empty(*shape):
    return np.zeros(shape, np.float32)


class TestFaults:
    @pytest.mark.parametrize(
        ("kind", "changes", "match"),
        [
            ("fcos", {"bbox_head.scales.1.scale": None}, r"missing: bbox_head\.scales\.1\.scale"),
            ("fcos", {"bbox_head.retina_cls.weight": empty(3, 4, 3, 3)}, "RetinaHead, which is"),
            ("fcos", {"bbox_head.gn.weight": empty(3)}, "tensors of no supported detector"),
            ("fcos", {"roi_head.bbox_head.fc_cls.weight": empty(3, 4)}, "mixes tensors"),
            ("fcos", {"neck.lateral_convs.0.conv.weight": empty(4, 7, 1, 1)}, "sees feature maps"),
            ("fcos", {"bbox_head.conv_cls.weight": None}, "conv_cls.weight is missing"),
            (
                "cascade",
                {"roi_head.bbox_head.0.shared_fcs.0.weight": empty(5, 99)},
                "no square of positions",
            ),
            (
                "cascade",
                {"roi_head.bbox_head.3.fc_cls.weight": empty(4, 5)},
                "has 4 stages, and only 3",
            ),
            (
                "cascade",
                {"roi_head.bbox_head.1.fc_cls.weight": empty(9, 5)},
                r"wrong shape: roi_head\.bbox_head\.1\.fc_cls",
            ),
            (
                "cascade",
                {"roi_head.mask_iou_head.fcs.0.weight": empty(4, 5)},
                "MaskScoringRoIHead",
            ),
        ],
    )
    def test_tensors(self, kind, changes, match, tmp_path):
        path = written(tmp_path / "f.pth", tiny_weights(kind, **changes))
        with (
            warnings.catch_warnings(action="ignore"),
            pytest.raises(ValueError, match=rf"(?s)f\.pth: .*{match}"),
        ):
            load_torch(path)

    def test_backbone_alone(self, tmp_path):
        model, variables = tiny()
        path = written(tmp_path / "f.pth", tiny_weights())
        with pytest.warns(UserWarning, match="tensors of other networks are left out"):
            _, loaded = load_torch(path, model.backbone)
        assert_equal_trees(loaded, {kind: tree["backbone"] for kind, tree in variables.items()})
