"""Transforms of images with boxes and masks, and their draws, against the reference's."""

import json

import numpy as np
import pytest

from replk_jax.vision.base_preprocessing import IMAGENET_MEAN, IMAGENET_STD, normalize
from replk_jax.vision.images import ImageError
from tests.reference_data import ROOT, required
from tests.train.detection_sets import png
from train.data import coco_masks
from train.data.detection_draws import (
    DetectionAugmentation,
    ImageDraws,
    choose_buckets,
    default_buckets,
)
from train.data.detection_transforms import Annotated, DetectionTransform, crop, mirror, resize

FOLDER = ROOT / "downstream/transforms"
ELEVEN = tuple((1333, short) for short in (480, *range(512, 801, 32)))
THREE = tuple((1333, short) for short in (400, 500, 600))
POLICY = DetectionAugmentation(ELEVEN, THREE)
SCALES = {"fcos": ((1333, 640), (1333, 800)), "cascade": ELEVEN, "cascade_first": THREE}
# Whatever a pipeline does with boxes is exact in float32, but for the order of two additions.
PIXELS = 1e-4


def load(name):
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file), json.loads((FOLDER / f"{name}.json").read_text())


def unpacked(arrays, key):
    shape = arrays[f"{key}_shape"]
    return np.unpackbits(arrays[key], count=int(np.prod(shape))).reshape(shape)


def annotated(arrays, key="input/bitmap", image="image_bgr"):
    return Annotated(
        arrays[image][..., ::-1].copy(),
        arrays[f"{key}/boxes"],
        arrays[f"{key}/labels"],
        unpacked(arrays, f"{key}/masks"),
    )


def ignored(arrays, key="input/bitmap", image="image_bgr"):
    """Boxes of crowds, which the network does not see, go through the same steps."""
    boxes = arrays[f"{key}/ignore_boxes"]
    return Annotated(arrays[image][..., ::-1].copy(), boxes, np.zeros(len(boxes), np.int32))


def assert_same(found, arrays, key):
    if f"{key}/image" in arrays:
        np.testing.assert_array_equal(found.image, arrays[f"{key}/image"][..., ::-1])
    np.testing.assert_allclose(found.boxes, arrays[f"{key}/boxes"], rtol=0, atol=PIXELS)
    assert found.boxes.dtype == np.float32
    np.testing.assert_array_equal(found.classes, arrays[f"{key}/labels"])
    np.testing.assert_array_equal(found.masks, unpacked(arrays, f"{key}/masks"))


@required
def test_flip():
    arrays, _ = load("detection")
    assert_same(mirror(annotated(arrays)), arrays, "flip/horizontal/bitmap")
    np.testing.assert_array_equal(
        mirror(ignored(arrays)).boxes, arrays["flip/horizontal/bitmap/ignore_boxes"]
    )


@required
@pytest.mark.parametrize("number", range(4))
def test_resize(number):
    arrays, facts = load("detection")
    short, long = sorted(facts["resize_scales"][number])
    before = annotated(arrays)
    augmentation = DetectionAugmentation(((long, short),), flip=False)
    draws = augmentation.draw(np.array([before.size]), np.full((1, 8), 0.5)).of(0)
    key = f"resize/{number}/bitmap"
    found = resize(before, draws.size)
    assert_same(found, arrays, key)
    np.testing.assert_allclose(
        resize(ignored(arrays), draws.size).boxes,
        arrays[f"{key}/ignore_boxes"],
        rtol=0,
        atol=PIXELS,
    )


@required
def test_crop():
    arrays, facts = load("detection")
    cases = [
        case
        for case in facts["cases"]
        if not case["dropped"]
        and not case["settings"].get("recompute_bbox")
        and case["settings"].get("bbox_clip_border", True)
    ]
    assert len(cases) == 10
    for case in cases:
        (row, column), (height, width) = (d[2] for d in case["draws"][-2:]), case["size"]
        found = crop(annotated(arrays), row, column, height, width)
        assert_same(found, arrays, f"crop/{case['name']}/bitmap")
        assert found.classes.tolist() == case["kept_labels"]
        assert len(crop(ignored(arrays), row, column, height, width).boxes) == case["ignore_left"]


@required
def test_polygons_become_bitmaps_at_the_size_of_the_image():
    arrays, _ = load("detection")
    values = np.split(
        arrays["input/polygon/polygon_values"],
        np.cumsum(arrays["input/polygon/polygon_lengths"])[:-1],
    )
    expected = unpacked(arrays, "input/bitmap/masks")
    height, width = arrays["input/polygon/polygon_canvas"].tolist()
    start = 0
    for parts, mask in zip(arrays["input/polygon/polygon_parts"], expected, strict=True):
        polygons = [value.tolist() for value in values[start : start + parts]]
        np.testing.assert_array_equal(coco_masks.to_bitmap(polygons, height, width), mask)
        start += parts


def uniform(value, low, high):
    """A number in [0, 1) that gives a value of low, ..., high - 1."""
    return (value - low + 0.5) / (high - low)


def drawn(ranges_and_values, flipped, policy):
    """The uniform numbers of an image; see `DetectionAugmentation.draw`."""
    numbers = [uniform(value, low, high) for low, high, value in ranges_and_values]
    if policy == 0:
        (last,) = numbers
        first = height = width = row = column = 0.5
    else:
        first, height, width, row, column, last = numbers
    return np.array([[0.2 if flipped else 0.7, 0.25 + policy / 2, last, first, height, width, row,
                      column]])  # fmt: skip


def small_policy(facts):
    """The configs' policy at a tenth of the size."""
    scales, first = (
        tuple((max(pair), min(pair)) for pair in facts[key])
        for key in ("scales_final", "scales_first")
    )
    return DetectionAugmentation(scales, first, tuple(facts["crop_range"]))


@required
@pytest.mark.parametrize("number", range(6))
def test_the_whole_policy(number):
    arrays, facts = load("autoaugment")
    case = facts["cases"][number]
    before = annotated(arrays)
    chosen = case["objects"]
    masks = before.masks[chosen]
    height, width = before.size
    example = {
        "image": png(before.image), "origin": "it", "size": before.size, "numbers": np.arange(6)[
            : len(chosen)
        ],
        "boxes": before.boxes[chosen], "classes": before.classes[chosen], "masks": Bitmaps(masks),
    }  # fmt: skip
    augmentation = small_policy(facts)
    draws = augmentation.draw(
        np.array([(height, width)]), drawn(case["draws"], case["flipped"], case["policy"])
    ).of(0)
    assert draws.mirrored == case["flipped"]
    assert (draws.crop is not None) == (case["policy"] == 1)
    assert list(draws.size) == case["size"]
    transform = DetectionTransform(augmentation.flips_first, 8, masks=True)
    result = transform.map(example, draws, tuple(case["padded"]))

    rows, columns = case["size"]
    assert result["size"].tolist() == case["size"]
    inside = np.zeros((*case["padded"], 1), bool)
    inside[:rows, :columns] = True
    pixels = np.where(inside, normalize(result["image"], IMAGENET_MEAN, IMAGENET_STD), 0)
    expected = arrays[f"{case['name']}/result_rgb"]
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=1e-5)
    last = "step1" if case["policy"] == 0 else "step3"
    key = next(k for k in arrays if k.startswith(f"{case['name']}/{last}") and k.endswith("boxes"))
    key = key.removesuffix("/boxes")
    count = len(arrays[f"{key}/boxes"])
    assert result["valid"].tolist() == [True] * count + [False] * (8 - count)
    np.testing.assert_allclose(result["boxes"][:count], arrays[f"{key}/boxes"], rtol=0, atol=PIXELS)
    assert result["classes"][:count].tolist() == case["labels"]
    unpacked_masks = np.unpackbits(result["masks"], axis=-1)
    assert unpacked_masks.shape == (8, *case["padded"])
    np.testing.assert_array_equal(
        unpacked_masks[:count, :rows, :columns], unpacked(arrays, f"{key}/masks")
    )
    assert unpacked_masks[:count].sum() == unpacked(arrays, f"{key}/masks").sum()
    assert not result["boxes"][count:].any()
    assert not unpacked_masks[count:].any()


class Bitmaps:
    """`InstanceMasks` of arrays."""

    def __init__(self, masks):
        self.masks = masks

    def bitmap(self, number, height, width):
        assert self.masks[number].shape == (height, width)
        return self.masks[number]


@required
def test_sizes_of_one_resizing():
    cases = json.loads((FOLDER / "sizes.json").read_text())["det_values"]
    assert len(cases) == 144
    for case in cases:
        scales = SCALES[case["rule"]]
        assert scales[case["index"]] == tuple(sorted(case["scale"], reverse=True))
        numbers = np.full((1, 8), uniform(case["index"], 0, len(scales)))
        draws = DetectionAugmentation(scales).draw(np.array([case["image"][::-1]]), numbers)
        assert draws.of(0).size == tuple(case["size"][::-1])


@required
def test_sizes_of_the_policy_with_a_crop():
    cases = json.loads((FOLDER / "sizes.json").read_text())["det_policy_with_crop"]
    assert len(cases) == 27
    sizes = np.array([case["image"][::-1] for case in cases])
    numbers = []
    for case in cases:
        width, height = case["crop"]
        values = (
            case["first_index"], height, width, case["offset_y"], case["offset_x"],
            case["last_index"],
        )  # fmt: skip
        ranges = case["ranges_of_draws"]
        numbers.append(drawn([(*r, v) for r, v in zip(ranges, values, strict=True)], False, 1)[0])
    draws = POLICY.draw(sizes, np.array(numbers))
    buckets = default_buckets(ELEVEN)
    chosen = choose_buckets(draws.sizes, buckets)
    for i, case in enumerate(cases):
        image = draws.of(i)
        assert image.first_size == tuple(case["first_size"][::-1])
        assert image.crop == (case["offset_y"], case["offset_x"], *case["crop"][::-1])
        assert image.size == tuple(case["size"][::-1])
        assert all(np.less_equal(image.size, buckets[chosen[i]]))


def test_draws_are_uniform_and_in_their_ranges():
    rng = np.random.default_rng(0)
    count = 30_000
    draws = POLICY.draw(np.tile((480, 640), (count, 1)), rng.random((count, 8)))
    assert abs(draws.mirrored.mean() - 0.5) < 0.02
    assert abs(draws.cropped.mean() - 0.5) < 0.02
    plain = draws.sizes[~draws.cropped]
    values, counts = np.unique(plain.min(axis=1), return_counts=True)
    assert values.tolist() == [short for _, short in ELEVEN]
    # A binomial of 15,000 and 1/11 has a standard deviation of 35.
    assert np.abs(counts - counts.sum() / 11).max() < 5 * 35
    top, left, height, width = draws.crops.T
    assert (height.min(), width.min()) == (384, 384)
    assert (height.max(), width.max()) == (600, 600)
    assert (top >= 0).all()
    assert (top + height <= draws.first_sizes[:, 0]).all()
    assert (left >= 0).all()
    assert (left + width <= draws.first_sizes[:, 1]).all()
    assert ((top + height == draws.first_sizes[:, 0]) & (top > 0)).any()
    # The largest number below 1 gives the last value.
    last = POLICY.draw(np.array([(480, 640)]), np.full((1, 8), np.nextafter(1, 0))).of(0)
    assert last == ImageDraws(False, (0, 200, 600, 600), (600, 800), (800, 800))


def test_no_flip_and_no_crop():
    draws = DetectionAugmentation(((64, 32),), flip=False).draw(
        np.tile((30, 40), (50, 1)), np.random.default_rng(0).random((50, 8))
    )
    assert not draws.mirrored.any()
    assert not draws.cropped.any()
    assert draws.of(7) == ImageDraws(False, None, (32, 43), (32, 43))


def test_buckets():
    assert default_buckets(((1333, 640), (1333, 800))) == ((800, 1344), (1344, 800))
    assert default_buckets(((128, 100), (200, 90)), multiple=1) == ((100, 200), (200, 100))
    assert default_buckets(((64, 64),)) == ((64, 64),)
    buckets = ((64, 96), (96, 64), (64, 64), (96, 96))
    sizes = np.array([(60, 90), (90, 60), (64, 64), (96, 65), (97, 1), (1, 96)])
    assert choose_buckets(sizes, buckets).tolist() == [0, 1, 2, 3, -1, 0]


def test_flips_before_or_after_resizing():
    """Both are the same up to the rounding of pixels; boxes and masks tell which it was."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (31, 45, 3)).astype(np.uint8)
    mask = (rng.random((1, 31, 45)) < 0.5).astype(np.uint8)
    example = {
        "image": png(image), "origin": "it", "size": (31, 45), "numbers": np.arange(1),
        "boxes": np.float32([[3, 4, 20, 25]]), "classes": np.int32([1]), "masks": Bitmaps(mask),
    }  # fmt: skip
    draws = ImageDraws(True, None, (31, 45), (20, 29))
    for first in (True, False):
        result = DetectionTransform(first, 1, masks=True).map(example, draws, (32, 32))
        before = Annotated(image, example["boxes"], example["classes"], mask)
        steps = [mirror, lambda annotated: resize(annotated, (20, 29))]
        for step in steps if first else steps[::-1]:
            before = step(before)
        np.testing.assert_array_equal(result["image"][:20, :29], before.image)
        np.testing.assert_array_equal(result["boxes"], before.boxes)
        np.testing.assert_array_equal(
            np.unpackbits(result["masks"], axis=-1)[:, :20, :29], before.masks
        )


def test_the_smallest_of_too_many_objects_are_left_out():
    sides = np.array([5, 9, 3, 8, 3, 7], np.float32)
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    image = np.zeros((10, 10, 3), np.uint8)
    result = DetectionTransform(False, 4, masks=False).pad(
        Annotated(image, boxes, np.arange(6, dtype=np.int32)), (16, 16)
    )
    assert result["classes"].tolist() == [0, 1, 3, 5]
    assert result["boxes"][:, 2].tolist() == [5, 9, 8, 7]
    assert result["valid"].all()
    assert "masks" not in result
    none = DetectionTransform(False, 4, masks=True).pad(
        Annotated(
            image, np.zeros((0, 4), np.float32), np.zeros(0, np.int32),
            np.zeros((0, 10, 10), np.uint8),
        ),
        (16, 17),
    )  # fmt: skip
    assert not none["valid"].any()
    assert none["masks"].shape == (4, 16, 3)


def test_an_image_of_another_size_than_its_annotations():
    image = np.zeros((10, 12, 3), np.uint8)
    example = {
        "image": png(image), "origin": "a.png", "size": (12, 10),
        "boxes": np.zeros((0, 4), np.float32), "classes": np.zeros(0, np.int32),
    }  # fmt: skip
    draws = ImageDraws(False, None, (12, 10), (12, 10))
    with pytest.raises(ImageError, match=r"a\.png has 12 x 10 pixels .* are for 10 x 12"):
        DetectionTransform(False, 1, masks=False).map(example, draws, (32, 32))
