"""Colours, overlays and legends of class maps."""

import numpy as np
import pytest

from replk_jax.vision.label_drawing import (
    IGNORED,
    IGNORED_COLOUR,
    colour,
    legend,
    overlay,
    shares,
    with_legend,
)

PALETTE = np.array([(0, 0, 0), (200, 30, 40), (10, 220, 90)], np.uint8)
CLASSES = np.array([[0, 1, 2], [2, 2, IGNORED]], np.uint8)


def test_colour():
    expected = [
        [(0, 0, 0), (200, 30, 40), (10, 220, 90)],
        [(10, 220, 90), (10, 220, 90), IGNORED_COLOUR],
    ]
    pixels = colour(CLASSES, PALETTE)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)


def test_colour_with_the_most_classes():
    palette = np.arange(255 * 3).astype(np.uint8).reshape(255, 3)
    classes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = np.concatenate([palette, [IGNORED_COLOUR]]).reshape(16, 16, 3)
    np.testing.assert_array_equal(colour(classes, palette), expected)


def test_overlay():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 3, 3)).astype(np.uint8)
    for opacity in (0, 0.25, 0.5, 1):  # exact in float32
        mixed = overlay(image, CLASSES, PALETTE, opacity)
        exact = (1 - opacity) * image.astype(float) + opacity * colour(CLASSES, PALETTE)
        np.testing.assert_array_equal(mixed, np.rint(exact))
    np.testing.assert_array_equal(overlay(image, CLASSES, PALETTE, 0), image)
    np.testing.assert_array_equal(overlay(image, CLASSES, PALETTE, 1), colour(CLASSES, PALETTE))


def test_overlay_of_a_grey_image():
    grey = np.full((2, 3, 1), 100, np.uint8)
    expected = overlay(grey.repeat(3, axis=2), CLASSES, PALETTE)
    np.testing.assert_array_equal(overlay(grey, CLASSES, PALETTE), expected)


def test_shares():
    assert list(shares(CLASSES).items()) == [(2, 1 / 2), (0, 1 / 6), (1, 1 / 6), (IGNORED, 1 / 6)]


def colours_of(picture):
    return {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()}


def test_legend_has_the_boxes_in_order():
    labels = {2: "sky", 1: "a long name of a class", IGNORED: "ignored"}
    picture = legend(labels, PALETTE, width=300)
    assert picture.shape[1] == 300
    assert picture.dtype == np.uint8

    def first(colour):
        found = np.argwhere((picture == np.array(colour)).all(axis=-1))
        return tuple(found[0].tolist())

    assert first(PALETTE[2]) < first(PALETTE[1]) < first(IGNORED_COLOUR)
    assert tuple(PALETTE[0]) not in colours_of(picture)


def test_a_wide_legend_has_more_columns():
    labels = dict.fromkeys(range(3), "class")
    narrow, wide = (legend(labels, PALETTE, width=width) for width in (70, 400))
    assert narrow.shape[0] == 3 * 20 + 4  # a line of font_size + 6, and a gap below
    assert wide.shape[0] == 20 + 4


def test_a_long_name_is_shortened():
    """It does not run into the next column, or out of the picture."""
    labels = {1: "w" * 200, 2: "w" * 200}
    picture = legend(labels, PALETTE, width=120)
    assert (picture[:, -4:] == 255).all()
    # All of the name that fits is there, with an ellipsis.
    assert (picture[:, 80:110] != 255).any()


@pytest.mark.parametrize("text", ["", "tür", "line\nbreak", "\udce9", "空"])
def test_any_text_can_be_drawn(text):
    picture = legend({1: text, 2: "sky"}, PALETTE, width=200)
    assert tuple(PALETTE[1]) in colours_of(picture)


def test_a_legend_without_labels():
    assert legend({}, PALETTE, width=100).shape == (0, 100, 3)


def test_with_legend():
    """The picture stays as it is; one that is too narrow gets a margin."""
    picture = np.full((10, 20, 3), 7, np.uint8)
    both = with_legend(picture, {1: "sky"}, PALETTE)
    np.testing.assert_array_equal(both[:10, :20], picture)
    assert (both[:10, 20:] == 255).all()
    np.testing.assert_array_equal(both[10:], legend({1: "sky"}, PALETTE, width=both.shape[1]))
    wide = np.zeros((10, 500, 3), np.uint8)
    assert with_legend(wide, {1: "sky"}, PALETTE).shape[1] == 500


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: colour(CLASSES, PALETTE[:2]), "has the class 2, and the palette .* for 2 classes"),
        (lambda: colour(CLASSES.astype(np.int32), PALETTE), r"uint8 \(H, W\).* got int32 \(2, 3\)"),
        (lambda: colour(CLASSES[None], PALETTE), r"got uint8 \(1, 2, 3\)"),
        (lambda: shares(CLASSES[:0]), r"got uint8 \(0, 3\)"),
        (lambda: colour(CLASSES, PALETTE / 255), r"a palette is .* got float64 \(3, 3\)"),
        (lambda: colour(CLASSES, np.zeros((256, 3), np.uint8)), r"1 to 255 colours"),
        (
            lambda: overlay(np.zeros((3, 2, 3), np.uint8), CLASSES, PALETTE),
            r"the image has 3 x 2 pixels .* class map 2 x 3",
        ),
        (lambda: overlay(np.zeros((2, 3, 3)), CLASSES, PALETTE), "got float64"),
        (lambda: overlay(np.zeros((2, 3, 3), np.uint8), CLASSES, PALETTE, 1.5), "it is 1.5"),
        (lambda: legend({3: "sky"}, PALETTE, width=100), "the class 3, .* for 3 classes"),
        (lambda: legend({0: "sky"}, PALETTE, width=40), "at least 60 pixels wide; got 40"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
