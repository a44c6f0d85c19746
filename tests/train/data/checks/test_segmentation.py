"""The look through images and masks: every kind of finding, once."""

import io

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from train.data import scattered_digits
from train.data.checks.mask_files import looks_antialiased
from train.data.checks.segmentation import examine_masks
from train.data.sources import prepare

CLASSES = ("background", "cat", "dog")
SIZE = (40, 30)  # width and height


def png(array, **options):
    file = io.BytesIO()
    Image.fromarray(np.asarray(array)).save(file, "PNG", **options)
    return file.getvalue()


def image(seed, size=SIZE):
    width, height = size
    return png(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def mask(first=0, count=3):
    """Vertical stripes of all classes."""
    stripes = first + np.arange(SIZE[0]) * count // SIZE[0]
    return np.broadcast_to(stripes.astype(np.uint8), SIZE[::-1]).copy()


def write(root, files):
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def pair(split, name, classes, seed):
    return {f"images/{split}/{name}.png": image(seed), f"masks/{split}/{name}.png": png(classes)}


@pytest.fixture
def root(tmp_path):
    """A folder without faults."""
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    for number in range(3):
        write(tmp_path, pair("train", f"{number}", mask(), number))
        write(tmp_path, pair("val", f"{number}", mask(), 10 + number))
    return tmp_path


def examine(root, splits=("train", "val"), **fields):
    data = {
        "name": None, "data_dir": None, "folder": str(root), "format": None, "image_suffix": None,
        "mask_suffix": None, "classes": None, "reduce_zero_label": None, "unreadable": "stop",
        "reading": {"threads": 2, "workers": 0},
    }  # fmt: skip
    return examine_masks(ConfigDict(data | fields), splits)


def only_finding(root, **fields):
    (finding,) = examine(root, **fields).findings
    return finding


def every_mask(root, change):
    """Replaces all masks."""
    for path in root.glob("masks/*/*.png"):
        path.write_bytes(png(change(np.asarray(Image.open(path)))))


def test_a_good_data_set(root):
    examination = examine(root)
    assert examination.findings == []
    pixels = {name: 3 * 30 * width for name, width in zip(CLASSES, (14, 13, 13), strict=True)}
    expected = {
        "images": 3,
        "smallest": "40 x 30",
        "largest": "40 x 30",
        "ignored_share": 0.0,
        "pixels_per_class": pixels,
        "images_per_class": dict.fromkeys(CLASSES, 3),
    }
    assert examination.statistics == {"train": expected, "val": expected}
    text = examination.text()
    assert "3 of 3" in text
    assert "35.00%" in text  # 14 of 40 columns


def test_missing_files(root):
    (root / "masks/train/1.png").unlink()
    (root / "images/val/0.png").unlink()
    first, second = examine(root).findings
    assert (first.severity, first.kind, first.split) == ("error", "image without mask", "train")
    assert f"the image {root}/images/train/1.png has no mask: add it" in first.message
    assert (second.severity, second.kind, second.split) == ("error", "mask without image", "val")
    assert f"{root}/masks/val/0.png has no image" in second.message


def test_names_without_an_image(root):
    """Of the list of a split."""
    for kind in ("images", "masks"):
        for path in (root / kind / "train").iterdir():
            path.rename(root / kind / path.name)
        (root / kind / "train").rmdir()
    (root / "train.txt").write_text("0\n1\n2\ngone\n")
    (finding,) = examine(root).findings
    assert (finding.severity, finding.kind, finding.split) == (
        "error",
        "name without image",
        "train",
    )
    assert "the name gone of the list of train has no image: add it, or remove the name" in (
        finding.message
    )


def test_nothing_fits(root):
    """All masks have another ending: that is one finding, not one for each file."""
    for path in (root / "masks/train").iterdir():
        path.rename(path.with_name(f"{path.stem}_label.png"))
    (finding,) = examine(root).findings
    assert (finding.severity, finding.kind, finding.split) == ("error", "cannot be opened", "train")
    assert "Images without a mask: 3 (images/train/0.png, " in finding.message
    assert "Masks without an image: 3 (masks/train/0_label.png, " in finding.message
    assert "mask_suffix set other endings" in finding.message
    assert examine(root, mask_suffix="_label.png").errors == 1  # val has the other ending


def test_sizes_that_differ(root):
    write(root, {"images/train/x.png": image(7, (30, 40)), "masks/train/x.png": png(mask())})
    finding = only_finding(root)
    assert (finding.severity, finding.kind) == ("error", "sizes that differ")
    assert "masks/train/x.png has 40 x 30 pixels, and its image" in finding.message
    assert "images/train/x.png has 30 x 40: use the mask of this image" in finding.message


def test_masks_that_do_not_fit_upright_images(root):
    """The sizes differ after a quarter turn; after a half turn only a look can tell."""
    exif = Image.Exif()
    for orientation in (6, 3):
        exif[0x0112] = orientation
        pixels = np.random.default_rng(orientation).integers(0, 256, (30, 40, 3), np.uint8)
        name = f"{orientation}.png"
        image, classes = png(pixels, exif=exif), png(mask())
        write(root, {f"images/train/x{name}": image, f"masks/train/x{name}": classes})
    error, warning = sorted(examine(root).findings, key=lambda finding: finding.severity)
    assert (error.severity, error.kind) == ("error", "sizes that differ")
    assert "images/train/x6.png has 30 x 40 after the rotation by its EXIF" in error.message
    assert (warning.severity, warning.kind) == ("warning", "applied EXIF orientation")
    assert "in 2 images" in warning.message


def test_values_that_are_no_class(root):
    write(root, pair("train", "x", mask(first=2, count=2), 7))
    finding = only_finding(root)
    assert (finding.severity, finding.kind) == ("error", "values that are no class")
    assert "masks/train/x.png has values that are no class: 3 (600 pixels)" in finding.message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: np.stack([m * 100] * 2 + [m], axis=-1), "is in colours"),
        (lambda m: np.stack([m] * 3, axis=-1), "3 channels, of which the first three are equal"),
        (lambda m: m.astype(np.uint16), "more than 8 bits"),
    ],
)
def test_masks_of_another_kind(root, change, words):
    write(root, pair("val", "x", change(mask()), 7))
    finding = only_finding(root)
    assert (finding.severity, finding.kind, finding.split) == ("error", "unusable mask", "val")
    assert words in finding.message
    assert "masks/val/x.png" in finding.message
    assert "index PNG" in finding.message


def test_an_incomplete_mask(root):
    write(root, {"images/train/x.png": image(7), "masks/train/x.png": png(image_of_noise())[:-40]})
    finding = only_finding(root)
    assert finding.kind == "unusable mask"
    assert "masks/train/x.png" in finding.message


def image_of_noise():
    return np.random.default_rng(0).integers(0, 3, (30, 40), np.uint8)


def test_an_image_that_cannot_be_read(root):
    write(root, {"images/train/x.png": b"no image", "masks/train/x.png": png(mask())})
    finding = only_finding(root)
    assert (finding.severity, finding.kind) == ("error", "unreadable image")
    assert only_finding(root, unreadable="replace").severity == "warning"


def disk(value, antialiased):
    """A disk, drawn as by a program that draws smooth edges or not."""
    y, x = np.mgrid[:120, :120] - 59.5
    inside = np.clip(45.5 - np.hypot(y, x), 0, 1) if antialiased else np.hypot(y, x) < 45
    return np.rint(value * inside).astype(np.uint8)


def test_antialiased_masks(root):
    """With values between that are classes, or not."""
    (root / "classes.txt").write_text("\n".join(f"class {n}" for n in range(101)))
    smooth = {"images/train/x.png": image(7, (120, 120))}
    write(root, smooth | {"masks/train/x.png": png(disk(100, True))})
    found = [f for f in examine(root).findings if f.kind != "classes that never occur"]
    assert [(f.severity, f.kind) for f in found] == [("warning", "antialiased mask")]
    write(root, smooth | {"masks/train/x.png": png(disk(200, True))})
    found = [f for f in examine(root).findings if f.kind != "classes that never occur"]
    assert [(f.severity, f.kind) for f in found] == [("error", "antialiased mask")]
    assert "masks/train/x.png" in found[0].message
    assert "nearest value" in found[0].message


def test_masks_that_are_not_antialiased():
    """Hard edges, noise, and thin lines of any value."""
    assert looks_antialiased(disk(100, True))
    assert looks_antialiased(255 - disk(100, True))
    assert not looks_antialiased(disk(100, False))
    assert not looks_antialiased(mask())
    rng = np.random.default_rng(0)
    assert not looks_antialiased(rng.integers(0, 20, (64, 64), np.uint8))
    lines = disk(100, False)
    lines[:, ::7] = 50
    lines[::11] = 200
    assert not looks_antialiased(lines)
    for shape in ((1, 1), (1, 5), (2, 2)):
        assert not looks_antialiased(np.arange(np.prod(shape), dtype=np.uint8).reshape(shape))


def test_ignored_masks(root):
    write(root, pair("train", "x", np.full((30, 40), 255, np.uint8), 7))
    examination = examine(root)
    (finding,) = examination.findings
    assert (finding.severity, finding.kind) == ("warning", "ignored as a whole")
    assert f"in 1 mask ({root}/masks/train/x.png)" in finding.message
    assert examination.statistics["train"]["ignored_share"] == 0.25


def test_much_that_is_ignored(root):
    every_mask(root, lambda m: np.where(np.arange(40) % 5, 255, m).astype(np.uint8))
    found = examine(root).findings
    assert {f.kind for f in found} == {"much is ignored"}
    assert "80.0% of the pixels" in found[0].message


def test_values_that_count_from_one(root):
    """Masks with 1 to 3 for three classes, with and without the setting."""
    every_mask(root, lambda m: m + 1)
    kinds = [f.kind for f in examine(root, splits=["train"]).findings]
    assert sorted(set(kinds)) == [
        "0 never occurs", "classes that never occur", "values that are no class",
    ]  # fmt: skip
    assert examine(root, reduce_zero_label=True).findings == []


def test_values_that_count_from_zero_with_the_setting(root):
    """Background is ignored, and the last class never occurs."""
    found = examine(root, splits=["train"], reduce_zero_label=True).findings
    assert [f.kind for f in found] == ["classes that never occur"]
    assert "1 of 3 classes never occur: dog; the network cannot learn them" in found[0].message
    every_mask(root, lambda m: np.maximum(m, 1))
    found = examine(root, splits=["train"], reduce_zero_label=True).findings
    assert {f.kind for f in found} == {"classes that never occur", "0 never occurs"}


def test_masks_of_zeros(root):
    every_mask(root, np.zeros_like)
    kinds = {f.kind for f in examine(root).findings}
    assert kinds == {"only 0", "classes that never occur"}


def test_binary_masks_with_255(root):
    every_mask(root, lambda m: np.where(m > 0, 255, 0).astype(np.uint8))
    found = [f for f in examine(root).findings if f.kind != "classes that never occur"]
    assert [(f.severity, f.kind) for f in found] == [("error", "only 0 and 255")] * 2
    assert "only background would be learned. If 255 stands for an object, write the number" in (
        found[0].message
    )
    found = [f for f in examine(root, reduce_zero_label=True).findings if f.severity == "error"]
    assert [f.kind for f in found] == ["only 0 and 255"] * 2
    assert "nothing would be learned" in found[0].message


def test_classes_that_never_occur(root):
    """What the evaluation lacks is said if it is in the training split."""
    (root / "classes.txt").write_text("\n".join((*CLASSES, "bird")))
    for path in root.glob("masks/val/*.png"):
        path.write_bytes(png(np.minimum(mask(), 1)))
    examination = examine(root)
    first, second = examination.findings
    counts = examination.statistics["val"]["images_per_class"]
    assert counts == {"background": 3, "cat": 3, "dog": 0, "bird": 0}
    assert first.split == "train"
    assert "1 of 4 classes never occur: bird;" in first.message
    assert second.split == "val"
    assert "1 of 4 classes never occur: dog; their IoU is not defined" in second.message


def test_duplicates(root):
    write(root, pair("train", "x", mask(), 0))
    finding = only_finding(root)
    assert (finding.severity, finding.kind) == ("warning", "duplicate")
    write(root, pair("train", "x", mask()[:, ::-1], 0))
    assert only_finding(root).kind == "duplicate with another annotation"


def test_an_image_in_both_splits(root):
    write(root, pair("val", "x", mask(), 0))
    finding = only_finding(root)
    assert (finding.severity, finding.kind) == ("error", "in the training split")
    assert "images/val/x.png is" in finding.message
    assert "images/train/0.png of train" in finding.message


def test_a_split_that_is_missing(root):
    finding = only_finding(root, splits=("train", "test"))
    assert (finding.severity, finding.kind, finding.split) == ("error", "cannot be opened", "test")


def test_classes_that_are_not_known(root):
    (root / "classes.txt").unlink()
    found = examine(root).findings
    assert [f.kind for f in found] == ["cannot be opened"] * 2
    assert "config.data.classes" in found[0].message


def test_an_embedded_set(tmp_path, monkeypatch):
    for split in scattered_digits.COUNTS:
        monkeypatch.setitem(scattered_digits.COUNTS, split, 40)
    where = {"name": "scattered_digits", "data_dir": str(tmp_path), "folder": None}
    prepare(where)
    examination = examine(None, splits=("train", "test"), **where)
    assert examination.findings == []
    for statistics in examination.statistics.values():
        assert statistics["images"] == 40
        assert statistics["ignored_share"] == 0
        assert statistics["images_per_class"]["background"] == 40
