"""Handwritten digits as a TensorFlow Datasets builder that needs no network.

The 1,797 images are the test set of "Optical Recognition of Handwritten Digits"
(Alpaydin & Kaynak, UCI Machine Learning Repository, 1998), which scikit-learn carries.
"""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

# Every sixth image is a test image, so both splits have digits of every writer.
_TEST_EVERY = 6


class Digits(tfds.core.GeneratorBasedBuilder):
    """8x8 grey images of handwritten digits: 1,498 to train on and 299 to test on."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(False), "test": self._generate_examples(True)}

    def _generate_examples(self, test: bool):
        data: Any = load_digits()  # a tuple with other arguments
        for i, label in enumerate(data.target):
            if (i % _TEST_EVERY == _TEST_EVERY - 1) == test:
                grey = np.round(data.images[i] * (255 / 16)).astype(np.uint8)  # stored as 0 to 16
                # A PIL image, since TFDS would use TensorFlow to encode an array.
                yield i, {"image": Image.fromarray(grey), "label": int(label)}
