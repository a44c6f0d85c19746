"""What the configuration of a classification must satisfy."""

import pytest

from configs import common, digits
from replk_jax.vision.preprocessing import Preprocessing
from train.errors import RunError
from train.tasks import classification_config


@pytest.mark.parametrize("module", [common, digits])
def test_the_configurations_pass(module):
    classification_config.check(module.get_config())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data.image_size", 0),
        ("data.std", (0.0,)),
        ("data.std", ()),
        ("data.std", ("a",)),
        ("data.mean", ("a",)),
        ("data.mean", (float("nan"),)),
        ("data.eval_crop_fraction", 2.0),
        ("data.crop_scale", (0.5, 0.1)),
        ("data.crop_scale", (0.0, 1.0)),
        ("data.crop_scale", None),
        ("data.crop_ratio", (1.0,)),
        ("data.crop_ratio", ("a", "b")),
        ("data.resizing", "nearest"),
        ("data.color_jitter", -0.1),
        ("label_smoothing", 1.0),
        ("augmentation.mixup_alpha", -1.0),
        ("augmentation.mixup_group_size", 0),
        ("augmentation.erasing_probability", 1.5),
    ],
)
def test_a_value_that_makes_no_sense_is_named(field, value):
    config = digits.get_config()
    *sections, last = field.split(".")
    with config.unlocked():
        section = config
        for name in sections:
            section = section[name]
        with section.ignore_type():
            section[last] = value
    with pytest.raises(RunError, match=f"config.{field} must be") as caught:
        classification_config.check(config)
    assert str(value) in str(caught.value)


def test_preprocessing_of_the_evaluation():
    data = digits.get_config().data
    data.eval_crop_fraction = 0.75
    expected = Preprocessing(image_size=32, crop_fraction=0.75, mean=(0.305,), std=(0.376,))
    assert classification_config.build_preprocessing(data, 1) == expected
    with pytest.raises(RunError, match=r"must have 3 values, .* they are \(0.305,\)"):
        classification_config.build_preprocessing(data, 3)
    with pytest.raises(RunError, match=r"config\.model\.in_channels is 4"):
        classification_config.build_preprocessing(data, 4)
