"""Networks in files of this package."""

import dataclasses
import json
import os
import shutil
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

import replk_jax
from replk_jax import (
    Checkpoint,
    RepLKNetArchitecture,
    RepVGGArchitecture,
    ResNetArchitecture,
    load,
    save,
)
from replk_jax.checkpoint import load_into
from replk_jax.checkpoint.torch_format import describe
from replk_jax.io.safetensors import write_safetensors
from replk_jax.models import registry
from replk_jax.torch_import import save_torch
from replk_jax.torch_import.convert import to_state_dict
from replk_jax.torch_import.reader import WeightsFile, read
from replk_jax.torch_import.writer import write_torch
from replk_jax.vision.preprocessing import Preprocessing
from tests.helpers import TINY, random_images, random_variables
from tests.torch_import.archives import add_entries

PREPROCESSING = Preprocessing(32, crop_fraction=None, mean=(0.5,) * 3, std=(0.5,) * 3)


def network(**fields):
    model = replk_jax.create_model(TINY, **{"num_classes": 4, **fields})
    names = ("ant", "bee", "cat", "dog") if model.num_classes else None
    return Checkpoint(model, random_variables(model), PREPROCESSING, names)


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


@pytest.mark.parametrize("name", ["network.safetensors", "folder"])
def test_norms_of_stages_that_are_not_returned(tmp_path, name):
    """Files had them once."""
    fields = {"num_classes": None, "norm_intermediate_features": True}
    every, last = (network(out_indices=stages, **fields) for stages in ((0, 1), (1,)))
    wanted = jax.tree.map(np.asarray, every.variables)
    save(tmp_path / name, dataclasses.replace(last, variables=every.variables))
    loaded = load(tmp_path / name)
    assert loaded.model == last.model
    for tree in (wanted["params"], wanted["batch_stats"]):
        del tree["stages_0"]["norm"]
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, wanted)


def test_an_interrupted_save_leaves_what_was_there(tmp_path, monkeypatch):
    first = network()
    save(tmp_path / "folder", first)

    replace = os.replace

    def fail(source, target):
        if str(source).endswith("/new"):
            raise OSError("No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "folder", network(num_classes=None), overwrite=True)
    monkeypatch.undo()
    assert_same(load(tmp_path / "folder"), first)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_what_is_known_of_a_torch_file(tmp_path, monkeypatch):
    saved = network(num_classes=1000)
    for name in ("tiny", "RepLKNet-31B_ImageNet-1K_384"):
        save_torch(saved.variables, saved.model, tmp_path / f"{name}.pth")
    loaded = load(tmp_path / "tiny.pth")
    assert loaded.model == saved.model
    assert loaded.preprocessing is loaded.class_names is None
    assert load(tmp_path / "tiny.pth", preprocessing=PREPROCESSING).preprocessing == PREPROCESSING
    with pytest.warns(UserWarning, match="The preprocessing is unknown"):
        assert loaded.resolve_preprocessing() == Preprocessing(224)
    # By its name it would be another network.
    assert load(tmp_path / "RepLKNet-31B_ImageNet-1K_384.pth").preprocessing is None
    monkeypatch.setitem(registry.ARCHITECTURES, "replknet_31b", TINY)
    loaded = load(tmp_path / "RepLKNet-31B_ImageNet-1K_384.pth")
    assert loaded.name == "replknet_31b"
    assert loaded.preprocessing == Preprocessing(384, crop_fraction=None)


TIMM_CONFIG = {
    "architecture": "repvgg_a0",
    "label_names": ["ant", "bee", "cat", "dog"],
    "pretrained_cfg": {"input_size": [3, 64, 64], "crop_pct": 1.0, "interpolation": "bilinear"},
}


class TestFilesOfOtherLibraries:
    """What timm, mmengine and the like save beside weights."""

    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        """As a repository of the Hugging Face hub."""
        architecture = RepVGGArchitecture((1, 1), (8, 8, 12))
        monkeypatch.setitem(registry.ARCHITECTURES, "repvgg_a0", architecture)
        model = replk_jax.create_model(architecture, num_classes=4)
        path = tmp_path / "model.safetensors"
        save_torch(random_variables(model), model, path, naming="timm")
        (tmp_path / "config.json").write_text(json.dumps(TIMM_CONFIG))
        return tmp_path

    @pytest.mark.parametrize("name", ["", "model.safetensors"])
    def test_timm(self, folder, name):
        loaded = load(folder / name)
        assert loaded.preprocessing == Preprocessing(64, 1.0, "bilinear")
        assert loaded.class_names == ("ant", "bee", "cat", "dog")
        assert (loaded.preprocessing_source, loaded.class_names_source) == ("config.json",) * 2
        assert load(folder / name, preprocessing=PREPROCESSING).preprocessing == PREPROCESSING

    def test_other_numbers_of_classes(self, folder):
        config = TIMM_CONFIG | {"label_names": ["ant", "bee"]}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.warns(UserWarning, match="has 4 classes; the 2 names in config.json are not"):
            loaded = load(folder)
        assert loaded.class_names is loaded.class_names_source is None
        assert loaded.preprocessing == Preprocessing(64, 1.0, "bilinear")

    @pytest.mark.parametrize("architecture", ["repvgg_a1", "vit_base_patch16_224"])
    def test_files_of_another_network(self, folder, architecture):
        config = TIMM_CONFIG | {"architecture": architecture}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.warns(UserWarning, match=f"is of '{architecture}', another network"):
            loaded = load(folder)
        assert loaded.preprocessing is loaded.class_names is None

    def test_a_file_of_another_network_keeps_what_is_its_own(self, folder):
        """Only the JSON file is left out, not what the checkpoint itself says."""
        model = load(folder).model
        config = TIMM_CONFIG | {"architecture": "repvgg_a1"}
        (folder / "config.json").write_text(json.dumps(config))
        contents = {"args": {"val_resize_size": 40, "val_crop_size": 32}}
        contents["meta"] = {"dataset_meta": {"classes": ["a", "b", "c", "d"]}}
        with pytest.warns(UserWarning, match="is of 'repvgg_a1', another network"):
            described = describe(folder, contents, model)
        assert described.preprocessing == Preprocessing(32, 0.8, "bilinear")
        assert described.class_names == ("a", "b", "c", "d")
        assert described.preprocessing_source == "its args entry"
        assert described.class_names_source == "its meta entry"

    @pytest.mark.parametrize("name", ["t.safetensors", "repvgg.safetensors"])
    def test_timm_next_to_a_file_of_any_name(self, folder, name):
        (folder / "model.safetensors").rename(folder / name)
        loaded = load(folder / name)
        assert loaded.preprocessing == Preprocessing(64, 1.0, "bilinear")
        assert loaded.class_names == ("ant", "bee", "cat", "dog")

    def test_transformers_next_to_a_file_of_any_name(self, folder):
        """Nothing says that the files are of the same network."""
        (folder / "model.safetensors").rename(folder / "t.safetensors")
        config = {"model_type": "vit", "id2label": dict(enumerate("abcd"))}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.warns(UserWarning, match=r"config\.json is of 'vit', another network"):
            loaded = load(folder / "t.safetensors")
        assert loaded.preprocessing is loaded.class_names is None

    def test_strides_of_a_configuration(self, tmp_path):
        """They are reported unless the model has them: the weights do not record them."""
        architecture = ResNetArchitecture((1, 1, 1, 1), (4, 4, 4, 4))
        model = replk_jax.create_model(architecture, num_classes=2)
        weights = to_state_dict(random_variables(model), model)
        backbone = "type='ResNet', style='caffe', strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)"
        meta = {"cfg": f"model = dict(backbone=dict({backbone}))"}
        path = tmp_path / "mm.pth"
        write_torch(path, weights)
        add_entries(path, meta=meta)
        with pytest.warns(UserWarning, match=r"output_stride=8, stride_in_1x1=True \(strides="):
            loaded = load(path)
        assert loaded.unrecorded.startswith("output_stride=8, stride_in_1x1=True (")
        assert loaded.model.output_stride is None
        dilated = replk_jax.create_model(
            architecture, num_classes=2, output_stride=8, stride_in_1x1=True
        )
        with warnings.catch_warnings(action="error"):
            assert load_into(dilated, path).unrecorded is None

    def test_into_a_model_of_other_classes(self, folder):
        """The preprocessing stays that of the file; its class names do not apply."""
        model = load(folder).model.clone(num_classes=7)
        with pytest.warns(UserWarning, match="one of 7 classes is drawn"):
            loaded = load_into(model, folder, reset_head=True)
        assert loaded.preprocessing == Preprocessing(64, 1.0, "bilinear")
        assert loaded.class_names is None

    def test_of_files_of_this_package(self, tmp_path):
        save(tmp_path / "own.safetensors", network())
        with pytest.raises(ValueError, match="key, prefix and rename do not apply"):
            load(tmp_path / "own.safetensors", key="model")

    def test_key_and_prefix(self, tmp_path):
        saved = network()
        weights = to_state_dict(saved.variables, saved.model)
        both = {f"{name}.{key}": value for name in ("a", "b") for key, value in weights.items()}
        write_safetensors(tmp_path / "both.safetensors", both, {})
        with pytest.raises(ValueError, match="it holds 2 networks"):
            load(tmp_path / "both.safetensors")
        loaded = load(tmp_path / "both.safetensors", prefix="b.")
        jax.tree.map(np.testing.assert_array_equal, loaded.variables, saved.variables)


def test_neighbours_are_left_alone(tmp_path):
    for name in ("out.new", "out.old", "out.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    save(tmp_path / "out", network())
    save(tmp_path / "out", network(), overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out", "out.new", "out.old", "out.partial"
    ]  # fmt: skip
    assert len(list(tmp_path.glob("out.*/mine"))) == 3


@pytest.mark.parametrize("name", ["network.safetensors", "folder"])
def test_preprocessing_in_place_of_the_files(tmp_path, name):
    save(tmp_path / name, network())
    assert load(tmp_path / name, preprocessing=Preprocessing()).preprocessing == Preprocessing()


def _spoil(path, change):
    """Writes the file anew, its tensors and description changed."""
    tensors = {key: tensor.read() for key, tensor in read(path).items()}
    description = json.loads(WeightsFile(path).metadata["replk_jax"])
    change(tensors, description)
    write_safetensors(path, tensors, {"replk_jax": json.dumps(description)})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t, d: t.pop("params/head/bias"), "missing: params/head/bias"),
        (lambda t, d: t.update(x=np.ones(2)), "not in the model: x"),
        (
            lambda t, d: (d["model"].update(num_classes=5), d.update(class_names=None)),
            "wrong shape",
        ),
        (lambda t, d: d["model"].update(family="VGG"), "describes no model"),
        (lambda t, d: d["model"].update(novelty=1), "describes no model"),
        (lambda t, d: d.pop("preprocessing"), "invalid description"),
        (lambda t, d: d["preprocessing"].update(image_size=-3), "image_size"),
        (lambda t, d: d["model"].update(num_classes="a"), "num_classes cannot be 'a'"),
        (lambda t, d: d["model"].update(num_classes=1.5), "num_classes cannot be 1.5"),
        (lambda t, d: d["model"].update(out_indices=5), "out_indices cannot be 5"),
        (lambda t, d: d["model"].update(param_dtype="int32"), "param_dtype cannot be 'int32'"),
        (lambda t, d: d["model"]["architecture"].update(layers=[10**7, 1]), "layers cannot be"),
        (lambda t, d: d["model"].update(architecture=3), "describes no model"),
        (lambda t, d: d.update(class_names=[None] * 4), "class_names must be a list of strings"),
        (lambda t, d: d.update(class_names=["a"]), "class_names must be 4; got 1"),
        (lambda t, d: d.update(preprocessing={}), "A preprocessing has the fields"),
        (lambda t, d: d.update(class_names="abcd"), "class_names must be a list of strings"),
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
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        save(tmp_path / "checkpoints" / "30", network())
    (tmp_path / "checkpoints").mkdir()
    save(tmp_path / "checkpoints" / "30", network())
    with pytest.raises(ValueError, match=r"Name one of its checkpoints, .*30\."):
        load(tmp_path)
    (tmp_path / "result.json").write_text("{}\n")
    for path in ("checkpoints", "checkpoints/", "result.json"):
        with pytest.raises(ValueError, match=r"Name one of its checkpoints, .*30\."):
            load(tmp_path / path)
    for path in ("params", "batch_stats/", "description", "description/metadata"):
        with pytest.raises(ValueError, match=r"Name the checkpoint itself, .*30\."):
            load(tmp_path / "checkpoints" / "30" / path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty is not a checkpoint: it is empty\.$"):
        load(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.txt").write_text("x")
    for path in ("other", "other/x.txt"):
        with pytest.raises(ValueError, match="other") as caught:
            load(tmp_path / path)
        assert "Name " not in str(caught.value)
    shutil.rmtree(tmp_path / "checkpoints/30/params")
    with pytest.raises(ValueError, match="damaged"):
        load(tmp_path / "checkpoints" / "30")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("item", ["params", "batch_stats"])
def test_an_altered_bit(tmp_path, item):
    """Which Orbax would read as another weight."""
    save(tmp_path / "network", network())
    file = max((tmp_path / "network" / item).rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"network is damaged: .*{file.name} is altered\."):
        load(tmp_path / "network")


def test_a_description_without_bottom(tmp_path):
    path = tmp_path / "network.safetensors"
    write_safetensors(path, {"x": np.ones(2)}, {"replk_jax": "[" * 100_000})
    with pytest.raises(ValueError, match="invalid description"):
        load(path)


@pytest.mark.parametrize("name", ["network.safetensors", "network.pth"])
def test_weights_for_other_channels(tmp_path, name):
    """Of colour images, into a network of grey ones: kernels are summed over the channels."""
    colour = network()
    if name.endswith(".pth"):
        save_torch(colour.variables, colour.model, tmp_path / name)
    else:
        save(tmp_path / name, colour)
    grey = replk_jax.create_model(TINY, num_classes=4, in_channels=1)
    with pytest.raises(ValueError, match="adapt_input=True"):
        load_into(grey, tmp_path / name)
    with pytest.warns(UserWarning, match="takes 3 channels, and is adapted to 1"):
        loaded = load_into(grey, tmp_path / name, adapt_input=True)
    kernel, wanted = (
        n.variables["params"]["stem_0"]["conv"].pop("kernel") for n in (loaded, colour)
    )
    np.testing.assert_allclose(kernel, wanted.sum(2, keepdims=True), rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, colour.variables)


@pytest.mark.parametrize("name", ["network.safetensors", "folder"])
def test_no_moving_average(tmp_path, name):
    save(tmp_path / name, network())
    with pytest.raises(ValueError, match="no EMA"):
        load(tmp_path / name, prefer_ema=True)


def test_a_file_of_this_package_in_a_folder(tmp_path):
    saved = network()
    save(tmp_path / "model.safetensors", saved)
    (tmp_path / "config.json").write_text("{}")
    assert_same(load(tmp_path), saved)


def test_a_torch_file_in_a_folder_and_in_shards(tmp_path):
    saved = network()
    save_torch(saved.variables, saved.model, tmp_path / "model.safetensors")
    tensors = read(tmp_path / "model.safetensors")
    shards = tmp_path / "shards"
    shards.mkdir()
    places = {name: f"{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for shard in set(places.values()):
        part = {name: tensors[name] for name, place in places.items() if place == shard}
        write_safetensors(shards / shard, part, {})
    index = shards / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for path in (tmp_path, shards, index):
        loaded = load(path)
        jax.tree.map(np.testing.assert_array_equal, loaded.variables, saved.variables)
        assert loaded.class_names is None


# Written by version 0.1.0, before a composite network could be described, with the logits that the
# network gave then.
STORED = Path(__file__).parent / "stored"


@pytest.mark.parametrize(
    ("name", "prefer_ema", "logits"),
    [
        ("replknet.safetensors", False, "file"),
        ("replknet_run", False, "run"),
        ("replknet_run", True, "run_ema"),
    ],
)
def test_files_of_an_earlier_version(name, prefer_ema, logits):
    loaded = load(STORED / name, prefer_ema=prefer_ema)
    expected = np.array(json.loads((STORED / "logits.json").read_text())[logits])
    actual = jax.jit(loaded.model.apply)(loaded.variables, random_images(loaded.model))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    if logits == "file":
        architecture = RepLKNetArchitecture((7, 5), (1, 1), (8, 8), small_kernel=3)
        fields = {"num_classes": 4, "norm_intermediate_features": True}
        assert loaded.model == replk_jax.create_model(architecture, **fields)
        wanted = Preprocessing(32, crop_fraction=0.875, mean=(0.5,) * 3, std=(0.25,) * 3)
        assert loaded.preprocessing == wanted
        assert loaded.class_names == ("ant", "bee", "cat", "dog")
    else:
        assert loaded.class_names == tuple("0123456789")
