"""The table of published checkpoints: who published which file, and how it is evaluated.

RepLKNet's and RepVGG's are those of the official code (DingXiaoH/RepLKNet-pytorch,
DingXiaoH/RepVGG), mmpretrain's conversions of them, and timm's of RepVGG. The accuracies with two
decimals are from mmpretrain's model indices. mmpretrain also trained RepVGG and MobileNet V2
itself. MobileNet V2 and ResNet are torchvision's, with torchvision's accuracies. mmpretrain's
ResNets are left out: they are evaluated on images that OpenCV resized, which no filter of Pillow
reproduces.
"""

import dataclasses
import functools

from replk_jax.vision.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """A file of weights, as one publisher offers it.

    Attributes:
      name: name of the file without its ending, which identifies the checkpoint. mmpretrain's are
        without date and hash. torchvision's include the hash, the only difference between two
        versions. None for timm's: all have the name `model`.
      url: the file itself, or the page or folder that offers it where there is no direct link.
      sha256: SHA-256 of the file in lower-case hexadecimal: all 64 digits, or the first 8 where
        only the file's name states it. None where no public source states it.
    """

    name: str | None
    url: str
    sha256: str | None = None


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A published checkpoint.

    Attributes:
      tag: `MODEL.SOURCE_DATASET`, timm's name where timm has the same weights, with the name that
        the model has here (`resnet_50`, timm's `resnet50`). SOURCE is `rvgg` for RepVGG's authors,
        `tv` and `tv2` for the two versions of torchvision, `mm` for mmpretrain, and left out for
        RepLKNet's authors. `in22k_ft_in1k` is pre-trained on ImageNet-22K and fine-tuned on
        ImageNet-1K. `e120` is trained for 120 epochs where another checkpoint had more. A number
        at the end is the image size. Without one it is 224, or 320 for `repvgg_d2se.rvgg_in1k` as
        in timm, or not published.
      files: the same weights from different publishers, the original first.
      pretraining: the data set that the model was first trained on.
      num_classes: number of classes of the classifier; None where it is not published.
      preprocessing: of the images that the checkpoint is evaluated on.
      licence: SPDX identifier of the licence that the publisher states for the weights, or for the
        project that publishes them; None where neither is stated.
      paper: arXiv identifier of the paper that describes the model.
      top1, top5: published accuracy on the validation images of ImageNet-1K, in per cent; None
        where none was published, such as for models that do not classify these.
    """

    tag: str
    files: tuple[PublishedFile, ...]
    pretraining: str
    num_classes: int | None
    preprocessing: Preprocessing
    licence: str | None
    paper: str
    top1: float | None = None
    top5: float | None = None

    @property
    def model(self) -> str:
        """Name of the model for `create_model`."""
        return self.tag.partition(".")[0]


# --- Publishers --------------------------------------------------------------------------


def _google_drive(name: str, file_id: str) -> PublishedFile:
    """A file of RepLKNet's authors."""
    return PublishedFile(name, f"https://drive.google.com/file/d/{file_id}/view?usp=sharing")


def _repvgg_folder(name: str) -> PublishedFile:
    """A file of RepVGG's authors, who share the folder of all of them."""
    folder = "1Avome4KvNp0Lqh2QwhXO6L5URQjzCjUq"
    return PublishedFile(name, f"https://drive.google.com/drive/folders/{folder}?usp=sharing")


def _mmpretrain(family: str, name: str, date: str, sha256: str) -> PublishedFile:
    root = "https://download.openmmlab.com/mmclassification/v0"
    return PublishedFile(name, f"{root}/{family}/{name}_{date}-{sha256[:8]}.pth", sha256)


def _torchvision(name: str, sha256: str) -> PublishedFile:
    name = f"{name}-{sha256[:8]}"
    return PublishedFile(name, f"https://download.pytorch.org/models/{name}.pth", sha256)


def _timm(tag: str, sha256: str | None = None) -> PublishedFile:
    url = f"https://huggingface.co/timm/{tag}/resolve/main/model.safetensors"
    return PublishedFile(None, url, sha256)


# --- Families ----------------------------------------------------------------------------


_AT_224 = Preprocessing(224, crop_fraction=0.875)
_AT_384 = Preprocessing(384, crop_fraction=None)
# The official code crops below 384 pixels, and resizes to a square from there on.
_XL_AT_320 = Preprocessing(320, crop_fraction=0.875, mean=(0.5,) * 3, std=(0.5,) * 3)


def _replknet(
    tag: str,
    preprocessing: Preprocessing,
    top1: float | None,
    top5: float | None,
    *files: PublishedFile,
    pretraining: str,
    num_classes: int | None = 1000,
) -> Pretrained:
    """As in `Pretrained`."""
    return Pretrained(
        tag, files, pretraining, num_classes, preprocessing, "MIT", "2203.06717", top1, top5
    )


def _bilinear(
    tag: str,
    top1: float,
    top5: float | None,
    *files: PublishedFile,
    licence: str,
    paper: str,
    resized: int = 256,
    size: int = 224,
) -> Pretrained:
    """Trained on ImageNet-1K, and evaluated with torchvision's default filter.

    Args:
      tag, top1, top5, *files, licence, paper: as in `Pretrained`.
      resized: shorter side of the image in pixels, before the crop.
      size: of the crop, in pixels.
    """
    preprocessing = Preprocessing(size, crop_fraction=size / resized, interpolation="bilinear")
    return Pretrained(tag, files, "ImageNet-1K", 1000, preprocessing, licence, paper, top1, top5)


_repvgg = functools.partial(_bilinear, licence="MIT", paper="2101.03697")
_repvgg_mm = functools.partial(_bilinear, licence="Apache-2.0", paper="2101.03697")
_mobilenet_v2 = functools.partial(_bilinear, licence="BSD-3-Clause", paper="1801.04381")
_mobilenet_v2_mm = functools.partial(_bilinear, licence="Apache-2.0", paper="1801.04381")
_resnet = functools.partial(_bilinear, licence="BSD-3-Clause", paper="1512.03385")


# --- Checkpoints -------------------------------------------------------------------------


# An unnamed file is taken for the first of those that share architecture and number of classes.
PRETRAINED: tuple[Pretrained, ...] = (
    _replknet(
        "replknet_31b.in1k", _AT_224, 83.48, 96.57,
        _google_drive("RepLKNet-31B_ImageNet-1K_224", "1azQUiCxK9feYVkkrPqwVPBtNsTzDrX7S"),
        _mmpretrain("replknet", "replknet-31B_3rdparty_in1k", "20221118", "fd08e268"),
        pretraining="ImageNet-1K",
    ),
    _replknet(
        "replknet_31b.in1k_384", _AT_384, 84.84, 97.34,
        _google_drive("RepLKNet-31B_ImageNet-1K_384", "1vo-P3XB6mRLUeDzmgv90dOu73uCeLfZN"),
        _mmpretrain("replknet", "replknet-31B_3rdparty_in1k-384px", "20221118", "03a170ce"),
        pretraining="ImageNet-1K",
    ),
    _replknet(
        "replknet_31b.in22k_ft_in1k", _AT_224, 85.20, 97.56,
        _google_drive("RepLKNet-31B_ImageNet-22K-to-1K_224", "1DslZ2voXZQR1QoFY9KnbsHAeF84hzS0s"),
        _mmpretrain("replknet", "replknet-31B_in21k-pre_3rdparty_in1k", "20221118", "54ed5c46"),
        pretraining="ImageNet-22K",
    ),
    _replknet(
        "replknet_31b.in22k_ft_in1k_384", _AT_384, 85.99, 97.75,
        _google_drive("RepLKNet-31B_ImageNet-22K-to-1K_384", "1Sc46BWdXXm2fVP-K_hKKU_W8vAB-0duX"),
        _mmpretrain(
            "replknet", "replknet-31B_in21k-pre_3rdparty_in1k-384px", "20221118", "76c92b24"
        ),
        pretraining="ImageNet-22K",
    ),
    _replknet(
        "replknet_31b.in22k", _AT_224, None, None,
        _google_drive("RepLKNet-31B_ImageNet-22K", "1PYJiMszZYNrkZOeYwjccvxX8UHMALB7z"),
        pretraining="ImageNet-22K", num_classes=21841,
    ),
    _replknet(
        "replknet_31l.in22k_ft_in1k_384", _AT_384, 86.63, 98.00,
        _google_drive("RepLKNet-31L_ImageNet-22K-to-1K_384", "1JYXoNHuRvC33QV1pmpzMTKEni1hpWfBl"),
        _mmpretrain(
            "replknet", "replknet-31L_in21k-pre_3rdparty_in1k-384px", "20221118", "dc3fc07c"
        ),
        pretraining="ImageNet-22K",
    ),
    _replknet(
        "replknet_31l.in22k", _AT_224, None, None,
        _google_drive("RepLKNet-31L_ImageNet-22K", "16jcPsPwo5rko7ojWS9k_W-svHX-iFknY"),
        pretraining="ImageNet-22K", num_classes=21841,
    ),
    # The paper has 87.8 for this one. mmpretrain's configuration, where 87.57 is from, divides by
    # 122.5 in place of 127.5.
    _replknet(
        "replknet_xl.meg73m_ft_in1k_320", _XL_AT_320, 87.57, 98.39,
        _google_drive("RepLKNet-XL_MegData73M_ImageNet1K", "1tPC60El34GntXByIRHb-z-Apm4Y5LX1T"),
        _mmpretrain(
            "replknet", "replknet-XL_meg73m-pre_3rdparty_in1k-320px", "20221118", "88259b1d"
        ),
        pretraining="MegData-73M",
    ),
    # Mean and standard deviation are published, the image size is not.
    _replknet(
        "replknet_xl.meg73m", _XL_AT_320, None, None,
        _google_drive("RepLKNet-XL_MegData73M_pretrain", "1CBHAEUlCzoHfiAQmMIjZhDMAIyHUmAAj"),
        pretraining="MegData-73M", num_classes=None,
    ),
    _repvgg(
        "repvgg_a0.rvgg_in1k", 72.41, 90.50,
        _repvgg_folder("RepVGG-A0-train"),
        _mmpretrain("repvgg", "repvgg-A0_3rdparty_4xb64-coslr-120e_in1k", "20210909", "883ab98c"),
        _timm("repvgg_a0.rvgg_in1k"),
    ),
    _repvgg(
        "repvgg_a1.rvgg_in1k", 74.47, 91.85,
        _repvgg_folder("RepVGG-A1-train"),
        _mmpretrain("repvgg", "repvgg-A1_3rdparty_4xb64-coslr-120e_in1k", "20210909", "24003a24"),
        _timm("repvgg_a1.rvgg_in1k"),
    ),
    _repvgg(
        "repvgg_a2.rvgg_in1k", 76.48, 93.01,
        _repvgg_folder("RepVGG-A2-train"),
        _mmpretrain("repvgg", "repvgg-A2_3rdparty_4xb64-coslr-120e_in1k", "20210909", "97d7695a"),
        _timm("repvgg_a2.rvgg_in1k"),
    ),
    _repvgg(
        "repvgg_b0.rvgg_in1k", 75.14, 92.42,
        _repvgg_folder("RepVGG-B0-train"),
        _mmpretrain("repvgg", "repvgg-B0_3rdparty_4xb64-coslr-120e_in1k", "20210909", "446375f4"),
        _timm("repvgg_b0.rvgg_in1k"),
    ),
    _repvgg(
        "repvgg_b1.rvgg_in1k", 78.37, 94.11,
        _repvgg_folder("RepVGG-B1-train"),
        _mmpretrain("repvgg", "repvgg-B1_3rdparty_4xb64-coslr-120e_in1k", "20210909", "750cdf67"),
        _timm("repvgg_b1.rvgg_in1k"),
    ),
    _repvgg(
        "repvgg_b1g2.rvgg_in1k", 77.79, 93.88,
        _repvgg_folder("RepVGG-B1g2-train"),
        _mmpretrain("repvgg", "repvgg-B1g2_3rdparty_4xb64-coslr-120e_in1k", "20210909", "344f6422"),
    ),
    _repvgg(
        "repvgg_b1g4.rvgg_in1k", 77.58, 93.84,
        _repvgg_folder("RepVGG-B1g4-train"),
        _mmpretrain("repvgg", "repvgg-B1g4_3rdparty_4xb64-coslr-120e_in1k", "20210909", "d4c1a642"),
        _timm("repvgg_b1g4.rvgg_in1k"),
    ),
    _repvgg(
        "repvgg_b2.rvgg_in1k", 78.78, 94.42,
        _repvgg_folder("RepVGG-B2-train"),
        _mmpretrain("repvgg", "repvgg-B2_3rdparty_4xb64-coslr-120e_in1k", "20210909", "bd6b937c"),
        _timm(
            "repvgg_b2.rvgg_in1k",
            "83b87a825e032ce126fe872d8479f9b9b94fe535d9fc746c1d2a9c721091f4e3",
        ),
    ),
    _repvgg(
        "repvgg_b2g4.rvgg_in1k", 79.38, 94.68,
        _repvgg_folder("RepVGG-B2g4-200epochs-train"),
        _mmpretrain(
            "repvgg", "repvgg-B2g4_3rdparty_4xb64-autoaug-lbs-mixup-coslr-200e_in1k",
            "20210909", "7b7955f0",
        ),
        _timm("repvgg_b2g4.rvgg_in1k"),
    ),
    _repvgg(
        "repvgg_b3.rvgg_in1k", 80.52, 95.26,
        _repvgg_folder("RepVGG-B3-200epochs-train"),
        _mmpretrain(
            "repvgg", "repvgg-B3_3rdparty_4xb64-autoaug-lbs-mixup-coslr-200e_in1k",
            "20210909", "dda968bf",
        ),
        _timm(
            "repvgg_b3.rvgg_in1k",
            "ba125a9e860c2e0f76eb546f5bdc3794243704815b95f04f2d15491aa04f2805",
        ),
    ),
    _repvgg(
        "repvgg_b3g4.rvgg_in1k", 80.22, 95.10,
        _repvgg_folder("RepVGG-B3g4-200epochs-train"),
        _mmpretrain(
            "repvgg", "repvgg-B3g4_3rdparty_4xb64-autoaug-lbs-mixup-coslr-200e_in1k",
            "20210909", "4e54846a",
        ),
        _timm(
            "repvgg_b3g4.rvgg_in1k",
            "ceff374a42ba7831307bf4f5bec91b4eb23fe9dd128e881845c014807ecd8452",
        ),
    ),
    # 120 epochs, as the smaller ones; the accuracy is that of the paper.
    _repvgg("repvgg_b2g4.rvgg_e120_in1k", 78.50, None, _repvgg_folder("RepVGG-B2g4-train")),
    # The same weights twice. They were trained at 224; the authors and timm evaluate them at 320.
    _repvgg(
        "repvgg_d2se.rvgg_in1k", 83.55, None,
        _repvgg_folder("RepVGG-D2se-200epochs-train"),
        _timm("repvgg_d2se.rvgg_in1k"),
        resized=320, size=320,
    ),
    _repvgg(
        "repvgg_d2se.rvgg_in1k_224", 81.81, 95.94,
        _mmpretrain(
            "repvgg", "repvgg-D2se_3rdparty_4xb64-autoaug-lbs-mixup-coslr-200e_in1k",
            "20210909", "cf3139b7",
        ),
    ),
    _repvgg_mm(
        "repvgg_a0.mm_in1k", 72.37, 90.56,
        _mmpretrain("repvgg", "repvgg-A0_8xb32_in1k", "20221213", "60ae8e23"),
    ),
    _repvgg_mm(
        "repvgg_a1.mm_in1k", 74.23, 91.80,
        _mmpretrain("repvgg", "repvgg-A1_8xb32_in1k", "20221213", "f81bf3df"),
    ),
    _repvgg_mm(
        "repvgg_a2.mm_in1k", 76.49, 93.09,
        _mmpretrain("repvgg", "repvgg-A2_8xb32_in1k", "20221213", "a8767caf"),
    ),
    _repvgg_mm(
        "repvgg_b0.mm_in1k", 75.27, 92.21,
        _mmpretrain("repvgg", "repvgg-B0_8xb32_in1k", "20221213", "5091ecc7"),
    ),
    _repvgg_mm(
        "repvgg_b1.mm_in1k", 78.19, 94.04,
        _mmpretrain("repvgg", "repvgg-B1_8xb32_in1k", "20221213", "d17c45e7"),
    ),
    _repvgg_mm(
        "repvgg_b1g2.mm_in1k", 77.87, 93.99,
        _mmpretrain("repvgg", "repvgg-B1g2_8xb32_in1k", "20221213", "ae6428fd"),
    ),
    _repvgg_mm(
        "repvgg_b1g4.mm_in1k", 77.81, 93.77,
        _mmpretrain("repvgg", "repvgg-B1g4_8xb32_in1k", "20221213", "a7a4aaea"),
    ),
    _repvgg_mm(
        "repvgg_b2.mm_in1k", 78.58, 94.23,
        _mmpretrain("repvgg", "repvgg-B2_8xb32_in1k", "20221213", "d8b420ef"),
    ),
    _repvgg_mm(
        "repvgg_b2g4.mm_in1k", 79.44, 94.72,
        _mmpretrain("repvgg", "repvgg-B2g4_8xb32_in1k", "20221213", "0c1990eb"),
    ),
    _repvgg_mm(
        "repvgg_b3.mm_in1k", 80.58, 95.33,
        _mmpretrain("repvgg", "repvgg-B3_8xb32_in1k", "20221213", "927a329a"),
    ),
    _repvgg_mm(
        "repvgg_b3g4.mm_in1k", 80.26, 95.15,
        _mmpretrain("repvgg", "repvgg-B3g4_8xb32_in1k", "20221213", "e01cb280"),
    ),
    _mobilenet_v2(
        "mobilenet_v2.tv_in1k", 71.878, 90.286,
        _torchvision(
            "mobilenet_v2", "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
        ),
    ),
    _mobilenet_v2(
        "mobilenet_v2.tv2_in1k", 72.154, 90.822,
        _torchvision(
            "mobilenet_v2", "7ebf99e03e254b273379b23edca7ec0da9f48273b23a332b93c1c99d49e86e8f"
        ),
        resized=232,
    ),
    _mobilenet_v2_mm(
        "mobilenet_v2.mm_in1k", 71.86, 90.42,
        _mmpretrain(
            "mobilenet_v2", "mobilenet_v2_batch256_imagenet", "20200708",
            "3b2dc3afee0b94e52b357a60851f1ac8ec95cf9318762e785812edf7f6736b14",
        ),
    ),
    _resnet(
        "resnet_18.tv_in1k", 69.758, 89.078,
        _torchvision(
            "resnet18", "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec"
        ),
    ),
    _resnet(
        "resnet_34.tv_in1k", 73.314, 91.420,
        _torchvision(
            "resnet34", "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f"
        ),
    ),
    _resnet(
        "resnet_50.tv_in1k", 76.130, 92.862,
        _torchvision(
            "resnet50", "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a"
        ),
    ),
    _resnet(
        "resnet_50.tv2_in1k", 80.858, 95.434,
        _torchvision(
            "resnet50", "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca"
        ),
        resized=232,
    ),
    _resnet(
        "resnet_101.tv_in1k", 77.374, 93.546,
        _torchvision(
            "resnet101", "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a"
        ),
    ),
    _resnet(
        "resnet_101.tv2_in1k", 81.886, 95.780,
        _torchvision(
            "resnet101", "cd907fc2a0de2292b2ba2b27d2216bc672d84632d1cf20058d01c0c03b5e020e"
        ),
        resized=232,
    ),
    _resnet(
        "resnet_152.tv_in1k", 78.312, 94.046,
        _torchvision(
            "resnet152", "394f9c45966e3651a89bbb78a48410a6755854ce4a5ab64927cf1c7247f85e58"
        ),
    ),
    _resnet(
        "resnet_152.tv2_in1k", 82.284, 96.002,
        _torchvision("resnet152", "f82ba261"),
        resized=232,
    ),
)  # fmt: skip


# Top-1 on ImageNet-1K at 224 x 224 of models that were published without weights, in per cent:
# RepLKNet's paper, tables 5 (120 epochs), 2, 3 and 4, and 11 of its first arXiv version (MobileNet
# V2).
WITHOUT_WEIGHTS: dict[str, float] = {
    "replknet_3": 82.11,
    "replknet_7": 82.73,
    "replknet_13": 83.02,
    "replknet_25": 83.00,
    "mobilenet_v2_no_shortcuts": 68.67,
    "mobilenet_v2_9": 72.67,
    "mobilenet_v2_9_reparam": 73.09,
    "mobilenet_v2_13": 72.53,
    "mobilenet_v2_13_no_shortcuts": 53.98,
    "mobilenet_v2_13_reparam": 73.24,
    "mobilenet_v2_last_7": 72.00,
    "mobilenet_v2_last_13": 71.97,
    "mobilenet_v2_dilated_4": 57.23,
    "mobilenet_v2_dilated_6": 51.21,
}
