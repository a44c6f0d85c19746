"""Pictures of boxes, masks and names."""

import numpy as np
import pytest

from replk_jax.vision import label_sets
from replk_jax.vision.box_drawing import draw_objects, object_palette

RED, BLUE = (200, 0, 0), (0, 0, 200)
GREY = np.full((60, 80, 3), 100, np.uint8)


def boxes(*rows):
    return np.array(rows, np.float32).reshape(-1, 4)


def colours(*rows):
    return np.array(rows, np.uint8).reshape(-1, 3)


def test_outline():
    """Of the first and the last pixel that the box covers, one pixel wide."""
    pixels = draw_objects(GREY, boxes((10, 20, 30, 40)), colours(RED), [""])
    expected = GREY.copy()
    expected[20:40, 10:30] = RED
    expected[21:39, 11:29] = 100
    np.testing.assert_array_equal(pixels, expected)
    assert (GREY == 100).all()


def test_box_beyond_the_image():
    pixels = draw_objects(GREY, boxes((-50, -9, 500, 300.5)), colours(RED), [""])
    expected = np.empty_like(GREY)
    expected[:] = RED
    expected[1:-1, 1:-1] = 100
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("box", [(100, 100, 120, 120), (-9, -9, -5, -5), (30, 30, 30, 30)])
def test_empty_box(box):
    """One that is outside, or has no area, is the smallest rectangle that Pillow draws."""
    pixels = draw_objects(GREY, boxes(box), colours(RED), [""])
    assert 1 <= (pixels != GREY).any(-1).sum() <= 2


def test_mask():
    """Mixed within, and its contour in full colour."""
    mask = np.zeros((60, 80), bool)
    mask[5:15, 50:70] = True
    pixels = draw_objects(GREY, boxes((0, 0, 1, 1)), colours(BLUE), [""], [mask], opacity=0.5)
    assert (pixels[5, 50:70] == BLUE).all()
    assert (pixels[6:14, 51:69] == (50, 50, 150)).all()
    assert (pixels[20:] == 100).all()


def test_the_first_object_is_in_front():
    both = boxes((5, 25, 40, 50), (5, 25, 40, 50))
    pixels = draw_objects(GREY, both, colours(RED, BLUE), ["", ""])
    assert (pixels[25, 5:40] == RED).all()


def test_label():
    """Above the box; within it where there is no room, and never beyond the right side."""
    above = draw_objects(GREY, boxes((10, 30, 20, 40)), colours(RED), ["cat 0.98"])
    changed = (above != 100).any(-1)
    assert changed[:30].any()
    assert not changed[41:].any()
    inside = draw_objects(GREY, boxes((70, 0, 80, 50)), colours(RED), ["cat 0.98"])
    assert (inside[:20] != 100).any(-1)[:, :70].any()


def test_grey_image_without_objects():
    pixels = draw_objects(GREY[..., :1], boxes(), colours(), [], [])
    np.testing.assert_array_equal(pixels, GREY)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"image": GREY.astype(np.float32)}, "an image under boxes is uint8"),
        ({"labels": ["a", "b"]}, "2 labels are of boxes"),
        ({"boxes": boxes((0, 0, np.nan, 1))}, "not finite"),
        ({"masks": [np.zeros((3, 3), bool)]}, r"masks are 1 arrays bool \(60, 80\)"),
        ({"masks": []}, "got 0 masks"),
        ({"opacity": 2}, "opacity must be between 0 and 1"),
    ],
)
def test_bad_input(changes, match):
    arguments = {
        "image": GREY, "boxes": boxes((0, 0, 1, 1)), "colours": colours(RED), "labels": [""],
        **changes,
    }  # fmt: skip
    with pytest.raises(ValueError, match=match):
        draw_objects(**arguments)


def test_palette():
    coco = label_sets.find("coco")
    np.testing.assert_array_equal(object_palette(coco.class_names), coco.palette)
    others = object_palette(["a", "b"])
    np.testing.assert_array_equal(others, [(128, 0, 0), (0, 128, 0)])


def test_palette_of_many_classes():
    """None is black, which is no colour of an object."""
    many = object_palette([str(index) for index in range(1203)])
    assert many.shape == (1203, 3)
    assert many.any(-1).all()
    np.testing.assert_array_equal(many[255:510], many[:255])
