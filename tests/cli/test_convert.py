"""python -m replk_jax convert"""

import dataclasses

import chex
import jax
import numpy as np
import pytest

import replk_jax
from replk_jax import Checkpoint, RepVGGArchitecture, ResNetArchitecture, load, save
from replk_jax.cli.main import main
from replk_jax.reparam import merge_branches
from replk_jax.torch_import import infer_architecture, load_torch, save_torch
from replk_jax.torch_import.reader import read
from replk_jax.torch_import.structures import Structure
from tests import reference_data
from tests.checkpoint.test_checkpoint import PREPROCESSING, network
from tests.helpers import random_variables
from tests.models.composite import tiny_segmenter
from tests.vision.test_preprocessing import Padded

ONE_STAGE_RESNET = ResNetArchitecture((1,), (4,))


@pytest.fixture
def torch_file(tmp_path):
    saved = network()
    path = tmp_path / "tiny.pth"
    save_torch(saved.variables, saved.model, path)
    return path


def run(*arguments):
    main(["convert", *map(str, arguments)])


def refusal(capsys, *arguments):
    """What it says as it refuses."""
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def assert_same_tensors(path, expected):
    actual = read(path)
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(actual[key].read(), tensor)


@pytest.mark.parametrize("name", ["tiny.safetensors", "tiny.SafeTensors", "tiny"])
def test_deploy(torch_file, tmp_path, name, capsys):
    run(torch_file, tmp_path / name, "--deploy")
    assert (tmp_path / name).is_dir() == (name == "tiny")
    converted, saved = load(tmp_path / name), network()
    assert converted.model == saved.model.clone(deploy=True)
    wanted = jax.jit(replk_jax.reparameterize)(saved.variables)
    jax.tree.map(np.testing.assert_array_equal, converted.variables, wanted)
    output = capsys.readouterr().out
    assert "largest difference of the structures" in output
    assert "re-parameterized structure" in output


def test_deploy_of_a_composite_network(tmp_path, capsys):
    """Its preprocessing gives images of different sizes."""
    model = tiny_segmenter(ONE_STAGE_RESNET, backbone={"out_indices": (0, 0)})
    save(tmp_path / "in", Checkpoint(model, random_variables(model), Padded(8)))
    run(tmp_path / "in", tmp_path / "out", "--deploy")
    converted = load(tmp_path / "out")
    assert (converted.model, converted.preprocessing) == (model.clone(deploy=True), Padded(8))
    assert "out: TinySegmenter on ResNet, re-parameterized structure" in capsys.readouterr().out


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".PTH"])
def test_for_torch(torch_file, tmp_path, ending):
    """There and back, and from one PyTorch file to another."""
    expected = {key: tensor.read() for key, tensor in read(torch_file).items()}
    run(torch_file, tmp_path / "tiny.safetensors")
    for source in ("tiny.safetensors", "tiny.pth"):
        run(tmp_path / source, tmp_path / f"back{ending}", "--force")
        assert_same_tensors(tmp_path / f"back{ending}", expected)


def test_names_of_timm(tmp_path, capsys):
    model = replk_jax.create_model(RepVGGArchitecture((1,), (8, 8)), num_classes=2)
    save_torch(random_variables(model), model, tmp_path / "official.pth")
    run(tmp_path / "official.pth", tmp_path / "timm.pth", "--naming", "timm")
    assert infer_architecture(tmp_path / "timm.pth").naming == "timm"
    run(tmp_path / "timm.pth", tmp_path / "back.pth")
    wanted = {key: tensor.read() for key, tensor in read(tmp_path / "official.pth").items()}
    assert_same_tensors(tmp_path / "back.pth", wanted)
    capsys.readouterr()
    said = refusal(capsys, tmp_path / "timm.pth", tmp_path / "own", "--naming", "timm")
    assert "is not a PyTorch file: --naming does not apply" in said


def test_for_torch_merged(torch_file, tmp_path, capsys):
    """The official merged structure, as another way to its names and layouts has it."""
    path = tmp_path / "merged.pth"
    run(torch_file, path, "--deploy")
    assert infer_architecture(path).structure is Structure.MERGED
    saved = network()
    expected = reference_data.by_official_name(jax.jit(merge_branches)(saved.variables))
    tensors = {k: t.read() for k, t in read(path).items() if not k.endswith("num_batches_tracked")}
    assert tensors.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(tensors[key], tensor)
    output = capsys.readouterr().out
    assert "largest difference of the structures" in output
    assert "official merged structure" in output
    # Folding what is left gives what folding at once gives, up to rounding of float32.
    wanted = jax.jit(replk_jax.reparameterize)(saved.variables)
    chex.assert_trees_all_close(load_torch(path)[1], wanted, rtol=1e-5, atol=1e-6)


def test_what_is_merged_stays_merged(torch_file, tmp_path, capsys):
    merged = tmp_path / "merged.safetensors"
    run(torch_file, merged, "--deploy")
    again = tmp_path / "again.safetensors"
    run(merged, again, "--deploy")
    assert again.read_bytes() == merged.read_bytes()
    capsys.readouterr()
    assert "no structure without batch norms" in refusal(capsys, merged, tmp_path / "back.pth")
    assert not (tmp_path / "back.pth").exists()


def test_preprocessing(torch_file, tmp_path, capsys):
    """Nothing is made up, what is said is kept, and what cannot be kept is refused."""
    run(torch_file, tmp_path / "bare.safetensors")
    assert load(tmp_path / "bare.safetensors").preprocessing is None
    like = ["--like", "RepLKNet-XL_MegData73M_ImageNet1K"]
    run(torch_file, tmp_path / "like.safetensors", *like)
    told = load(tmp_path / "like.safetensors").preprocessing
    assert (told.image_size, told.mean) == (320, (0.5,) * 3)
    run(
        tmp_path / "like.safetensors", tmp_path / "folder", "--like", "RepLKNet-31B_ImageNet-1K_384"
    )
    assert load(tmp_path / "folder").preprocessing.image_size == 384
    capsys.readouterr()
    assert "--like does not apply" in refusal(capsys, torch_file, tmp_path / "like.pth", *like)
    assert "no published checkpoint" in refusal(capsys, torch_file, tmp_path / "x", "--like", "VGG")
    close = refusal(capsys, torch_file, tmp_path / "x", "--like", "RepLKNet-31B_ImageNet1K")
    assert "Did you mean replknet_31b." in close
    assert "replknet_31b.in1k" in close
    far = refusal(capsys, torch_file, tmp_path / "x", "--like", "nosuch")
    assert "has the name 'nosuch'. python -m replk_jax models lists the models." in far
    without = refusal(capsys, torch_file, tmp_path / "x", "--like", "replknet_3")
    assert "replknet_3 has no published checkpoint: give the name of another model" in without
    several = refusal(capsys, torch_file, tmp_path / "x", "--like", "replknet-31b")
    assert "name one of replknet_31b.in1k, " in several
    run(torch_file, tmp_path / "model.safetensors", "--like", "RepLKNet-XL")
    assert load(tmp_path / "model.safetensors").preprocessing == told


@reference_data.required
def test_the_moving_average(tmp_path, capsys):
    source = reference_data.ROOT / "checkpoints" / "training.pth"
    for name, options in (("weights", []), ("weights_ema", ["--ema"])):
        path = tmp_path / f"{name}.safetensors"
        run(source, path, *options)
        expected = reference_data.arrays(f"checkpoints/{name}.npz")
        for key, leaf in reference_data.by_official_name(load(path).variables).items():
            np.testing.assert_array_equal(leaf, expected[key])
    run(path, tmp_path / "one.pth")
    for single in (path, tmp_path / "one.pth"):
        assert "no EMA" in refusal(capsys, single, tmp_path / "x", "--ema")


def test_names_and_preprocessing_go_along(tmp_path):
    saved = network()
    save(tmp_path / "one.safetensors", saved)
    run(tmp_path / "one.safetensors", tmp_path / "folder")
    run(tmp_path / "folder", tmp_path / "two.safetensors")
    loaded = load(tmp_path / "two.safetensors")
    assert dataclasses.replace(loaded, variables={}) == dataclasses.replace(saved, variables={})
    assert loaded.preprocessing == PREPROCESSING
    assert (tmp_path / "two.safetensors").read_bytes() == (
        tmp_path / "one.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("name", ["there.safetensors", "there.pth", "there"])
def test_nothing_is_replaced_unasked(torch_file, tmp_path, capsys, name):
    there = tmp_path / name
    there.write_text("mine")
    assert "--force replaces it" in refusal(capsys, torch_file, there)
    assert there.read_text() == "mine"
    run(torch_file, there, "--force")
    if name.endswith("pth"):
        assert_same_tensors(there, {k: t.read() for k, t in read(torch_file).items()})
    else:
        assert load(there).model == network().model


def test_only_a_checkpoints_folder_is_replaced(torch_file, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").touch()
    assert "not a checkpoint:" in refusal(capsys, torch_file, folder, "--force")
    assert [path.name for path in folder.iterdir()] == ["cat.jpg"]
    save(tmp_path / "folder", network(num_classes=None))
    run(torch_file, tmp_path / "folder", "--force")
    assert load(tmp_path / "folder").model == network().model


@pytest.mark.parametrize("name", ["tiny.onnx", "tiny.pkl", "tiny.v2", "tiny.pth.zip"])
def test_endings_that_stand_for_no_format(torch_file, tmp_path, capsys, name):
    assert "is of no known format" in refusal(capsys, torch_file, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_structures_that_differ(tmp_path, capsys):
    saved = network()
    saved.variables["batch_stats"]["norm"]["var"][3] = np.nan
    save(tmp_path / "nan.safetensors", saved)
    for name in ("out", "out.pth"):
        said = refusal(capsys, tmp_path / "nan.safetensors", tmp_path / name, "--deploy")
        assert "nothing is written" in said
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("value", [np.nan, -np.inf, -1.0])
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_weights_of_a_run_that_diverged(value, ending, tmp_path, capsys):
    """They are written, with a warning; a negative value is one of a variance only."""
    saved = network()
    norm = saved.variables["batch_stats"]["norm"]
    norm["mean"][0] = -1.0
    save(tmp_path / "sound.safetensors", saved)
    run(tmp_path / "sound.safetensors", tmp_path / f"sound{ending}", "--force")
    assert capsys.readouterr().err == ""
    norm["var"][0] = value
    save(tmp_path / "in.safetensors", saved)
    run(tmp_path / "in.safetensors", tmp_path / f"out{ending}")
    warning = capsys.readouterr().err
    assert warning.startswith("warning: One tensor has NaN or infinite values or negative var")
    assert "it is batch_stats/norm/var." in warning
    assert load(tmp_path / f"out{ending}").variables["batch_stats"]["norm"]["var"][0] == (
        pytest.approx(value, nan_ok=True)
    )
    saved.variables["params"]["norm"]["bias"][1] = np.inf
    save(tmp_path / "in.safetensors", saved, overwrite=True)
    run(tmp_path / "in.safetensors", tmp_path / f"out{ending}", "--force")
    assert "2 tensors have NaN or infinite values" in capsys.readouterr().err


def test_no_folder(torch_file, tmp_path, capsys):
    assert "There is no folder" in refusal(capsys, torch_file, tmp_path / "no" / "x.safetensors")
