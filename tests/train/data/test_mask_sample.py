"""The look at a few masks before training."""

import io

import numpy as np
import pytest
from PIL import Image

from replk_jax.vision.images import ImageError
from replk_jax.vision.label_sets import LabelSet
from train.data.mask_sample import only_one_class

TWO = LabelSet.of(("background", "cell"))
EMPTY, OBJECT, BINARY, IGNORED = (
    np.array(values, np.uint8) for values in ([[0, 0]], [[0, 1]], [[0, 255]], [[255, 255]])
)


class Source:
    """Masks in memory; counts how many are read. None cannot be read."""

    def __init__(self, masks, label_set=TWO):
        self.masks, self.label_set, self.read = masks, label_set, 0

    def __len__(self):
        return len(self.masks)

    def __getitem__(self, index):
        self.read += 1
        if self.masks[index] is None:
            raise ImageError("It is gone.")
        file = io.BytesIO()
        Image.fromarray(self.masks[index]).save(file, "PNG")
        return {"image": b"", "mask": file.getvalue(), "origin": "i", "mask_origin": "m"}


def test_an_object_that_is_255():
    message = only_one_class(Source([BINARY, EMPTY] * 50))
    assert message is not None
    assert message.startswith(
        "Of 2 classes, 32 masks that were looked at have only background and ignored pixels; "
        "255 is ignored: if it stands for an object, write the number of its class in place of it."
    )
    assert "train.check" in message


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ([EMPTY] * 3, "3 masks that were looked at have only background. "),
        ([IGNORED], "have only ignored pixels; 255 is ignored"),
        ([None, BINARY, None], "only background and ignored pixels"),
    ],
    ids=["one class", "all ignored", "some unreadable"],
)
def test_one_class(masks, words):
    message = only_one_class(Source(masks))
    assert message is not None
    assert words in message


@pytest.mark.parametrize(
    "source",
    [
        Source([EMPTY] * 31 + [OBJECT]),
        Source([EMPTY, EMPTY, 1 - EMPTY]),
        Source([BINARY] * 5, LabelSet.of(["cell"])),
        Source([None, None]),
        Source([2 + EMPTY]),  # no class: training stops at it
    ],
    ids=["last of the sample", "in two masks", "a set of one class", "unreadable", "no class"],
)
def test_nothing_to_say(source):
    assert only_one_class(source) is None


def test_as_a_rule_one_mask_is_read():
    source = Source([OBJECT] * 1000)
    assert only_one_class(source) is None
    assert source.read == 1
