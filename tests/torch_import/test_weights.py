"""Finding the weights of a network among what training scripts save."""

import re
import warnings

import numpy as np
import pytest

from replk_jax import RepVGGArchitecture, create_model
from replk_jax.torch_import.convert import to_state_dict
from replk_jax.torch_import.entries import Selection
from replk_jax.torch_import.placeholders import Placeholder
from replk_jax.torch_import.reader import read
from replk_jax.torch_import.weights import find_weights
from replk_jax.torch_import.writer import write_torch
from tests.helpers import random_variables
from tests.torch_import.archives import state_dict, tensor, write_archive


def weights(seed=0):
    model = create_model(RepVGGArchitecture((1, 1), (8, 8, 12)), num_classes=3)
    return to_state_dict(random_variables(model, seed), model)


RAW, EMA = weights(0), weights(1)
MODULE = Placeholder("my", "Net", (), state={"_parameters": {}, "_buffers": {}, "_modules": {}})


@pytest.fixture
def stored(tmp_path):
    """Makes nested dictionaries of arrays ones of tensors in a file, as `read` gives them."""

    def store(contents):
        write_torch(tmp_path / "file.pth", dict(arrays(contents)))
        return with_tensors(contents, read(tmp_path / "file.pth"))

    return store


def arrays(contents, path=""):
    """Every array of nested dictionaries, with a unique name."""
    for name, value in contents.items():
        if isinstance(value, dict):
            yield from arrays(value, f"{path}{name} ")
        elif isinstance(value, np.ndarray | np.generic):
            yield f"{path}{name}", value


def with_tensors(contents, tensors, path=""):
    """The contents with a tensor in place of each array."""
    return {
        name: with_tensors(value, tensors, f"{path}{name} ")
        if isinstance(value, dict)
        else tensors.get(f"{path}{name}", value)
        for name, value in contents.items()
    }


def prefixed(prefix, state_dict=RAW, **others):
    return {prefix + name: value for name, value in state_dict.items()} | others


def assert_found(found, wanted=RAW):
    assert found.tensors.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found.tensors[name], value)


class TestEntries:
    @pytest.mark.parametrize(
        ("contents", "place"),
        [
            (RAW, "at the top"),
            ({"model_state_dict": RAW, "epoch": 3, "loss": 0.5}, "['model_state_dict']"),
            ({"net": RAW, "acc": 93.1}, "['net']"),
            ({"MODEL_STATE": RAW}, "['MODEL_STATE']"),
            ({"checkpoint": {"weights": RAW}, "epoch": 1}, "['checkpoint']['weights']"),
            # Settings under the usual key.
            ({"model": {"name": "repvgg"}, "state_dict": RAW}, "['state_dict']"),
            ({"student": RAW, "teacher": {"fc.weight": np.ones((2, 2))}}, "['student']"),
            # Entries with a part of a name that optimizers have.
            ({"momentum_encoder": RAW}, "['momentum_encoder']"),
            ({"model_optimized": RAW}, "['model_optimized']"),
            ({"optimizer": RAW}, "['optimizer']"),  # where there is nothing else
            # An optimizer's moments, which FSDP saves by the names of the weights.
            ({"model": RAW, "optim": {"exp_avg": EMA, "exp_avg_sq": EMA}}, "['model']"),
        ],
    )
    def test_whatever_their_names(self, stored, contents, place):
        found = find_weights(stored(contents))
        assert_found(found)
        assert found.place == place
        assert not found.ignored
        assert not found.is_ema
        assert not found.has_ema

    def test_a_file_of_deepspeed(self, stored):
        contents = {
            "module": RAW, "buffer_names": ["stage0.bn.running_mean"], "optimizer": None,
            "lr_scheduler": None, "param_shapes": None, "ds_config": {"train_batch_size": 8},
            "ds_version": "0.15.4", "global_steps": 5, "dp_world_size": 2,
        }  # fmt: skip
        found = find_weights(stored(contents))
        assert_found(found)
        assert found.place == "['module']"

    def test_the_same_weights_many_times(self, tmp_path):
        """A list of state dicts that the script has not copied: each can be loaded."""
        name = "stage1.{}.rbr_dense.conv.weight"
        view = tensor((1000,), (1,), count=1000)
        once = b"(V%b\n%bd" % (name.format(0).encode(), view)
        pickle_ = b"(" + b"".join(b"Vepoch_%d\n%b" % (i, once) for i in range(20)) + b"d."
        values = np.arange(1000, dtype=np.float32)
        path = write_archive(tmp_path / "f", pickle_, {"0": values.tobytes()})
        found = find_weights(read(path), Selection(key="epoch_19"))
        np.testing.assert_array_equal(found.tensors[name.format(0)].read(), values)

    def test_more_weights_than_the_file_has(self, tmp_path):
        views = {
            f"stage1.{i}.rbr_dense.conv.weight": tensor((100_000,), (1,), count=100_000)
            for i in range(20)
        }
        path = write_archive(tmp_path / "f", state_dict(**views), {"0": bytes(400_000)})
        with pytest.raises(ValueError, match="over 8 times as large as the file"):
            find_weights(read(path))

    def test_key(self, stored):
        contents = stored({"student": RAW, "teacher": {"network": EMA}})
        assert_found(find_weights(contents, Selection(key="student")))
        assert_found(find_weights(contents, Selection(key="teacher")), EMA)
        assert_found(find_weights(contents, Selection(key="teacher/network")), EMA)
        with pytest.raises(ValueError, match=r"no entry 'teach'; there are \['student', 'teacher'"):
            find_weights(contents, Selection(key="teach"))
        with pytest.raises(ValueError, match=r"no entry 'nested'; there are \['network'\]"):
            find_weights(contents, Selection(key="teacher/nested"))

    def test_several_networks(self, stored):
        contents = stored({"student": RAW, "teacher": {"network": EMA}})
        with pytest.raises(ValueError, match="it holds 2 networks") as caught:
            find_weights(contents)
        count = len(RAW)
        assert f"RepVGG, {count} tensors: key='student'" in str(caught.value)
        assert f"RepVGG, {count} tensors: key='teacher/network'" in str(caught.value)


class TestPrefixes:
    @pytest.mark.parametrize(
        "prefix",
        [
            "net.",
            "encoder.",
            "model.encoder.",
            "module.model.",
            "_fsdp_wrapped_module.",
            "_orig_mod.",
        ],
    )
    def test_any(self, stored, prefix):
        found = find_weights(stored({"state_dict": prefixed(prefix)}))
        assert_found(found)
        assert found.place == f"['state_dict'], after {prefix!r}"

    @pytest.mark.parametrize(
        "module", ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]
    )
    def test_wrapper_modules_within(self, stored, module):
        state_dict = {
            name.replace("stage1.0.", f"stage1.0.{module}."): value for name, value in RAW.items()
        }
        assert_found(find_weights(stored(state_dict)))
        assert_found(find_weights(stored(prefixed(f"{module}.net.", state_dict))))

    def test_other_tensors_are_ignored(self, stored):
        others = {"criterion.weight": np.ones(3), "val_acc.tp": np.zeros(3, np.int64)}
        found = find_weights(stored({"state_dict": prefixed("model.", **others)}))
        assert_found(found)
        assert found.ignored == tuple(others)

    def test_a_classifier_beside_the_backbone(self, stored):
        """As mmpretrain has it; other tensors beside them are left out."""
        head = {name for name in RAW if name.startswith("linear.")}
        backbone = {name: value for name, value in RAW.items() if name not in head}
        state_dict = prefixed("model.backbone.", backbone)
        state_dict |= {f"model.head.fc.{name[7:]}": RAW[name] for name in head}
        state_dict["model.data_preprocessor.mean"] = np.zeros(3)
        found = find_weights(stored(state_dict))
        assert found.tensors.keys() == backbone.keys() | {"head.fc.weight", "head.fc.bias"}
        assert found.ignored == ()

    def test_counters_of_a_profiler(self, stored):
        counters = {"total_ops": np.zeros(1), "stage0.total_params": np.zeros(1)}
        found = find_weights(stored(RAW | counters))
        assert_found(found)
        assert not found.ignored

    def test_prefix(self, stored):
        contents = stored(prefixed("a.") | prefixed("b.model.", EMA))
        assert_found(find_weights(contents, Selection(prefix="a.")))
        assert_found(find_weights(contents, Selection(prefix="b.")), EMA)
        assert_found(find_weights(contents, Selection(prefix="b.model.")), EMA)
        with pytest.raises(ValueError, match=r"2 networks.*\n.*prefix='a.'\n.*prefix='b.model.'"):
            find_weights(contents)
        with pytest.raises(ValueError, match=r"no tensor has a name that begins with 'c\.'"):
            find_weights(contents, Selection(prefix="c."))

    def test_rename(self, stored):
        contents = stored({f"Net/{name.upper()}": v for name, v in RAW.items()} | {"x": np.ones(1)})

        def rename(name):
            return name.removeprefix("Net/").lower() if name != "x" else None

        assert_found(find_weights(contents, Selection(rename=rename)))
        found = find_weights(contents, Selection(prefix="Net/", rename=str.lower))
        assert_found(found)
        with pytest.raises(ValueError, match="rename gives 'a' to two tensors"):
            find_weights(contents, Selection(rename=lambda name: "a"))

    def test_the_same_name_with_and_without_a_wrapper_module(self, stored):
        """Both are there; one of them is not the network's, which loading reports."""
        found = find_weights(stored(RAW | {"module.linear.bias": np.ones(3)}))
        assert found.tensors.keys() == RAW.keys() | {"module.linear.bias"}
        criterion = {"criterion.w": np.ones(3), "module.criterion.w": np.ones(3)}
        found = find_weights(stored(prefixed("model.", **criterion)))
        assert_found(found)
        assert found.ignored == tuple(criterion)


SEVERAL = {
    "entries": {"student": RAW, "teacher": {"network": EMA}},
    "a prefix and none": RAW | prefixed("aux.", EMA),
    "a wrapper module and none": RAW | prefixed("module.", EMA),
    "prefixes": prefixed("a.") | prefixed("b.module.", EMA),
    "keys with slashes": {"a": {"x": RAW}, "a/b": EMA},
}


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("container", [dict, list, tuple])
def test_what_the_error_proposes_works(stored, name, container):
    """Each of its lines selects one network."""
    contents = stored(SEVERAL[name])
    if container is not dict:
        contents = container([3, contents])
    with pytest.raises(ValueError, match="it holds 2 networks") as caught:
        find_weights(contents)
    proposals = re.findall(r"(?:key='(.*?)', )?prefix='(.*?)'", str(caught.value))
    assert len(proposals) == 2
    for (key, prefix), wanted in zip(proposals, (RAW, EMA), strict=True):
        assert_found(find_weights(contents, Selection(key=key or None, prefix=prefix)), wanted)


@pytest.mark.parametrize("option", ["key", "prefix"])
def test_what_is_no_string(option):
    with pytest.raises(ValueError, match=f"{option} must be a string, or None; got 3"):
        Selection(**{option: 3})


class TestAverages:
    @pytest.mark.parametrize(
        "entry",
        [
            "model_ema",
            "state_dict_ema",
            "ema_state_dict",
            "ema",
            "params_ema",
            "swa_model",
            "avg_model",
            "model_avg",
            "emaModel",
            "modelEMA",
            "shadow",
        ],
    )
    def test_beside_the_weights(self, stored, entry):
        contents = stored(
            {"model": RAW, entry: {"n_averaged": np.int64(5)} | prefixed("module.", EMA)}
        )
        found = find_weights(contents)
        assert_found(found)
        assert (found.is_ema, found.has_ema) == (False, True)
        found = find_weights(contents, Selection(prefer_ema=True))
        assert_found(found, EMA)
        assert (found.is_ema, found.has_ema) == (True, True)

    def test_by_a_prefix(self, stored):
        contents = stored({"state_dict": prefixed("net.") | prefixed("ema_net.module.", EMA)})
        assert_found(find_weights(contents))
        assert_found(find_weights(contents, Selection(prefer_ema=True)), EMA)

    @pytest.mark.parametrize(
        ("raw", "marks"),
        [
            ("ema_state_dict", {"meta": {"mmengine_version": "0.10.7"}}),
            ("ema_state_dict", {"message_hub": {"log_scalars": {}}}),
            ("current_model_state", {"averaging_state": {"n_averaged": 3}}),
        ],
        ids=["mmengine", "mmengine without meta", "Lightning"],
    )
    def test_under_the_key_of_the_weights(self, stored, raw, marks):
        """mmengine and Lightning swap the two when they save."""
        swapped = stored({"state_dict": EMA, raw: prefixed("module.", RAW), **marks})
        assert_found(find_weights(swapped))
        found = find_weights(swapped, Selection(prefer_ema=True))
        assert_found(found, EMA)
        assert found.is_ema

    def test_of_mmengine_without_one(self, stored):
        contents = stored({"state_dict": RAW, "meta": {"mmengine_version": "0.10.7"}})
        assert_found(find_weights(contents))
        with pytest.raises(ValueError, match=r"no EMA of the weights"):
            find_weights(contents, Selection(prefer_ema=True))

    def test_alone(self, stored):
        contents = stored({"params_ema": EMA})
        for prefer_ema in (False, True):
            found = find_weights(contents, Selection(prefer_ema))
            assert_found(found, EMA)
            assert found.is_ema


# What is in the place of a kernel, "weight", of which PyTorch computes it in each call; what has
# been done to it, and what undoes it.
REWRITTEN = {
    "prune": (("weight_orig", "weight_mask"), "pruned", "prune.remove(module, 'weight')"),
    "weight_norm": (("weight_g", "weight_v"), "weight-normalised", "remove_weight_norm(module)"),
    "spectral_norm": (
        ("weight_orig", "weight_u", "weight_v"),
        "spectrally normalised",
        "remove_spectral_norm(module)",
    ),
    "parametrizations.weight_norm": (
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
        "parametrized",
        "parametrize.remove_parametrizations(module, 'weight')",
    ),
    "parametrizations.spectral_norm": (
        ("parametrizations.weight.original", "parametrizations.weight.0._u"),
        "parametrized",
        "parametrize.remove_parametrizations(module, 'weight')",
    ),
    "quantized layers": (("scale", "zero_point"), "quantized", "take the float model"),
}


class TestRewritten:
    """Weights that PyTorch computes from what it saves."""

    @pytest.mark.parametrize("tool", REWRITTEN)
    @pytest.mark.parametrize("module", ["stage1.0.rbr_dense.conv", "linear"])
    def test_are_named_with_the_remedy(self, stored, tool, module):
        names, what, remedy = REWRITTEN[tool]
        state_dict = dict(RAW)
        weight = state_dict.pop(f"{module}.weight")
        state_dict |= {f"{module}.{name}": weight for name in names}
        with pytest.raises(ValueError, match=rf"{module}(\.weight)? is {what} ") as caught:
            find_weights(stored(state_dict))
        assert remedy in str(caught.value)

    def test_where_no_kernel_is_left(self, stored):
        state_dict = {key.replace(".conv.weight", ".conv.weight_g"): v for key, v in RAW.items()}
        with pytest.raises(ValueError, match="is weight-normalised"):
            find_weights(stored(state_dict))

    @pytest.mark.parametrize("tool", [tool for tool in REWRITTEN if "layers" not in tool])
    def test_names_of_pytorch(self, tool):
        torch = pytest.importorskip("torch")
        from torch.nn.utils import parametrizations, prune

        apply = {
            "prune": lambda conv: prune.identity(conv, "weight"),
            "weight_norm": torch.nn.utils.weight_norm,
            "spectral_norm": torch.nn.utils.spectral_norm,
            "parametrizations.weight_norm": parametrizations.weight_norm,
            "parametrizations.spectral_norm": parametrizations.spectral_norm,
        }
        conv = torch.nn.Conv2d(2, 2, 3)
        apply[tool](conv)
        assert set(REWRITTEN[tool][0]) <= conv.state_dict().keys()


class TestNothingFound:
    @pytest.mark.parametrize(
        ("names", "label"),
        [
            (("stage0.rbr_dense.conv.weight", "stage1.blocks.0.rbr_1x1.conv.weight"), "RepVGGplus"),
            (("stage0.rbr_scale.conv.weight", "stage1.0.rbr_conv.0.conv.weight"), "MobileOne"),
            (("stem.conv_kxk.0.conv.weight", "stages.0.0.conv_scale.bn.weight"), "MobileOne"),
            (("stem.0.weight", "stages.0.blocks.0.conv_dw.weight"), "ConvNeXt"),
            (("downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"), "ConvNeXt"),
            (("stages.0.0.dwconv.lk_origin.weight",), "UniRepLKNet"),
            (("conv1.0.weight", "conv1.3.weight", "layer1.0.conv1.weight"), "ResNet-C or ResNet-D"),
            (("backbone.stem.0.weight", "backbone.layer1.0.conv1.weight"), "ResNet-C or ResNet-D"),
            (("conv1.weight", "layer1.0.conv1.weight", "layer1.0.se.fc1.weight"), "squeeze-excite"),
            (("stem.conv.weight", "stages.0.blocks.0.norm1.weight"), "ResNetV2"),
            (("conv_stem.weight", "blocks.1.0.conv_pwl.weight", "blocks.1.0.se.conv_reduce.bias"),
             "EfficientNet or MobileNetV3"),
            (("model.0.conv.weight", "model.2.cv1.conv.weight"), "YOLO"),
            (("cls_token", "blocks.0.attn.qkv.weight"), "a vision transformer"),
            (("layers.0.blocks.0.attn.qkv.weight",), "Swin Transformer"),
            (("features.denseblock1.denselayer1.norm1.weight",), "DenseNet"),
        ],
    )  # fmt: skip
    def test_other_networks_are_named(self, stored, names, label):
        contents = stored({name: np.ones((4, 4, 1, 1), np.float32) for name in names})
        with pytest.raises(
            ValueError, match=f"have the names of .*{label}.*supported networks"
        ) as caught:
            find_weights(contents)
        assert "\n" not in str(caught.value)

    def test_an_unknown_network(self, stored):
        with pytest.raises(ValueError, match="these are not the weights of a network known here"):
            find_weights(stored({"first.weight": np.ones(3)}))

    @pytest.mark.parametrize(
        ("contents", "reason"),
        [
            ({}, "no state dict but an empty dictionary"),
            ({"epoch": 3}, r"no state dict but a dictionary without tensors.*\['epoch'\]"),
            ([], "no state dict but a list"),
            (
                {"w": Placeholder("numpy.core.multiarray", "_reconstruct", ())},
                r"NumPy arrays, .*torch\.from_numpy",
            ),
            ({"state": [MODULE]}, "its entry 'state/0' holds a pickled my.Net object, a whole mod"),
            ([MODULE], "its entry '0' holds a pickled my.Net object"),
            (3, "no state dict but a int"),
        ],
    )
    def test_no_tensors(self, contents, reason):
        with pytest.raises(ValueError, match=reason):
            find_weights(contents)


def test_loading_says_what_was_found(tmp_path):
    from replk_jax import load_torch

    others = {"neck.conv.weight": np.ones((3, 3, 1, 1), np.float32)}
    backbone = {name: v for name, v in RAW.items() if not name.startswith("linear.")}
    write_torch(tmp_path / "detector.pth", prefixed("backbone.", backbone, **others))
    with pytest.warns(UserWarning, match="1 tensors of other networks .*other strides than those"):
        load_torch(tmp_path / "detector.pth")
    write_torch(tmp_path / "ema.pth", prefixed("ema.", EMA))
    with pytest.warns(UserWarning, match="it holds only an EMA of the weights"):
        load_torch(tmp_path / "ema.pth")
    with warnings.catch_warnings(action="error"):
        load_torch(tmp_path / "ema.pth", prefer_ema=True)
