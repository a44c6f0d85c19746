"""Evaluation of networks in files, in this process."""

import numpy as np
import pytest

import replk_jax
from replk_jax import Checkpoint, Preprocessing, save
from tests.helpers import random_variables
from tests.io.test_files import strict
from tests.train import tiny
from train.engine.evaluate import evaluate_checkpoint
from train.engine.loop import run
from train.errors import RunError
from train.tasks.classification import CLASSIFICATION


@pytest.fixture
def config(data_dir):
    config = tiny.get_config()
    config.mode = "eval"
    config.data.data_dir = str(data_dir)
    return config


def network(deploy=False, num_classes=10, preprocessing=None, class_names=None, in_channels=1):
    architecture = replk_jax.RepLKNetArchitecture(
        (5,), (1,), (8,), small_kernel=3, in_channels=in_channels
    )
    model = replk_jax.create_model(architecture, num_classes=num_classes)
    variables = random_variables(model)
    if deploy:
        model, variables = model.clone(deploy=True), replk_jax.reparameterize(variables)
    return Checkpoint(model, variables, preprocessing, class_names)


GREY = Preprocessing(12, crop_fraction=0.75, mean=(0.2,), std=(0.5,))


@pytest.mark.parametrize(
    ("preprocessing", "as_configured", "size"),
    [(GREY, False, 12), (GREY, True, 16), (None, False, 16)],
)
def test_whose_preprocessing(config, tmp_path, preprocessing, as_configured, size):
    save(tmp_path / "network.safetensors", network(preprocessing=preprocessing))
    config.init_from = str(tmp_path / "network.safetensors")
    config.data.eval_as_configured = as_configured
    result = evaluate_checkpoint(config, tmp_path, CLASSIFICATION)
    assert result["preprocessing"]["image_size"] == size
    assert result["training"]["examples"] == 299
    assert result["training"]["top1"] == result["merged"]["top1"]
    assert result["largest_difference"] < 1e-4


def test_a_merged_network(config, tmp_path):
    for deploy in (False, True):
        save(tmp_path / f"{deploy}.safetensors", network(deploy, preprocessing=GREY))
    config.init_from = str(tmp_path / "True.safetensors")
    config.model.dtype = "bfloat16"  # of training: evaluation is in float32
    merged = evaluate_checkpoint(config, None, CLASSIFICATION)
    config.init_from = str(tmp_path / "False.safetensors")
    both = evaluate_checkpoint(config, tmp_path, CLASSIFICATION)
    assert "training" not in merged
    assert merged["merged"]["top1"] == both["merged"]["top1"]
    np.testing.assert_allclose(merged["merged"]["loss"], both["merged"]["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("saved", "reason"),
    [
        (None, "--config.init_from=FILE"),
        (network(num_classes=7), "has 7 classes; the split 'test' has 10"),
        (network(num_classes=None), "has no classifier"),
        (
            network(class_names=tuple("0123456798")),
            "class 8 is '9' in the file and '8' in the split",
        ),
        (network(in_channels=3), r"config\.data\.mean and config\.data\.std must have 3 values"),
    ],
)
def test_errors(config, tmp_path, saved, reason):
    if saved:
        save(tmp_path / "network.safetensors", saved)
        config.init_from = str(tmp_path / "network.safetensors")
    with pytest.raises(RunError, match=reason):
        evaluate_checkpoint(config, tmp_path, CLASSIFICATION)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"preprocessing": GREY}, r"--config\.data\.mean='\(0\.2,\)' --config\.data\.std="),
        ({"num_classes": 7}, r"has 7 classes, the model has 10(.|\n)*--config\.init_reset_head"),
        ({"in_channels": 3}, r"takes 3 channels, the model .*=1.*--config\.init_adapt_input"),
    ],
    ids=["other images", "other classes", "other channels"],
)
def test_weights_are_not_adapted_unasked(config, tmp_path, fields, reason):
    save(tmp_path / "network.safetensors", network(**fields))
    config.mode = "train"
    config.init_from = str(tmp_path / "network.safetensors")
    config.model.replknet.update(kernel_sizes=(5,), layers=(1,), channels=(8,), small_kernel=3)
    with pytest.raises(RunError, match=reason):
        run(config, tmp_path, CLASSIFICATION)


@pytest.mark.parametrize(
    ("mode", "start", "about"),
    [
        ("train", run, CLASSIFICATION),
        ("eval", evaluate_checkpoint, CLASSIFICATION),
    ],
)
def test_a_file_that_is_no_checkpoint(config, tmp_path, mode, start, about):
    config.mode = mode
    config.init_from = str(tmp_path / "text.pth")
    (tmp_path / "text.pth").write_text("not found")
    with pytest.raises(RunError, match=r"config\.init_from: .*text\.pth"):
        start(config, tmp_path, about)


def test_a_network_that_diverged(config, tmp_path, capsys):
    """What could be computed is written as JSON that every parser reads; it ends with an error."""
    diverged = network(preprocessing=GREY)
    diverged.variables["params"]["head"]["bias"][:] = np.nan
    save(tmp_path / "network.safetensors", diverged)
    config.init_from = str(tmp_path / "network.safetensors")
    with pytest.raises(RunError, match=r"NaN or infinite .*training\.loss"):
        evaluate_checkpoint(config, tmp_path, CLASSIFICATION)
    result = strict((tmp_path / "evaluation.json").read_text())
    assert result["largest_difference"] is None
    for structure in ("training", "merged"):
        assert result[structure] == {"top1": 0.0, "top5": 0.0, "loss": None, "examples": 299}
    assert "loss nan" in capsys.readouterr().out


def test_more_splits(config, tmp_path, capsys):
    save(tmp_path / "network.safetensors", network(preprocessing=GREY))
    config.init_from = str(tmp_path / "network.safetensors")
    config.data.more_eval_splits = ("train[:64]",)
    result = evaluate_checkpoint(config, None, CLASSIFICATION)
    assert result["training"]["examples"] == 299
    (name,) = result["evaluations"]
    assert name == "eval_train[:64]"
    assert result["evaluations"][name]["merged"]["examples"] == 64
    assert f"({name}) on 64 images" in capsys.readouterr().out
    config.data.more_eval_splits = ("test",)
    with pytest.raises(RunError, match="names a split twice"):
        evaluate_checkpoint(config, None, CLASSIFICATION)
