"""Preprocessing and class names that other libraries save with the weights."""

import json
import warnings

import pytest

from replk_jax import Preprocessing, ResNetArchitecture, create_model
from replk_jax.torch_import.metadata import Metadata, find_metadata
from replk_jax.torch_import.placeholders import Placeholder

# As timm's repositories on the Hugging Face hub have it.
TIMM = {
    "architecture": "repvgg_a0",
    "num_classes": 3,
    "num_features": 1280,
    "pretrained_cfg": {
        "tag": "rvgg_in1k",
        "input_size": [3, 224, 224],
        "interpolation": "bilinear",
        "crop_pct": 0.875,
        "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "num_classes": 3,
    },
}
MEAN = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}
SHORTER_THEN_CROP = {
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "size": {"shortest_edge": 256},
    "resample": 2,
    "rescale_factor": 1 / 255,
}
MMENGINE = """
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
work_dir = './work_dirs/run'
total = sum([1, 2])
"""
MMCLS = """
img_norm_cfg = dict(mean=[127.5, 127.5, 127.5], std=[51.0, 51.0, 51.0], to_rgb=True)
data = dict(test=dict(type='ImageNet', pipeline=[
    dict(type='Resize', size=(256, -1), backend='pillow'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='Normalize', mean=[127.5, 127.5, 127.5], std=[51.0, 51.0, 51.0], to_rgb=True)]))
"""


REPVGG_A0 = create_model("repvgg_a0", num_classes=3)
RESNET_50 = create_model("resnet_50")
UNREGISTERED = create_model(ResNetArchitecture((1, 1, 1, 1), (8, 8, 8, 8)), num_classes=3)
VIT = {"architectures": ["ViTForImageClassification"], "model_type": "vit"}
MM_CROP = "dict(type='CenterCrop', crop_size=224),"
MM_RESIZE = "ResizeEdge', scale=256"

CROPPED = {"size": {"shortest_edge": 320}, "do_center_crop": True, "crop_size": 288}
NAMES = {"id2label": {str(i): f"class {i}" for i in range(1000)}}
TORCHVISION = {"args": {"val_resize_size": 232, "val_crop_size": 224}}


def changed(fields, **changes):
    return {**fields, **changes}


def timm(**changes):
    return changed(TIMM, pretrained_cfg=changed(TIMM["pretrained_cfg"], **changes))


def namespace(**attributes):
    return Placeholder("argparse", "Namespace", (), state=attributes)


def find(tmp_path, contents=None, model=REPVGG_A0, file="model.safetensors", **files):
    for name, fields in files.items():
        text = fields if isinstance(fields, str) else json.dumps(fields)
        (tmp_path / f"{name}.json").write_text(text)
    return find_metadata(tmp_path / file, contents or {}, model)


UNSUPPORTED_TIMM = [
    (timm(crop_mode="border"), "crop_mode must be 'center' or 'squash'; got 'border'"),
    (timm(crop_mode="squash"), "warped and then cropped"),
    (TIMM | {"pretrained_cfg": None}, "pretrained_cfg must be an object with fields; got None"),
    (timm(input_size=224), "input_size must be a list of positive whole numbers; got 224"),
    (timm(input_size=[224, 224]), r"input_size must be channels, height and width; got \(224, 224"),
    (timm(crop_pct="all"), "crop_pct must be a positive number; got 'all'"),
    (TIMM | {"label_names": "abc"}, "label_names must be a list of names, or names by index"),
]
UNSUPPORTED_TRANSFORMERS = [
    ({"do_resize": False}, "do_resize is false"),
    ({"do_rescale": False}, "do_rescale False"),
    ({"rescale_factor": "x"}, "rescale_factor must be a positive number; got 'x'"),
    ({"size": 256}, "size=256 may be of the shorter side or of both"),
    ({"size": {"height": 256, "width": 256}}, "warped to 256 pixels and then cropped to 224"),
    ({"size": {"longest_edge": 256}}, "size must be of shortest_edge, or of height and width; got"),
    ({"size": {"shortest_edge": 256, "longest_edge": 300}}, "size must be of shortest_edge, or"),
    (
        {"size": {"shortest_edge": 200}},
        "a crop of 224 pixels is larger than the resized image, 200",
    ),
    ({"crop_size": None}, "crop_size must be a positive whole number; got None"),
    ({"do_flip_channel_order": True}, "do_flip_channel_order cannot be represented"),
    ({"resample": None}, "resample must be the number of one of Pillow's filters; got None"),
    ({"resample": 77}, "resample must be the number of one of Pillow's filters; got 77"),
    ({"image_mean": None}, "mean of a preprocessing must be 1 or 3 numbers; got None"),
]


class TestFilesBeside:
    @pytest.mark.parametrize(
        ("config", "wanted"),
        [
            (TIMM, Preprocessing(224, 0.875, "bilinear")),
            # Before timm 0.8 without pretrained_cfg.
            (
                {"architecture": "repvgg_a0", **TIMM["pretrained_cfg"]},
                Preprocessing(224, 0.875, "bilinear"),
            ),
            (
                timm(crop_mode="squash", crop_pct=1.0, interpolation="bicubic"),
                Preprocessing(224, None),
            ),
            (
                timm(mean=[0.5] * 3, std=[0.25] * 3, input_size=[3, 320, 320], crop_pct=1.0),
                Preprocessing(320, 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3),
            ),
        ],
    )
    def test_timm(self, tmp_path, config, wanted):
        found = find(tmp_path, config=config)
        assert found.preprocessing == wanted
        assert found.preprocessing_source == "config.json"
        assert found.class_names is None

    @pytest.mark.parametrize(
        ("labels", "wanted"),
        [
            ({"label_names": ["a", "b", "c"]}, ("a", "b", "c")),
            ({"label_names": {"1": "b", "0": "a"}}, ("a", "b")),
            ({"label_names": ["n1", "n2"], "label_descriptions": {"n1": "cat"}}, ("cat", "n2")),
        ],
    )
    def test_names_of_timm(self, tmp_path, labels, wanted):
        found = find(tmp_path, config=TIMM | labels)
        assert found.class_names == wanted
        assert found.class_names_source == "config.json"

    @pytest.mark.parametrize(
        ("processor", "wanted"),
        [
            (SHORTER_THEN_CROP | MEAN, (224, 0.875, "bilinear", *MEAN.values())),
            ({"size": {"height": 384, "width": 384}, "resample": 3}, (384, None)),
            ({"size": 224, "do_normalize": False}, (224, None, "bicubic", (0.0,) * 3, (1.0,) * 3)),
            ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (224, 0.875)),
            ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, (384, None)),
            # Whole numbers are of the shorter side in some image processors, in others of both.
            (
                {"image_processor_type": "CLIPImageProcessor", "size": 256, "do_center_crop": True}
                | {"crop_size": 224},
                (224, 0.875),
            ),
            (
                {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "resample": 2},
                (224, 0.875, "bilinear"),
            ),
            # A crop of all.
            (SHORTER_THEN_CROP | {"size": {"height": 224, "width": 224}}, (224, None, "bilinear")),
        ],
    )
    def test_transformers(self, tmp_path, processor, wanted):
        config = {"architectures": ["X"], "id2label": {"1": "dog", "0": "cat"}, "image_size": 9}
        found = find(tmp_path, config=config, preprocessor_config=processor)
        assert found.preprocessing == Preprocessing(*wanted)
        assert found.preprocessing_source == "preprocessor_config.json"
        assert found.class_names == ("cat", "dog")

    def test_names_that_nobody_gave(self, tmp_path):
        config = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
        assert find(tmp_path, config=config) == Metadata()

    def test_of_a_folder(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps(TIMM))
        found = find_metadata(tmp_path, {}, REPVGG_A0)
        assert found.preprocessing == Preprocessing(224, 0.875, "bilinear")

    @pytest.mark.parametrize(
        ("files", "reason"),
        [
            ({"config": "{"}, r"config\.json is not used: "),
            ({"config": "[1]"}, r"config\.json is not used: it is not an object"),
            (
                {"config": timm(crop_pct=7)},
                r"preprocessing in config\.json cannot be used: crop_fr",
            ),
            ({"config": timm(input_size=[3, 224, 192])}, "224 x 192, and only squares"),
            ({"config": TIMM | {"label_names": {"0": "a", "2": "b"}}}, "indices of the classes"),
            ({"preprocessor_config": {"size": {"shortest_edge": 224}}}, "keep their aspect ratio"),
            (
                {"preprocessor_config": {"size": 224, "rescale_factor": 1.0}},
                r"not scaled to \[0, 1",
            ),
            ({"preprocessor_config": {"size": {"height": 1, "width": 2}}}, "1 x 2, not square"),
            (
                {"preprocessor_config": {"size": "large"}},
                "size must be a positive whole number; got",
            ),
            *(({"config": config}, reason) for config, reason in UNSUPPORTED_TIMM),
            *(
                ({"preprocessor_config": SHORTER_THEN_CROP | changes}, reason)
                for changes, reason in UNSUPPORTED_TRANSFORMERS
            ),
        ],
    )
    def test_what_cannot_be_used_is_reported(self, tmp_path, files, reason):
        with pytest.warns(UserWarning, match=reason):
            find(tmp_path, **files)

    @pytest.mark.parametrize(
        "config", [{}, {"model_type": "bert", "vocab_size": 3}, {"architecture": "x"}]
    )
    def test_other_files_of_that_name(self, tmp_path, config):
        with warnings.catch_warnings(action="error"):
            assert find(tmp_path, config=config).preprocessing is None


class TestInTheCheckpoint:
    @pytest.mark.parametrize(
        ("meta", "wanted"),
        [
            ({"cfg": MMENGINE}, Preprocessing(224, 0.875)),
            (
                {"cfg": MMENGINE.replace(MM_CROP, "").replace("Edge', scale=256", "', scale=256")},
                Preprocessing(256, None),
            ),
            # Types with a scope, with a module, and classes.
            ({"cfg": MMENGINE.replace("type='", "type='mmpretrain.")}, Preprocessing(224, 0.875)),
            ({"cfg": MMENGINE.replace("'ResizeEdge'", "ResizeEdge")}, Preprocessing(224, 0.875)),
            (
                {"cfg": MMENGINE.replace("'ResizeEdge'", "transforms.ResizeEdge")},
                Preprocessing(224, 0.875),
            ),
            ({"config": MMCLS}, Preprocessing(224, 0.875, "bilinear", (0.5,) * 3, (0.2,) * 3)),
        ],
    )
    def test_mmengine(self, tmp_path, meta, wanted):
        found = find(tmp_path, {"meta": meta})
        actual, expected = found.preprocessing.as_dict(), wanted.as_dict()
        for field in ("mean", "std"):  # divided by 255, and so rounded
            assert actual.pop(field) == pytest.approx(expected.pop(field))
        assert actual == expected
        assert found.preprocessing_source == "its meta entry"

    @pytest.mark.parametrize(
        "meta",
        [
            {"dataset_meta": {"classes": ("cat", "dog")}},
            {"dataset_meta": {"CLASSES": ["cat", "dog"]}},
            {"CLASSES": ["cat", "dog"]},
        ],
    )
    def test_names_of_mmengine(self, tmp_path, meta):
        found = find(tmp_path, {"meta": meta})
        assert found.class_names == ("cat", "dog")
        assert found.class_names_source == "its meta entry"

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            (MMENGINE.replace("to_rgb=True", "to_rgb=False"), "blue, green, red"),
            (MMENGINE.replace("crop_size=224", "crop_size=(224, 192)"), "only squares"),
            ("def f(:", "configuration in its meta entry cannot be used: it is not Python text"),
            (MMENGINE.replace(MM_CROP, ""), "keep their aspect ratio"),
            (MMENGINE.replace("edge='short'", "edge='long'"), "edge must be 'short'; got 'long'"),
            (MMENGINE.replace(MM_RESIZE, "Resize', scale=256"), "warped to 256 pixels and then"),
            (
                MMENGINE.replace(MM_RESIZE, "Resize', scale=(224, 224), keep_ratio=True"),
                "keep their aspect ratio within 224 x 224",
            ),
            (
                MMENGINE.replace(MM_RESIZE, "Resize', scale=(256, -1), adaptive_side='long'"),
                "adaptive_side must be 'short'; got 'long'",
            ),
            (MMENGINE.replace("scale=256", "scale=None"), "size must be a positive whole number"),
            (
                MMENGINE.replace("'CenterCrop', crop", "'Pad', crop"),
                "the steps ResizeEdge, Pad can",
            ),
            (
                MMENGINE.replace("'Resize", "'torchvision/Resize"),
                "torchvision/ResizeEdge, CenterCro",
            ),
            (MMENGINE.replace("mean=[123.675", "mean=['x'"), "mean must be a list of numbers"),
            (MMENGINE.replace("mean=", "other="), "it has no mean and std"),
            (
                MMENGINE.replace("bicubic", "area"),
                "interpolation of a preprocessing must be one of",
            ),
        ],
    )
    def test_what_cannot_be_used_is_reported(self, tmp_path, text, reason):
        with pytest.warns(UserWarning, match=reason):
            assert find(tmp_path, {"meta": {"cfg": text}}).preprocessing is None

    @pytest.mark.parametrize("backend", ["", "backend='cv2', "])
    def test_images_that_opencv_resized(self, tmp_path, backend):
        """OpenCV is the default; its filters do not antialias."""
        text = MMENGINE.replace("backend='pillow', ", backend)
        found = find(tmp_path, {"meta": {"cfg": text}})
        assert found.preprocessing.crop_fraction == 0.875
        assert "its meta entry (where OpenCV resizes" in found.preprocessing_source

    def test_the_normalize_step_converts_by_default(self, tmp_path):
        text = MMCLS.replace(", to_rgb=True", "")
        found = find(tmp_path, {"meta": {"config": text}})
        assert found.preprocessing.mean == pytest.approx([0.5] * 3)

    def test_names_must_be_a_list(self, tmp_path):
        meta = {"dataset_meta": {"classes": "abc"}}
        with pytest.warns(UserWarning, match="classes must be a list of names.*; got 'abc'"):
            assert find(tmp_path, {"meta": meta}).class_names is None

    def test_nothing_in_a_configuration_is_run(self, tmp_path):
        text = (
            f"import pathlib\npathlib.Path({str(tmp_path / 'x')!r}).touch()\nx = open('y', 'w')\n"
        )
        assert find(tmp_path, {"meta": {"cfg": text}}) == Metadata()
        assert not (tmp_path / "x").exists()

    def test_torchvision(self, tmp_path):
        args = namespace(val_resize_size=232, val_crop_size=224, interpolation="bilinear", lr=0.5)
        found = find(tmp_path, {"model": {}, "args": args})
        assert found.preprocessing == Preprocessing(224, 224 / 232, "bilinear")
        assert found.preprocessing_source == "its args entry"

    @pytest.mark.parametrize(
        ("args", "wanted"),
        [
            ((224, None, True), Preprocessing(224, 224 / 256)),
            ((224, 0.95, True), Preprocessing(224, 0.95)),
            ((384, None, True), Preprocessing(384, None)),
            ((320, None, False), Preprocessing(320, 224 / 256, mean=(0.5,) * 3, std=(0.5,) * 3)),
        ],
    )
    def test_official_code(self, tmp_path, args, wanted):
        names = ("input_size", "crop_pct", "imagenet_default_mean_and_std")
        args = namespace(**dict(zip(names, args, strict=True)))
        assert find(tmp_path, {"args": args}).preprocessing == wanted

    @pytest.mark.parametrize(
        ("args", "reason"),
        [
            (
                {"val_resize_size": None, "val_crop_size": 224},
                "val_resize_size must be a positive whole number; got None",
            ),
            (
                {"val_resize_size": 200, "val_crop_size": 224},
                "a crop of 224 pixels is larger than the resized image, 200",
            ),
            (
                {"input_size": (3, 224, 224), "imagenet_default_mean_and_std": True},
                r"input_size must be a positive whole number; got \(3, 224, 224\)",
            ),
            (
                {"input_size": 224, "imagenet_default_mean_and_std": True, "crop_pct": "all"},
                "crop_pct must be a positive number; got 'all'",
            ),
        ],
    )
    def test_arguments_that_cannot_be_used(self, tmp_path, args, reason):
        with pytest.warns(UserWarning, match=reason):
            assert find(tmp_path, {"args": namespace(**args)}) == Metadata()

    def test_nothing(self, tmp_path):
        assert find(tmp_path, {"model": {}, "args": namespace(lr=1), "meta": None}) == Metadata()


class TestPrecedence:
    """Of the checkpoint, the JSON files next to it, and the name of a published checkpoint."""

    @pytest.mark.parametrize("file", ["resnet50-11ad3fa6.pth", "mine.pth", "mine.safetensors"])
    @pytest.mark.parametrize("config", [None, NAMES, VIT | NAMES])
    def test_json_of_an_unknown_or_another_network(self, tmp_path, file, config):
        files = {"preprocessor_config": CROPPED} | ({"config": config} if config else {})
        with pytest.warns(UserWarning, match=r"config\.json (is of 'vit'|is not used: it does)"):
            found = find(tmp_path, model=RESNET_50, file=file, **files)
        published = Preprocessing(224, 224 / 232, "bilinear")
        wanted = published if "11ad3fa6" in file else None
        assert found == Metadata(wanted, wanted and "the name of a published checkpoint")

    @pytest.mark.parametrize(
        "file", ["model.safetensors", "model.fp16.safetensors", "pytorch_model.bin",
                 "model.safetensors.index.json", "pytorch_model-00001-of-00002.bin"]
    )  # fmt: skip
    def test_json_of_a_folder_of_hugging_face(self, tmp_path, file):
        found = find(tmp_path, model=RESNET_50, file=file, preprocessor_config=CROPPED)
        assert found.preprocessing == Preprocessing(288, 0.9)

    @pytest.mark.parametrize(
        "config",
        [
            {"model_type": "resnet"},
            {"architectures": ["ResNetForImageClassification"]},
            {"model_type": "timm_wrapper", "architecture": "resnet50"},
        ],
    )
    def test_json_that_identifies_the_network(self, tmp_path, config):
        files = {"preprocessor_config": CROPPED, "config": config | NAMES}
        found = find(tmp_path, model=RESNET_50, file="mine.pth", **files)
        assert found.preprocessing == Preprocessing(288, 0.9)
        assert found.class_names[:2] == ("class 0", "class 1")

    def test_the_name_of_a_published_checkpoint(self, tmp_path):
        """It takes precedence over JSON of the same network, which may be of other weights."""
        files = {"preprocessor_config": CROPPED, "config": {"model_type": "resnet"}}
        found = find(tmp_path, model=RESNET_50, file="resnet50-11ad3fa6.pth", **files)
        assert found.preprocessing == Preprocessing(224, 224 / 232, "bilinear")
        folder = tmp_path / "resnet50-11ad3fa6"
        folder.mkdir()
        assert find(tmp_path, model=RESNET_50, file=folder.name).preprocessing.image_size == 224
        (folder / "preprocessor_config.json").write_text(json.dumps(CROPPED))
        assert find(tmp_path, model=RESNET_50, file=folder.name).preprocessing.image_size == 288

    @pytest.mark.parametrize("file", ["model.safetensors", "resnet50-0676ba61.pth"])
    def test_the_checkpoint_itself(self, tmp_path, file):
        files = {"preprocessor_config": CROPPED, "config": {"model_type": "resnet"}}
        found = find(tmp_path, TORCHVISION, RESNET_50, file, **files)
        assert found.preprocessing == Preprocessing(224, 224 / 232, "bilinear")
        assert found.preprocessing_source == "its args entry"

    @pytest.mark.parametrize("config", [{}, {"model_type": "bert"}, {"name": "x", "size": 3}])
    def test_json_that_says_nothing_of_images_or_classes(self, tmp_path, config):
        with warnings.catch_warnings(action="error"):
            assert find(tmp_path, file="mine.pth", config=config) == Metadata()


class TestNamesOfTimm:
    @pytest.mark.parametrize(
        ("model", "changes"),
        [
            (REPVGG_A0, {"architecture": "repvgg_a0.rvgg_in1k"}),
            # Other sizes than those of the name.
            (UNREGISTERED, {"architecture": "resnet50", "model_args": {"layers": [1, 1, 1, 1]}}),
            (UNREGISTERED, {"architecture": "resnet10"}),
        ],
    )
    @pytest.mark.parametrize("file", ["model.safetensors", "t.safetensors", "repvgg.pth"])
    def test_of_the_network(self, tmp_path, model, changes, file):
        found = find(tmp_path, model=model, file=file, config=TIMM | changes)
        assert found.preprocessing == Preprocessing(224, 0.875, "bilinear")

    @pytest.mark.parametrize(
        ("model", "changes"),
        [
            (REPVGG_A0, {"architecture": "repvgg_a1"}),
            (REPVGG_A0, {"architecture": "resnet50", "model_args": {"layers": [1, 1, 1, 1]}}),
            (RESNET_50, {"architecture": "resnetaa50"}),
            (UNREGISTERED, {"architecture": "resnet50"}),
            (UNREGISTERED, {"architecture": "resnet50", "model_args": {"num_classes": 3}}),
        ],
    )
    @pytest.mark.parametrize("file", ["model.safetensors", "t.safetensors"])
    def test_of_another_network(self, tmp_path, model, changes, file):
        with pytest.warns(UserWarning, match=f"is of '{changes['architecture']}', another network"):
            assert find(tmp_path, model=model, file=file, config=TIMM | changes) == Metadata()

    def test_grey_images(self, tmp_path):
        model = create_model("repvgg_a0", in_channels=1, num_classes=3)
        config = timm(input_size=[1, 224, 224], mean=[0.5], std=[0.25])
        found = find(tmp_path, model=model, file="t.pth", config=config)
        assert found.preprocessing == Preprocessing(224, 0.875, "bilinear", (0.5,), (0.25,))
        # timm keeps the fields of the pretrained network unless they are set.
        with pytest.warns(UserWarning, match="of 3 channels, and the network takes 1"):
            found = find(tmp_path, model=model, config=TIMM | {"label_names": ["a", "b", "c"]})
        assert found == Metadata(class_names=("a", "b", "c"), class_names_source="config.json")


def test_json_with_a_byte_order_mark(tmp_path):
    text = "\ufeff" + json.dumps(TIMM)
    assert find(tmp_path, config=text).preprocessing == Preprocessing(224, 0.875, "bilinear")


ODD_VALUES = [None, [], "x", -1, 1e999, {"a": []}]


@pytest.mark.parametrize("value", ODD_VALUES, ids=repr)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_odd_values_never_raise(tmp_path, value):
    configs = [TIMM | {name: value} for name in ("architecture", "pretrained_cfg", "model_args")]
    configs += [timm(**{name: value}) for name in TIMM["pretrained_cfg"]]
    configs += [TIMM | {name: value} for name in ("label_names", "label_descriptions")]
    configs += [{name: value} for name in ("id2label", "model_type", "architectures")]
    for config in configs:
        find(tmp_path, config=json.dumps(config))
    for name in SHORTER_THEN_CROP | MEAN | {"crop_pct": 1}:
        find(tmp_path, config="{}", preprocessor_config=SHORTER_THEN_CROP | MEAN | {name: value})
    for name in ("meta", "args"):
        find(tmp_path, {name: value})
    for name in ("cfg", "config", "dataset_meta", "CLASSES"):
        find(tmp_path, {"meta": {name: value}})
    for name in ("model", "data", "data_preprocessor", "test_pipeline", "test_dataloader"):
        find(tmp_path, {"meta": {"cfg": f"{MMENGINE}\n{name} = {value!r}"}})
    for name in ("val_crop_size", "val_resize_size", "input_size"):
        args = {"imagenet_default_mean_and_std": True, "val_crop_size": 1, "val_resize_size": 1}
        find(tmp_path, {"args": args | {name: value}})


class TestBackbone:
    CAFFE = "type='ResNet', depth=50, style='caffe'"
    DILATED = "strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)"

    def difference(self, tmp_path, backbone, model=RESNET_50):
        meta = {"cfg": f"model = dict(backbone=dict({backbone}))"}
        found = find(tmp_path, {"meta": meta}, model).backbone
        return found and found.difference(model)

    @pytest.mark.parametrize(
        ("backbone", "wanted"),
        [
            (f"{CAFFE}, {DILATED}", "output_stride=8, stride_in_1x1=True (strides=(1, 2, 1, 1), "),
            (CAFFE.replace("type='", "type='mmdet."), "stride_in_1x1=True (style='caffe')"),
            ("type='ResNet', strides=(1, 2, 2, 1)", "output_stride=16 (strides=(1, 2, 2, 1))"),
            ("type='ResNet', strides=(1, 2, 1)", "output_stride=8 (strides=(1, 2, 1))"),
            ("type='ResNet', strides=(2, 1, 2, 2)", "strides=(2, 1, 2, 2)"),
        ],
    )
    def test_what_the_model_lacks(self, tmp_path, backbone, wanted):
        assert self.difference(tmp_path, backbone).startswith(wanted)

    def test_the_first_dilated_block(self, tmp_path):
        """It has the dilation of its stage, or of the one before with `contract_dilation`."""
        plain = f"type='ResNet', depth=50, {self.DILATED}"
        found = self.difference(tmp_path, plain)
        assert found.startswith("output_stride=8, contract_dilation=False (")
        contracted = self.difference(tmp_path, f"{plain}, contract_dilation=True")
        assert contracted.startswith("output_stride=8 (")
        differs = "with which the first block of a dilated stage differs"
        caffe = f"{self.CAFFE}, {self.DILATED}"
        assert differs not in self.difference(tmp_path, caffe)
        for other in (f"{caffe}, contract_dilation=True", plain.replace("50", "18")):
            assert differs in self.difference(tmp_path, other)

    @pytest.mark.parametrize(
        "backbone",
        [
            "type='ResNet', style='pytorch', strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1)",
            "type='ResNet', num_stages=3, strides=(1, 2, 2)",
            "type='RepVGG', strides=(2, 2, 2, 1)",  # of another family than the weights
            "type='ResNetV1d', style='caffe'",
            "type='ResNet', depth=18, style='caffe'",  # its blocks have no 1 x 1 convolution
        ],
    )
    def test_what_is_as_assumed(self, tmp_path, backbone):
        assert self.difference(tmp_path, backbone) is None

    def test_a_model_that_has_it(self, tmp_path):
        model = create_model("resnet_50", output_stride=8, stride_in_1x1=True)
        assert self.difference(tmp_path, f"{self.CAFFE}, {self.DILATED}", model) is None
        half = create_model("resnet_50", output_stride=8)
        found = self.difference(tmp_path, f"{self.CAFFE}, {self.DILATED}", half)
        assert found.startswith("stride_in_1x1=True (")

    @pytest.mark.parametrize(
        ("name", "backbone"),
        [
            ("mobilenet_v2", "type='MobileNetV2', strides=(1, 2, 2, 1, 1, 1, 1)"),
            ("repvgg_a0", "type='RepVGG', strides=(2, 2, 1, 1)"),
            ("replknet_31b", "type='RepLKNet', strides=(2, 2, 1, 1)"),
        ],
    )
    def test_other_families(self, tmp_path, name, backbone):
        found = self.difference(tmp_path, backbone, create_model(name))
        assert found.startswith("output_stride=8 (strides=")

    def test_strides_that_are_no_numbers(self, tmp_path):
        with pytest.warns(UserWarning, match="strides must be a list of positive whole numbers"):
            assert self.difference(tmp_path, "type='ResNet', strides='all'") is None

    def test_arguments_of_timm(self, tmp_path):
        config = {"architecture": "resnet50", "model_args": {"output_stride": 8}}
        found = find(tmp_path, model=RESNET_50, config=config).backbone
        assert found.difference(RESNET_50) == "output_stride=8 (model_args has output_stride=8)"
        assert found.difference(RESNET_50.clone(output_stride=8)) is None


@pytest.mark.parametrize("size", [160, 224, 256, 288, 320])
@pytest.mark.parametrize("resized", [232, 235, 248, 256, 320, 342, 366, 439])
def test_images_are_resized_to_exactly_so_many_pixels(tmp_path, size, resized):
    """The size is stored as a fraction, which rounding could make a pixel smaller."""
    if resized >= size:
        args = namespace(val_resize_size=resized, val_crop_size=size)
        found = find(tmp_path, {"args": args}).preprocessing
        assert int(found.image_size / found.crop_fraction) == resized
