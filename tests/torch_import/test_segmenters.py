"""Segmenters from mmsegmentation's files and back."""

import dataclasses
import functools
import json
import warnings

import jax
import numpy as np
import pytest
from flax import traverse_util

import replk_jax
from replk_jax import checkpoint
from replk_jax.models.fitting import Fitting
from replk_jax.models.repvgg import RepVGGArchitecture
from replk_jax.models.resnet import ResNetArchitecture
from replk_jax.models.variables import abstract_variables
from replk_jax.segmentation.fcn import FCNHead
from replk_jax.segmentation.registry import create_segmenter
from replk_jax.segmentation.segmenter import SegmentationNetwork
from replk_jax.torch_import import infer_architecture, load_torch, save_torch, segmenters
from replk_jax.torch_import.composites import split
from replk_jax.torch_import.convert import by_official_name, convert_state_dict, to_state_dict
from replk_jax.torch_import.entries import Selection
from replk_jax.torch_import.families import family_of
from replk_jax.torch_import.load import load_contents
from replk_jax.torch_import.reader import read
from replk_jax.torch_import.structures import Structure
from replk_jax.torch_import.writer import write_torch
from replk_jax.vision import label_sets
from tests import reference_data
from tests.helpers import random_images, random_variables
from tests.torch_import import test_families
from tests.torch_import.archives import add_entries
from tests.torch_import.full_size import weights_by_rule

SMALL = "downstream/segmentation/small"
MANIFESTS = reference_data.ROOT / "downstream/segmentation/manifests"
REPLKNET = replk_jax.RepLKNetArchitecture((7, 5), (1, 1), (8, 12), small_kernel=3)
REPVGG = RepVGGArchitecture((1, 2, 1, 1), (6, 8, 10, 12, 14))
# Backbones lack the last convolution, whose usual width a reader assumes.
MOBILENET = dataclasses.replace(test_families.MOBILENET, last_channels=1280)
RESNET = ResNetArchitecture((1, 1, 2, 1), (4, 6, 8, 10))
# Of mmsegmentation's README: 5e-5 of the largest value for feature maps and logits in float32.
TOLERANCE = 5e-5
SETTINGS = "assumed, since neither the weights, a configuration"


def load(path, *args, **kwargs):
    """Loads a file that has neither a configuration nor a known name."""
    with pytest.warns(UserWarning, match=SETTINGS):
        return load_torch(path, *args, **kwargs)


def assert_equal_trees(actual, wanted):
    assert jax.tree.structure(actual) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, actual, wanted)


def assert_near(actual, wanted):
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


@functools.partial(jax.jit, static_argnums=0)
def run(model, variables, images):
    return model.apply(variables, images)


@functools.cache
def tiny(head="upernet", architecture=REPLKNET, **fields):
    """A small network with random variables."""
    backbone = replk_jax.create_model(architecture, num_classes=None, features_only=True)
    if architecture is MOBILENET:
        backbone = backbone.clone(out_indices=(1, 2, 4, 6))
    model = create_segmenter(head, backbone, **{"num_classes": 3, "channels": 8, **fields})
    return model, random_variables(model)


def tiny_weights(**changes):
    """The state dict of `tiny()`; None leaves a tensor out."""
    model, variables = tiny()
    weights = {**to_state_dict(variables, model), **changes}
    return {name: value for name, value in weights.items() if value is not None}


def written(path, weights, **entries):
    write_torch(path, weights)
    if entries:
        add_entries(path, **entries)
    return path


# --- Reference data ----------------------------------------------------------------------


def golden_weights(head=None):
    """The tiny network of the reference data, with another decode head if one is named."""
    weights = reference_data.arrays(f"{SMALL}/weights.npz")
    if head is None:
        return weights
    start = f"{head}/weights/"
    others = {
        f"decode_head.{name.removeprefix(start)}": array
        for name, array in reference_data.arrays(f"{SMALL}/heads.npz").items()
        if name.startswith(start)
    }
    return {n: v for n, v in weights.items() if not n.startswith("decode_head.")} | others


@reference_data.required
class TestReferenceData:
    @pytest.mark.parametrize("align_corners", [False, True])
    def test_logits(self, align_corners, tmp_path):
        """Of both heads, where the configuration in the file determines align_corners."""
        heads = dict(align_corners=align_corners, pool_scales=(1, 2, 3, 6))
        config = f"model = dict(decode_head={heads}, backbone=dict(type='RepLKNet'))"
        meta = {"meta": {"config": config, "CLASSES": tuple("abcdefg")}}
        model, variables = load_torch(written(tmp_path / "f.pth", golden_weights(), **meta))
        assert model.align_corners == align_corners
        case = reference_data.arrays(f"{SMALL}/whole_even.npz")
        images = reference_data.nhwc(case["input"])
        logits = run(model, variables, images)
        assert_near(logits, reference_data.nhwc(case[f"decode_logits_ac{int(align_corners)}"]))

        @jax.jit
        def auxiliary(variables, images):
            return model.bind(variables).auxiliary_head(model.bind(variables).backbone(images))

        assert_near(auxiliary(variables, images), reference_data.nhwc(case["aux_logits"]))

    @pytest.mark.parametrize(
        ("case", "head", "logits"),
        [
            ("psp", "PSPHead", "logits_ac0"),
            ("deeplabv3plus", "DeepLabV3PlusHead", "logits_ac0"),
            ("fcn_concat", "FCNHead", "logits"),
        ],
    )
    def test_other_heads(self, case, head, logits, tmp_path):
        model, variables = load(written(tmp_path / "f.pth", golden_weights(case)))
        assert type(model.decode_head).__name__ == head
        arrays = reference_data.arrays(f"{SMALL}/heads.npz")
        maps = [reference_data.nhwc(arrays[f"map_{i}"]) for i in range(4)]
        of_head = {kind: tree["decode_head"] for kind, tree in variables.items()}
        if head == "FCNHead":  # the case is on the third feature map, whose width identifies it
            assert model.decode_head.in_index == -2
        assert_near(
            jax.jit(model.decode_head.apply)(of_head, maps),
            reference_data.nhwc(arrays[f"{case}/{logits}"]),
        )

    def test_the_same_file_again(self, tmp_path):
        weights = golden_weights()
        model, variables = load(written(tmp_path / "f.pth", weights))
        save_torch(variables, model, tmp_path / "again.pth")
        again = read(tmp_path / "again.pth")
        assert list(again) == list(weights)
        for name, value in weights.items():
            if name.endswith("num_batches_tracked"):
                assert again[name].dtype == np.int64
            else:
                np.testing.assert_array_equal(np.asarray(again[name]), value)


def manifest(name):
    entries = json.loads((MANIFESTS / f"{name}.json").read_text())
    return [(entry["key"], tuple(entry["shape"]), entry["dtype"]) for entry in entries]


def official(name):
    """The network that the manifest is of."""
    head = {"psp": "pspnet", "deeplabv3plus": "deeplabv3plus"}.get(name.split("_")[0], "upernet")
    size = next(size for size in ("31b", "31l", "xl") if size in name)
    backbone = replk_jax.create_model(
        f"replknet_{size}",
        num_classes=None,
        features_only=True,
        norm_intermediate_features=size == "xl",
    )
    return create_segmenter(head, backbone, 19 if "cityscapes" in name else 150)


@reference_data.required
class TestManifests:
    @pytest.mark.parametrize("name", sorted(path.stem for path in MANIFESTS.glob("*.json")))
    def test_recognized(self, name):
        """By names and shapes alone."""
        shapes = {key: jax.ShapeDtypeStruct(shape, dtype) for key, shape, dtype in manifest(name)}
        backbone, heads = split(shapes)
        wanted = official(name)
        backbone = family_of(wanted.backbone).infer_model(backbone)
        heads = segmenters.official_names(heads)
        model = segmenters.infer_model(heads, backbone, {})
        assert model.describe() == wanted.describe()

    @pytest.mark.parametrize(
        "name",
        [
            "ade20k_xl",
            "deeplabv3plus_31b_ade20k",
            *(
                pytest.param(name, marks=pytest.mark.exhaustive)
                for name in ("ade20k_31b", "ade20k_31l", "cityscapes_31b", "psp_31b_ade20k")
            ),
        ],
    )
    def test_state_dict(self, name):
        """Names, shapes, dtypes and order."""
        model = official(name)
        variables = jax.tree.map(
            lambda leaf: np.broadcast_to(np.ones((), leaf.dtype), leaf.shape),
            abstract_variables(model),
        )
        found = to_state_dict(variables, model).items()
        assert [(key, value.shape, value.dtype.name) for key, value in found] == manifest(name)

    @pytest.mark.parametrize("name", ["mobilenet_v2", "repvgg_a0", "repvgg_d2se"])
    @pytest.mark.parametrize("form", ["train", "deploy"])
    def test_names_of_backbones(self, name, form):
        """Those of mmpretrain's classifiers, in their order, without the last layers."""
        if (name, form) == ("mobilenet_v2", "deploy"):
            pytest.skip("MobileNet V2 has no merged structure")
        wanted = [entry[0] for entry in reference_data.manifest(f"{name}.mmpretrain.{form}.json")]
        model = replk_jax.create_model(name, deploy=form == "deploy")
        variables = jax.tree.map(
            lambda leaf: np.broadcast_to(np.ones((), leaf.dtype), leaf.shape),
            abstract_variables(model),
        )
        state_dict = to_state_dict(variables, model)
        found = family_of(model).mm_names(state_dict, model.architecture)
        without_head = [key for key in found if not key.startswith("head.")]
        assert [f"backbone.{key}" for key in without_head] == [
            key for key in wanted if not key.startswith("head.")
        ]


# --- Round trips -------------------------------------------------------------------------


HEADS = ("upernet", "pspnet", "deeplabv3", "deeplabv3plus", "fcn")
BACKBONES = (REPVGG, MOBILENET, RESNET)


def without_strides(model):
    return model.clone(backbone=model.backbone.clone(output_stride=None))


class TestRoundTrip:
    @pytest.mark.parametrize("head", HEADS)
    def test_heads(self, head, tmp_path):
        model, variables = tiny(head)
        save_torch(variables, model, tmp_path / "f.pth")
        loaded, again = load(tmp_path / "f.pth")
        assert loaded == model
        assert_equal_trees(again, variables)

    @pytest.mark.parametrize("architecture", BACKBONES, ids=lambda a: type(a).__name__)
    def test_backbones(self, architecture, tmp_path):
        """In mmpretrain's names, and a head that sees all feature maps."""
        model, variables = tiny(architecture=architecture, auxiliary_channels=None)
        save_torch(variables, model, tmp_path / "f.safetensors")
        loaded, again = load(tmp_path / "f.safetensors")
        assert loaded == model
        assert_equal_trees(again, variables)

    @pytest.mark.parametrize(
        ("head", "fields"),
        [
            ("pspnet", {"pool_channels": 3}),
            ("deeplabv3plus", {"low_level_channels": None}),
            ("fcn", {"num_convs": 1, "concat_input": False, "kernel_size": 1}),
            ("fcn", {"num_convs": 0}),
        ],
        ids=str,
    )
    def test_fields(self, head, fields, tmp_path):
        model, variables = tiny(head, **fields)
        save_torch(variables, model, tmp_path / "f.pth")
        loaded, _ = load(tmp_path / "f.pth")
        shown = {name: getattr(loaded.decode_head, name) for name in fields}
        assert shown == ({"num_convs": 0} if fields == {"num_convs": 0} else fields)

    def test_norms_of_stages(self, tmp_path):
        """As in RepLKNet-XL: also wider depthwise convolutions, and no small kernels."""
        architecture = dataclasses.replace(REPLKNET, small_kernel=None, dw_ratio=1.5)
        backbone = replk_jax.create_model(
            architecture, num_classes=None, features_only=True, norm_intermediate_features=True
        )
        model = create_segmenter("upernet", backbone, 3, channels=8, auxiliary_channels=4)
        variables = random_variables(model)
        state_dict = to_state_dict(variables, model)
        assert "backbone.stages.1.norm.running_var" in state_dict
        # NumPy's files have neither PyTorch's order nor, often, its counters.
        bare = {n: state_dict[n] for n in sorted(state_dict) if "num_batches" not in n}
        loaded, again = load(written(tmp_path / "f.pth", bare))
        assert loaded == model
        assert_equal_trees(again, variables)

    def test_names_in_the_file(self, tmp_path):
        """mmsegmentation's, with mmpretrain's of the backbone."""
        model, variables = tiny(architecture=MOBILENET, auxiliary_channels=None)
        names = list(to_state_dict(variables, model))
        assert names[0] == "backbone.conv1.conv.weight"
        assert "backbone.layer1.0.conv.0.conv.weight" in names
        model, variables = tiny(architecture=REPVGG, auxiliary_channels=None)
        assert "backbone.stage_1.0.branch_3x3.conv.weight" in to_state_dict(variables, model)

    def test_dilated(self, tmp_path):
        """Dilation changes no tensor, and mmsegmentation's configuration has it."""
        model, variables = tiny("deeplabv3", RESNET, auxiliary_channels=None)
        dilated = model.clone(backbone=model.backbone.clone(output_stride=8))
        save_torch(variables, dilated, tmp_path / "f.pth")
        loaded, again = load_torch(tmp_path / "f.pth", dilated)
        assert loaded == dilated
        assert_equal_trees(again, variables)

    @pytest.mark.parametrize("architecture", [REPLKNET, REPVGG], ids=lambda a: type(a).__name__)
    def test_merged(self, architecture, tmp_path):
        """The heads keep their batch norms, which loading folds."""
        model, variables = tiny("fcn", architecture, auxiliary_channels=None)
        save_torch(variables, model, tmp_path / "f.pth", merged=True)
        names = list(read(tmp_path / "f.pth"))
        assert any("decode_head" in name and "running_var" in name for name in names)
        loaded, merged = load(tmp_path / "f.pth")
        assert loaded.deploy
        assert infer_architecture(tmp_path / "f.pth").structure is Structure.MERGED
        images = random_images(model)
        assert_near(run(loaded, merged, images), run(model, variables, images))

    @pytest.mark.parametrize("architecture", [RESNET, REPVGG], ids=lambda a: type(a).__name__)
    def test_every_batch_norm_fused(self, architecture, tmp_path):
        """As another tool may write it."""
        model, variables = tiny(architecture=architecture)
        merged = replk_jax.reparameterize(variables)
        deploy = model.clone(deploy=True)
        written(tmp_path / "f.pth", by_official_name(merged, deploy))
        loaded, again = load(tmp_path / "f.pth")
        assert loaded.deploy
        assert_equal_trees(again, merged)

    def test_converted_without_a_file(self):
        model, variables = tiny(architecture=MOBILENET, auxiliary_channels=None)
        state_dict = to_state_dict(variables, model)
        assert_equal_trees(convert_state_dict(state_dict, model), variables)

    @pytest.mark.parametrize(
        ("model", "merged", "match"),
        [
            (tiny()[0].clone(deploy=True), False, "save the training-time variables"),
            (tiny(architecture=RESNET)[0], True, "torchvision has no merged ResNet"),
            (
                tiny("fcn", num_convs=0, concat_input=False, channels=12)[0],
                False,
                "classifier alone cannot be recognized",
            ),
        ],
        ids=["merged heads", "merged ResNet", "classifier alone"],
    )
    def test_not_published(self, model, merged, match, tmp_path):
        with pytest.raises(ValueError, match=match):
            save_torch({}, model, tmp_path / "f.pth", merged=merged)

    def test_no_names_of_timm(self, tmp_path):
        model, variables = tiny()
        with pytest.raises(ValueError, match="timm has no SegmentationNetwork"):
            save_torch(variables, model, tmp_path / "f.pth", naming="timm")


# --- Wrappers and configurations -----------------------------------------------------------


NORM = "mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]"
MMSEG_0 = f"""
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    backbone=dict(type='RepLKNet', large_kernel_sizes=[9, 7, 5, 3], out_indices=[0, 1]),
    decode_head=dict(type='UPerHead', in_index=[0, 1, 2, 3], pool_scales=(1, 2, 3, 6),
                     channels=8, align_corners=True, norm_cfg=norm_cfg),
    auxiliary_head=dict(type='FCNHead', in_index=0, align_corners=True),
    test_cfg=dict(mode='slide', crop_size=(640, 640), stride=(426, 426)))
data = dict(test=dict(type='ADE20KDataset', pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(2048, 512), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True),
        dict(type='RandomFlip'),
        dict(type='Normalize', {NORM}, to_rgb=True),
        dict(type='ImageToTensor', keys=['img']),
        dict(type='Collect', keys=['img'])])]))
"""
MMSEG_1 = f"""
data_preprocessor = dict(type='SegDataPreprocessor', {NORM}, bgr_to_rgb=True, seg_pad_val=255)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreprocessor', {NORM}, bgr_to_rgb=True),
    backbone=dict(type='mmpretrain.RepLKNet', out_indices=(0, 1)),
    decode_head=dict(type='UPerHead', align_corners=False, pool_scales=(1, 2, 3, 6)),
    auxiliary_head=dict(type='FCNHead', in_index=0, align_corners=False),
    test_cfg=dict(mode='whole'))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 1024), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')]
"""


class TestCheckpoints:
    def test_mmsegmentation_0(self, tmp_path):
        """The configuration determines everything, so nothing is assumed."""
        model, variables = tiny()
        meta = {"config": MMSEG_0, "CLASSES": ("wall", "bed ", "sky"), "PALETTE": [[1, 2, 3]] * 3}
        path = written(tmp_path / "f.pth", tiny_weights(), meta=meta)
        loaded = checkpoint.load(path)
        assert loaded.model == model.clone(align_corners=True)
        assert_equal_trees(loaded.variables, variables)
        assert loaded.class_names == ("wall", "bed", "sky")
        assert loaded.preprocessing.as_dict() == {
            **loaded.preprocessing.as_dict(),
            "kind": "segmentation",
            "limits": [2048, 512],
            "window": 640,
            "stride": 426,
            "flip": False,
        }
        assert loaded.preprocessing_source == "its meta entry"
        assert loaded.preprocessing.mean == (0.485, 0.456, 0.406)
        assert loaded.preprocessing.std == (0.229, 0.224, 0.225)
        assert infer_architecture(path).assumed == ""

    def test_mmsegmentation_1(self, tmp_path):
        """With buffers of the preprocessor."""
        model, variables = tiny()
        buffers = {
            f"data_preprocessor.{name}": np.zeros((3, 1, 1), np.float32) for name in ("mean", "std")
        }
        meta = {
            "cfg": MMSEG_1,
            "dataset_meta": {"classes": ("a", "b", "c"), "palette": [[0, 0, 0]] * 3},
            "mmengine_version": "0.10.1",
        }
        path = written(tmp_path / "f.pth", tiny_weights(**buffers), meta=meta, message_hub={})
        loaded = checkpoint.load(path)
        assert loaded.model == model
        assert_equal_trees(loaded.variables, variables)
        assert loaded.class_names == ("a", "b", "c")
        assert loaded.preprocessing.limits == (2048, 1024)
        assert loaded.preprocessing.window is None
        assert infer_architecture(path).ignored == ()

    @pytest.mark.parametrize("prefer_ema", [False, True])
    def test_ema_of_mmengine(self, prefer_ema, tmp_path):
        """It is in `state_dict`, and the weights themselves are in `ema_state_dict`."""
        weights = tiny_weights()
        doubled = {
            name: value if name.endswith("num_batches_tracked") else 2 * value
            for name, value in weights.items()
        }
        raw = {f"module.{name}": value for name, value in weights.items()}
        contents = {
            "meta": {"mmengine_version": "0.10.1"},
            "message_hub": {},
            "state_dict": read(written(tmp_path / "ema.pth", doubled)),
            "ema_state_dict": read(written(tmp_path / "raw.pth", raw)),
        }
        selection = Selection(prefer_ema=prefer_ema)
        with pytest.warns(UserWarning, match=SETTINGS):
            model, fitted = load_contents(
                contents, selection=selection, source="f.pth", fitting=Fitting()
            )
        assert model == tiny()[0]
        factor = 2 if prefer_ema else 1
        assert_equal_trees(fitted.variables, jax.tree.map(lambda x: factor * x, tiny()[1]))

    @pytest.mark.parametrize("prefix", ["model.", "module.model."])
    def test_in_another_module(self, prefix, tmp_path):
        """The statistics of the images have the prefix too, and are no network."""
        mean = {"data_preprocessor.mean": np.zeros((3, 1, 1), np.float32)}
        weights = {f"{prefix}{name}": value for name, value in (tiny_weights() | mean).items()}
        found = infer_architecture(written(tmp_path / "f.pth", weights))
        assert (found.model, found.ignored, found.faults) == (tiny()[0], (), ())

    def test_wrapped(self, tmp_path):
        """In another entry and with a prefix of DistributedDataParallel."""
        model, variables = tiny()
        weights = {f"module.{name}": value for name, value in tiny_weights().items()}
        loaded, again = load(written(tmp_path / "f.pth", weights, epoch=3))
        assert loaded == model
        assert_equal_trees(again, variables)
        assert infer_architecture(tmp_path / "f.pth").place == "['state_dict'], after 'module.'"

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (("mode='slide'", "mode='grid'"), r"preprocessing in .* mode must be 'whole' or"),
            (("(640, 640)", "(512, 1024)"), r"preprocessing in .* crop_size must be two equal"),
            (("'RandomFlip'", "'RandomCrop'"), r"the step RandomCrop cannot be represented"),
            (("keep_ratio=True", "keep_ratio=False"), r"without keeping their aspect ratio"),
            (("to_rgb=True", "to_rgb=False"), "blue, green, red"),
        ],
    )
    def test_other_protocols(self, change, match, tmp_path):
        config = MMSEG_0.replace(*change)
        assert config != MMSEG_0
        path = written(tmp_path / "f.pth", tiny_weights(), meta={"config": config})
        with pytest.warns(UserWarning, match=match):
            assert checkpoint.load(path).preprocessing is None

    def test_views(self, tmp_path):
        config = MMSEG_0.replace("flip=False", "flip=True, img_ratios=[0.5, 1.0]")
        path = written(tmp_path / "f.pth", tiny_weights(), meta={"config": config})
        protocol = checkpoint.load(path).preprocessing
        assert (protocol.ratios, protocol.flip) == ((0.5, 1.0), True)

    def test_multiples(self, tmp_path):
        resize = "dict(type='Resize', keep_ratio=True),"
        more = f"{resize} dict(type='ResizeToMultiple', size_divisor=32),"
        config = MMSEG_0.replace(resize, more)
        path = written(tmp_path / "f.pth", tiny_weights(), meta={"config": config})
        assert checkpoint.load(path).preprocessing.multiple == 32

    @pytest.mark.parametrize(
        "text", ["model = (", "model = dict(decode_head=dict(align_corners=1))"]
    )
    def test_configuration_that_cannot_be_used(self, text, tmp_path):
        path = written(tmp_path / "f.pth", tiny_weights(), meta={"config": text})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_torch(path)
        messages = [str(warning.message) for warning in caught]
        assert any("meta entry cannot be used" in message for message in messages)
        assert any(SETTINGS in message for message in messages)

    def test_stages_in_another_order(self, tmp_path):
        """The backbone in mmsegmentation returns them in the order of the stages."""
        config = MMSEG_1.replace("out_indices=(0, 1)", "out_indices=(1, 0)")
        path = written(tmp_path / "f.pth", tiny_weights(), meta={"cfg": config})
        assert load_torch(path)[0] == tiny()[0]

    def test_stages_that_the_backbone_lacks(self, tmp_path):
        config = MMSEG_1.replace("out_indices=(0, 1)", "out_indices=(0, 5)")
        path = written(tmp_path / "f.pth", tiny_weights(), meta={"cfg": config})
        with pytest.raises(ValueError, match=r"out_indices=\(0, 5\) of its configuration"):
            load_torch(path)

    def test_configuration_of_the_heads_alone(self, tmp_path):
        """What it lacks is assumed, or taken from `like`; what it has takes precedence."""
        config = "model = dict(decode_head=dict(type='UPerHead', align_corners=True))"
        path = written(tmp_path / "f.pth", tiny_weights(), meta={"config": config})
        with pytest.warns(UserWarning, match=f"{SETTINGS}.*: an output stride of 8"):
            assert load_torch(path)[0].align_corners
        with warnings.catch_warnings(action="error"):
            model, _ = load_torch(path, like="upernet_replknet_31b_ade20k.in1k")
        assert model.align_corners


MOBILENET_D8 = """
model = dict(
    backbone=dict(type='MobileNetV2', out_indices=(1, 2, 4, 6), strides=(1, 2, 2, 1, 1, 1, 1),
                  dilations=(1, 1, 1, 2, 2, 4, 4)),
    decode_head=dict(type='DepthwiseSeparableASPPHead', dilations=(1, 12, 24, 36)))
"""
RESNET_D8 = """
model = dict(
    backbone=dict(type='ResNet', depth=50, out_indices=(0, 1, 2, 3), strides=(1, 2, 1, 1),
                  dilations=(1, 1, 2, 4), contract_dilation=True),
    decode_head=dict(type='PSPHead', align_corners=True))
"""


class TestDilation:
    """From the configuration."""

    def test_mobilenet_v2(self, tmp_path):
        model, variables = tiny("deeplabv3plus", MOBILENET, auxiliary_channels=None)
        meta = {"config": MOBILENET_D8}
        path = written(tmp_path / "f.pth", to_state_dict(variables, model), meta=meta)
        loaded, _ = load_torch(path)
        assert loaded.backbone.output_stride == 8
        assert not loaded.backbone.contract_dilation
        assert loaded.backbone.out_indices == (1, 2, 4, 6)

    def test_resnet(self, tmp_path):
        model, variables = tiny("pspnet", RESNET, auxiliary_channels=None)
        path = written(
            tmp_path / "f.pth", to_state_dict(variables, model), meta={"config": RESNET_D8}
        )
        loaded, _ = load_torch(path)
        assert loaded.align_corners
        assert loaded.backbone.output_stride == 8
        assert loaded.backbone.contract_dilation

    @pytest.mark.parametrize("dilates", [True, False])
    def test_stride_in_the_first_convolution(self, dilates, tmp_path):
        """Of a bottleneck block; then no first block has the dilation of the stage before."""
        model, variables = tiny("pspnet", RESNET, auxiliary_channels=None)
        config = RESNET_D8.replace("contract_dilation=True", "style='caffe'")
        if not dilates:
            config = config.replace("1, 1)", "2, 2)").replace("(1, 1, 2, 4)", "(1, 1, 1, 1)")
        path = written(tmp_path / "f.pth", to_state_dict(variables, model), meta={"config": config})
        loaded, _ = load_torch(path)
        assert loaded.backbone.architecture == dataclasses.replace(RESNET, stride_in_1x1=True)
        assert loaded.backbone.output_stride == (8 if dilates else None)

    @pytest.mark.parametrize(
        "change",
        [
            ("(1, 1, 2, 4)", "(1, 1, 2, 2)"),
            ("(1, 1, 2, 4)", "(1, 1, 1, 1)"),
            ("contract_dilation=True", "contract_dilation=True, style='caffe'"),
            ("depth=50", "depth=18"),
        ],
    )
    def test_others(self, change, tmp_path):
        model, variables = tiny("pspnet", RESNET, auxiliary_channels=None)
        config = RESNET_D8.replace(*change)
        path = written(tmp_path / "f.pth", to_state_dict(variables, model), meta={"config": config})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_torch(path)
        assert "cannot be represented" in str(caught[0].message)


# --- Published checkpoints -----------------------------------------------------------------


class TestPublished:
    CITY = "RepLKNet-31B_ImageNet-1K_UperNet_Cityscapes.pth"

    def test_by_another_network_of_this_name(self, tmp_path):
        """The settings are those of the published network only."""
        load(written(tmp_path / self.CITY, tiny_weights()))

    def test_like(self, tmp_path):
        path = written(tmp_path / "f.pth", tiny_weights())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = checkpoint.load(path, like="upernet_replknet_31b_cityscapes.in1k")
        assert loaded.model.align_corners
        assert loaded.preprocessing.limits == (2049, 1025)
        assert loaded.class_names is None  # of other classes

    def test_like_has_class_names(self, tmp_path):
        model, variables = tiny(num_classes=150)
        path = tmp_path / "f.pth"
        save_torch(variables, model, path)
        loaded = checkpoint.load(path, like="upernet_replknet_31b_ade20k.in22k")
        assert loaded.class_names == label_sets.find("ade20k").class_names
        assert loaded.preprocessing.window == 640

    def test_the_configuration_takes_precedence(self, tmp_path):
        path = written(tmp_path / "f.pth", tiny_weights(), meta={"cfg": MMSEG_1})
        model, _ = load_torch(path, like="upernet_replknet_31b_cityscapes.in1k")
        assert not model.align_corners

    def test_like_a_classifier(self, tmp_path):
        path = written(tmp_path / "f.pth", tiny_weights())
        with pytest.raises(ValueError, match=r"replknet_31b.in1k is a checkpoint of a classifier"):
            checkpoint.load(path, like="replknet_31b.in1k")

    def test_preprocessing_twice(self, tmp_path):
        with pytest.raises(ValueError, match="give one of them"):
            checkpoint.load(tmp_path, preprocessing=replk_jax.Preprocessing(32), like="resnet_18")

    def test_default_protocol(self, tmp_path):
        with pytest.warns(UserWarning, match=SETTINGS):
            loaded = checkpoint.load(written(tmp_path / "f.pth", tiny_weights()))
        with pytest.warns(UserWarning, match="Assumed: .*2048"):
            assert loaded.resolve_preprocessing().limits == (2048, 512)


# --- Other networks and faults --------------------------------------------------------------


def renamed(pattern, replacement):
    return {name.replace(pattern, replacement): value for name, value in tiny_weights().items()}


def empty(*shape):
    return np.zeros(shape, np.float32)


class TestFaults:
    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"decode_head.fpn_convs.0.bn.bias": None}, r"missing: decode_head\.fpn_convs\.0\.bn"),
            ({"decode_head.conv_seg.weight": None}, r"decode_head\.conv_seg\.weight is missing"),
            ({"decode_head.conv_seg.bias": empty(4)}, r"wrong shape: decode_head\.conv_seg\.bias"),
            ({"decode_head.bottleneck.conv.weight": None}, r"bottleneck\.conv\.weight is missing"),
            ({"auxiliary_head.conv_seg.weight": empty(5, 256, 1, 1)}, "wrong shape: auxiliary"),
            ({"backbone.stem.1.bn.bias": None}, r"missing: backbone\.stem\.1\.bn\.bias"),
            ({"decode_head.nonsense.weight": empty(1)}, "no supported head, .'nonsense'"),
            ({"decode_head.aspp_modules.0.conv.weight": empty(1)}, "mixes tensors of two heads"),
            ({"decode_head.fusion_conv.conv.weight": empty(1)}, "is SegformerHead, .* Supported"),
            (
                {"decode_head.lateral_convs.0.conv.weight": empty(8, 13, 1, 1)},
                "sees feature maps of 13-12 channels, and the stages .* 8-12",
            ),
            (
                {f"decode_head.psp_modules.4.1.{n}": empty(8) for n in ("conv.weight", "bn.bias")},
                "UPerHead has 5 parallel branches, and the usual ones are 4",
            ),
        ],
    )  # fmt: skip
    def test_tensors(self, changes, match, tmp_path):
        path = written(tmp_path / "f.pth", tiny_weights(**changes))
        with (
            warnings.catch_warnings(action="ignore"),
            pytest.raises(ValueError, match=rf"(?s)f\.pth: .*{match}"),
        ):
            load_torch(path)

    def test_inspected(self, tmp_path):
        changes = {"decode_head.fpn_convs.0.bn.bias": None}
        found = infer_architecture(written(tmp_path / "f.pth", tiny_weights(**changes)))
        assert found.faults == ("missing: decode_head.fpn_convs.0.bn.bias (8,)",)
        assert "align_corners=False" in str(found)
        assert "3 classes" in str(found)

    def test_several_auxiliary_heads(self, tmp_path):
        weights = renamed("auxiliary_head.", "auxiliary_head.0.")
        with pytest.warns(UserWarning, match=SETTINGS):
            model, _ = load_torch(written(tmp_path / "one.pth", weights))
        assert model == tiny()[0]
        weights |= renamed("auxiliary_head.", "auxiliary_head.1.")
        path = written(tmp_path / "two.pth", weights)
        with pytest.raises(ValueError, match=r"it has 2 auxiliary heads .*rename="):
            load_torch(path)

        def rename(name):
            return None if name.startswith("auxiliary_head.1.") else name

        assert load(path, rename=rename)[0] == tiny()[0]

    @pytest.mark.parametrize(
        ("name", "match"),
        [
            ("0.object_context_block.weight", "is OCRHead|decode heads|modules of no"),
            ("nl_block.g.weight", "NLHead or DNLHead"),
            ("convs.0.depthwise_conv.conv.weight", "DepthwiseSeparableFCNHead"),
        ],
    )
    def test_other_heads(self, name, match, tmp_path):
        weights = {n: v for n, v in tiny_weights().items() if not n.startswith("decode_head.")}
        weights[f"decode_head.{name}"] = empty(1)
        path = written(tmp_path / "f.pth", weights)
        with pytest.raises(ValueError, match=match) as caught:
            load_torch(path)
        assert 'prefix="backbone."' in str(caught.value)
        model, _ = load_torch(path, prefix="backbone.")
        assert model.out_indices == (0, 1)

    @pytest.mark.parametrize(
        ("names", "match"),
        [
            (["backbone.stages.0.blocks.0.attn.w_msa.qkv.weight"], "Swin Transformer"),
            (["backbone.layers.0.1.0.attn.attn.in_proj_weight"], "Mix Transformer"),
        ],
    )
    def test_other_backbones(self, names, match, tmp_path):
        weights = {name: empty(1) for name in [*names, "decode_head.convs.0.conv.weight"]}
        with pytest.raises(ValueError, match=match):
            load_torch(written(tmp_path / "f.pth", weights))

    def test_deep_stem(self, tmp_path):
        model, variables = tiny("pspnet", RESNET, auxiliary_channels=None)
        weights = to_state_dict(variables, model) | {"backbone.stem.0.weight": empty(4, 3, 3, 3)}
        with pytest.raises(ValueError, match="ResNet-C or ResNet-D"):
            load_torch(written(tmp_path / "f.pth", weights))

    def test_truncated(self, tmp_path):
        path = written(tmp_path / "f.pth", tiny_weights())
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(ValueError, match=r"f\.pth"):
            load_torch(path)

    def test_two_networks(self, tmp_path):
        weights = tiny_weights()
        both = weights | {f"teacher.{name}": value for name, value in weights.items()}
        path = written(tmp_path / "f.pth", both)
        with pytest.raises(
            ValueError, match=r"(?s)2 networks.*SegmentationNetwork.*prefix='teacher\.'"
        ):
            load_torch(path)
        for prefix in ("", "teacher."):
            with warnings.catch_warnings(action="ignore"):  # of the heads that are left out
                model, variables = load_torch(path, prefix=prefix)
            assert model == tiny()[0]
            assert_equal_trees(variables, tiny()[1])


# --- Given models, and starting from files ---------------------------------------------------


class TestIntoAModel:
    def test_backbone_alone(self, tmp_path):
        model, variables = tiny()
        path = written(tmp_path / "f.pth", tiny_weights())
        with pytest.warns(UserWarning, match="tensors of other networks are left out"):
            backbone, loaded = load_torch(path, model.backbone)
        wanted = {kind: tree["backbone"] for kind, tree in variables.items()}
        assert_equal_trees(loaded, wanted)
        backbone, loaded = load_torch(path, prefix="backbone.")
        assert backbone == model.backbone
        assert_equal_trees(loaded, wanted)

    def test_other_pool_scales(self, tmp_path):
        """Which no shape determines."""
        model, variables = tiny(pool_scales=(1, 4))
        save_torch(variables, model, tmp_path / "f.pth")
        loaded, again = load_torch(tmp_path / "f.pth", model)
        assert loaded is model
        assert_equal_trees(again, variables)

    def test_another_head(self, tmp_path):
        model, _ = tiny("pspnet")
        path = written(tmp_path / "f.pth", tiny_weights())
        with pytest.raises(ValueError, match=r"not in the model: decode_head\.lateral_convs"):
            load_torch(path, model)

    def test_a_classifier(self, tmp_path):
        path = written(tmp_path / "f.pth", tiny_weights())
        model = replk_jax.create_model(RESNET)
        with (
            warnings.catch_warnings(action="ignore"),
            pytest.raises(ValueError, match="RepLKNet, and the model is a ResNet"),
        ):
            load_torch(path, model)

    def test_merged_on_loading(self, tmp_path):
        model, variables = tiny()
        path = written(tmp_path / "f.pth", tiny_weights())
        _, merged = load_torch(path, model.clone(deploy=True))
        assert_equal_trees(merged, replk_jax.reparameterize(variables))

    def test_other_classes(self, tmp_path):
        model, variables = tiny()
        path = written(tmp_path / "f.pth", tiny_weights())
        with warnings.catch_warnings(action="ignore"):
            with pytest.raises(ValueError, match=r"it has 3 classes, the model has 5.*reset_head"):
                load_torch(path, num_classes=5)
            with pytest.raises(ValueError, match="give its num_classes"):
                load_torch(path, reset_head=True)
            with pytest.raises(ValueError, match="needs classes"):
                load_torch(path, num_classes=0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            five, loaded = load_torch(path, num_classes=5, reset_head=True)
        text = "\n".join(str(warning.message) for warning in caught)
        assert "auxiliary_head/conv_seg, decode_head/conv_seg" in text
        assert five == model.clone(num_classes=5)
        flat, before = (traverse_util.flatten_dict(v, sep="/") for v in (loaded, variables))
        for name, leaf in flat.items():
            if "conv_seg" in name:
                assert leaf.shape[-1] == 5
            else:
                np.testing.assert_array_equal(leaf, before[name])

    def test_other_input_channels(self, tmp_path):
        path = written(tmp_path / "f.pth", tiny_weights())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model, variables = load_torch(path, in_channels=1)
        assert model.in_channels == 1
        kernel = tiny()[1]["params"]["backbone"]["stem_0"]["conv"]["kernel"]
        np.testing.assert_allclose(
            variables["params"]["backbone"]["stem_0"]["conv"]["kernel"],
            kernel.sum(2, keepdims=True),
            atol=1e-6,
        )
        assert any("adapted to 1" in str(warning.message) for warning in caught)

    def test_merged_file_with_other_classes(self, tmp_path):
        model, variables = tiny()
        save_torch(variables, model, tmp_path / "f.pth", merged=True)
        merged = model.clone(deploy=True, num_classes=5)
        with pytest.raises(ValueError, match="from before the merge"):
            load_torch(tmp_path / "f.pth", merged, reset_head=True)


class TestStarting:
    """`checkpoint.load_into`, with which training starts."""

    @pytest.mark.parametrize("architecture", [REPLKNET, MOBILENET], ids=lambda a: type(a).__name__)
    def test_from_a_classifier(self, architecture, tmp_path):
        """The backbone is taken, the heads are drawn."""
        model, _ = tiny(architecture=architecture, auxiliary_channels=None)
        classifier = replk_jax.create_model(architecture, num_classes=4)
        variables = random_variables(classifier)
        save_torch(variables, classifier, tmp_path / "f.pth")
        with pytest.warns(UserWarning, match="only the backbone .* Drawn at random: decode_head"):
            started = checkpoint.load_into(model, tmp_path / "f.pth")
        flat = traverse_util.flatten_dict(variables["params"], sep="/")
        found = traverse_util.flatten_dict(started.variables["params"]["backbone"], sep="/")
        assert found.keys() <= flat.keys()
        for name, leaf in found.items():
            np.testing.assert_array_equal(leaf, flat[name])

    def test_from_a_segmenter(self, tmp_path):
        """With a configuration, whose protocol and names come along if the classes are the same."""
        model, variables = tiny()
        meta = {"config": MMSEG_0, "CLASSES": ("a", "b", "c")}
        path = written(tmp_path / "f.pth", tiny_weights(), meta=meta)
        started = checkpoint.load_into(model, path)
        assert started.model is model
        assert_equal_trees(started.variables, variables)
        assert started.preprocessing.window == 640

    def test_from_a_segmenter_with_other_classes(self, tmp_path):
        path = written(tmp_path / "f.pth", tiny_weights())
        model = tiny()[0].clone(num_classes=5)
        with pytest.raises(ValueError, match="reset_head=True"):
            checkpoint.load_into(model, path)
        with pytest.warns(UserWarning, match="The weights for 5 classes are drawn at random"):
            started = checkpoint.load_into(model, path, reset_head=True)
        kernel = started.variables["params"]["decode_head"]["conv_seg"]["kernel"]
        assert kernel.shape == (1, 1, 8, 5)

    def test_from_the_backbone_of_a_segmenter(self, tmp_path):
        """For another head."""
        model, _ = tiny("pspnet")
        path = written(tmp_path / "f.pth", tiny_weights())
        with pytest.warns(UserWarning, match="only the backbone of the SegmentationNetwork"):
            started = checkpoint.load_into(model, path, prefix="backbone.")
        wanted = tiny()[1]["params"]["backbone"]
        assert_equal_trees(started.variables["params"]["backbone"], wanted)


@reference_data.required
@pytest.mark.slow
@pytest.mark.exhaustive
def test_full_size(tmp_path):
    """UPerNet with RepLKNet-31B, written by a rule, loaded, merged, and run at 512 x 512."""
    weights = weights_by_rule(manifest("ade20k_31b"))
    model, variables = load(written(tmp_path / "f.pth", weights))
    assert model == official("ade20k_31b")
    merged = jax.jit(replk_jax.reparameterize)(variables)
    deploy = model.clone(deploy=True)
    images = random_images(model, batch=1, size=512)
    expected = run(model, variables, images)
    assert expected.shape == (1, 128, 128, 150)
    # Merging changes the order of float32 sums over 31 x 31 positions and 84 layers.
    np.testing.assert_allclose(
        run(deploy, merged, images), expected, rtol=0, atol=1e-4 * np.abs(expected).max()
    )


def test_head_of_the_auxiliary_loss_on_another_feature_map(tmp_path):
    model, _ = tiny()
    model = model.clone(
        auxiliary_head=FCNHead(channels=4, in_index=-1, num_convs=1, concat_input=False)
    )
    variables = random_variables(model)
    save_torch(variables, model, tmp_path / "f.pth")
    loaded, _ = load(tmp_path / "f.pth")
    assert loaded.auxiliary_head.in_index == -1
    assert isinstance(loaded, SegmentationNetwork)
