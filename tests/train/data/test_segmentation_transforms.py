"""Images and masks through the transforms of training."""

import io
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from replk_jax.vision.base_preprocessing import IMAGENET_MEAN, IMAGENET_STD
from replk_jax.vision.images import ImageError
from replk_jax.vision.keep_ratio import ratio_limits, size_within
from replk_jax.vision.label_sets import LabelSet
from tests import reference_data
from train.data.photometric import Distortion, distort, draw_distortion
from train.data.pillow_segmentation import PillowSegmentationTransform
from train.data.segmentation_transforms import SegmentationDraws, SegmentationTransform

TRANSFORMS = "downstream/transforms"
TEN = LabelSet.of([f"class {i}" for i in range(10)])


def recipe(**changes):
    fields = {
        "limits": (80, 40),
        "ratio_range": (0.5, 2.0),
        "crop_size": (32, 32),
        "cat_max_ratio": 0.75,
        "flip": True,
        "photometric": True,
        "label_set": TEN,
    }
    return SegmentationTransform(**{**fields, **changes})


def facts(name):
    return json.loads((reference_data.ROOT / TRANSFORMS / name).read_text())


def rgb(bgr):
    return np.ascontiguousarray(bgr[:, :, ::-1])


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def example(image, mask):
    return {
        "image": encoded(image),
        "mask": encoded(mask),
        "origin": "a.png",
        "mask_origin": "a_mask.png",
    }


def distortion_of(case):
    return Distortion(
        brightness=case["brightness_delta"],
        contrast=case["contrast"],
        saturation=case["saturation"],
        hue=case["hue_shift"],
        contrast_first=case["mode"] == 1,
    )


@reference_data.required
class TestReference:
    def test_crops(self):
        arrays = reference_data.arrays(f"{TRANSFORMS}/seg_crop.npz")
        cases = facts("seg_crop.json")["cases"]
        assert len(cases) == 9
        for case in cases:
            transform = recipe(
                crop_size=tuple(case["crop_size"]), cat_max_ratio=case["cat_max_ratio"]
            )
            offsets = [tuple(offset) for offset in case["offsets"]]
            # Draws after the one that was taken; they must not be used.
            offsets += [(1, 1)] * (11 - len(offsets) if case["cat_max_ratio"] < 1 else 0)
            image = arrays["image" if case["source"] == "labels" else "image_2"]
            image, mask = transform.crop(image, arrays[case["source"]], tuple(offsets))
            np.testing.assert_array_equal(image, arrays[f"{case['name']}/image"], case["name"])
            np.testing.assert_array_equal(mask, arrays[f"{case['name']}/labels"], case["name"])

    def test_photometric_distortion(self):
        """Brightness and contrast to the byte; with saturation or hue within 3, and 0.7 on average.

        OpenCV's conversion from HSV depends on the processor; where it has AVX2, as where the
        reference was made, all bytes are equal.
        """
        arrays = reference_data.arrays(f"{TRANSFORMS}/photometric.npz")
        image = rgb(arrays["image_bgr"])
        cases = facts("photometric.json")["cases"]
        assert len(cases) == 14
        for case in cases:
            distortion = distortion_of(case)
            result = distort(image, distortion).astype(int)
            difference = np.abs(result - rgb(arrays[f"{case['name']}/result"]))
            if distortion.saturation is None and distortion.hue is None:
                assert difference.max() == 0, case["name"]
            assert difference.max() <= 3, case["name"]
            assert difference.mean() <= 0.7, case["name"]

    def test_steps_of_the_distortion(self):
        """From the stored step before: brightness and contrast to the byte, the others within 1."""
        arrays = reference_data.arrays(f"{TRANSFORMS}/photometric.npz")
        steps = 0
        for case in facts("photometric.json")["cases"]:
            image = rgb(arrays["image_bgr"])
            for number, step in enumerate(case["order"], 1):
                field = {"brightness": "brightness_delta", "hue": "hue_shift"}.get(step, step)
                alone = Distortion(None, None, None, None, False)._replace(**{step: case[field]})
                after = rgb(arrays[f"{case['name']}/after_{number}_{step}"])
                difference = np.abs(distort(image, alone).astype(int) - after)
                is_exact = case[field] is None or step in ("brightness", "contrast")
                assert difference.max() <= (0 if is_exact else 1), (case["name"], step)
                image, steps = after, steps + (case[field] is not None)
        assert steps > 20

    def test_the_image_stays_as_it_is(self):
        image = rgb(reference_data.arrays(f"{TRANSFORMS}/photometric.npz")["image_bgr"])
        before = image.copy()
        distort(image, Distortion(20.0, 1.2, 1.3, 5, True))
        np.testing.assert_array_equal(image, before)

    def test_the_whole_pipeline(self):
        """From the two files to the input of the network, stage by stage."""
        arrays = reference_data.arrays(f"{TRANSFORMS}/seg_pipeline.npz")
        cases = facts("seg_pipeline.json")["cases"]
        assert len(cases) == 3
        values = arrays["labels_png"]
        label_set = LabelSet.of([str(i) for i in range(150)], reduce_zero_label=True)
        transform = recipe(label_set=label_set)
        image, mask = transform.decode(example(rgb(arrays["image_bgr"]), values))
        np.testing.assert_array_equal(mask, arrays["labels_after_loading"])
        mean, std = (np.array(v) * 255 for v in (IMAGENET_MEAN, IMAGENET_STD))
        for case in cases:
            stage = lambda name, case=case: arrays[f"{case['name']}/{name}"]  # noqa: E731
            ratio = 0.5 + 1.5 * case["ratio_u"]
            size = size_within(*mask.shape, ratio_limits(transform.limits, ratio))
            assert list(size) == case["resized"]
            draws = SegmentationDraws(
                size, tuple(map(tuple, case["offsets"])), case["flipped"], distortion_of(case)
            )
            pixels, labels = transform.resize(image, mask, draws.size)
            np.testing.assert_array_equal(pixels, rgb(stage("Resize/image")))
            np.testing.assert_array_equal(labels, stage("Resize/labels"))
            pixels, labels = transform.crop(pixels, labels, draws.offsets)
            np.testing.assert_array_equal(pixels, rgb(stage("RandomCrop/image")))
            np.testing.assert_array_equal(labels, stage("RandomCrop/labels"))
            if draws.mirrored:
                pixels, labels = transform.mirror(pixels, labels)
            np.testing.assert_array_equal(pixels, rgb(stage("RandomFlip/image")))
            np.testing.assert_array_equal(labels, stage("RandomFlip/labels"))
            pixels = transform.distort(pixels, draws.distortion)
            difference = np.abs(pixels.astype(int) - rgb(stage("PhotoMetricDistortion/image")))
            assert difference.max() <= 3
            assert difference.mean() <= 0.7
            result = transform.pad(rgb(stage("PhotoMetricDistortion/image")), labels)
            np.testing.assert_array_equal(result["mask"], stage("result/labels")[0])
            height, width = result["valid_size"]
            normalised = np.zeros((3, 32, 32))
            normalised[:, :height, :width] = ((result["image"] - mean) / std).transpose(2, 0, 1)[
                :, :height, :width
            ]
            np.testing.assert_allclose(normalised, stage("result/image_chw_rgb"), rtol=0, atol=1e-5)

    def test_nearest_resizing(self):
        """The value at floor(i * (1 / (out / in))), also where whole-number arithmetic differs."""
        arrays = reference_data.arrays(f"{TRANSFORMS}/resize.npz")
        names = [name for name in arrays if name.startswith("nearest/")]
        assert len(names) == 8
        for name in names:
            mask = arrays[name.split("/")[1]]
            image = np.zeros((*mask.shape, 3), np.uint8)
            _, labels = recipe().resize(image, mask, arrays[name].shape)
            np.testing.assert_array_equal(labels, arrays[name], name)

    def test_padding(self):
        arrays = reference_data.arrays(f"{TRANSFORMS}/normalise_pad.npz")
        result = recipe(crop_size=(32, 40)).pad(rgb(arrays["image_bgr"]), arrays["labels"])
        np.testing.assert_array_equal(result["mask"], arrays["padded/labels"])
        assert result["valid_size"].tolist() == [21, 30]
        np.testing.assert_array_equal(result["image"][:21, :30], rgb(arrays["image_bgr"]))
        assert not result["image"][21:].any()
        assert not result["image"][:, 30:].any()


def coordinates(height, width):
    """A smooth image whose red and green values are the column and the row, and a mask of halves.

    The classes are those of the pixels: class = 2 * (column in the right half) + (row below).
    """
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([columns, rows, np.full((height, width), 200)], axis=-1).astype(np.uint8)
    mask = 2 * (columns >= width // 2) + (rows >= height // 2)
    return image, mask.astype(np.uint8)


@settings(max_examples=40)
@given(st.integers(20, 200), st.integers(20, 200), st.integers(0, 2**32))
def test_masks_stay_on_their_images(height, width, seed):
    """The colour of every pixel names its source position, up to the pixel of the two filters.

    The nearest value comes from up to one pixel to the upper left of the centre that bilinear
    interpolation takes, at the scale of the source.
    """
    image, mask = coordinates(height, width)
    transform = recipe(photometric=False, cat_max_ratio=1.0)
    result = transform.random_map(example(image, mask), np.random.default_rng(seed))
    valid_height, valid_width = result["valid_size"]
    pixels = result["image"][:valid_height, :valid_width].astype(int)
    labels = result["mask"][:valid_height, :valid_width]
    assert (result["mask"][valid_height:] == 255).all()
    assert (result["mask"][:, valid_width:] == 255).all()
    columns, rows = pixels[:, :, 0], pixels[:, :, 1]
    for position, half, bit in (
        (columns, width // 2, labels >> 1),
        (rows, height // 2, labels & 1),
    ):
        # Where the source is more than two of its pixels from the border of the halves.
        scale = max(height, width) / 10
        far = np.abs(position - half) > max(2, scale)
        np.testing.assert_array_equal(bit[far], (position >= half)[far])
    assert (pixels[:, :, 2] == 200).all()


@settings(max_examples=60)
@given(st.integers(8, 90), st.integers(8, 90), st.integers(0, 2**32), st.booleans())
def test_geometry_is_the_same_to_the_pixel(height, width, seed, flip):
    """An image that is constant in each of 3 x 3 blocks of classes, at the size it has.

    Without resizing, the crop, the flip and the padding of both must agree in every pixel.
    """
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 10, (height, width), np.uint8)
    image = np.repeat(25 * mask[:, :, None], 3, axis=2)
    long, short = max(height, width), min(height, width)
    transform = recipe(limits=(long, short), ratio_range=(1.0, 1.0), flip=flip, photometric=False)
    result = transform.random_map(example(image, mask), rng)
    valid_height, valid_width = result["valid_size"]
    assert (valid_height, valid_width) == (min(height, 32), min(width, 32))
    expected = np.zeros((32, 32, 3), int)
    expected[:valid_height, :valid_width] = 25 * result["mask"][:valid_height, :valid_width, None]
    np.testing.assert_array_equal(result["image"], expected)


@settings(max_examples=60)
@given(
    st.integers(2, 60),
    st.integers(2, 60),
    st.integers(2, 90),
    st.integers(2, 90),
    st.integers(0, 9),
)
def test_resized_masks_have_the_classes_of_the_nearest_pixels(height, width, h, w, seed):
    """As the same rule resizes an image that encodes the class."""
    mask = np.random.default_rng(seed).integers(0, 10, (height, width), np.uint8)
    image = np.repeat(mask[:, :, None], 3, axis=2)
    _, labels = recipe().resize(image, mask, (h, w))
    rows = np.minimum(np.floor(np.arange(h) * (1 / (h / height))), height - 1).astype(int)
    columns = np.minimum(np.floor(np.arange(w) * (1 / (w / width))), width - 1).astype(int)
    np.testing.assert_array_equal(labels, mask[np.ix_(rows, columns)])


def test_draws_come_from_the_generator():
    image, mask = coordinates(60, 90)
    transform = recipe()
    results = [
        transform.random_map(example(image, mask), np.random.default_rng(seed))
        for seed in (1, 1, 2)
    ]
    for name in ("image", "mask", "valid_size"):
        np.testing.assert_array_equal(results[0][name], results[1][name])
    assert any((results[0][name] != results[2][name]).any() for name in results[0])
    copy = pickle.loads(pickle.dumps(transform))
    again = copy.random_map(example(image, mask), np.random.default_rng(2))
    np.testing.assert_array_equal(again["image"], results[2]["image"])


def test_the_distribution_of_the_draws():
    rng = np.random.default_rng(0)
    transform = recipe(limits=(2048, 512), crop_size=(512, 512))
    draws = [transform.draw(683, 512, rng) for _ in range(4000)]
    heights = np.array([draw.size[0] for draw in draws])
    assert heights.min() >= 256
    assert heights.max() <= 1024
    assert abs(heights.mean() - 640) < 10  # of 4,000 uniform draws; 3.5 is one standard deviation
    assert abs(np.mean([draw.mirrored for draw in draws]) - 0.5) < 0.04
    for draw in draws:
        assert len(draw.offsets) == 11
        for row, column in draw.offsets:
            assert 0 <= row <= max(draw.size[0] - 512, 0)
            assert 0 <= column <= max(draw.size[1] - 512, 0)
    assert len(recipe(cat_max_ratio=1.0).draw(60, 40, rng).offsets) == 1


def test_the_distribution_of_the_distortion():
    rng = np.random.default_rng(0)
    draws = [draw_distortion(rng) for _ in range(4000)]
    for name, low, high in (
        ("brightness", -32, 32), ("contrast", 0.5, 1.5), ("saturation", 0.5, 1.5), ("hue", -18, 17),
    ):  # fmt: skip
        values = np.array([v for draw in draws if (v := getattr(draw, name)) is not None])
        assert abs(len(values) / len(draws) - 0.5) < 0.04
        assert low <= values.min() <= low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) <= values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.03 * (high - low)
    assert abs(np.mean([draw.contrast_first for draw in draws]) - 0.5) < 0.04


@pytest.mark.parametrize("value", [255, 3], ids=["all ignored", "one class"])
def test_masks_without_two_classes_are_taken_after_ten_tries(value):
    image, _ = coordinates(60, 90)
    mask = np.full((60, 90), value, np.uint8)
    result = recipe().random_map(example(image, mask), np.random.default_rng(0))
    height, width = result["valid_size"]
    assert (result["mask"][:height, :width] == value).all()


def test_an_image_smaller_than_the_crop():
    image, mask = coordinates(5, 3)
    transform = recipe(limits=(5, 3), ratio_range=(1.0, 1.0), photometric=False, flip=False)
    result = transform.random_map(example(image, mask), np.random.default_rng(0))
    assert result["valid_size"].tolist() == [5, 3]
    assert result["valid_size"].dtype == np.int32
    np.testing.assert_array_equal(result["image"][:5, :3], image)
    np.testing.assert_array_equal(result["mask"][:5, :3], mask)
    assert (result["mask"] != 255).sum() == 15


def turned(pixels, orientation):
    """A file with these pixels and an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(("orientation", "quarters"), [(6, -1), (3, 2), (8, 1)])
@pytest.mark.parametrize("transform", [recipe(), PillowSegmentationTransform(recipe())])
def test_the_orientation_is_applied_to_the_image_alone(orientation, quarters, transform):
    image, mask = coordinates(40, 50)
    stored = np.rot90(image, -quarters)
    pair = example(image, mask) | {"image": turned(stored, orientation)}
    decoded, classes = transform.decode(pair)
    np.testing.assert_array_equal(decoded, image)
    np.testing.assert_array_equal(classes, mask)


def test_a_mask_that_fits_without_the_orientation():
    image, mask = coordinates(40, 50)
    pair = example(image, mask) | {"image": turned(image, 6)}
    message = (
        r"a_mask\.png has 50 x 40 pixels.* a\.png has 40 x 50 after the rotation by its EXIF "
        r"orientation, which the mask does not have: rotate the mask, or"
    )
    with pytest.raises(ImageError, match=message):
        recipe().decode(pair)
    with pytest.raises(ImageError, match="40 x 50: the sizes must be equal"):
        recipe().decode(pair | {"mask": encoded(mask[:, :49])})


def test_a_mask_of_another_size():
    image, mask = coordinates(40, 50)
    with pytest.raises(ImageError, match=r"a_mask\.png has 49 x 40 pixels.* a\.png has 50 x 40"):
        recipe().random_map(example(image, mask[:, :49]), np.random.default_rng(0))
