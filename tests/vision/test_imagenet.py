"""The classes of ImageNet-1K."""

import importlib.util
from pathlib import Path

import pytest

from replk_jax.vision import imagenet


def test_the_order_is_that_of_the_identifiers():
    identifiers = imagenet.wordnet_ids()
    assert len(identifiers) == len(set(identifiers)) == 1000
    assert list(identifiers) == sorted(identifiers)
    assert all(len(i) == 9 and i[0] == "n" and i[1:].isdigit() for i in identifiers)


def test_the_identifiers_are_those_of_tensorflow_datasets():
    found = importlib.util.find_spec("tensorflow_datasets")
    if found is None:
        pytest.skip("TensorFlow Datasets is not installed")
    labels = Path(found.origin).parent / "datasets" / "imagenet2012" / "labels.txt"
    assert list(imagenet.wordnet_ids()) == labels.read_text().split()


def test_names():
    names = imagenet.class_names()
    assert len(names) == 1000
    assert all(name and name == name.strip() and "_" not in name for name in names)
    assert names[0] == "tench, Tinca tinca"
    assert names[1] == "goldfish, Carassius auratus"
    assert names[207] == "golden retriever"
    assert names[281] == "tabby, tabby cat"
    assert names[999] == "toilet tissue, toilet paper, bathroom tissue"
    twice = {name for name in names if names.count(name) > 1}
    assert twice == {"crane"}
