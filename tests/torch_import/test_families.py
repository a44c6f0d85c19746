"""RepVGG, MobileNet V2 and ResNet from PyTorch's names and back."""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import pytest
from flax import traverse_util

import replk_jax
from replk_jax import checkpoint
from replk_jax.models.mobilenet_v2 import MobileNetV2Architecture
from replk_jax.models.replknet import RepLKNetArchitecture
from replk_jax.models.repvgg import RepVGGArchitecture
from replk_jax.models.resnet import ResNetArchitecture
from replk_jax.models.variables import abstract_variables
from replk_jax.torch_import import (
    convert_state_dict,
    infer_architecture,
    load_torch,
    mobilenet_v2,
    repvgg,
    save_torch,
)
from replk_jax.torch_import.convert import faults, to_state_dict
from replk_jax.torch_import.families import FAMILIES, family_of
from replk_jax.torch_import.names import CLASSIFIER
from replk_jax.torch_import.structures import Structure
from replk_jax.torch_import.writer import write_torch
from tests import reference_data
from tests.helpers import TINY, random_variables

REPVGG = RepVGGArchitecture((1, 2, 2, 1), (16, 16, 24, 32, 48), groups=2, squeeze_excite=True)
MOBILENET = MobileNetV2Architecture(
    kernel_sizes=(3, 5, 3, 3, 7, 3, 9),
    layers=(2, 1, 2, 1, 1, 2, 1),
    channels=(4, 6, 8, 10, 12, 14, 16),
    expansions=(1, 2, 3, 2, 2, 2, 4),
    stem_channels=6,
    last_channels=20,
)
RESNET = ResNetArchitecture((2, 1, 2), (4, 6, 8))
TINIES = pytest.mark.parametrize(
    "architecture", [REPVGG, MOBILENET, RESNET], ids=lambda a: type(a).__name__
)
# The same without kernels of both 3 x 3 and 5 x 5, which timm's names leave ambiguous.
MOBILENET_3 = dataclasses.replace(MOBILENET, kernel_sizes=(3, 3, 3, 3, 7, 3, 9))
NAMINGS = {REPVGG: "official", MOBILENET: "torchvision", RESNET: "torchvision"}


def families_of_keys(keys):
    """The families that names of tensors without a prefix may be of."""
    return [family for family in FAMILIES if any(map(family.KEYS.match, keys))]


def the_family_of_keys(keys):
    (family,) = families_of_keys(keys)
    return family


def type_name(value):
    return type(value).__name__


@functools.cache
def tiny(architecture, **fields):
    model = replk_jax.create_model(architecture, **{"num_classes": 4, **fields})
    return model, random_variables(model)


def filled(model):
    """Variables of a full-size model that take no memory."""
    return jax.tree.map(
        lambda leaf: np.broadcast_to(np.ones((), leaf.dtype), leaf.shape), abstract_variables(model)
    )


def listed(state_dict):
    """A state dict as the manifests have it."""
    return [(key, tuple(value.shape), value.dtype.name) for key, value in state_dict.items()]


def shapes(entries):
    """What the manifest of a file says, without the prefix that every reader takes away."""
    return {
        key.removeprefix("backbone."): jax.ShapeDtypeStruct(shape, dtype)
        for key, shape, dtype in entries
    }


@functools.cache
def saved(architecture, **fields):
    model, variables = tiny(architecture, **fields)
    return to_state_dict(variables, model)


def assert_equal_trees(actual, wanted):
    jax.tree.map(np.testing.assert_array_equal, actual, wanted)


@functools.partial(jax.jit, static_argnums=0)
def run(model, variables, x):
    return model.apply(variables, x)


MANIFESTS = [f for f in reference_data.manifest_index() if not f.startswith("replknet")]


@reference_data.required
class TestManifests:
    @pytest.mark.parametrize("file", MANIFESTS)
    def test_recognized(self, file):
        """By names and shapes, and as registered."""
        name, naming, form, _ = file.split(".")
        weights = shapes(reference_data.manifest(file))
        family = the_family_of_keys(weights)
        official, told = family.official_names(weights)
        assert told == naming
        assert family.infer_model(official) == replk_jax.create_model(name, deploy=form == "deploy")
        if naming == "mmpretrain":
            first = "torchvision" if name == "mobilenet_v2" else "official"
            assert official == shapes(reference_data.manifest(f"{name}.{first}.{form}.json"))

    @pytest.mark.parametrize(
        "file",
        [
            # The others differ in sizes alone.
            file
            if re.match(r"mobilenet_v2|repvgg_(a0|b1g2|d2se)", file)
            else pytest.param(file, marks=pytest.mark.exhaustive)
            for file in MANIFESTS
            if "mmpretrain" not in file
        ],
    )
    def test_every_tensor_has_its_place(self, file):
        name, _, form, _ = file.split(".")
        model = replk_jax.create_model(name, deploy=form == "deploy")
        assert not faults(shapes(reference_data.manifest(file)), model)

    @pytest.mark.parametrize(
        "file",
        [
            "repvgg_a0.official.train.json",
            "repvgg_b1g2.official.deploy.json",
            "mobilenet_v2.torchvision.train.json",
        ],
    )
    def test_saved(self, file):
        """Names, shapes, dtypes and order. Of the merged one without a merge of that size."""
        name, _, form, _ = file.split(".")
        model = replk_jax.create_model(name, deploy=form == "deploy")
        assert listed(to_state_dict(filled(model), model)) == reference_data.manifest(file)

    @pytest.mark.parametrize(
        ("name", "official"), [("mobilenet_v2", "torchvision"), ("repvgg_a0", "official")]
    )
    def test_each_name_of_mmpretrain(self, name, official):
        """Both lists have the same tensors in the same order."""
        theirs = shapes(reference_data.manifest(f"{name}.mmpretrain.train.json"))
        ours = [key for key, _, _ in reference_data.manifest(f"{name}.{official}.train.json")]
        renamed, _ = the_family_of_keys(theirs).official_names(theirs)
        assert list(renamed) == ours


CASES = list(reference_data.small_cases("repvgg_"))


@reference_data.required
@pytest.mark.parametrize("name", CASES)
class TestSmallRepVGG:
    """Logits to 1e-5 of the largest: rounding, and a tenth of the least slip in one layer."""

    def files(self, name):
        folder = reference_data.ROOT / "small"
        return {path.name.split(".")[1]: path for path in folder.glob(f"{name}.*.pth")}

    def test_logits(self, name):
        expected = reference_data.arrays(f"small/{name}.npz")
        x = reference_data.nhwc(expected["x1"])
        for form, path in self.files(name).items():
            model, variables = load_torch(path)
            assert model.deploy == (form == "deploy")
            structure = "deploy" if model.deploy else "train"
            wanted = expected[f"x1.logits.{structure}_form"]
            tolerance = 1e-5 * max(1, np.abs(wanted).max())
            np.testing.assert_allclose(run(model, variables, x), wanted, atol=tolerance)

    def test_architecture(self, name):
        arch = reference_data.small_cases("repvgg_")[name]["arch"]
        wanted = RepVGGArchitecture(
            arch["num_blocks"],
            # int(64 a), ..., int(512 b), and stage 0 no wider than stage 1
            [
                16,
                *(
                    int(w * m)
                    for w, m in zip((64, 128, 256, 512), arch["width_multiplier"], strict=True)
                ),
            ],
            groups=2 if "override_groups_map" in arch else 1,
            squeeze_excite=arch.get("use_se", False),
        )
        for form, path in self.files(name).items():
            found = infer_architecture(path)
            assert found.model.architecture == wanted
            assert found.model.num_classes == arch["num_classes"]
            assert found.naming == ("mmpretrain" if form == "mmpretrain" else "official")
            assert (found.structure is Structure.MERGED) == (form == "deploy")
            assert not found.faults

    def test_mmpretrain_is_the_same(self, name):
        files = self.files(name)
        if "mmpretrain" in files:
            train, mmpretrain = (load_torch(files[form])[1] for form in ("train", "mmpretrain"))
            assert_equal_trees(mmpretrain, train)

    def test_saved_again(self, name):
        """But for the counters; merged, as switch_to_deploy() does."""
        files = self.files(name)
        model, variables = load_torch(files["train"])
        train, deploy = (
            reference_data.state_dict(f"small/{name}.{form}.pth") for form in ("train", "deploy")
        )
        again = to_state_dict(variables, model)
        assert listed(again) == listed(train)
        for key in again:
            if not key.endswith("num_batches_tracked"):
                np.testing.assert_array_equal(again[key], train[key])
        merged = to_state_dict(variables, model, merged=True)
        assert listed(merged) == listed(deploy)
        for key, value in merged.items():  # rounding: sums of up to a few numbers near 1
            np.testing.assert_allclose(value, deploy[key], atol=1e-6 * np.abs(value).max())

    def test_merged_in_the_names_of_mmpretrain(self, name, tmp_path):
        """With squeeze-excite, which mmpretrain's own forward pass leaves out then."""
        path = self.files(name)["deploy"]
        for_mmpretrain = {
            re.sub(r"^stage0\.", "backbone.stem.", key)
            .replace("stage", "backbone.stage_")
            .replace("rbr_reparam", "branch_reparam")
            .replace("se.down", "se_layer.conv1.conv")
            .replace("se.up", "se_layer.conv2.conv")
            .replace("linear", "head.fc"): value
            for key, value in reference_data.state_dict(f"small/{path.name}").items()
        }
        write_torch(tmp_path / "merged.pth", for_mmpretrain)
        model, variables = load_torch(tmp_path / "merged.pth")
        assert model.architecture.squeeze_excite == (name == "repvgg_se")
        assert_equal_trees(variables, load_torch(path)[1])


def torchvision_resnet(layers, channels, classes):
    """Names and shapes of a ResNet of torchvision, written out by hand, without counters."""
    entries = {}

    def conv_norm(conv, norm, out, inputs, size):
        entries[f"{conv}.weight"] = (out, inputs, size, size)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            entries[f"{norm}.{leaf}"] = (out,)

    conv_norm("conv1", "bn1", channels[0], 3, 7)
    inputs = channels[0]
    for s, (count, width) in enumerate(zip(layers, channels, strict=True), 1):
        for i in range(count):
            block = f"layer{s}.{i}"
            conv_norm(f"{block}.conv1", f"{block}.bn1", width, inputs, 1)
            conv_norm(f"{block}.conv2", f"{block}.bn2", width, width, 3)
            conv_norm(f"{block}.conv3", f"{block}.bn3", 4 * width, width, 1)
            if i == 0:
                downsample = f"{block}.downsample"
                conv_norm(f"{downsample}.0", f"{downsample}.1", 4 * width, inputs, 1)
            inputs = 4 * width
    return entries | {"fc.weight": (classes, inputs), "fc.bias": (classes,)}


class TestResNet:
    @pytest.mark.parametrize(
        ("name", "layers", "parameters"),
        [("resnet_101", (3, 4, 23, 3), 44_549_160), ("resnet_152", (3, 8, 36, 3), 60_192_808)],
    )
    def test_of_torchvision(self, name, layers, parameters):
        """With as many parameters as it states."""
        entries = torchvision_resnet(layers, (64, 128, 256, 512), 1000)
        counts = [math.prod(shape) for key, shape in entries.items() if "running" not in key]
        assert sum(counts) == parameters
        weights = shapes((key, shape, np.float32) for key, shape in entries.items())
        family = the_family_of_keys(weights)
        official, naming = family.official_names(weights)
        assert naming == "torchvision"
        assert family.infer_model(official) == replk_jax.create_model(name)
        assert not faults(official, replk_jax.create_model(name))

    def test_order(self):
        """That of torchvision, where a norm's counter follows its statistics."""
        expected = []
        for key, shape in torchvision_resnet(RESNET.layers, RESNET.channels, 4).items():
            expected.append((key, shape))
            if key.endswith("running_var"):
                expected.append((key.replace("running_var", "num_batches_tracked"), ()))
        assert [(key, value.shape) for key, value in saved(RESNET).items()] == expected

    def test_values(self):
        state_dict = saved(RESNET)
        variables = convert_state_dict(state_dict, tiny(RESNET)[0])
        np.testing.assert_array_equal(
            variables["params"]["layer2_0"]["conv2"]["conv"]["kernel"][2, 0, 3, 5],
            state_dict["layer2.0.conv2.weight"][5, 3, 2, 0],
        )
        np.testing.assert_array_equal(
            variables["batch_stats"]["layer3_0"]["downsample"]["bn"]["mean"],
            state_dict["layer3.0.downsample.1.running_mean"],
        )

    def test_in_the_names_of_mmpretrain(self, tmp_path):
        model, variables = tiny(RESNET)
        for_mmpretrain = {
            f"head.{key}" if key.startswith("fc.") else f"backbone.{key}": value
            for key, value in saved(RESNET).items()
        }
        write_torch(tmp_path / "resnet.pth", for_mmpretrain)
        assert infer_architecture(tmp_path / "resnet.pth").naming == "mmpretrain"
        found, loaded = load_torch(tmp_path / "resnet.pth")
        assert found == model
        assert_equal_trees(loaded, variables)

    def test_basic_blocks(self, tmp_path):
        """In the first stage, which keeps its width, nothing is downsampled."""
        basic = dataclasses.replace(RESNET, block="basic")
        model, variables = tiny(basic)
        keys = saved(basic)
        assert "layer1.0.downsample.0.weight" not in keys
        assert {key.split(".")[2] for key in keys if key.startswith("layer2.0")} == {
            "conv1", "bn1", "conv2", "bn2", "downsample",
        }  # fmt: skip
        save_torch(variables, model, tmp_path / "basic.pth")
        found, loaded = load_torch(tmp_path / "basic.pth")
        assert found == model
        assert_equal_trees(loaded, variables)

    @pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet152"])
    def test_every_tensor_of_torchvision(self, name):
        """Names, shapes, types and order of its network, which is recognised and written."""
        torch = pytest.importorskip("torch")
        models = pytest.importorskip("torchvision").models
        with torch.device("meta"):
            theirs = getattr(models, name)().state_dict()
        theirs = [(k, tuple(v.shape), str(v.dtype).split(".")[1]) for k, v in theirs.items()]
        model = replk_jax.create_model(name)
        assert listed(to_state_dict(filled(model), model)) == theirs
        assert the_family_of_keys(shapes(theirs)).infer_model(shapes(theirs)) == model


class TestMobileNetV2:
    def test_values(self):
        """Expansion, depthwise convolution and projection, each with its own norm."""
        state_dict = saved(MOBILENET)
        variables = convert_state_dict(state_dict, tiny(MOBILENET)[0])
        flat = traverse_util.flatten_dict(variables, sep="/")
        for key, path in {
            "features.0.0.weight": "params/conv1/conv/kernel",
            "features.2.conv.0.0.weight": "params/layer1_1/conv_0/conv/kernel",
            "features.2.conv.1.weight": "params/layer1_1/conv_1/conv/kernel",
            "features.2.conv.2.running_var": "batch_stats/layer1_1/conv_1/bn/var",
            "features.5.conv.0.1.bias": "params/layer3_1/conv_0/bn/bias",
            "features.5.conv.1.0.weight": "params/layer3_1/conv_1/conv/kernel",
            "features.5.conv.1.1.bias": "params/layer3_1/conv_1/bn/bias",
            "features.5.conv.2.weight": "params/layer3_1/conv_2/conv/kernel",
            "features.5.conv.3.running_mean": "batch_stats/layer3_1/conv_2/bn/mean",
            "features.11.1.weight": "params/conv2/bn/scale",
            "classifier.1.weight": "params/classifier/kernel",
        }.items():
            value, leaf = state_dict[key], flat[path]
            if value.ndim == 4:
                value = np.moveaxis(value, (2, 3, 1, 0), (0, 1, 2, 3))
            np.testing.assert_array_equal(leaf, value.T if value.ndim == 2 else value, err_msg=key)

    def test_published_depths_where_widths_do_not_tell(self):
        """At a quarter of the width the first three stages have eight channels each."""
        quarter = MobileNetV2Architecture(channels=(8, 8, 8, 16, 24, 40, 80), stem_channels=8)
        model = replk_jax.create_model(quarter)
        weights = to_state_dict(filled(model), model)
        assert the_family_of_keys(weights).infer_model(weights).architecture == quarter

    def test_other_numbers_of_stages_need_the_model(self, tmp_path):
        architecture = MobileNetV2Architecture(
            (3, 3),
            layers=(1, 2),
            channels=(4, 6),
            strides=(2, 1),
            expansions=(1, 2),
            last_channels=8,
        )
        model, variables = tiny(architecture)
        save_torch(variables, model, tmp_path / "short.pth")
        with pytest.raises(
            ValueError, match="of 2 stages, whose strides are not known: give the mod"
        ):
            load_torch(tmp_path / "short.pth")
        assert_equal_trees(load_torch(tmp_path / "short.pth", model)[1], variables)

    def test_a_dilated_network_loads_the_same_weights(self, tmp_path):
        model, variables = tiny(MOBILENET)
        save_torch(variables, model, tmp_path / "tiny.pth")
        dilated = model.clone(output_stride=8)
        assert_equal_trees(load_torch(tmp_path / "tiny.pth", dilated)[1], variables)


@TINIES
class TestRoundTrips:
    def test_exact(self, architecture, tmp_path):
        model, variables = tiny(architecture)
        save_torch(variables, model, tmp_path / "tiny.pth")
        found = infer_architecture(tmp_path / "tiny.pth")
        assert found.naming == NAMINGS[architecture]
        assert not found.faults
        assert "4 classes, training-time" in str(found)
        loaded, again = load_torch(tmp_path / "tiny.pth")
        assert loaded == found.model == model
        assert_equal_trees(again, variables)

    def test_average(self, architecture, tmp_path):
        torch = pytest.importorskip("torch")
        model, variables = tiny(architecture)
        other = random_variables(model, seed=1)
        contents = {
            entry: {key: torch.tensor(np.asarray(value)) for key, value in state_dict.items()}
            for entry, state_dict in (
                ("state_dict", saved(architecture)),
                ("model_ema", to_state_dict(other, model)),
            )
        }
        torch.save(contents, tmp_path / "run.pth")
        assert_equal_trees(load_torch(tmp_path / "run.pth")[1], variables)
        assert_equal_trees(load_torch(tmp_path / "run.pth", prefer_ema=True)[1], other)

    def test_reset_head(self, architecture, tmp_path):
        model, variables = tiny(architecture)
        save_torch(variables, model, tmp_path / "tiny.pth")
        with pytest.raises(ValueError, match="has 4 classes, the model has 7"):
            load_torch(tmp_path / "tiny.pth", num_classes=7)
        with pytest.warns(UserWarning, match="one of 7 classes is drawn at random"):
            found, loaded = load_torch(tmp_path / "tiny.pth", num_classes=7, reset_head=True)
        head, old = (tree["params"].pop(model.head_name) for tree in (loaded, dict_of(variables)))
        width = old["kernel"].shape[0]
        assert found.num_classes == 7
        assert head["kernel"].shape == (width, 7)
        assert 0 < np.abs(head["kernel"]).max() <= width**-0.5
        rest = dict_of(variables)
        del rest["params"][model.head_name]
        assert_equal_trees(loaded, rest)

    def test_without_a_classifier(self, architecture, tmp_path):
        model, variables = tiny(architecture)
        save_torch(variables, model, tmp_path / "tiny.pth")
        rest = dict_of(variables)
        del rest["params"][model.head_name]
        features = model.clone(num_classes=None)
        assert_equal_trees(load_torch(tmp_path / "tiny.pth", features)[1], rest)
        save_torch(rest, features, tmp_path / "features.pth")
        assert load_torch(tmp_path / "features.pth")[0] == features

    def test_as_a_backbone(self, architecture, tmp_path):
        """Without what follows the last stage, which MobileNet V2 has a convolution of."""
        model, variables = tiny(architecture)
        save_torch(variables, model, tmp_path / "tiny.pth")
        backbone = model.clone(out_indices=(0, 1))
        _, loaded = load_torch(tmp_path / "tiny.pth", backbone)
        wanted = {
            collection: {name: tree[name] for name in abstract_variables(backbone)[collection]}
            for collection, tree in variables.items()
        }
        assert_equal_trees(loaded, wanted)

    def test_from_a_segmenter(self, architecture, tmp_path):
        """Its decoder is not taken for a classifier, whatever it is called."""
        model, variables = tiny(architecture)
        backbone = model.clone(num_classes=None, out_indices=(0, 1))
        _, variables = tiny(architecture, num_classes=None, out_indices=(0, 1))
        contents = {f"backbone.{k}": v for k, v in to_state_dict(variables, backbone).items()}
        contents |= {
            "decode_head.conv_seg.weight": np.ones((5, 4, 1, 1), np.float32),
            "classifier.1.weight": np.ones((4, 4, 3, 3), np.float32),
            "linear.bias": np.ones(4, np.float32),
        }
        write_torch(tmp_path / "segmenter.pth", contents)
        with pytest.warns(UserWarning, match="3 tensors of other networks are left out"):
            _, loaded = load_torch(tmp_path / "segmenter.pth", backbone)
        assert_equal_trees(loaded, variables)

    def test_classifier_beside_a_backbone(self, architecture, tmp_path):
        model, variables = tiny(architecture)
        head = re.compile(r"linear\.|classifier\.|fc\.")
        contents = {
            key if head.match(key) else f"backbone.{key}": value
            for key, value in saved(architecture).items()
        }
        write_torch(tmp_path / "beside.pth", contents)
        found, loaded = load_torch(tmp_path / "beside.pth")
        assert found == model
        assert_equal_trees(loaded, variables)

    def test_faults_in_the_names_of_the_file(self, architecture, tmp_path):
        weights = dict(saved(architecture))
        kernels = [key for key, value in weights.items() if value.ndim == 4]
        norm = next(key for key in weights if key.endswith("running_mean"))
        del weights[norm]
        weights[kernels[-1]] = weights[kernels[-1]][:, :1]
        weights["surplus.weight"] = np.ones(3, np.float32)
        write_torch(tmp_path / "faulty.pth", weights)
        model, _ = tiny(architecture)
        with pytest.raises(ValueError, match=r"faulty\.pth: The weights do not fit") as caught:
            load_torch(tmp_path / "faulty.pth", model)
        message = str(caught.value)
        assert f"missing: {norm} (" in message
        assert f"wrong shape: {kernels[-1]} is " in message
        assert "not in the model: surplus.weight" in message
        assert message.count("\n") == 3

    def test_a_model_of_another_family(self, architecture, tmp_path):
        write_torch(tmp_path / "tiny.pth", saved(architecture))
        with pytest.raises(ValueError, match=r"its weights are those of a .*model is a RepLKNet"):
            load_torch(tmp_path / "tiny.pth", replk_jax.create_model(TINY))

    def test_no_other_family_takes_it(self, architecture):
        assert families_of_keys(saved(architecture)) == [family_of(tiny(architecture)[0])]


def dict_of(variables):
    return jax.tree.map(lambda leaf: leaf, variables)


class TestRefused:
    @pytest.mark.parametrize(
        ("architecture", "from_official", "kinds"),
        [
            (REPVGG, ("stage4.0.rbr_dense", "stage_4.0.branch_3x3"), "official.* and .*mmpretrain"),
            (MOBILENET, ("features.4.", "layer3.0."), "torchvision.* and .*mmpretrain"),
        ],
        ids=["RepVGG", "MobileNetV2"],
    )
    def test_mixed_names(self, architecture, from_official, kinds, tmp_path):
        mixed = {key.replace(*from_official): value for key, value in saved(architecture).items()}
        write_torch(tmp_path / "mixed.pth", mixed)
        with pytest.raises(
            ValueError, match=rf"mixed\.pth: it mixes names of two kinds, .*{kinds}"
        ):
            load_torch(tmp_path / "mixed.pth")

    def test_the_same_tensor_twice(self):
        weights = {**saved(RESNET), "head.fc.bias": np.ones(4)}
        with pytest.raises(ValueError, match=r"two tensors would have the same name, fc\.bias"):
            the_family_of_keys(weights).official_names(weights)

    @pytest.mark.parametrize(
        ("architecture", "key", "reason"),
        [
            (REPVGG, "stage3.1.rbr_dense.conv.weight", "{} is missing, which in a RepVGG"),
            (REPVGG, "linear.weight", "its classifier is not a linear layer .*{} is missing"),
            (MOBILENET, "features.3.conv.2.weight", "{} is missing, which in a MobileNetV2"),
            (RESNET, "layer2.0.conv1.weight", "{} is missing, which in a ResNet"),
        ],
    )
    def test_what_tells_the_architecture_is_missing(self, architecture, key, reason, tmp_path):
        weights = {k: v for k, v in saved(architecture).items() if k != key}
        write_torch(tmp_path / "missing.pth", weights)
        with pytest.raises(ValueError, match=f"missing.pth: {reason.format(re.escape(key))}"):
            load_torch(tmp_path / "missing.pth")

    @pytest.mark.parametrize(
        ("architecture", "block"),
        [(REPVGG, "stage1.{}.rbr_dense.conv.weight"), (RESNET, "layer1.{}.conv1.weight")],
    )
    def test_so_many_layers(self, architecture, block):
        weights = saved(architecture) | {block.format(i): np.ones(1) for i in range(2001)}
        with pytest.raises(ValueError, match="is not believed"):
            the_family_of_keys(weights).infer_model(weights)

    @pytest.mark.parametrize(
        ("architecture", "fields", "merged", "reason"),
        [
            (REPVGG, {"block": "trivial"}, False, "no 'trivial' blocks: save them merged"),
            (
                RepVGGArchitecture((2, 1), (4, 4, 6), block="residual"),
                {},
                True,
                "no 'residual' blocks, in any structure",
            ),
            (REPVGG, {"in_channels": 4, "groups": (2,) + (1,) * 6}, False, "no groups in stage 0"),
            (REPVGG, {"block": "relu_in_branches"}, True, "no 'relu_in_branches' blocks, in any"),
            (MOBILENET, {}, True, "torchvision has no merged MobileNetV2"),
            (MOBILENET, {"deploy": True}, False, "torchvision has no merged MobileNetV2"),
            (MOBILENET, {"small_kernel": 3}, False, "no small kernels beside larger ones"),
            (MOBILENET, {"shortcuts": False}, False, "torchvision's MobileNetV2 has shortcuts"),
            (MOBILENET, {"output_stride": 8}, False, "does not record strides and dilation"),
            (MOBILENET, {"strides": (2, 1, 2, 1, 1, 1, 1)}, False, "does not record strides"),
            (MOBILENET, {"dilation": 4}, False, r"dilation=4 \(a reader assumes 1\)"),
            (RESNET, {"stride_in_1x1": True}, False, "stride_in_1x1=True .*assumes False"),
            (RESNET, {"output_stride": 8}, False, "output_stride=8"),
            (RESNET, {}, True, "torchvision has no merged ResNet"),
            (RESNET, {"deploy": True}, False, "torchvision has no merged ResNet"),
            (TINY, {"dilated_branches": ((3, 2),)}, False, "no dilated branches.*save them merged"),
        ],
    )
    def test_what_the_official_code_has_not(self, architecture, fields, merged, reason, tmp_path):
        model = replk_jax.create_model(architecture, **fields)
        with pytest.raises(ValueError, match=reason):
            save_torch({}, model, tmp_path / "x.pth", merged=merged)
        assert not list(tmp_path.iterdir())


class TestGroupsByLayer:
    """Official `override_groups_map={1: 2, 3: 4}`, mmpretrain's `group_layer_map`."""

    ARCHITECTURE = RepVGGArchitecture((2, 2), (8, 8, 12), groups=(1, 2, 1, 4, 1))

    @pytest.mark.parametrize("merged", [False, True])
    def test_round_trip(self, merged, tmp_path):
        model, variables = tiny(self.ARCHITECTURE)
        save_torch(variables, model, tmp_path / "groups.pth", merged=merged)
        found = infer_architecture(tmp_path / "groups.pth")
        assert found.model == model.clone(deploy=merged)
        assert not found.faults
        weights = to_state_dict(variables, model, merged=merged)
        dense = "rbr_reparam" if merged else "rbr_dense.conv"
        assert weights[f"stage1.0.{dense}.weight"].shape == (8, 4, 3, 3)
        assert weights[f"stage2.0.{dense}.weight"].shape == (12, 2, 3, 3)
        if not merged:
            assert_equal_trees(load_torch(tmp_path / "groups.pth")[1], variables)

    def test_a_width_that_no_number_divides(self):
        weights = shapes(listed(saved(self.ARCHITECTURE)))
        key = "stage1.1.rbr_dense.conv.weight"
        weights[key] = jax.ShapeDtypeStruct((8, 3, 3, 3), np.float32)
        found = faults(weights, the_family_of_keys(weights).infer_model(weights))
        assert found == [f"wrong shape: {key} is (8, 3, 3, 3), the model has (8, 8, 3, 3)"]


def fused(state_dict, norm_of):
    """With each batch norm that follows a convolution folded into it, by PyTorch's formula."""
    state_dict = {k: v for k, v in state_dict.items() if "num_batches" not in k}
    for key in list(state_dict):
        conv = key.removesuffix(".weight")
        norm = norm_of(conv)
        if norm is None or f"{norm}.running_var" not in state_dict:
            continue
        scale, bias, mean, var = (
            state_dict.pop(f"{norm}.{leaf}")
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        factor = scale / np.sqrt(var + 1e-5)
        state_dict[key] = state_dict[key] * factor[:, None, None, None]
        state_dict[f"{conv}.bias"] = bias - mean * factor
    return state_dict


def norm_behind(conv):
    """The name of the batch norm behind a convolution, in every official naming."""
    if re.search(r"\.conv$", conv):  # RepLKNet, RepVGG
        return f"{conv.removesuffix('conv')}bn"
    if re.search(r"\bconv\d$", conv):  # torchvision's ResNet
        return re.sub(r"conv(\d)$", r"bn\1", conv)
    if re.search(r"\.\d$", conv):  # torchvision's pairs
        return re.sub(r"\d$", lambda m: str(int(m[0]) + 1), conv)
    return None


FUSED = {
    "RepLKNet": TINY,
    "RepVGG": dataclasses.replace(REPVGG, layers=(1, 2), channels=(16, 16, 24)),
    "MobileNetV2": MOBILENET,
    "ResNet": RESNET,
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_without_having_been_merged(name, tmp_path):
    """As by deep_fuse_BN() without structural_reparam(), or another tool that fuses."""
    model, variables = tiny(FUSED[name])
    weights = fused(saved(FUSED[name]), norm_behind)
    assert any(".conv.bias" in key or key == "conv1.bias" or ".0.bias" in key for key in weights)
    write_torch(tmp_path / "fused.pth", weights)
    found = infer_architecture(tmp_path / "fused.pth")
    assert found.structure is Structure.FUSED_BRANCHES
    assert found.model == model.clone(deploy=True)
    assert not found.faults
    deployed, loaded = load_torch(tmp_path / "fused.pth")
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    expected = run(model, variables, x)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(run(deployed, loaded, x), expected, rtol=0, atol=1e-4 * largest)
    with pytest.raises(ValueError, match="unmerged, batch norms fused network, from which"):
        load_torch(tmp_path / "fused.pth", model)


class TestStageNorms:
    """RepLKNet's norms of some stages, as a detector that reads the last ones has them."""

    ARCHITECTURE = RepLKNetArchitecture((5, 3, 3), (1, 1, 1), (4, 6, 8), small_kernel=3)

    def backbone(self, *stages):
        fields = {"num_classes": None, "out_indices": stages, "norm_intermediate_features": True}
        return tiny(self.ARCHITECTURE, **fields)

    @pytest.mark.parametrize("stages", [(1, 2), (0, 1), (0, 2), (0, 1, 2)])
    def test_round_trip(self, stages, tmp_path):
        model, variables = self.backbone(*stages)
        save_torch(variables, model, tmp_path / "backbone.pth")
        weights = to_state_dict(variables, model)
        assert [s for s in range(3) if f"stages.{s}.norm.weight" in weights] == [*stages]
        found = infer_architecture(tmp_path / "backbone.pth")
        assert found.model == model
        assert not found.faults
        assert_equal_trees(load_torch(tmp_path / "backbone.pth")[1], variables)

    def test_fewer_stages_than_the_file_has(self, tmp_path):
        """The norms of the others are left out, and the feature maps are the same."""
        model, variables = self.backbone(0, 1, 2)
        save_torch(variables, model, tmp_path / "backbone.pth")
        fewer = model.clone(out_indices=[-2, -1])
        loaded, some = load_torch(tmp_path / "backbone.pth", fewer)
        assert "norm" not in some["params"]["stages_0"]
        x = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float32)
        assert_equal_trees(run(loaded, some, x), run(model, variables, x)[1:])

    def test_beside_a_classifier(self, tmp_path):
        """The official class has both, if it is asked for both."""
        model, variables = tiny(self.ARCHITECTURE, norm_intermediate_features=True)
        save_torch(variables, model, tmp_path / "both.pth")
        loaded, again = load_torch(tmp_path / "both.pth")
        assert loaded == model
        assert_equal_trees(again, variables)


class TestMergedBlocks:
    def test_a_deployed_network_is_the_official_one(self, tmp_path):
        model, merged = tiny(REPVGG, deploy=True)
        save_torch(merged, model, tmp_path / "deploy.pth")
        found, again = load_torch(tmp_path / "deploy.pth")
        assert found == model
        assert_equal_trees(again, merged)
        with pytest.raises(ValueError, match="merged network, from which"):
            load_torch(tmp_path / "deploy.pth", model.clone(deploy=False))

    def test_other_blocks_are_published_merged(self):
        architecture = RepVGGArchitecture((2,), (4, 6), groups=2, block="acb")
        model, variables = tiny(architecture)
        state_dict = to_state_dict(variables, model, merged=True)
        deployed = replk_jax.create_model(architecture, block="repvgg", num_classes=4, deploy=True)
        actual = convert_state_dict(state_dict, deployed)
        wanted = jax.jit(replk_jax.reparameterize)(variables)
        for leaf, expected in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(leaf, expected, rtol=1e-6)  # two programs, one rounding


@pytest.mark.parametrize(
    "architecture",
    [
        RepVGGArchitecture((2,), (4, 6), block="dbb"),
        dataclasses.replace(MOBILENET, small_kernel=3, shortcuts=False),
    ],
    ids=["RepVGG", "MobileNetV2"],
)
class TestNeverPublished:
    """What has no PyTorch file can be gone on from all the same."""

    def test_gone_on_from(self, architecture, tmp_path):
        model, variables = tiny(architecture)
        checkpoint.save(tmp_path / "own.safetensors", checkpoint.Checkpoint(model, variables))
        with pytest.warns(UserWarning, match="one of 7 classes is drawn at random"):
            network = checkpoint.load_into(
                model.clone(num_classes=7), tmp_path / "own.safetensors", reset_head=True
            )
        loaded, wanted = dict_of(network.variables), dict_of(variables)
        for tree in (loaded, wanted):
            del tree["params"][model.head_name]
        assert_equal_trees(loaded, wanted)

    def test_not_when_it_is_merged(self, architecture, tmp_path):
        model, variables = tiny(architecture, deploy=True)
        checkpoint.save(tmp_path / "own.safetensors", checkpoint.Checkpoint(model, variables))
        with pytest.raises(ValueError, match="it is re-parameterized"):
            checkpoint.load_into(model.clone(deploy=False), tmp_path / "own.safetensors")


class TestTimm:
    """The names of timm, which has the same networks but for RepLKNet."""

    @pytest.mark.parametrize("architecture", [REPVGG, MOBILENET_3, RESNET], ids=type_name)
    @pytest.mark.parametrize("ending", ["pth", "safetensors"])
    def test_round_trip(self, architecture, ending, tmp_path):
        model, variables = tiny(architecture)
        path = tmp_path / f"timm.{ending}"
        save_torch(variables, model, path, naming="timm")
        found, again = load_torch(path)
        assert found == model
        assert_equal_trees(again, variables)
        # timm's ResNet has torchvision's names.
        wanted = "torchvision" if architecture is RESNET else "timm"
        assert infer_architecture(path).naming == wanted

    def test_merged(self, tmp_path):
        model, variables = tiny(REPVGG)
        save_torch(variables, model, tmp_path / "timm.pth", merged=True, naming="timm")
        found, again = load_torch(tmp_path / "timm.pth")
        assert found == model.clone(deploy=True)
        wanted = jax.jit(replk_jax.reparameterize)(variables)
        for leaf, expected in zip(jax.tree.leaves(again), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(leaf, expected, rtol=1e-6)  # two programs, one rounding

    def test_names_of_repvgg(self):
        """In timm's order, with squeeze-excite after the branches."""
        state_dict = repvgg.timm_names(saved(REPVGG), REPVGG)
        modules = {key.rpartition(".")[0] for key in state_dict if key.startswith("stages.1.1.")}
        parts = ("conv_kxk.conv", "conv_kxk.bn", "conv_1x1.conv", "conv_1x1.bn", "identity")
        assert modules == {f"stages.1.1.{part}" for part in (*parts, "attn.fc1", "attn.fc2")}
        keys = list(state_dict)
        assert keys[0] == "stem.conv_kxk.conv.weight"
        assert keys[-2:] == ["head.fc.weight", "head.fc.bias"]
        of_block = [key for key in keys if key.startswith("stages.1.1.")]
        parts = list(dict.fromkeys(key.split(".")[3] for key in of_block))
        assert parts == ["identity", "conv_kxk", "conv_1x1", "attn"]

    def test_names_of_mobilenet_v2(self):
        state_dict = mobilenet_v2.timm_names(saved(MOBILENET), MOBILENET)
        modules = list(dict.fromkeys(key.rpartition(".")[0] for key in state_dict))
        without_expansion = ["conv_dw", "bn1", "conv_pw", "bn2"]
        with_expansion = ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
        assert modules[:2] == ["conv_stem", "bn1"]
        assert modules[2:6] == [f"blocks.0.0.{part}" for part in without_expansion]
        assert modules[10:16] == [f"blocks.1.0.{part}" for part in with_expansion]
        assert modules[-3:] == ["conv_head", "bn2", "classifier"]

    def test_what_timm_has_not(self, tmp_path):
        model, variables = tiny(TINY)
        with pytest.raises(ValueError, match="timm has no RepLKNet"):
            save_torch(variables, model, tmp_path / "x.pth", naming="timm")
        with pytest.raises(ValueError, match='naming must be "official" or "timm"; got'):
            save_torch(variables, model, tmp_path / "x.pth", naming="torchvision")
        assert not list(tmp_path.iterdir())

    def test_networks_of_the_same_names(self, tmp_path):
        """EfficientNet-Lite and MnasNet, with kernels of 3 and of 5 and other activations."""
        model, variables = tiny(MOBILENET)
        save_torch(variables, model, tmp_path / "timm.pth", naming="timm")
        with pytest.raises(ValueError, match=r"EfficientNet-Lite, MnasNet or FBNet.*not one of"):
            load_torch(tmp_path / "timm.pth")

    @pytest.mark.parametrize("merged", [False, True])
    def test_features_only(self, merged, tmp_path):
        """timm's RepVGG has its stages at the top then: a network without a classifier."""
        model, variables = tiny(REPVGG)
        official = to_state_dict(variables, model, merged=merged)
        features = {
            name.replace("stages.", "stages_"): value
            for name, value in repvgg.timm_names(official, REPVGG).items()
            if not name.startswith("head.")
        }
        write_torch(tmp_path / "timm.pth", features)
        found, loaded = load_torch(tmp_path / "timm.pth")
        assert found == model.clone(num_classes=None, deploy=merged)
        wanted = convert_state_dict(official, model.clone(deploy=merged))
        assert_equal_trees(loaded, without_head(wanted, model))
        assert infer_architecture(tmp_path / "timm.pth").naming == "timm"

    def test_a_stem_alone(self, tmp_path):
        stem = {k: v for k, v in saved(REPVGG).items() if k.startswith("stage0.")}
        write_torch(tmp_path / "stem.pth", stem)
        with pytest.raises(ValueError, match=r"its stages are missing: .*begin with stageN\.N\."):
            load_torch(tmp_path / "stem.pth")

    @pytest.mark.parametrize("name", ["repvgg_a0", "mobilenetv2_100", "resnet18"])
    @pytest.mark.exhaustive
    def test_features_of_timm(self, name, tmp_path):
        """Feature maps of timm's features_only=True: 1e-5 of the largest, rounding in float32."""
        timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
        torch.manual_seed(0)
        net = timm.create_model(name, features_only=True).eval()
        torch.save(net.state_dict(), tmp_path / "timm.pth")
        model, variables = load_torch(tmp_path / "timm.pth")
        model = model.clone(out_indices=(-1,))
        x = np.random.default_rng(0).standard_normal((1, 64, 64, 3)).astype(np.float32)
        with torch.no_grad():
            wanted = net(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))[-1].numpy()
        wanted = wanted.transpose(0, 2, 3, 1)
        (last,) = run(model, variables, x)
        np.testing.assert_allclose(last, wanted, atol=1e-5 * np.abs(wanted).max(), rtol=1e-4)

    @pytest.mark.parametrize("name", ["repvgg_a0", "repvgg_b1g4", "repvgg_d2se", "mobilenetv2_100"])
    @pytest.mark.exhaustive
    def test_logits_of_timm(self, name, tmp_path):
        """1e-5 of the largest logit: rounding in float32."""
        timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
        torch.manual_seed(0)
        net = timm.create_model(name, num_classes=5).eval()
        torch.save(net.state_dict(), tmp_path / "timm.pth")
        model, variables = load_torch(tmp_path / "timm.pth")
        x = np.random.default_rng(0).standard_normal((1, 64, 64, 3)).astype(np.float32)
        with torch.no_grad():
            wanted = net(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
        np.testing.assert_allclose(
            run(model, variables, x), wanted, atol=1e-5 * np.abs(wanted).max(), rtol=1e-4
        )
        save_torch(variables, model, tmp_path / "again.pth", naming="timm")
        again = torch.load(tmp_path / "again.pth")
        assert list(again) == list(net.state_dict())
        net.load_state_dict(again)


class TestOtherClassifiers:
    """Heads that were replaced by ones that the family does not have."""

    OTHER_HEADS = (
        (RESNET, lambda key: key.replace("fc.", "fc.1."), "fc.weight"),
        (REPVGG, lambda key: key.replace("linear.", "linear.head.0."), "linear.weight"),
        (
            MOBILENET,
            lambda key: key.replace("classifier.1.", "classifier.3."),
            "classifier.1.weight",
        ),
        (TINY, lambda key: key.replace("head.", "head.layers.2."), "head.weight"),
    )

    @pytest.fixture(params=OTHER_HEADS, ids=lambda case: type_name(case[0]))
    def case(self, request, tmp_path):
        architecture, rename, missing = request.param
        path = tmp_path / "best.pth"
        write_torch(path, {rename(key): value for key, value in saved(architecture).items()})
        return *tiny(architecture), path, missing

    def test_left_out(self, case):
        model, variables, path, _ = case
        wanted = without_head(variables, model)
        bare = model.clone(num_classes=None)
        assert_equal_trees(load_torch(path, bare)[1], wanted)
        found, loaded = load_torch(path, num_classes=0)
        assert found.num_classes is None
        assert_equal_trees(loaded, wanted)
        backbone = load_torch(path, model.clone(num_classes=None, out_indices=(0, 1)))[1]
        assert model.head_name not in backbone["params"]

    @pytest.mark.parametrize("with_model", [False, True])
    def test_replaced(self, case, with_model):
        model, variables, path, _ = case
        into = model.clone(num_classes=7) if with_model else None
        with pytest.warns(UserWarning, match="one of 7 classes is drawn at random"):
            found, loaded = load_torch(path, into, num_classes=7, reset_head=True)
        assert found.num_classes == 7
        assert loaded["params"][model.head_name]["kernel"].shape[-1] == 7
        assert_equal_trees(without_head(loaded, model), without_head(variables, model))

    @pytest.mark.parametrize("architecture", [RESNET, REPVGG, MOBILENET, TINY], ids=type_name)
    @pytest.mark.parametrize("name", ["fc", "linear", "classifier", "head", "last_linear"])
    def test_linear_layers_of_other_names(self, architecture, name, tmp_path):
        """Such as other libraries and users' own modules have them."""
        model, variables = tiny(architecture)
        official = the_family_of_keys(saved(architecture)).CLASSIFIER
        weights = {
            key.replace(f"{official}.", f"{name}."): v for key, v in saved(architecture).items()
        }
        write_torch(tmp_path / "renamed.pth", weights)
        found, loaded = load_torch(tmp_path / "renamed.pth")
        assert found == model
        assert_equal_trees(loaded, variables)
        assert not infer_architecture(tmp_path / "renamed.pth").faults

    @pytest.mark.parametrize("change", ["no bias", "a 1 x 1 convolution"])
    def test_reset_of_what_is_not_linear(self, change, tmp_path):
        """Also where the number of classes is the same."""
        weights = dict(saved(RESNET))
        if change == "no bias":
            del weights["fc.bias"]
        else:
            weights["fc.weight"] = weights["fc.weight"][:, :, None, None]
        write_torch(tmp_path / "other.pth", weights)
        with pytest.raises(ValueError, match="fc"):
            load_torch(tmp_path / "other.pth")
        with pytest.warns(UserWarning, match="is of another kind"):
            _, loaded = load_torch(tmp_path / "other.pth", num_classes=4, reset_head=True)
        assert loaded["params"]["fc"]["kernel"].shape[1:] == (4,)

    def test_message(self, case):
        model, _, path, missing = case
        with pytest.raises(ValueError, match=f"{re.escape(missing)} is missing; there are"):
            load_torch(path)
        with pytest.raises(ValueError, match=f"{re.escape(missing)} is missing; there are"):
            load_torch(path, model)
        with pytest.raises(ValueError, match="give its num_classes"):
            load_torch(path, reset_head=True)
        found = infer_architecture(path)
        assert found.model == model.clone(num_classes=None)
        assert found.faults
        assert all(CLASSIFIER.search(fault) for fault in found.faults)


def without_head(variables, model):
    params = {name: tree for name, tree in variables["params"].items() if name != model.head_name}
    return {**variables, "params": params}


class TestInputChannels:
    """Weights of RGB images for images of other channels."""

    @pytest.mark.parametrize("architecture", [TINY, REPVGG, MOBILENET, RESNET], ids=type_name)
    @pytest.mark.parametrize("count", [1, 4, 6])
    def test_kernels(self, architecture, count, tmp_path):
        model, variables = tiny(architecture)
        save_torch(variables, model, tmp_path / "rgb.pth")
        with pytest.warns(UserWarning, match=f"takes 3 channels, and is adapted to {count}"):
            found, loaded = load_torch(tmp_path / "rgb.pth", in_channels=count)
        assert found.architecture == dataclasses.replace(model.architecture, in_channels=count)
        changed = 0
        flat, wanted = (traverse_util.flatten_dict(tree) for tree in (loaded, variables))
        for path, leaf in flat.items():
            kernel = np.float64(wanted[path])
            if leaf.shape == kernel.shape:
                np.testing.assert_array_equal(leaf, kernel)
                continue
            changed += 1
            order = [channel % 3 for channel in range(count)]
            expected = (
                kernel.sum(2, keepdims=True) if count == 1 else kernel[:, :, order] * (3 / count)
            )
            np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)
        assert changed == (2 if architecture is REPVGG else 1)  # stage 0 has a 1 x 1 branch

    def test_grey_images_give_what_they_gave(self, tmp_path):
        """An image with the same values in all channels, which the sum over channels preserves."""
        model, variables = tiny(TINY)
        save_torch(variables, model, tmp_path / "rgb.pth")
        with pytest.warns(UserWarning, match="is adapted to 1"):
            grey, loaded = load_torch(tmp_path / "rgb.pth", in_channels=1)
        x = np.random.default_rng(0).standard_normal((1, 32, 32, 1)).astype(np.float32)
        actual = run(grey, loaded, x)
        wanted = run(model, variables, np.repeat(x, 3, -1))
        np.testing.assert_allclose(actual, wanted, atol=1e-5 * np.abs(wanted).max())

    def test_only_on_request(self, tmp_path):
        model, variables = tiny(RESNET)
        save_torch(variables, model, tmp_path / "rgb.pth")
        grey = replk_jax.create_model(RESNET, num_classes=4, in_channels=1)
        reason = r"conv1\.weight takes 3 channels, the model has in_channels=1\. .*load with in_ch"
        with pytest.raises(ValueError, match=reason):
            load_torch(tmp_path / "rgb.pth", grey)
        with pytest.raises(ValueError, match="in_channels must be a positive integer; got 0"):
            load_torch(tmp_path / "rgb.pth", in_channels=0)


class TestOtherResNets:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"conv2.weight": (4, 2, 3, 3)}, r"it is a ResNeXt, .*layer1\.0\.conv2 has 2 groups"),
            (
                {"conv3.weight": (8, 4, 1, 1)},
                "it is a Wide ResNet, .*4 channels inside and returns 8",
            ),
        ],
    )
    def test_are_named(self, change, reason, tmp_path):
        weights = dict(saved(RESNET))
        weights |= {f"layer1.0.{k}": np.ones(shape, np.float32) for k, shape in change.items()}
        write_torch(tmp_path / "other.pth", weights)
        with pytest.raises(ValueError, match=reason) as caught:
            load_torch(tmp_path / "other.pth")
        assert "\n" not in str(caught.value)
