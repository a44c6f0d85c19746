"""What happens to an image before it reaches the device."""

import collections
import dataclasses
import io
import math
import pickle

import cv2
import numpy as np
import pytest
import skimage
from PIL import Image

from replk_jax.vision.images import ImageError, read_image, to_array
from replk_jax.vision.preprocessing import Preprocessing
from train.data import transforms
from train.data.pillow_reference import PillowTransform, apply
from train.data.randaugment import RandAugment
from train.data.transforms import (
    ColorJitter,
    Prepare,
    TrainTransform,
    decode,
    random_box,
    resize,
)

RATIO = (3 / 4, 4 / 3)
PLAIN = TrainTransform(
    size=20,
    channels=3,
    scale=(0.08, 1.0),
    ratio=RATIO,
    flip=True,
    resizing="bicubic",
    rand_augment=None,
    color_jitter=0.0,
)
RAND_AUGMENT = RandAugment.parse("rand-m9-mstd0.5-inc1", (0.485, 0.456, 0.406))


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def example(image, format="PNG", **options):
    return {"image": encoded(image, format, **options), "label": np.int32(3), "origin": "cat.png"}


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def photograph(width, height, mode="RGB"):
    """Smooth, with edges."""
    coarse = picture(8, 6).resize((width, height), Image.Resampling.BICUBIC)
    coarse.paste((250, 10, 30), (width // 3, height // 4, width // 2, height // 2))
    return coarse.convert(mode)


class TestDecoding:
    """By OpenCV or not: the bytes decide, and the result is always Pillow's."""

    @pytest.mark.parametrize(
        "options",
        [
            {"quality": 90}, {"quality": 75, "subsampling": 0}, {"subsampling": 1},
            {"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 4},
        ],
        ids=str,
    )  # fmt: skip
    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    def test_jpeg_equals_pillow(self, mode, options):
        for size in ((130, 75), (17, 33), (1, 1)):
            data = encoded(photograph(*size, mode), "JPEG", **options)
            for channels in (1, 3):
                result = decode(data, channels, "cat.jpg")
                np.testing.assert_array_equal(result, to_array(read_image(data, channels)))
                assert result.shape == (size[1], size[0], channels)

    def test_orientation_and_what_follows_the_image_are_ignored(self):
        image = photograph(40, 30)
        turned = Image.Exif()
        turned[0x0112] = 6
        data = encoded(image, "JPEG", exif=turned)
        for each in (data, data + b"more", data + data):
            result = decode(each, 3, "cat.jpg")
            np.testing.assert_array_equal(result, to_array(read_image(data)))

    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_upright_pixels_are_those_of_opencv(self, orientation, format):
        """Which turns them itself by default, as mmcv lets it."""
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(photograph(40, 30), format, exif=exif)
        expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        result = decode(data, 3, "cat.jpg", upright=True)
        np.testing.assert_array_equal(result, expected)
        assert result.shape == ((40, 30, 3) if orientation > 4 else (30, 40, 3))

    @pytest.mark.parametrize("format", ["PNG", "BMP", "WEBP", "GIF"])
    def test_other_formats_equal_pillow(self, format):
        data = encoded(photograph(40, 30), format)
        np.testing.assert_array_equal(decode(data, 3, ""), to_array(read_image(data)))

    def test_plain_photographs_are_opencvs_part(self, monkeypatch):
        """Which is the reason to have it."""
        image = photograph(500, 375)
        data, grey = encoded(image, "JPEG"), encoded(image.convert("L"), "JPEG")
        odd = [
            data[:-2], data + b"\n", encoded(image), encoded(image, "JPEG", progressive=True),
            encoded(image.convert("CMYK"), "JPEG"),
        ]  # fmt: skip
        left_to_pillow = []
        monkeypatch.setattr(
            transforms, "read_image", lambda *_, **__: left_to_pillow.append(0) or image
        )
        decode(data, 3, "")
        decode(grey, 3, "")
        upright = Image.Exif()
        upright[0x0112] = 1
        decode(data, 3, "", upright=True)
        decode(encoded(image, "JPEG", exif=upright), 3, "", upright=True)
        assert not left_to_pillow
        for each in odd:
            decode(each, 3, "")
        assert len(left_to_pillow) == len(odd)

    @pytest.mark.parametrize(
        ("marker", "content"),
        [
            (0xE0, b"JFIF"), (0xE2, b"ICC_PROFILE\0"), (0xED, b"Photoshop 3.0\x008BIM\0\0"),
            (0xEE, b"Adobe"), (0xE1, b"Exif\0\0"), (0xE5, b""), (0xFE, b"a comment"),
        ],
        ids=str,
    )  # fmt: skip
    def test_segments_that_end_early(self, marker, content):
        """Over some of which Pillow trips."""
        data = encoded(photograph(40, 30), "JPEG")
        segment = bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content
        data = data[:2] + segment + data[2:]
        try:
            expected = to_array(read_image(data))
        except ImageError:
            with pytest.raises(ImageError):
                decode(data, 3, "cat.jpg")
        else:
            np.testing.assert_array_equal(decode(data, 3, "cat.jpg"), expected)

    def test_damage_is_as_pillow_sees_it(self):
        """Bytes changed, cut out and cut off: the same pixels, or an error that names the image."""
        rng = np.random.default_rng(0)
        whole = encoded(photograph(160, 120), "JPEG", quality=90)
        outcomes = collections.Counter()
        for trial in range(300):
            data = bytearray(whole)
            start = int(rng.integers(len(data)))
            if trial % 3 == 0:
                data[start] = rng.integers(256)
            elif trial % 3 == 1:
                del data[start : min(start + int(rng.integers(1, 200)), len(data) - 2)]
            else:
                del data[start:]
            data = bytes(data)
            try:
                expected = to_array(read_image(data))
            except ImageError:
                with pytest.raises(ImageError, match=r"Cannot read the image cat\.jpg: "):
                    decode(data, 3, "cat.jpg")
                outcomes["error"] += 1
            else:
                np.testing.assert_array_equal(decode(data, 3, "cat.jpg"), expected)
                outcomes["image"] += 1
        assert outcomes["error"] > 100
        assert outcomes["image"] > 100


class TestRandomBox:
    def test_lies_inside_and_keeps_to_scale_and_ratio(self):
        rng = np.random.default_rng(0)
        shares, logarithms, places = [], [], []
        for _ in range(2000):
            left, top, right, bottom = random_box(600, 400, (0.2, 0.5), RATIO, rng)
            assert 0 <= left < right <= 600
            assert 0 <= top < bottom <= 400
            width, height = right - left, bottom - top
            shares.append(width * height / (600 * 400))
            logarithms.append(math.log(width / height))
            places.append((left / (600 - width), top / (400 - height)))
        uniform(shares, 0.2, 0.5)
        uniform(logarithms, *map(math.log, RATIO))
        uniform([x for x, _ in places], 0, 1)
        uniform([y for _, y in places], 0, 1)

    def test_without_a_fit_is_the_centre(self):
        """A strip: the largest centred part with an allowed ratio."""
        rng = np.random.default_rng(0)
        assert random_box(100, 10, (0.9, 1.0), RATIO, rng) == (43, 0, 56, 10)
        assert random_box(10, 100, (0.9, 1.0), RATIO, rng) == (0, 43, 10, 56)


def uniform(values, low, high):
    """That values come from a uniform distribution, up to rounding to whole pixels.

    The bound on the distance from its distribution function is Kolmogorov's, passed once in 10^6.
    """
    fractions = (np.sort(values) - low) / (high - low)
    assert fractions[0] > -0.02
    assert fractions[-1] < 1.02
    ranks = np.arange(1, len(values) + 1) / len(values)
    assert np.abs(fractions - ranks).max() < 2.7 / math.sqrt(len(values))


class TestResizing:
    @pytest.mark.parametrize("resizing", ["bicubic", "bilinear"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_equals_pillow(self, resizing, channels):
        mode, resample = {1: "L", 3: "RGB"}[channels], Image.Resampling[resizing.upper()]
        for size in ((50, 31), (7, 90), (20, 20), (1, 1)):
            image = picture(*size).convert(mode)
            expected = to_array(image.resize((20, 20), resample))
            np.testing.assert_array_equal(resize(to_array(image), 20, resizing), expected)

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize(
        "size",
        [(50, 50), (100, 80), (110, 70), (200, 150), (40, 90), (30, 60), (64, 64), (700, 500)],
    )
    def test_opencv_is_near_pillows_bicubic(self, size, channels):
        """As near as Pillow's bilinear; both axes shrink, both grow, one of each, much and little.

        A shift by half a pixel of the result, or aliasing, would be several times as far off.
        """
        mode = {1: "L", 3: "RGB"}[channels]
        image = photograph(700, 500, mode).resize(size, Image.Resampling.BICUBIC)
        period = max(7, size[0] // 9)
        stripes = (np.arange(size[0]) % period < period // 2)[None, :, None] * np.uint8(30)
        image = Image.fromarray((to_array(image) // 2 + stripes).squeeze())
        bicubic, bilinear = (
            to_array(image.resize((64, 64), filter)).astype(float)
            for filter in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)
        )
        result = resize(to_array(image), 64, "opencv")
        assert result.shape == (64, 64, channels)
        distance, allowed = (np.sqrt(np.mean((each - bicubic) ** 2)) for each in (result, bilinear))
        assert distance <= 1.05 * allowed

    @pytest.mark.parametrize("ratio", [1.05, 1.2, 1.5, 1.8, 2, 2.2, 2.5, 3, 4.5])
    def test_opencv_of_photographs(self, ratio):
        """As sharp as by Pillow's bicubic within 3 %, where bilinear is 15 % less sharp, and at
        most 0.9 times as far from it as bilinear."""
        side = round(64 * ratio)
        crops = [
            pixels[:side, left : left + side]
            for pixels in (skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee())
            for left in range(0, pixels.shape[1] - side, 80)
        ]
        opencv, bicubic, bilinear = (
            np.float64([resize(crop, 64, resizing) for crop in crops])
            for resizing in ("opencv", "bicubic", "bilinear")
        )
        sharpness, expected = (
            np.sqrt(np.square(np.diff(images, axis=1)).mean()) for images in (opencv, bicubic)
        )
        assert sharpness == pytest.approx(expected, rel=0.03)
        distance, allowed = (
            np.sqrt(np.square(images - bicubic).mean()) for images in (opencv, bilinear)
        )
        assert distance < 0.9 * allowed

    def test_opencv_keeps_what_is_constant_and_what_has_the_size(self):
        for shape in ((90, 31, 3), (300, 10, 1)):
            np.testing.assert_array_equal(resize(np.full(shape, 7, np.uint8), 20, "opencv"), 7)
        image = to_array(picture(20, 20))
        np.testing.assert_array_equal(resize(image, 20, "opencv"), image)


class TestColorJitter:
    def test_draws_uniform_factors_in_any_order(self):
        rng = np.random.default_rng(0)
        drawn = [ColorJitter(0.4).draw(rng) for _ in range(3000)]
        for name in ("Brightness", "Contrast", "Color"):
            uniform([v for each in drawn for n, (v,) in each if n == name], 0.6, 1.4)
        orders = collections.Counter(tuple(name for name, _ in each) for each in drawn)
        assert len(orders) == 6
        assert max(orders.values()) < 3000 / 6 + 5 * math.sqrt(3000 / 6)
        assert min(v for _ in range(99) for _, (v,) in ColorJitter(1.5).draw(rng)) >= 0
        assert ColorJitter(0.0).draw(rng) == []

    def test_equals_pillow(self):
        image, rng = picture(31, 22), np.random.default_rng(0)
        for _ in range(20):
            drawn = ColorJitter(0.4).draw(rng)
            expected = image
            for operation in drawn:
                expected = apply(expected, operation, (), Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(
                ColorJitter(0.4).apply(to_array(image), drawn), to_array(expected)
            )


class TestTraining:
    def test_crop_is_resized_and_flipped(self):
        image = picture(40, 40)
        whole = dataclasses.replace(PLAIN, scale=(1.0, 1.0), ratio=(1.0, 1.0))
        straight = np.asarray(image.resize((20, 20), Image.Resampling.BICUBIC))
        flips = 0
        for seed in range(200):
            result = whole.random_map(example(image), np.random.default_rng(seed))
            flipped = np.array_equal(result["image"], straight[:, ::-1])
            assert flipped or np.array_equal(result["image"], straight)
            flips += flipped
        assert 65 < flips < 135  # five standard deviations
        assert result["label"] == 3
        assert result["label"].dtype == np.int32
        assert sorted(result) == ["image", "label"]

    def test_never_flips_unless_told_to(self):
        transform = dataclasses.replace(PLAIN, flip=False)
        draws = [transform.draw(50, 40, np.random.default_rng(seed)) for seed in range(50)]
        assert not any(each.mirrored for each in draws)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_equals_the_recipe_in_pillow(self, channels):
        """To the bit but for pixels that RandAugment moves, which leave a photograph alike."""
        jitter = dataclasses.replace(PLAIN, channels=channels, color_jitter=0.4)
        augment = dataclasses.replace(RAND_AUGMENT, fill=(124, 116, 104)[:channels])
        images = [example(photograph(90, 70), "JPEG"), example(photograph(50, 63))]
        equal = 0
        for transform in (jitter, dataclasses.replace(jitter, rand_augment=augment)):
            reference = PillowTransform(transform)
            for seed in range(60):
                chosen = images[seed % 2]
                result = transform.random_map(chosen, np.random.default_rng(seed))["image"]
                expected = reference.random_map(chosen, np.random.default_rng(seed))["image"]
                assert result.shape == (20, 20, channels)
                assert result.dtype == np.uint8
                assert np.abs(result.astype(int) - expected).mean() < 5
                equal += np.array_equal(result, expected)
        # An operation is one that moves pixels with probability 1/3, and happens with 1/2: of 60
        # images 42 are spared both times, give or take five standard deviations.
        assert 60 + 24 < equal < 60 + 60

    def test_everything_depends_on_the_generator_alone(self):
        for extras in ({"rand_augment": RAND_AUGMENT}, {"color_jitter": 0.4}):
            for resizing in transforms.RESIZING:
                transform = dataclasses.replace(PLAIN, resizing=resizing, **extras)
                one, two, other = (
                    pickle.loads(pickle.dumps(transform)).random_map(
                        example(picture(40, 30)), np.random.default_rng(seed)
                    )["image"]
                    for seed in (0, 0, 1)
                )
                np.testing.assert_array_equal(one, two)
                assert not np.array_equal(one, other)


def test_evaluation_prepares_as_the_preprocessing_says():
    """Which tests/test_preprocessing.py compares with Pillow."""
    image = picture(50, 30)
    for preprocessing in (Preprocessing(32, 0.8), Preprocessing(32, None, mean=(0,), std=(1,))):
        result = Prepare(preprocessing).map({**example(image), "mask": np.bool_(True)})
        np.testing.assert_array_equal(result["image"], preprocessing.pixels(image))
        assert result["label"] == 3
        assert result["label"].dtype == np.int32
        assert sorted(result) == ["image", "label", "mask"]


def test_bytes_that_are_no_image_are_named():
    good = [example(picture(40, 30)), example(picture(40, 30), "JPEG")]
    broken = [b"", b"no image", *(each["image"][: len(each["image"]) // 2] for each in good)]
    for data in broken:
        bad = {"image": data, "label": np.int32(3), "origin": "cat.png"}
        with pytest.raises(ImageError, match=r"Cannot read the image cat\.png: "):
            PLAIN.random_map(bad, np.random.default_rng(0))
        with pytest.raises(ImageError, match=r"Cannot read the image cat\.png: "):
            Prepare(Preprocessing(8)).map(bad)
