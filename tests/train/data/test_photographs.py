"""The patches of photographs."""

import importlib.resources
import io

import numpy as np
import pytest
from PIL import Image

from train.data.photographs import COUNTS, PHOTOGRAPHS, SIDE, open_photograph, patches
from train.data.sources import open_source, prepare
from train.errors import RunError


@pytest.fixture(scope="module")
def pictures():
    return {name: open_photograph(name) for name in PHOTOGRAPHS}


def data(folder):
    return {"name": "photographs", "data_dir": str(folder), "folder": None}


def covered(picture, name, split):
    """Which pixels (H, W) of a photograph a split's patches show."""
    shown = np.zeros((picture.height, picture.width), bool)
    for patch in patches(name, picture.size, split):
        left, top, right, bottom = patch.box
        assert 0 <= left < right <= picture.width
        assert 0 <= top < bottom <= picture.height
        assert right - left == bottom - top == SIDE
        shown[top:bottom, left:right] = True
    return shown


def test_photographs(pictures):
    """No drawings, which have few shades; and what is grey is grey in all channels."""
    assert len(pictures) == 18
    for name, picture in pictures.items():
        assert picture.mode == "RGB"
        assert min(picture.size) >= 300
        assert np.count_nonzero(picture.convert("L").histogram()) > 100, name
    grey = {name for name, p in pictures.items() if not np.ptp(np.asarray(p), axis=-1).any()}
    assert grey == {
        "brick", "camera", "cell", "clock_motion", "coins", "grass", "gravel", "moon",
    }  # fmt: skip


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_the_splits_share_no_pixel(pictures, name):
    """Nor neighbours: eight columns of neither lie between. Both are of the whole photograph."""
    train, test = (covered(pictures[name], name, split) for split in ("train", "test"))
    columns = [np.flatnonzero(shown.any(axis=0)) for shown in (train, test)]
    assert np.abs(np.subtract.outer(*columns)).min() == 9
    for shown in (train, test):
        assert shown.any(axis=1).mean() > 0.9
        assert all(part.any() for part in np.array_split(shown, 3, axis=1))


@pytest.mark.parametrize("split", COUNTS)
def test_patches_are_all_different(pictures, split):
    for name, picture in pictures.items():
        found = list(patches(name, picture.size, split))
        assert len(set(found)) == len(found) == COUNTS[split]


def test_the_set_on_disk(pictures, tmp_path, monkeypatch):
    """Every patch once, pixel for pixel, with the class of its photograph; here of fewer."""
    counts = {"train": 6, "test": 3}
    for split, count in counts.items():
        monkeypatch.setitem(COUNTS, split, count)
    prepare(data(tmp_path))
    pixels = {name: np.asarray(picture) for name, picture in pictures.items()}
    for split, count in counts.items():
        source = open_source(data(tmp_path), split)
        assert source.class_names == list(PHOTOGRAPHS)
        examples = [source[i] for i in range(len(source))]
        found = [(x["label"], Image.open(io.BytesIO(x["image"])).tobytes()) for x in examples]
        expected = [
            (label, pixels[name][top:bottom, left:right].tobytes())
            for label, (name, picture) in enumerate(pictures.items())
            for left, top, right, bottom in (p.box for p in patches(name, picture.size, split))
        ]
        assert len(found) == 18 * count
        assert sorted(found) == sorted(expected)


def test_a_package_that_is_missing(tmp_path, monkeypatch):
    def files(package):
        raise ModuleNotFoundError(f"No module named {package!r}")

    monkeypatch.setattr(importlib.resources, "files", files)
    with pytest.raises(RunError, match=r"pip install scikit-image scikit-learn$"):
        prepare(data(tmp_path))
