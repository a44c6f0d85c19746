"""Networks in files of this package."""

import json
import os
import shutil

import jax
import numpy as np
import pytest

import replk_jax
from replk_jax import SavedNetwork, cli, load, save
from replk_jax.preprocessing import Preprocessing
from replk_jax.torch_import import save_torch
from replk_jax.torch_import.reader import metadata, read
from replk_jax.torch_import.writer import write_safetensors
from tests.helpers import TINY, random_variables

PREPROCESSING = Preprocessing(32, crop_fraction=None, mean=(0.5,) * 3, std=(0.5,) * 3)


def network(**fields):
    model = replk_jax.create_model(TINY, **{"num_classes": 4, **fields})
    names = ("ant", "bee", "cat", "dog") if model.num_classes else None
    return SavedNetwork(model, random_variables(model), PREPROCESSING, names)


def assert_same(actual, wanted):
    assert actual.model == wanted.model
    assert actual.preprocessing == wanted.preprocessing
    assert actual.class_names == wanted.class_names
    jax.tree.map(np.testing.assert_array_equal, actual.variables, wanted.variables)
    assert [a.dtype for a in jax.tree.leaves(actual.variables)] == [
        a.dtype for a in jax.tree.leaves(wanted.variables)
    ]


@pytest.mark.parametrize("name", ["network.safetensors", "folder"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_classes": None},
        {"out_indices": (1, 0), "norm_intermediate_features": True, "num_classes": None},
        {"deploy": True},
        {"param_dtype": np.dtype("bfloat16")},
    ],
    ids=str,
)
def test_round_trip(tmp_path, name, fields):
    saved = network(**fields)
    save(tmp_path / name, saved)
    assert_same(load(tmp_path / name), saved)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["network.safetensors", "folder"])
def test_nothing_is_replaced_unasked(tmp_path, name):
    first, second = network(), network(num_classes=None)
    save(tmp_path / name, first)
    with pytest.raises(FileExistsError, match="exists already"):
        save(tmp_path / name, second)
    assert_same(load(tmp_path / name), first)
    save(tmp_path / name, second, overwrite=True)
    assert_same(load(tmp_path / name), second)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_interrupted_save_leaves_what_was_there(tmp_path, monkeypatch):
    first = network()
    save(tmp_path / "folder", first)

    replace = os.replace

    def fail(source, target):
        if str(source).endswith(".new"):
            raise OSError("No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "folder", network(num_classes=None), overwrite=True)
    monkeypatch.undo()
    assert_same(load(tmp_path / "folder"), first)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_torch_file(tmp_path):
    saved = network()
    save_torch(saved.variables, saved.model, tmp_path / "RepLKNet-31B_ImageNet-1K_384.pth")
    # By its name it would be another network.
    with pytest.warns(UserWarning, match="does not say how its images are prepared"):
        loaded = load(tmp_path / "RepLKNet-31B_ImageNet-1K_384.pth")
    assert loaded.model == saved.model
    assert loaded.preprocessing == Preprocessing(224)
    told = load(tmp_path / "RepLKNet-31B_ImageNet-1K_384.pth", preprocessing=PREPROCESSING)
    assert told.preprocessing == PREPROCESSING


@pytest.mark.parametrize("name", ["network.safetensors", "folder"])
def test_preprocessing_in_place_of_the_files(tmp_path, name):
    save(tmp_path / name, network())
    assert load(tmp_path / name, preprocessing=Preprocessing()).preprocessing == Preprocessing()


def _spoil(path, change):
    """Writes the file anew, its tensors and description changed."""
    tensors = {key: tensor.read() for key, tensor in read(path).items()}
    description = json.loads(metadata(path)["replk_jax"])
    change(tensors, description)
    write_safetensors(path, tensors, {"replk_jax": json.dumps(description)})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t, d: t.pop("params/head/bias"), "missing: params/head/bias"),
        (lambda t, d: t.update(x=np.ones(2)), "not in the model: x"),
        (lambda t, d: d["model"].update(num_classes=5), r"wrong shape: params/head/bias is \(4,\)"),
        (lambda t, d: d["model"].update(family="VGG"), "describes no model"),
        (lambda t, d: d["model"].update(novelty=1), "describes no model"),
        (lambda t, d: d.pop("preprocessing"), "cannot be understood"),
        (lambda t, d: d["preprocessing"].update(image_size=-3), "image_size"),
    ],
)
def test_spoilt_files(tmp_path, change, reason):
    path = tmp_path / "network.safetensors"
    save(path, network())
    _spoil(path, change)
    with pytest.raises(ValueError, match=reason) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_spoilt_folders(tmp_path):
    with pytest.raises(ValueError, match="is not a checkpoint"):
        load(tmp_path)
    save(tmp_path / "checkpoints" / "30", network())
    with pytest.raises(ValueError, match=r"Name one of its checkpoints, .*30\."):
        load(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints/30/params")
    with pytest.raises(ValueError, match="damaged"):
        load(tmp_path / "checkpoints" / "30")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("name", ["network.safetensors", "folder"])
def test_no_moving_average(tmp_path, name):
    save(tmp_path / name, network())
    with pytest.raises(ValueError, match="no moving average"):
        load(tmp_path / name, prefer_ema=True)


class TestConvert:
    @pytest.fixture
    def torch_file(self, tmp_path):
        saved = network()
        path = tmp_path / "tiny.pth"
        save_torch(saved.variables, saved.model, path)
        return path

    def run(self, *arguments):
        cli.main(["convert", *map(str, arguments)])

    @pytest.mark.parametrize("name", ["tiny.safetensors", "tiny"])
    def test_deploy(self, torch_file, tmp_path, name, capsys):
        self.run(torch_file, tmp_path / name, "--deploy")
        converted, saved = load(tmp_path / name), network()
        assert converted.model == saved.model.clone(deploy=True)
        wanted = jax.jit(replk_jax.reparameterize)(saved.variables)
        jax.tree.map(np.testing.assert_array_equal, converted.variables, wanted)
        output = capsys.readouterr().out
        assert "largest difference of the structures" in output
        assert "re-parameterized structure" in output

    def test_there_and_back(self, torch_file, tmp_path):
        self.run(torch_file, tmp_path / "tiny.safetensors")
        self.run(tmp_path / "tiny.safetensors", tmp_path / "back.pth")
        back, original = read(tmp_path / "back.pth"), read(torch_file)
        assert back.keys() == original.keys()
        for key, tensor in original.items():
            np.testing.assert_array_equal(back[key].read(), tensor.read())

    def test_nothing_is_replaced_unasked(self, torch_file, tmp_path, capsys):
        (tmp_path / "there.safetensors").write_text("mine")
        with pytest.raises(SystemExit):
            self.run(torch_file, tmp_path / "there.safetensors")
        assert "--force replaces it" in capsys.readouterr().err
        assert (tmp_path / "there.safetensors").read_text() == "mine"
        self.run(torch_file, tmp_path / "there.safetensors", "--force")
        assert load(tmp_path / "there.safetensors").model == network().model

    def test_structures_that_differ(self, tmp_path, capsys):
        saved = network()
        saved.variables["batch_stats"]["norm"]["var"][3] = np.nan
        save(tmp_path / "nan.safetensors", saved)
        with pytest.raises(SystemExit):
            self.run(tmp_path / "nan.safetensors", tmp_path / "out", "--deploy")
        assert "nothing is written" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_no_folder(self, torch_file, tmp_path, capsys):
        with pytest.raises(SystemExit):
            self.run(torch_file, tmp_path / "no" / "x.safetensors")
        assert "There is no folder" in capsys.readouterr().err
