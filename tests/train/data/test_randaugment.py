"""RandAugment: timm's spelling, timm's magnitudes, and what is drawn how often."""

import collections
import math

import numpy as np
import pytest

from train.data.operations import AFFINE_MAPS, VALUE_OPERATIONS, warp
from train.data.randaugment import OPERATIONS, RandAugment, arguments
from train.errors import RunError

MEAN = (0.485, 0.456, 0.406)
RECIPE = RandAugment.parse("rand-m9-mstd0.5-inc1", MEAN)

# From timm 1.0's definitions, by hand: the argument at magnitudes 0, 2.5, 5, 9, 9.99 and 10, with
# a positive sign; and with a negative one where that is more than a minus.
LEVELS = (0, 2.5, 5, 9, 9.99, 10)
COMMON = {
    "SolarizeAdd": (0, 27, 55, 99, 109, 110),
    "Rotate": (0, 7.5, 15, 27, 29.97, 30),
    "ShearX": (0, 0.075, 0.15, 0.27, 0.2997, 0.3),
    "ShearY": (0, 0.075, 0.15, 0.27, 0.2997, 0.3),
    "TranslateXRel": (0, 0.1125, 0.225, 0.405, 0.44955, 0.45),
    "TranslateYRel": (0, 0.1125, 0.225, 0.405, 0.44955, 0.45),
}
FACTORS = (0.1, 0.55, 1.0, 1.72, 1.8982, 1.9)
PLAIN = {
    **COMMON,
    "Posterize": (0, 1, 2, 3, 3, 4),
    "Solarize": (0, 64, 128, 230, 255, 256),
    **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), FACTORS),
}
INCREASING_FACTORS = (1.0, 1.225, 1.45, 1.81, 1.8991, 1.9)
INCREASING = {
    **COMMON,
    "Posterize": (4, 3, 2, 1, 1, 0),
    "Solarize": (256, 192, 128, 26, 1, 0),
    **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), INCREASING_FACTORS),
}
TWO_WAYS = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}


@pytest.mark.parametrize(("increasing", "table"), [(False, PLAIN), (True, INCREASING)])
def test_magnitudes_are_timms(increasing, table):
    assert set(OPERATIONS) - set(table) == {"AutoContrast", "Equalize", "Invert"}
    for name in OPERATIONS:
        if name not in table:
            assert arguments(name, 9, 1, increasing) == ()
            continue
        for magnitude, expected in zip(LEVELS, table[name], strict=True):
            (value,) = arguments(name, magnitude, 1, increasing)
            (negative,) = arguments(name, magnitude, -1, increasing)
            assert value == pytest.approx(expected, rel=1e-12)
            if name in TWO_WAYS:
                assert negative == -value
            elif increasing and table[name] is INCREASING_FACTORS:
                assert negative == pytest.approx(max(0.1, 2 - expected), rel=1e-12)
            else:
                assert negative == value


@pytest.mark.parametrize(
    "spelling",
    ["rand", "rand-m9-mstd0.5-inc1", "rand-m7-n3-p0.25", "rand-m5-n1-p1-mstd100-inc1", "rand-n0"],
)
def test_spelling_there_and_back(spelling):
    assert str(RandAugment.parse(spelling, MEAN)) == spelling
    assert str(RandAugment.parse(f"{spelling}-inc0", MEAN)) == spelling.removesuffix("-inc1")


def test_spelling_means_what_timm_means():
    assert RandAugment.parse("rand", (0.5,)) == RandAugment(10, 2, 0.5, 0.0, False, (128,))
    assert RandAugment(9, 2, 0.5, 0.5, True, (124, 116, 104)) == RECIPE
    assert RandAugment.parse("rand-inc1-mstd0.5-m9", MEAN) == RECIPE
    assert RandAugment.parse("rand", (1.0, 0.0), "bilinear").fill == (255, 0)


@pytest.mark.parametrize(
    ("spelling", "part"),
    [
        ("v0", "v0"), ("", ""), ("rand-", ""), ("rand-m", "m"), ("rand-m11", "m11"),
        ("rand-m9.5", "m9.5"), ("rand-m9-n1.5", "n1.5"), ("rand-p2", "p2"), ("rand-inc2", "inc2"),
        ("rand-mstd101", "mstd101"), ("rand-mstdinf", "mstdinf"), ("rand-mmax20", "mmax20"),
        ("rand-w0", "w0"), ("rand-tweights", "tweights"), ("rand_m9", "rand_m9"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_named(spelling, part):
    with pytest.raises(RunError, match=rf"^'{part}' of the RandAugment '{spelling}' .*Write rand-"):
        RandAugment.parse(spelling, MEAN)


def test_how_often_what_is_drawn():
    """Bounds are five standard deviations of a binomial count."""
    images, rng = 20_000, np.random.default_rng(0)
    drawn = [RECIPE.draw(rng) for _ in range(images)]

    def near(count, trials, probability):
        return abs(count - trials * probability) < 5 * math.sqrt(trials * probability)

    numbers = collections.Counter(map(len, drawn))
    for number, probability in {0: 0.25, 1: 0.5, 2: 0.25}.items():
        assert near(numbers[number], images, probability)
    pairs = collections.Counter(tuple(name for name, _ in each) for each in drawn)
    for name in OPERATIONS:
        assert near(pairs[(name,)], images, 0.5 / 15)
        assert near(pairs[(name, name)], images, 0.25 / 15**2)  # with replacement
    for name in TWO_WAYS:
        signs = [values[0] > 0 for each in drawn for other, values in each if other == name]
        assert near(sum(signs), len(signs), 0.5)
    factors = [values[0] for each in drawn for name, values in each if name == "Contrast"]
    assert near(sum(factor > 1 for factor in factors), len(factors), 0.5)


def test_magnitudes_are_normal_and_cut():
    """Seen through the angle of rotations, which is three times the magnitude."""
    augment = RandAugment.parse("rand-m9-n15-p1-mstd0.5", MEAN)
    rng = np.random.default_rng(0)
    angles = [v[0] for _ in range(4000) for name, v in augment.draw(rng) if name == "Rotate"]
    magnitudes = np.abs(angles) / 3
    assert magnitudes.max() == 10
    assert np.mean(magnitudes == 10) == pytest.approx(0.0228, abs=0.01)  # two deviations away
    for quantile, expected in {0.1587: 8.5, 0.5: 9.0, 0.8413: 9.5}.items():
        assert np.quantile(magnitudes, quantile) == pytest.approx(expected, abs=0.05)
    low = RandAugment.parse("rand-m0-n15-p1-mstd1", MEAN)
    angles = [v[0] for _ in range(500) for name, v in low.draw(rng) if name == "Rotate"]
    assert np.mean(np.equal(angles, 0)) == pytest.approx(0.5, abs=0.1)


def test_without_noise_all_magnitudes_are_the_same():
    augment = RandAugment.parse("rand-m4-n15-p1", MEAN)
    rng = np.random.default_rng(0)
    drawn = {(name, *values) for _ in range(100) for name, values in augment.draw(rng)}
    assert {values[0] for name, *values in drawn if name == "Rotate"} == {12.0, -12.0}
    assert {values[0] for name, *values in drawn if name == "Solarize"} == {102}


def test_operations_are_applied_in_turn():
    image = np.random.default_rng(0).integers(0, 256, (12, 17, 3), np.uint8)
    drawn = [("Posterize", (2,)), ("ShearX", (0.2,)), ("Invert", ())]
    expected = VALUE_OPERATIONS["Posterize"](image, 2)
    expected = 255 - warp(expected, AFFINE_MAPS["ShearX"](0.2, 17, 12), RECIPE.fill, "bicubic")
    np.testing.assert_array_equal(RECIPE.apply(image, drawn), expected)
    assert RECIPE.apply(image, []) is image
