"""The released checkpoints."""

from pathlib import Path

import pytest

from replk_jax import create_model, released
from replk_jax.preprocessing import IMAGENET_MEAN, Preprocessing

HALF = (0.5, 0.5, 0.5)


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
    found = released.find(path)
    assert found.model == f"replknet_{model}"
    assert (found.top1, found.top5) == (top1, top5)
    std = HALF if mean == HALF else (0.229, 0.224, 0.225)
    assert found.preprocessing == Preprocessing(size, crop, "bicubic", mean, std)


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
    assert released.find(path).file_names[0] == name


@pytest.mark.parametrize(
    "path",
    [
        "RepLKNet-31B_ImageNet-1K.pth",
        "RepLKNet-31B_ImageNet-1K_UperNet_Cityscapes.pth",
        "my_RepLKNet-31B_ImageNet-1K_224.pth",
        "model.safetensors",
        "",
    ],
)
def test_other_names_are_not(path):
    assert released.find(path) is None


def test_every_entry_is_of_a_model_and_no_name_is_used_twice():
    for entry in released.RELEASED:
        create_model(entry.model)
        assert len(entry.preprocessing.mean) == 3
    names = [name.lower() for entry in released.RELEASED for name in entry.file_names]
    assert len(set(names)) == len(names)


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
    found = released.recognize(path, create_model(f"replknet_{model}", **fields))
    assert (found is not None) == known
    if known:
        assert path.startswith(found.file_names[0])


@pytest.mark.parametrize(
    ("model", "fields", "size", "crop", "mean"),
    [
        ("31b", {}, 224, 0.875, IMAGENET_MEAN),
        ("31l", {}, 384, None, IMAGENET_MEAN),
        ("31l", {"num_classes": 21841}, 224, 0.875, IMAGENET_MEAN),
        ("31l", {"num_classes": 7}, 384, None, IMAGENET_MEAN),
        ("xl", {"num_classes": None}, 320, 0.875, HALF),
        ("13", {}, 224, 0.875, IMAGENET_MEAN),
        ("31b", {"channels": (8, 16, 24, 32)}, 224, 0.875, IMAGENET_MEAN),
    ],
)
def test_what_is_usual(model, fields, size, crop, mean):
    usual = released.usual_preprocessing(create_model(f"replknet_{model}", **fields))
    assert (usual.image_size, usual.crop_fraction) == (size, crop)
    assert usual.mean == mean


def test_nothing_is_made_up_for_other_channels():
    grey = create_model("replknet_31b", in_channels=1)
    assert released.usual_preprocessing(grey) is None
