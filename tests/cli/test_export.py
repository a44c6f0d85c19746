"""python -m replk_jax export, of segmentation networks."""

import json

import jax
import numpy as np
import pytest

import replk_jax
from replk_jax import Checkpoint, SegmentationProtocol, Segmenter, save
from replk_jax.cli.main import main
from replk_jax.export import export_model
from tests.helpers import TINY, random_variables
from tests.inference.test_segmenter_export import SLIDING, assert_same_classes, network
from tests.vision.test_images import picture


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    save(path, Checkpoint(*network(), SLIDING, ("a", "b", "c", "d", "e")))
    return path


def read(path):
    return jax.export.deserialize(bytearray(path.read_bytes()))


def test_export_to_class_maps(weights, tmp_path, capsys):
    out = tmp_path / "out"
    main(["export", str(weights), str(out), "--image-size", "40", "60"])
    images = picture(60, 40)[None]
    assert_same_classes(read(out).call(images), np.stack(Segmenter(*network(), SLIDING)(images)))
    assert "uint8[batch,40,60,3] to uint8[batch,40,60]" in capsys.readouterr().out
    description = json.loads((tmp_path / "out.json").read_text())
    assert description["program"]["outputs"] == [{"shape": ["batch", 40, 60], "dtype": "uint8"}]
    assert description["preprocessing"] == SLIDING.as_dict()
    assert description["class_names"] == ["a", "b", "c", "d", "e"]
    assert description["model"]["auxiliary_head"] is None  # the program has none


def test_export_has_the_size_of_the_window(weights, tmp_path):
    main(["export", str(weights), str(tmp_path / "out"), "--batch-size", "2"])
    assert read(tmp_path / "out").in_avals[0].shape == (2, 32, 32, 3)


def test_export_of_logits(weights, tmp_path):
    out = tmp_path / "out"
    main(["export", str(weights), str(out), "--image-size", "40", "60", "--logits", "--normalize"])
    images = picture(60, 40)[None]
    program = export_model(*network(), image_size=(40, 60), normalization=SLIDING)
    np.testing.assert_array_equal(read(out).call(images), program.call(images))


def test_export_of_several_views(tmp_path, capsys):
    path = tmp_path / "weights.safetensors"
    save(path, Checkpoint(*network(), SegmentationProtocol((60, 40), ratios=(0.5, 1), flip=True)))
    arguments = ["export", str(path), str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(arguments)
    assert "accepts one: give --image-size" in capsys.readouterr().err
    main([*arguments, "--image-size", "32"])
    assert "warning: the program computes a single view" in capsys.readouterr().err


def test_export_of_classifiers_has_no_logits_option(tmp_path, capsys):
    path = tmp_path / "weights.safetensors"
    model = replk_jax.create_model(TINY, num_classes=4)
    save(path, Checkpoint(model, random_variables(model), replk_jax.Preprocessing(32)))
    for options, message in (
        (["--logits"], "--logits is for segmentation networks"),
        (["--image-size", "32", "48"], "images of one side"),
        (["--image-size", "32", "48", "1"], "one or two numbers"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["export", str(path), str(tmp_path / "out"), *options])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
