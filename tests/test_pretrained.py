"""The published checkpoints."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from replk_jax import create_model, list_models, list_pretrained, pretrained
from replk_jax.cli.inspect import _published
from replk_jax.cli.models import _list_checkpoints
from replk_jax.detection.registry import create_detector
from replk_jax.segmentation.registry import create_segmenter
from replk_jax.vision import label_sets
from replk_jax.vision.base_preprocessing import IMAGENET_MEAN
from replk_jax.vision.preprocessing import Preprocessing
from tests.vision.test_images import picture

HALF = (0.5, 0.5, 0.5)
FILES = [file for entry in pretrained.PRETRAINED for file in entry.files]


@pytest.mark.parametrize(
    ("path", "model", "size", "crop", "mean", "top1", "top5"),
    [
        ("RepLKNet-31B_ImageNet-1K_224.pth", "31b", 224, 0.875, IMAGENET_MEAN, 83.48, 96.57),
        ("RepLKNet-31B_ImageNet-1K_384.pth", "31b", 384, None, IMAGENET_MEAN, 84.84, 97.34),
        ("RepLKNet-31B_ImageNet-22K-to-1K_224.pth", "31b", 224, 0.875, IMAGENET_MEAN, 85.2, 97.56),
        ("RepLKNet-31B_ImageNet-22K-to-1K_384.pth", "31b", 384, None, IMAGENET_MEAN, 85.99, 97.75),
        ("RepLKNet-31L_ImageNet-22K-to-1K_384.pth", "31l", 384, None, IMAGENET_MEAN, 86.63, 98.0),
        ("RepLKNet-XL_MegData73M_ImageNet1K.pth", "xl", 320, 0.875, HALF, 87.57, 98.39),
        ("RepLKNet-31B_ImageNet-22K.pth", "31b", 224, 0.875, IMAGENET_MEAN, None, None),
        ("RepLKNet-31L_ImageNet-22K.pth", "31l", 224, 0.875, IMAGENET_MEAN, None, None),
        ("RepLKNet-XL_MegData73M_pretrain.pth", "xl", 320, 0.875, HALF, None, None),
    ],
)
def test_what_was_published(path, model, size, crop, mean, top1, top5):
    found = pretrained.find(path)
    assert found.model == f"replknet_{model}"
    assert (found.top1, found.top5) == (top1, top5)
    std = HALF if mean == HALF else (0.229, 0.224, 0.225)
    assert found.preprocessing == Preprocessing(size, crop, "bicubic", mean, std)


REPVGG = "repvgg-{}_3rdparty_4xb64-{}_in1k_20210909-{}.pth"
LONGER = "autoaug-lbs-mixup-coslr-200e"


@pytest.mark.parametrize(
    ("path", "model", "resized", "size", "top1", "top5"),
    [
        ("RepVGG-A0-train.pth", "repvgg_a0", 256, 224, 72.41, 90.50),
        ("RepVGG-A1-train.pth", "repvgg_a1", 256, 224, 74.47, 91.85),
        ("RepVGG-A2-train.pth", "repvgg_a2", 256, 224, 76.48, 93.01),
        ("RepVGG-B0-train.pth", "repvgg_b0", 256, 224, 75.14, 92.42),
        ("RepVGG-B1-train.pth", "repvgg_b1", 256, 224, 78.37, 94.11),
        ("RepVGG-B1g2-train.pth", "repvgg_b1g2", 256, 224, 77.79, 93.88),
        ("RepVGG-B1g4-train.pth", "repvgg_b1g4", 256, 224, 77.58, 93.84),
        ("RepVGG-B2-train.pth", "repvgg_b2", 256, 224, 78.78, 94.42),
        ("RepVGG-B2g4-train.pth", "repvgg_b2g4", 256, 224, 78.50, None),
        ("RepVGG-B2g4-200epochs-train.pth", "repvgg_b2g4", 256, 224, 79.38, 94.68),
        ("RepVGG-B3-200epochs-train.pth", "repvgg_b3", 256, 224, 80.52, 95.26),
        ("RepVGG-B3g4-200epochs-train.pth", "repvgg_b3g4", 256, 224, 80.22, 95.10),
        ("RepVGG-D2se-200epochs-train.pth", "repvgg_d2se", 320, 320, 83.55, None),
        (REPVGG.format("A0", "coslr-120e", "883ab98c"), "repvgg_a0", 256, 224, 72.41, 90.50),
        (REPVGG.format("B3g4", LONGER, "4e54846a"), "repvgg_b3g4", 256, 224, 80.22, 95.10),
        (REPVGG.format("D2se", LONGER, "cf3139b7"), "repvgg_d2se", 256, 224, 81.81, 95.94),
        ("repvgg-A0_8xb32_in1k_20221213-60ae8e23.pth", "repvgg_a0", 256, 224, 72.37, 90.56),
        ("repvgg-B3_8xb32_in1k_20221213-927a329a.pth", "repvgg_b3", 256, 224, 80.58, 95.33),
        ("mobilenet_v2-b0353104.pth", "mobilenet_v2", 256, 224, 71.878, 90.286),
        ("mobilenet_v2-7ebf99e0.pth", "mobilenet_v2", 232, 224, 72.154, 90.822),
        (
            "mobilenet_v2_batch256_imagenet_20200708-3b2dc3af.pth",
            "mobilenet_v2", 256, 224, 71.86, 90.42,
        ),
        ("resnet18-f37072fd.pth", "resnet_18", 256, 224, 69.758, 89.078),
        ("resnet34-b627a593.pth", "resnet_34", 256, 224, 73.314, 91.420),
        ("resnet50-0676ba61.pth", "resnet_50", 256, 224, 76.130, 92.862),
        ("resnet50-11ad3fa6.pth", "resnet_50", 232, 224, 80.858, 95.434),
        ("resnet101-63fe2227.pth", "resnet_101", 256, 224, 77.374, 93.546),
        ("resnet101-cd907fc2.pth", "resnet_101", 232, 224, 81.886, 95.780),
        ("resnet152-394f9c45.pth", "resnet_152", 256, 224, 78.312, 94.046),
        ("resnet152-f82ba261 (1).pth", "resnet_152", 232, 224, 82.284, 96.002),
    ],
)  # fmt: skip
def test_what_was_published_of_other_families(path, model, resized, size, top1, top5):
    """The pixels are those of Pillow's bilinear filter, to the bit."""
    found = pretrained.find(path)
    assert (found.model, found.num_classes) == (model, 1000)
    assert (found.top1, found.top5) == (top1, top5)
    assert found.preprocessing.mean == IMAGENET_MEAN
    assert found.preprocessing.std == (0.229, 0.224, 0.225)
    image = Image.fromarray(picture(400, 333))
    width = 400 * resized // 333
    whole = np.asarray(image.resize((width, resized), Image.Resampling.BILINEAR))
    top, left = round((resized - size) / 2), round((width - size) / 2)
    expected = whole[top : top + size, left : left + size]
    np.testing.assert_array_equal(found.preprocessing.pixels(image), expected)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/RepLKNet-31B_ImageNet-1K_224.pth", "RepLKNet-31B_ImageNet-1K_224"),
        (Path("replknet-31b_imagenet-1k_224.safetensors"), "RepLKNet-31B_ImageNet-1K_224"),
        ("RepLKNet-31B_ImageNet-22K (1).pth", "RepLKNet-31B_ImageNet-22K"),
        ("RepLKNet-31B_ImageNet-1K_224_20221024-debd6715.pth", "RepLKNet-31B_ImageNet-1K_224"),
        ("RepLKNet-31B_ImageNet-1K_384-3d05883f.pt", "RepLKNet-31B_ImageNet-1K_384"),
        (
            "replknet-31B_in21k-pre_3rdparty_in1k-384px_20221118-76c92b24.pth",
            "RepLKNet-31B_ImageNet-22K-to-1K_384",
        ),
        (
            "replknet-XL_meg73m-pre_3rdparty_in1k-320px_20221118-88259b1d.bin",
            "RepLKNet-XL_MegData73M_ImageNet1K",
        ),
    ],
)
def test_names_are_known_by_any_ending_and_with_a_hash(path, name):
    assert pretrained.find(path).files[0].name == name


@pytest.mark.parametrize(
    "path",
    [
        "RepLKNet-31B_ImageNet-1K.pth",
        "RepLKNet-31B_ImageNet-22K_MaskRCNN_COCO.pth",
        "my_RepLKNet-31B_ImageNet-1K_224.pth",
        "RepVGG-B2g2-train.pth",
        "mobilenet_v2.pth",
        "resnet101-12345678.pth",
        "model.safetensors",
        "",
    ],
)
def test_other_names_are_not(path):
    assert pretrained.find(path) is None


@pytest.mark.parametrize(
    ("path", "model", "published"),
    [
        ("RepVGG-D2se-200epochs-train.pth", "repvgg_d2se", "83.55 % top-1 on ImageNet-1K"),
        ("RepVGG-A0-train.pth", "repvgg_a0", "72.41 % top-1, 90.5 % top-5 on ImageNet-1K"),
    ],
)
def test_what_inspect_says_of_it(path, model, published):
    (line,) = _published(Path(path), create_model(model))
    assert line == f"published by this name: {published}"


def test_every_entry_is_of_a_model_and_no_name_is_used_twice():
    for entry in pretrained.PRETRAINED:
        create_model(entry.model)
        assert len(entry.preprocessing.mean) == 3
    names = [file.name.lower() for file in FILES if file.name]
    assert len(set(names)) == len(names)


def test_tags_are_unique_and_follow_the_scheme():
    """`MODEL.SOURCE_DATASET`, with what was fine-tuned on what, epochs and image size."""
    tags = list_pretrained()
    assert len(tags) == len({tag.lower().replace("_", "") for tag in tags}) == 45 + 5 + 5
    data = r"(in1k|in22k|meg73m)(_ft_in1k)?"
    for entry in pretrained.PRETRAINED:
        model, _, tag = entry.tag.partition(".")
        assert model in list_models()
        assert re.fullmatch(rf"((rvgg|tv2?|mm)_(e\d+_)?)?{data}(_\d+)?", tag)
        size = re.search(r"_(\d+)$", tag)
        assert not size or int(size[1]) == entry.preprocessing.image_size
        assert ("_ft_" in tag) == (entry.pretraining != "ImageNet-1K" and entry.top1 is not None)


def test_tags_are_those_of_timm():
    """timm's pretrained configurations with the weights of RepVGG's authors and of torchvision."""
    sizes = ("a0", "a1", "a2", "b0", "b1", "b1g4", "b2", "b2g4", "b3", "b3g4", "d2se")
    of_timm = [f"repvgg_{size}.rvgg_in1k" for size in sizes]
    of_timm += [f"resnet{depth}.tv_in1k" for depth in (18, 34, 50, 101, 152)]
    of_timm += [f"resnet{depth}.tv2_in1k" for depth in (50, 101, 152)]
    for tag in of_timm:
        for spelt in (tag, f"timm/{tag}", f"hf-hub:timm/{tag}", tag.upper()):
            assert pretrained.lookup(spelt).tag == re.sub(r"resnet(?=\d)", "resnet_", tag)
    hosted = [file.url for file in FILES if "huggingface.co" in file.url]
    assert hosted == [
        f"https://huggingface.co/timm/{tag}/resolve/main/model.safetensors"
        for tag in of_timm
        if tag.startswith("repvgg")
    ]


def test_every_file_has_a_link_of_its_own():
    """The name in a direct link is the file's; mmpretrain and torchvision put the hash there."""
    assert all(file.url.startswith("https://") for file in FILES)
    direct = [file for file in FILES if file.url.endswith((".pth", ".safetensors"))]
    assert len({file.url for file in direct}) == len(direct)
    for file in (file for file in direct if file.name):
        stem, digits = re.fullmatch(r".*/(.*)-([0-9a-f]{8})\.pth", file.url).groups()
        assert file.sha256.startswith(digits)
        assert file.name in (re.sub(r"_\d{8}$", "", stem), f"{stem}-{digits}")
        assert pretrained.find(file.url) is pretrained.find(file.name)


def test_hashes_are_whole_or_the_eight_digits_of_a_name():
    hashes = [file.sha256 for file in FILES if file.sha256]
    assert all(re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{8}", digits) for digits in hashes)
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize(
    ("tag", "licence", "paper", "url"),
    [
        (
            "replknet_31b.in1k", "MIT", "2203.06717",
            "https://download.openmmlab.com/mmclassification/v0/replknet/"
            "replknet-31B_3rdparty_in1k_20221118-fd08e268.pth",
        ),
        (
            "replknet_xl.meg73m", "MIT", "2203.06717",
            "https://drive.google.com/file/d/1CBHAEUlCzoHfiAQmMIjZhDMAIyHUmAAj/view?usp=sharing",
        ),
        (
            "repvgg_b2g4.rvgg_e120_in1k", "MIT", "2101.03697",
            "https://drive.google.com/drive/folders/1Avome4KvNp0Lqh2QwhXO6L5URQjzCjUq?usp=sharing",
        ),
        (
            "repvgg_d2se.rvgg_in1k_224", "MIT", "2101.03697",
            "https://download.openmmlab.com/mmclassification/v0/repvgg/"
            "repvgg-D2se_3rdparty_4xb64-autoaug-lbs-mixup-coslr-200e_in1k_20210909-cf3139b7.pth",
        ),
        (
            "mobilenet_v2.mm_in1k", "Apache-2.0", "1801.04381",
            "https://download.openmmlab.com/mmclassification/v0/mobilenet_v2/"
            "mobilenet_v2_batch256_imagenet_20200708-3b2dc3af.pth",
        ),
        (
            "resnet_152.tv2_in1k", "BSD-3-Clause", "1512.03385",
            "https://download.pytorch.org/models/resnet152-f82ba261.pth",
        ),
    ],
)  # fmt: skip
def test_where_it_is_published_and_under_which_licence(tag, licence, paper, url):
    entry = pretrained.lookup(tag)
    assert (entry.licence, entry.paper) == (licence, paper)
    assert url in [file.url for file in entry.files]


@pytest.mark.parametrize(
    ("pattern", "tags"),
    [
        ("resnet_50", ["resnet_50.tv_in1k", "resnet_50.tv2_in1k"]),
        ("ResNet*.tv2*", [f"resnet_{depth}.tv2_in1k" for depth in (50, 101, 152)]),
        ("replknet*.in22k", ["replknet_31b.in22k", "replknet_31l.in22k"]),
        (
            "*31l*",
            [
                "replknet_31l.in22k_ft_in1k_384",
                "replknet_31l.in22k",
                "upernet_replknet_31l_ade20k.in22k",
                "cascade_mask_rcnn_replknet_31l_coco.in22k",
            ],
        ),
        (
            "*meg73m",
            [
                "replknet_xl.meg73m",
                "upernet_replknet_xl_ade20k.meg73m",
                "cascade_mask_rcnn_replknet_xl_coco.meg73m",
            ],
        ),
        (
            "UperNet_RepLKNet-31B_ADE20K",
            ["upernet_replknet_31b_ade20k.in1k", "upernet_replknet_31b_ade20k.in22k"],
        ),
        ("upernet_replknet_31b_cityscapes", ["upernet_replknet_31b_cityscapes.in1k"]),
        ("timm/resnet50.tv_in1k", ["resnet_50.tv_in1k"]),
        ("mobilenetv2_100", list_pretrained("mobilenet_v2")),
        ("resnet50-11ad3fa6.pth", ["resnet_50.tv2_in1k"]),
        ("resnet50.a1_in1k", []),
        ("vgg16", []),
        ("repvgg_b2g2", []),
        ("resnet", []),
    ],
)
def test_listed_by_pattern(pattern, tags):
    assert list_pretrained(pattern) == tags


@pytest.mark.parametrize(
    ("path", "model", "fields", "known"),
    [
        ("RepLKNet-31B_ImageNet-1K_384.pth", "31b", {}, True),
        ("RepLKNet-31B_ImageNet-1K_384.pth", "31b", {"num_classes": None}, True),
        ("RepLKNet-31B_ImageNet-1K_384.pth", "31b", {"num_classes": 10}, False),
        ("RepLKNet-31B_ImageNet-1K_384.pth", "xl", {}, False),
        ("RepLKNet-31B_ImageNet-1K_384.pth", "31b", {"channels": (8, 16, 24, 32)}, False),
        ("RepLKNet-XL_MegData73M_pretrain.pth", "xl", {"num_classes": 7}, True),
        ("model.pth", "31b", {}, False),
    ],
)
def test_recognised_by_name_architecture_and_classes(path, model, fields, known):
    found = pretrained.recognize(path, create_model(f"replknet_{model}", **fields))
    assert (found is not None) == known
    if known:
        assert path.startswith(found.files[0].name)


@pytest.mark.parametrize(
    ("model", "fields", "size", "crop", "mean", "interpolation"),
    [
        ("replknet_31b", {}, 224, 0.875, IMAGENET_MEAN, "bicubic"),
        ("replknet_31l", {}, 384, None, IMAGENET_MEAN, "bicubic"),
        ("replknet_31l", {"num_classes": 21841}, 224, 0.875, IMAGENET_MEAN, "bicubic"),
        ("replknet_31l", {"num_classes": 7}, 384, None, IMAGENET_MEAN, "bicubic"),
        ("replknet_xl", {"num_classes": None}, 320, 0.875, HALF, "bicubic"),
        ("replknet_13", {}, 224, 0.875, IMAGENET_MEAN, "bicubic"),
        ("replknet_31b", {"channels": (8, 16, 24, 32)}, 224, 0.875, IMAGENET_MEAN, "bicubic"),
        ("replknet_13", {"num_classes": None}, 224, 0.875, IMAGENET_MEAN, "bicubic"),
        ("repvgg_d2se", {}, 320, 1, IMAGENET_MEAN, "bilinear"),
        ("repvgg_b2g2", {}, 224, 0.875, IMAGENET_MEAN, "bilinear"),
        ("mobilenet_v2", {}, 224, 0.875, IMAGENET_MEAN, "bilinear"),
        ("mobilenet_v2_13", {}, 224, 0.875, IMAGENET_MEAN, "bilinear"),
        ("resnet_152", {"layers": (1, 1, 1, 1)}, 224, 0.875, IMAGENET_MEAN, "bilinear"),
    ],
)
def test_what_is_usual(model, fields, size, crop, mean, interpolation):
    usual = pretrained.default_preprocessing(create_model(model, **fields))
    assert (usual.image_size, usual.crop_fraction) == (size, crop)
    assert (usual.mean, usual.interpolation) == (mean, interpolation)


@pytest.mark.parametrize("model", ["replknet_31b", "resnet_101"])
def test_nothing_is_made_up_for_other_channels(model):
    grey = create_model(model, in_channels=1)
    assert pretrained.default_preprocessing(grey) is None


def test_published_accuracies():
    """Every registered model has one but those that came without; none is said twice."""
    without = {"repvgg_b2g2", "repvgg_b3g2"}
    found = {name: pretrained.published_accuracy(name) for name in list_models()}
    assert {name for name, accuracy in found.items() if accuracy is None} == without
    assert found["replknet_31l"] == (86.63, 384, True)
    assert found["repvgg_d2se"] == (83.55, 320, True)
    assert found["mobilenet_v2_13_reparam"] == (73.24, 224, False)
    assert found["mobilenet_v2_dilated_4"] == (57.23, 224, False)
    assert found["mobilenet_v2_dilated_6"] == (51.21, 224, False)
    assert pretrained.published_accuracy("ResNet50") == found["resnet_50"] == (76.130, 224, True)
    assert not set(pretrained.WITHOUT_WEIGHTS) & {entry.model for entry in pretrained.PRETRAINED}
    assert set(pretrained.WITHOUT_WEIGHTS) <= set(list_models())


def test_looked_up_by_tag_file_or_model():
    """A model stands for its checkpoints if all see images alike."""
    assert pretrained.lookup("replknet_31b.in1k_384").preprocessing.image_size == 384
    assert pretrained.lookup("RepLKNet-31B.in22k").num_classes == 21841
    v2 = pretrained.lookup("resnet50-11ad3fa6.pth")
    assert v2.preprocessing.crop_fraction == 224 / 232
    assert pretrained.lookup("resnet18.tv_in1k").files[0].name == "resnet18-f37072fd"
    assert pretrained.lookup("RepVGG-B1").top1 == 78.37


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50", "name one of resnet_50.tv_in1k, resnet_50.tv2_in1k"),
        ("replknet-31b", "name one of replknet_31b.in1k, "),
        ("resnet50.a1_in1k", "'resnet50.a1_in1k'. The checkpoints of resnet_50 are resnet_50.tv_"),
        ("resnet18.a1_in1k", "The checkpoints of resnet_18 are resnet_18.tv_in1k."),
        ("repvgg_b1g2.rvg_in1k", "The checkpoints of repvgg_b1g2 are repvgg_b1g2.rvgg_in1k, "),
        ("replknet_31c.in22k", "Did you mean replknet_31l.in22k, replknet_31b.in22k"),
        ("RepLKNet-31B_ImageNet1K", "Did you mean replknet_31b."),
        ("replknet_13", "replknet_13 has no published checkpoint"),
        ("PSPNet-RepVGG-B2-Cityscapes", "pspnet_repvgg_b2_cityscapes has no published checkpoint"),
        ("pspnet_repvgg_b2_city", "Did you mean pspnet_repvgg_b2_cityscapes"),
        ("vgg16", "no published checkpoint or model has the name 'vgg16'"),
    ],
)
def test_looked_up_in_vain(name, message):
    with pytest.raises(ValueError, match=message):
        pretrained.lookup(name)


# Published mIoU at one and several scales, and the test: limits, window, align_corners.
SEGMENTERS = {
    "upernet_replknet_31b_cityscapes.in1k": (83.1, 83.5, (2049, 1025), None, True),
    "upernet_replknet_31b_ade20k.in1k": (49.9, 50.6, (2048, 512), None, False),
    "upernet_replknet_31b_ade20k.in22k": (51.5, 52.3, (2048, 512), 640, False),
    "upernet_replknet_31l_ade20k.in22k": (52.4, 52.7, (2048, 512), 640, False),
    "upernet_replknet_xl_ade20k.meg73m": (55.2, 56.0, (2048, 512), 640, False),
}


# Published AP of boxes and masks on COCO.
DETECTORS = {
    "fcos_replknet_31b_coco.in1k": (47.0, None),
    "cascade_mask_rcnn_replknet_31b_coco.in1k": (52.2, 45.2),
    "cascade_mask_rcnn_replknet_31b_coco.in22k": (53.0, 46.0),
    "cascade_mask_rcnn_replknet_31l_coco.in22k": (53.9, 46.5),
    "cascade_mask_rcnn_replknet_xl_coco.meg73m": (55.5, 48.0),
}


class TestDetectors:
    """The published detection checkpoints; facts of RepLKNet's README and configurations."""

    def test_facts(self):
        table = pretrained.PRETRAINED_DETECTORS
        assert {entry.tag: (entry.box_ap, entry.mask_ap) for entry in table} == DETECTORS

    @pytest.mark.parametrize("entry", pretrained.PRETRAINED_DETECTORS, ids=lambda e: e.tag)
    def test_each(self, entry):
        assert entry.backbone in list_models()
        assert len(label_sets.find(entry.data_set)) == entry.num_classes
        assert entry.preprocessing.limits == (1333, 800)
        is_half = entry.preprocessing.mean == entry.preprocessing.std == (0.5,) * 3
        assert is_half == ("xl" in entry.tag)
        assert pretrained.lookup(entry.tag) is entry

    def test_recognized_and_default(self):
        model = create_detector("cascade_mask_rcnn_replknet_31b_coco")
        path = "RepLKNet-31B_ImageNet-22K_CascMaskRCNN_COCO.pth"
        assert pretrained.find(path).tag == "cascade_mask_rcnn_replknet_31b_coco.in22k"
        assert pretrained.recognize(path, model).box_ap == 53.0
        assert pretrained.recognize(path, model.clone(num_classes=3)) is None
        assert pretrained.recognize(path, model.backbone) is None
        assert pretrained.default_preprocessing(model).limits == (1333, 800)

    def test_listed(self, capsys):
        """By `models --pretrained`, with the preprocessing."""
        _list_checkpoints("cascade_mask_rcnn_replknet_xl_coco")
        shown = capsys.readouterr().out
        assert "55.5     48.0       80" in shown
        assert "resize to at most 1333 x 800, pad to multiples of 32" in shown
        assert "1i0TqfwQJQUVHWdB5oyDgxlUUqzPZmIVr" in shown


class TestSegmenters:
    """The published segmentation checkpoints; facts of RepLKNet's README and configurations."""

    def test_facts(self):
        found = {
            entry.tag: (
                entry.miou,
                entry.miou_multi_scale,
                entry.preprocessing.limits,
                entry.preprocessing.window,
                entry.align_corners,
            )
            for entry in pretrained.PRETRAINED_SEGMENTERS
        }
        assert found == SEGMENTERS

    @pytest.mark.parametrize("entry", pretrained.PRETRAINED_SEGMENTERS, ids=lambda e: e.tag)
    def test_each(self, entry):
        assert entry.backbone in list_models()
        assert len(label_sets.find(entry.data_set)) == entry.num_classes
        assert entry.preprocessing.stride == (426 if entry.preprocessing.window else None)
        is_half = entry.preprocessing.mean == entry.preprocessing.std == (0.5,) * 3
        assert is_half == ("xl" in entry.tag)
        assert pretrained.lookup(entry.tag) is entry

    def test_by_file_name(self):
        entry = pretrained.find("RepLKNet-31B_ImageNet-1K_UperNet_Cityscapes.pth")
        assert entry.tag == "upernet_replknet_31b_cityscapes.in1k"
        assert (
            pretrained.recognize("x/" + entry.files[0].name, create_model("replknet_31b")) is None
        )

    def test_by_model(self):
        assert pretrained.lookup("upernet_replknet_31l_ade20k").miou == 52.4
        with pytest.raises(ValueError, match="not share one preprocessing: name one of upernet"):
            pretrained.lookup("upernet_replknet_31b_ade20k")
        with pytest.raises(ValueError, match="Did you mean upernet_replknet_31b_ade20k"):
            pretrained.lookup("upernet_replknet_31b_ade20")

    def test_recognized_and_default(self):
        backbone = create_model("replknet_31b", num_classes=None, features_only=True)
        city = create_segmenter("upernet", backbone, 19)
        path = "RepLKNet-31B_ImageNet-1K_UperNet_Cityscapes.pth"
        assert pretrained.recognize(path, city).miou == 83.1
        assert pretrained.recognize(path, city.clone(num_classes=150)) is None
        assert pretrained.default_preprocessing(city).limits == (2049, 1025)
        other = create_segmenter("upernet", "resnet_18", 5)
        assert pretrained.default_preprocessing(other).limits == (2048, 512)

    def test_listed(self, capsys):
        """By `models --pretrained`, with the protocol."""
        _list_checkpoints("upernet_replknet_31b_ade20k")
        shown = capsys.readouterr().out
        assert "upernet_replknet_31b_ade20k.in22k" in shown
        assert "slide 640 stride 426" in shown
        assert "1W2W4nD2HzTsG_yP9ppLYAqMo3T3JHBNW" in shown
        assert "replknet_31b.in1k" not in shown
