"""python -m replk_jax inspect"""

import json
import pickle
import re

import numpy as np
import pytest

from replk_jax import Checkpoint, ResNetArchitecture, create_model, create_segmenter, save
from replk_jax.cli.main import main
from replk_jax.io.safetensors import write_safetensors
from replk_jax.models import registry
from replk_jax.models.network import _NETWORKS
from replk_jax.torch_import import save_torch
from replk_jax.torch_import.convert import to_state_dict
from replk_jax.torch_import.reader import read
from replk_jax.torch_import.writer import write_torch
from tests import reference_data
from tests.checkpoint.test_checkpoint import PREPROCESSING, network
from tests.helpers import ONE_STAGE, TINY, random_variables
from tests.models.composite import tiny_segmenter
from tests.torch_import.archives import (
    add_entries,
    state_dict,
    tensor,
    write_archive,
    write_with_header,
)
from tests.vision.test_preprocessing import Padded

CHECKPOINTS = reference_data.ROOT / "checkpoints"
NO_NETWORK = "no supported network"


@pytest.fixture
def show(capsys):
    """What is printed of a file, each line of which a terminal can show."""

    def show(path, *options):
        main(["inspect", str(path), *options])
        out = capsys.readouterr().out
        assert all(line.isprintable() and len(line) <= 1000 for line in out.split("\n"))
        out.encode()
        return out

    return show


@pytest.fixture
def refusal(capsys):
    def refusal(path, *options):
        with pytest.raises(SystemExit) as caught:
            main(["inspect", str(path), *options])
        assert caught.value.code == 2
        return capsys.readouterr().err

    return refusal


def test_a_composite_network(tmp_path, show, refusal, monkeypatch):
    model = tiny_segmenter(backbone={"output_stride": 4})
    path = tmp_path / "segmenter.safetensors"
    save(path, Checkpoint(model, random_variables(model), Padded(8)))
    shown = show(path).splitlines()
    assert "TinySegmenter on RepLKNet, 5 classes, training-time" in shown
    assert any(line.startswith("  backbone RepLKNet (kernel_sizes ") for line in shown)
    assert "  dilated for an output stride of 4" in shown
    assert "  a backbone that returns the stages 0-1" in shown
    monkeypatch.delitem(_NETWORKS, "TinySegmenter")
    assert "no network of this name is registered; import the module" in refusal(path)


def test_a_segmenter_of_pytorch(tmp_path, show, monkeypatch):
    """The name of the backbone, and a line for each part."""
    monkeypatch.setitem(registry.ARCHITECTURES, "tiny", TINY)
    model = create_segmenter("upernet", "tiny", 3, channels=4, auxiliary_channels=None)
    save_torch(random_variables(model), model, tmp_path / "x.pth")
    shown = show(tmp_path / "x.pth")
    assert "\nSegmentationNetwork on tiny, 3 classes, training-time\n" in shown
    assert "\n  align_corners False\n  decode_head UPerHead (channels 4, " in shown
    assert "\n  auxiliary_head none\n  backbone RepLKNet (kernel_sizes " in shown
    assert max(map(len, shown.splitlines())) < 200


@reference_data.required
class TestGolden:
    def test_what_training_wrote(self, show):
        path = CHECKPOINTS / "training.pth"
        shown = show(path)
        values = sum(
            array.size for array in reference_data.arrays("checkpoints/weights.npz").values()
        )
        assert f"{path}, a PyTorch checkpoint of {path.stat().st_size:,} bytes" in shown
        for line in (
            rf"^  model +251 tensors, {values:,} values, float32, int64$",
            r"^  epoch +3$",
            r"^  args +argparse\.Namespace\(.*\.\.\.$",
            r"^RepLKNet, 10 classes, training-time$",
            r"^  kernel_sizes 13-11-9-7, layers 1-1-1-1, channels 8-8-12-16, small_kernel 5, ",
            r"^  names: official; weights: \['model'\]$",
            r"^  images: 224 x 224, ",
            r"^  which is a guess",
            r"^  it also has an EMA of the weights: --ema$",
        ):
            assert re.search(line, shown, re.MULTILINE), line
        assert "faults" not in shown
        assert "wants" not in shown

    def test_the_moving_average(self, show):
        shown = show(CHECKPOINTS / "training.pth", "--ema")
        assert "weights: ['model_ema']" in shown
        assert "lies beside them" not in shown
        shown = show(CHECKPOINTS / "bare.pth", "--ema")
        assert f"{NO_NETWORK}: there is no EMA" in shown

    def test_every_tensor(self, show):
        shown = show(CHECKPOINTS / "under_model.pth", "--tensors").splitlines()
        arrays = reference_data.arrays("checkpoints/weights.npz")
        wanted = [f"model.{key}  {array.shape}  {array.dtype}" for key, array in arrays.items()]
        assert sorted(shown[-len(wanted) :]) == sorted(wanted)
        assert not any(line.startswith("model.") for line in shown[: -len(wanted)])

    def test_faults(self, show):
        shown = show(CHECKPOINTS / "wrong_keys.pth")
        assert "it cannot be loaded: its tensors do not fit; faults: 3" in shown
        for fault in (
            "  missing: stages.2.blocks.0.large_kernel.small_conv.bn.running_var",
            "  wrong shape: stages.0.blocks.0.pw1.conv.weight is (8, 7, 1, 1)",
            "  not in the model: surplus.weight",
        ):
            assert shown.count(fault) == 1
        assert "images:" not in shown

    @pytest.mark.parametrize(
        ("file", "facts"),
        [
            ("mmpretrain.safetensors", "names: mmpretrain"),
            ("deploy.pth", "10 classes, merged\n"),
            ("deep_fused.pth", "merged, batch norms fused"),
            ("mmseg_backbone.pth", "backbone of 4 stages"),
            ("legacy_training.pth", "an EMA of the weights"),
            ("odd_tensors.pth", NO_NETWORK),
        ],
    )
    def test_others(self, show, file, facts):
        assert facts in show(CHECKPOINTS / file)

    @pytest.mark.parametrize("name", ["whole_model", "cut_short"])
    def test_refused(self, refusal, name):
        path = CHECKPOINTS / f"refuse_{name}.pth"
        assert refusal(path).startswith(f"error: {path}: ")


class TestReleased:
    @pytest.fixture(autouse=True)
    def tiny_as_31b(self, monkeypatch):
        monkeypatch.setitem(registry.ARCHITECTURES, "replknet_31b", TINY)

    @pytest.mark.parametrize("classes", [1000, 10])
    def test_by_its_name(self, tmp_path, show, classes):
        """What is published of a network is said of none with another classifier."""
        model = create_model("replknet_31b", num_classes=classes)
        path = tmp_path / "RepLKNet-31B_ImageNet-1K_384.pth"
        save_torch(random_variables(model), model, path)
        shown = show(path)
        assert f"replknet_31b, {classes} classes, training-time" in shown
        assert ("84.84 % top-1, 97.34 % top-5" in shown) == (classes == 1000)
        assert ("images: 384 x 384, warped" in shown) == (classes == 1000)
        assert ("which is a guess" in shown) == (classes == 10)


class TestOtherLibraries:
    def test_where_things_come_from(self, tmp_path, show):
        """As mmengine saves it, with the average under the key of the weights."""
        model = create_model(ONE_STAGE, num_classes=2)
        weights = to_state_dict(random_variables(model), model)
        path = tmp_path / "pytorch_model.bin"
        write_torch(path, {f"ema.{k}": v for k, v in weights.items()} | weights)
        (tmp_path / "config.json").write_text(
            '{"id2label": {"0": "ant", "1": "bee"}, "image_size": 64}'
        )
        (tmp_path / "preprocessor_config.json").write_text('{"size": 64, "resample": 2}')
        shown = show(path)
        assert "images: 64 x 64, warped, bilinear" in shown
        assert "; from preprocessor_config.json" in shown
        assert "names of the classes, from config.json: ['ant', 'bee']" in shown
        assert "assumed, since a file does not record it: an output stride of 32" in shown
        assert "it also has an EMA of the weights: --ema" in shown
        assert "weights: at the top, after 'ema.', an EMA" in show(path, "--ema")
        assert "weights: at the top, after 'ema.'" in show(path, "--prefix", "ema.")

    def test_strides_of_a_configuration(self, tmp_path, show):
        model = create_model(ResNetArchitecture((1,), (4,)), num_classes=2)
        weights = to_state_dict(random_variables(model), model)
        meta = {"cfg": "model = dict(backbone=dict(type='mmdet.ResNet', style='caffe'))"}
        write_torch(tmp_path / "mm.pth", weights)
        add_entries(tmp_path / "mm.pth", meta=meta)
        shown = show(tmp_path / "mm.pth")
        line = "  its configuration has a backbone with stride_in_1x1=True (style='caffe')\n"
        assert line in shown

    def test_several_networks(self, tmp_path, show, refusal):
        model = create_model(ONE_STAGE, num_classes=2)
        weights = to_state_dict(random_variables(model), model)
        both = {f"{name}.{k}": v for name in ("a", "b") for k, v in weights.items()}
        write_torch(tmp_path / "both.pth", both)
        assert f"{NO_NETWORK}: it holds 2 networks" in show(tmp_path / "both.pth")
        assert "2 classes" in show(tmp_path / "both.pth", "--prefix", "a.")
        save(tmp_path / "own.safetensors", Checkpoint(model, random_variables(model)))
        assert "do not apply" in refusal(tmp_path / "own.safetensors", "--key", "model")


class TestOwn:
    def test_a_file(self, tmp_path, show):
        path, saved = tmp_path / "network.safetensors", network()
        save(path, saved)
        shown = show(path)
        assert f"{path}, a network in replk_jax's format, of {path.stat().st_size:,} bytes" in shown
        tensors = read(path)
        values = sum(int(np.prod(tensor.shape)) for tensor in tensors.values())
        assert f"\n  {len(tensors)} tensors, {values:,} values, float32\n" in shown
        assert "\nRepLKNet, 4 classes, training-time\n  kernel_sizes 7-5, layers 1-1, " in shown
        assert "\n  names of the classes: ['ant', 'bee', 'cat', 'dog']\n" in shown
        assert "\n  images: 32 x 32, warped, bicubic, mean (0.5, 0.5, 0.5), " in shown
        assert "guess" not in shown
        assert "faults" not in shown
        assert shown.count("  float32") == 0
        listed = show(path, "--tensors")
        assert listed.startswith(shown)
        assert listed.removeprefix(shown).splitlines() == [
            f"{name}  {tensor.shape}  float32" for name, tensor in tensors.items()
        ]

    def test_a_folder(self, tmp_path, show, refusal):
        path = tmp_path / "folder"
        save(path, network(deploy=True))
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        shown = show(path)
        assert f"{path}, a checkpoint in Orbax's format, of {size:,} bytes" in shown
        assert "RepLKNet, 4 classes, re-parameterized" in shown
        assert "images: 32 x 32" in shown
        assert "is a folder" in refusal(path, "--tensors")

    def test_a_name_and_a_guess(self, tmp_path, show, monkeypatch):
        monkeypatch.setitem(registry.ARCHITECTURES, "tiny", TINY)
        model = create_model("tiny", num_classes=None)
        save(tmp_path / "x.safetensors", Checkpoint(model, random_variables(model)))
        shown = show(tmp_path / "x.safetensors")
        assert "\ntiny, no classifier, training-time\n" in shown
        assert "\n  images: 224 x 224, " in shown
        assert "\n  which is a guess" in shown

    def test_a_backbone_of_grey_images(self, tmp_path, show):
        model = create_model(TINY, num_classes=None, out_indices=(1, 0), in_channels=1)
        save(tmp_path / "x.safetensors", Checkpoint(model, random_variables(model)))
        shown = show(tmp_path / "x.safetensors")
        assert "a backbone that returns the stages 1-0" in shown
        assert "images: unknown preprocessing" in shown

    def test_another_kind_of_preprocessing(self, tmp_path, show):
        model = create_model(TINY, num_classes=None, out_indices=(1,))
        save(tmp_path / "x.safetensors", Checkpoint(model, random_variables(model), Padded(4)))
        shown = show(tmp_path / "x.safetensors")
        assert "\n  images: kind padded for a test, multiple 4\n" in shown

    @pytest.mark.parametrize("name", ["network.safetensors", "folder"])
    def test_no_moving_average(self, tmp_path, refusal, name):
        save(tmp_path / name, network())
        assert "no EMA" in refusal(tmp_path / name, "--ema")

    def test_a_forged_description(self, tmp_path, show):
        description = json.dumps(network().description())
        path = tmp_path / "forged.safetensors"
        write_safetensors(path, {"a": np.ones(2)}, {"replk_jax": description})
        shown = show(path)
        assert "  1 tensors, 2 values, float64\n" in shown
        assert "it cannot be loaded: its tensors do not fit; faults: " in shown
        assert "\n  missing: params/head/kernel (12, 4)\n" in shown
        assert "... and " in shown

    def test_names_of_classes_cannot_steer_a_terminal(self, tmp_path, show):
        model, names = network().model, ("\x1b[2J", "a\nb", "\ud800", "c" * 100_000)
        saved = Checkpoint(model, random_variables(model), PREPROCESSING, names)
        save(tmp_path / "x.safetensors", saved)
        assert r"\x1b[2J" in show(tmp_path / "x.safetensors")


class TestHostile:
    """Whatever a file holds, what is printed of it is harmless and short (see `show`)."""

    KEYS = ("\x1b[2J", "\ud800", "a\nRepLKNet, 1000 classes", "\u202e", "b" * 200_000)

    def test_keys(self, tmp_path, show):
        for contents in (dict.fromkeys(self.KEYS, 1), {"model": dict.fromkeys(self.KEYS, "\x1b")}):
            path = write_archive(tmp_path / "x.pth", pickle.dumps(contents))
            shown = show(path)
            assert r"\x1b[2J" in shown
            assert len(shown) < 5000
            assert len(shown.splitlines()) <= 3 + len(contents)

    def test_names_of_tensors(self, tmp_path, show):
        entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        keys = [f"{prefix}{key}" for key in self.KEYS for prefix in ("", "stages.0.")]
        header = json.dumps(dict.fromkeys(keys, entry)).encode()
        path = write_with_header(tmp_path / "x.safetensors", header)
        assert len(show(path)) < 5000
        listed = show(path, "--tensors")
        assert r"\x1b[2J  (0,)  float32" in listed
        assert len(listed) < 8000

    def test_surplus_tensors(self, tmp_path, show):
        saved = network()
        save_torch(saved.variables, saved.model, tmp_path / "good.pth")
        tensors = {key: tensor.read() for key, tensor in read(tmp_path / "good.pth").items()}
        surplus = {key: np.ones(1, np.float32) for key in self.KEYS if key != "\ud800"}
        write_torch(tmp_path / "bad.pth", tensors | surplus)
        shown = show(tmp_path / "bad.pth")
        assert f"faults: {len(surplus)}" in shown
        assert r"not in the model: \x1b[2J" in shown
        assert r"not in the model: a\nRepLKNet, 1000 classes" in shown

    def test_many_entries(self, tmp_path, show):
        contents = {f"key {i}": "x" * 1000 for i in range(2000)}
        shown = show(write_archive(tmp_path / "x.pth", pickle.dumps(contents)))
        assert "... and 1,950 more" in shown
        assert len(shown) < 10_000

    def test_names_within_names(self, tmp_path, show):
        """A path of many long keys."""
        data = tensor()
        for _ in range(50):
            data = b"(dV" + b"k" * 10_000 + b"\n" + data + b"s"
        path = write_archive(tmp_path / "x.pth", data + b".", {"0": bytes(16)})
        assert re.search(r"^k+.*\.\.\.  \(4,\)  float32$", show(path, "--tensors"), re.MULTILINE)

    @pytest.mark.parametrize(
        "contents", [{}, [], {"model": {}}, {"model": {"x": {}}}, {1: 2, None: 3, (4,): 5}], ids=str
    )
    def test_next_to_nothing(self, tmp_path, show, contents):
        assert NO_NETWORK in show(write_archive(tmp_path / "x.pth", pickle.dumps(contents)))

    @pytest.mark.parametrize(
        "value",
        [
            b"cfoo.bar\nbaz\n(Vx\ntR",
            b"(l(dVk\ncfoo.bar\nbaz\n(Vx\ntRsa",
            b"(dcfoo.bar\nbaz\n(Vx\ntRVv\ns",
            b"cargparse\nNamespace\n)\x81}Vk\ncfoo.bar\nbaz\n(Vx\ntRsb",
        ],
        ids=["entry", "within a list", "key", "attribute"],
    )
    def test_functions_to_be_called(self, tmp_path, show, value):
        path = write_archive(
            tmp_path / "x.pth", state_dict(model=tensor(), meta=value), {"0": bytes(16)}
        )
        assert "\n  requests a call of foo.bar.baz, which is not done\n" in show(path)

    def test_tensors_of_objects(self, tmp_path, show):
        namespace = b"cargparse\nNamespace\n)\x81}Vweights\n(l" + tensor() + b"asb"
        path = write_archive(tmp_path / "x.pth", state_dict(args=namespace), {"0": bytes(16)})
        shown = show(path, "--tensors")
        assert shown.endswith("\nargs.state.weights.0  (4,)  float32\n")
        assert "wants" not in shown
