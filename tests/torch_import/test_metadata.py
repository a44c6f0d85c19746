"""Preprocessing and class names that other libraries save with the weights."""

import json
import warnings

import pytest

from replk_jax import Preprocessing
from replk_jax.torch_import.metadata import Metadata, find_metadata
from replk_jax.torch_import.tensors import Placeholder

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


def changed(fields, **changes):
    return {**fields, **changes}


def timm(**changes):
    return changed(TIMM, pretrained_cfg=changed(TIMM["pretrained_cfg"], **changes))


def namespace(**attributes):
    return Placeholder("argparse", "Namespace", (), state=attributes)


def find(tmp_path, contents=None, **files):
    for name, fields in files.items():
        text = fields if isinstance(fields, str) else json.dumps(fields)
        (tmp_path / f"{name}.json").write_text(text)
    return find_metadata(tmp_path / "model.safetensors", contents or {})


class TestFilesBeside:
    @pytest.mark.parametrize(
        ("config", "wanted"),
        [
            (TIMM, Preprocessing(224, 0.875, "bilinear")),
            # Before timm 0.8 without pretrained_cfg.
            (
                {"architecture": "x", **TIMM["pretrained_cfg"]},
                Preprocessing(224, 0.875, "bilinear"),
            ),
            (timm(crop_mode="squash", interpolation="bicubic"), Preprocessing(224, None)),
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
        assert found.architecture == config["architecture"]
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
        ],
    )
    def test_transformers(self, tmp_path, processor, wanted):
        config = {"architectures": ["X"], "id2label": {"1": "dog", "0": "cat"}, "image_size": 9}
        found = find(tmp_path, config=config, preprocessor_config=processor)
        assert found.preprocessing == Preprocessing(*wanted)
        assert found.preprocessing_source == "preprocessor_config.json"
        assert found.class_names == ("cat", "dog")
        assert found.architecture is None

    def test_names_that_nobody_gave(self, tmp_path):
        config = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
        assert find(tmp_path, config=config) == Metadata()

    def test_of_a_folder(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps(TIMM))
        assert find_metadata(tmp_path, {}).preprocessing == Preprocessing(224, 0.875, "bilinear")

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
            ({"preprocessor_config": {"size": "large"}}, "cannot be used"),
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
                {"cfg": MMENGINE.replace("dict(type='CenterCrop', crop_size=224),", "")},
                Preprocessing(256, None),
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
            ("def f(:", "cannot be used"),
        ],
    )
    def test_what_cannot_be_used_is_reported(self, tmp_path, text, reason):
        with pytest.warns(UserWarning, match=reason):
            assert find(tmp_path, {"meta": {"cfg": text}}).preprocessing is None

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

    def test_nothing(self, tmp_path):
        assert find(tmp_path, {"model": {}, "args": namespace(lr=1), "meta": None}) == Metadata()


@pytest.mark.parametrize("size", [160, 224, 256, 288, 320])
@pytest.mark.parametrize("resized", [232, 235, 248, 256, 320, 342, 366, 439])
def test_images_are_resized_to_exactly_so_many_pixels(tmp_path, size, resized):
    """The size is stored as a fraction, which rounding could make a pixel smaller."""
    if resized >= size:
        args = namespace(val_resize_size=resized, val_crop_size=size)
        found = find(tmp_path, {"args": args}).preprocessing
        assert int(found.image_size / found.crop_fraction) == resized
