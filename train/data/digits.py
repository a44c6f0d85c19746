"""Handwritten digits as a TensorFlow Datasets builder that needs no network.

The 1,797 images are the test set of "Optical Recognition of Handwritten Digits"
(Alpaydin & Kaynak, UCI Machine Learning Repository, 1998), which scikit-learn carries.
"""

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

# The file is ordered by writer, so a split by position tests on people never seen in training.
_TRAIN_EXAMPLES = 1500


class Digits(tfds.core.GeneratorBasedBuilder):
    """8x8 grey images of handwritten digits: 1,500 to train on and 297 to test on."""

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
        return {
            "train": self._generate_examples(slice(None, _TRAIN_EXAMPLES)),
            "test": self._generate_examples(slice(_TRAIN_EXAMPLES, None)),
        }

    def _generate_examples(self, examples: slice):
        data = load_digits()
        indices = range(*examples.indices(len(data.target)))
        for i in indices:
            grey = np.round(data.images[i] * (255 / 16)).astype(np.uint8)  # stored as 0 to 16
            # As a PIL image: TFDS would encode an array with TensorFlow.
            yield i, {"image": Image.fromarray(grey), "label": int(data.target[i])}
