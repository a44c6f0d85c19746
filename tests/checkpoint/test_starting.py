"""A network with heads starts from a file of its backbone, or from one of its own."""

import warnings
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import traverse_util

import replk_jax
from replk_jax import Checkpoint, save, save_torch
from replk_jax.checkpoint import load, load_into
from replk_jax.models.composite import CompositeNetwork
from replk_jax.models.layers import GlobalAveragePool, convolution
from replk_jax.models.network import register_network
from replk_jax.models.stored import StoredField
from replk_jax.vision.preprocessing import Preprocessing
from tests.helpers import TINY, random_variables
from tests.models.composite import tiny_segmenter
from tests.models.unpublished import PlainNet, PlainNetArchitecture

PREPROCESSING = Preprocessing(32)
CLASSIFIER = replk_jax.create_model(TINY, num_classes=4)
NETWORK = Checkpoint(CLASSIFIER, random_variables(CLASSIFIER), PREPROCESSING, tuple("abcd"))
SEGMENTER = tiny_segmenter()
DRAWN = r"Drawn at random: auxiliary_head, decode_head\.$"


def write(path, network=NETWORK):
    if path.suffix == ".pth":
        save_torch(network.variables, network.model, path)
    else:
        save(path, network)
    return path


def flat(variables):
    return traverse_util.flatten_dict(variables, sep="/")


def backbone_of(variables):
    """The leaves of the backbone, by the path that they have in a network of it alone."""
    return {
        path.replace("/backbone/", "/", 1): leaf
        for path, leaf in flat(variables).items()
        if "/backbone/" in path
    }


def heads_of(variables):
    return {path: leaf for path, leaf in flat(variables).items() if "/backbone/" not in path}


def initial_variables(model):
    return jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(actual[path], leaf, err_msg=path)


@pytest.mark.parametrize("name", ["own.safetensors", "folder", "torch.pth"])
class TestFromAClassifier:
    def test_the_backbone_is_that_of_the_file(self, name, tmp_path):
        path = write(tmp_path / name)
        with pytest.warns(UserWarning, match=DRAWN) as caught:
            loaded = load_into(SEGMENTER, path)
        (warning,) = caught
        assert f"{path}: only the backbone of the TinySegmenter starts from it" in str(
            warning.message
        )
        assert "Left out: ['head', 'norm']." in str(warning.message)
        assert warning.filename == __file__
        assert loaded.model == SEGMENTER
        backbone = backbone_of(loaded.variables)
        used = {key: leaf for key, leaf in flat(NETWORK.variables).items() if key in backbone}
        assert_equal(backbone, used)
        left = flat(NETWORK.variables).keys() - used.keys()
        assert {key.split("/")[1] for key in left} == {"head", "norm"}
        assert loaded.class_names is None

    def test_the_heads_are_drawn_with_the_seed(self, name, tmp_path):
        path = write(tmp_path / name)
        with pytest.warns(UserWarning, match=DRAWN):
            first, again, other = (
                load_into(SEGMENTER, path, seed=seed).variables for seed in (0, 0, 1)
            )
        assert_equal(heads_of(first), heads_of(initial_variables(SEGMENTER)))
        assert_equal(heads_of(first), heads_of(again))
        kernel = "params/decode_head/conv_seg/kernel"
        assert not np.array_equal(flat(first)[kernel], flat(other)[kernel])

    def test_another_family_or_architecture(self, name, tmp_path):
        path = write(tmp_path / name)
        other = tiny_segmenter(replk_jax.ResNetArchitecture((1, 1), (4, 8)))
        with pytest.raises(ValueError, match=rf"^{path}: .*backbone.*ResNet"):
            load_into(other, path)
        wider = tiny_segmenter(TINY, {"channels": (8, 16)})
        with pytest.raises(
            ValueError,
            match=rf"^{path}: for the backbone of a TinySegmenter: The weights do not fit",
        ):
            load_into(wider, path)

    def test_grey_images(self, name, tmp_path):
        path = write(tmp_path / name)
        grey = tiny_segmenter(TINY, {"in_channels": 1})
        with pytest.warns(UserWarning, match="is adapted to 1|Drawn at random"):
            loaded = load_into(grey, path, adapt_input=True)
        kernel = "params/stem_0/conv/kernel"
        np.testing.assert_allclose(
            backbone_of(loaded.variables)[kernel],
            flat(NETWORK.variables)[kernel].sum(2, keepdims=True),
            rtol=1e-5,
            atol=1e-6,
        )


@pytest.mark.parametrize("name", ["own.safetensors", "folder", "torch.pth"])
class TestStageNorms:
    """The paper's XL has them on COCO and ADE20K, and starts from a classifier without them."""

    NORMED = tiny_segmenter(TINY, {"norm_intermediate_features": True})

    def test_that_the_file_lacks(self, name, tmp_path):
        path = write(tmp_path / name)
        norm = "stages.0.norm" if name == "torch.pth" else "stages_0/norm"
        with pytest.warns(UserWarning, match=DRAWN) as caught:
            loaded = load_into(self.NORMED, path)
        (warning,) = caught
        assert f"Left out: ['head']. With initial values: ['{norm}']. Drawn" in str(warning.message)
        found, stored = backbone_of(loaded.variables), flat(NETWORK.variables)
        initial = {"params": {"scale": 1, "bias": 0}, "batch_stats": {"mean": 0, "var": 1}}
        for collection, leaves in initial.items():
            for leaf, value in leaves.items():
                first = found.pop(f"{collection}/stages_0/norm/{leaf}")
                np.testing.assert_array_equal(first, np.full(8, value, np.float32))
                # The final norm of the classifier follows the last stage.
                last = found.pop(f"{collection}/stages_1/norm/{leaf}")
                np.testing.assert_array_equal(last, stored[f"{collection}/norm/{leaf}"])
        assert_equal(found, {key: leaf for key, leaf in stored.items() if key in found})

    def test_that_the_model_lacks(self, name, tmp_path):
        model = self.NORMED.backbone
        normed = Checkpoint(model, random_variables(model), PREPROCESSING)
        path = write(tmp_path / name, normed)
        norms = ["stages_0/norm", "stages_1/norm"]
        if name == "torch.pth":
            norms = [norm.translate(str.maketrans("_/", "..")) for norm in norms]
        with pytest.warns(UserWarning, match=DRAWN) as caught:
            loaded = load_into(SEGMENTER, path)
        (warning,) = caught
        assert f"Left out: {norms}. Drawn" in str(warning.message)
        backbone = backbone_of(loaded.variables)
        stored = flat(normed.variables)
        assert {key for key in stored if key not in backbone} == {
            key for key in stored if key.split("/")[2] == "norm"
        }
        assert_equal(backbone, {key: leaf for key, leaf in stored.items() if key in backbone})

    def test_a_network_without_heads_is_strict(self, name, tmp_path):
        model = self.NORMED.backbone
        with pytest.raises(ValueError, match=r"missing: .*stages.0.norm"):
            load_into(model, write(tmp_path / name))
        normed = Checkpoint(model, random_variables(model), PREPROCESSING)
        with pytest.raises(ValueError, match=r"not in the model: .*stages.0.norm"):
            load_into(SEGMENTER.backbone, write(tmp_path / f"normed_{name}", normed))


@pytest.mark.parametrize("name", ["own.safetensors", "folder"])
class TestAFamilyWithoutTorchFiles:
    MODEL = PlainNet(num_classes=4)
    SAVED = Checkpoint(MODEL, random_variables(MODEL), PREPROCESSING, tuple("abcd"))

    def test_as_it_is(self, name, tmp_path):
        path = write(tmp_path / name, self.SAVED)
        assert load(path).model == self.MODEL
        loaded = load_into(self.MODEL, path)
        assert_equal(flat(loaded.variables), flat(self.SAVED.variables))
        assert loaded.class_names == tuple("abcd")

    def test_other_classes(self, name, tmp_path):
        path = write(tmp_path / name, self.SAVED)
        other = self.MODEL.clone(num_classes=7)
        with pytest.raises(ValueError, match=r"has 4 classes, the model has 7: .*reset_head=True"):
            load_into(other, path)
        with pytest.warns(UserWarning, match="has 4 classes, is left out, and one of 7"):
            loaded = load_into(other, path, reset_head=True)
        found, stored = flat(loaded.variables), flat(self.SAVED.variables)
        kernel, bias = (found.pop(f"params/scores/{leaf}") for leaf in ("kernel", "bias"))
        assert (kernel.shape, bias.shape) == ((8, 7), (7,))
        assert 0 < np.abs(kernel).max() <= 8**-0.5  # PyTorch's bounds
        assert 0 < np.abs(bias).max() <= 8**-0.5
        assert_equal(found, {key: leaf for key, leaf in stored.items() if "/scores/" not in key})
        again, other_seed = (
            _quietly_loaded(other, path, reset_head=True, seed=seed) for seed in (0, 1)
        )
        np.testing.assert_array_equal(again["params/scores/kernel"], kernel)
        assert not np.array_equal(other_seed["params/scores/kernel"], kernel)

    def test_other_channels(self, name, tmp_path):
        path = write(tmp_path / name, self.SAVED)
        grey = self.MODEL.clone(architecture=PlainNetArchitecture(in_channels=1))
        with pytest.raises(ValueError, match="params/stem/conv/kernel takes 3 channels"):
            load_into(grey, path)
        found, kernel = _quietly_loaded(grey, path, adapt_input=True), "params/stem/conv/kernel"
        stored = flat(self.SAVED.variables)
        wanted = stored.pop(kernel).sum(2, keepdims=True)
        np.testing.assert_allclose(found.pop(kernel), wanted, rtol=1e-5, atol=1e-6)
        assert_equal(found, stored)

    def test_as_a_backbone(self, name, tmp_path):
        path = write(tmp_path / name, self.SAVED)
        segmenter = tiny_segmenter()
        segmenter = segmenter.clone(backbone=PlainNet(num_classes=None, out_indices=(0, 1)))
        with pytest.warns(UserWarning, match=r"Left out: \['last/bn', 'last/conv', 'scores'\]\. D"):
            loaded = load_into(segmenter, path)
        backbone, stored = backbone_of(loaded.variables), flat(self.SAVED.variables)
        assert {key.split("/")[1] for key in stored.keys() - backbone.keys()} == {"last", "scores"}
        assert_equal(backbone, {key: leaf for key, leaf in stored.items() if key in backbone})


def _quietly_loaded(model, path, **options):
    with warnings.catch_warnings(action="ignore"):
        return flat(load_into(model, path, **options).variables)


def test_from_the_ema_of_a_training_run(tmp_path):
    """As training stores it: the item `ema` of an Orbax checkpoint."""
    import orbax.checkpoint as ocp

    path = write(tmp_path / "30")
    ema = random_variables(CLASSIFIER, seed=1)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "ema", ema)
    (path / "checksums.json").unlink()
    with pytest.warns(UserWarning, match=DRAWN):
        loaded = load_into(SEGMENTER, path, prefer_ema=True)
    backbone = backbone_of(loaded.variables)
    assert_equal(backbone, {key: leaf for key, leaf in flat(ema).items() if key in backbone})


def test_a_merged_file(tmp_path):
    merged = Checkpoint(CLASSIFIER.clone(deploy=True), replk_jax.reparameterize(NETWORK.variables))
    with pytest.raises(ValueError, match="it is re-parameterized"):
        load_into(SEGMENTER, write(tmp_path / "merged.safetensors", merged))


class TestMergedIntoMerged:
    @pytest.mark.parametrize("name", ["own.safetensors", "folder"])
    def test_as_it_is(self, name, tmp_path):
        model = CLASSIFIER.clone(deploy=True)
        variables = replk_jax.reparameterize(NETWORK.variables)
        path = write(tmp_path / name, Checkpoint(model, variables, class_names=tuple("abcd")))
        loaded = load_into(model, path)
        assert_equal(flat(loaded.variables), flat(variables))
        assert (loaded.model, loaded.class_names) == (model, tuple("abcd"))

    def test_nothing_else(self, tmp_path):
        model = CLASSIFIER.clone(deploy=True)
        variables = replk_jax.reparameterize(NETWORK.variables)
        path = write(tmp_path / "merged.safetensors", Checkpoint(model, variables))
        with pytest.raises(ValueError, match=r"wrong shape: params/head/kernel is \(12, 4\)"):
            load_into(model.clone(num_classes=7), path, reset_head=True)
        with pytest.raises(ValueError, match="a re-parameterized RepLKNet, not a TinySegmenter"):
            load_into(SEGMENTER.clone(deploy=True), path)


def test_into_a_merged_network(tmp_path):
    path = write(tmp_path / "own.safetensors")
    with pytest.warns(UserWarning, match=DRAWN):
        training, merged = (
            load_into(SEGMENTER.clone(deploy=deploy), path).variables for deploy in (False, True)
        )
    assert_equal(flat(merged), flat(replk_jax.reparameterize(training)))


class TestFromItsOwnFile:
    @pytest.fixture
    def path(self, tmp_path):
        segmenter = Checkpoint(
            SEGMENTER, random_variables(SEGMENTER), PREPROCESSING, tuple("abcde")
        )
        return write(tmp_path / "segmenter.safetensors", segmenter)

    def test_as_it_is(self, path):
        with warnings.catch_warnings(action="error"):
            loaded = load_into(SEGMENTER, path)
        assert_equal(flat(loaded.variables), flat(random_variables(SEGMENTER)))
        assert loaded.class_names == tuple("abcde")

    def test_other_classes(self, path):
        other = SEGMENTER.clone(num_classes=7)
        with pytest.raises(ValueError, match=rf"^{path}: it has 5 classes, the model has 7: load"):
            load_into(other, path)
        layers = "auxiliary_head/conv_seg, decode_head/conv_seg"
        with pytest.warns(UserWarning, match=f"7 classes are drawn at random: {layers}"):
            loaded = load_into(other, path, reset_head=True)
        stored, found = flat(random_variables(SEGMENTER)), flat(loaded.variables)
        drawn = {key for key in found if "/conv_seg/" in key}
        assert_equal(
            {key: leaf for key, leaf in found.items() if key not in drawn},
            {key: leaf for key, leaf in stored.items() if key not in drawn},
        )
        new = flat(initial_variables(other))
        assert_equal({key: found[key] for key in drawn}, {key: new[key] for key in drawn})
        assert loaded.class_names is None

    @pytest.mark.parametrize("num_classes", [5, 7])
    @pytest.mark.filterwarnings("ignore:The weights for 5 classes")
    def test_wider_heads(self, path, num_classes):
        """Only what depends on the number of classes is drawn."""
        wider = SEGMENTER.clone(channels=8, num_classes=num_classes)
        with pytest.raises(ValueError, match=r"do not fit this TinySegmenter.*\n.*wrong shape"):
            load_into(wider, path, reset_head=True)

    def test_a_backbone_of_another_family(self, path):
        other = tiny_segmenter(replk_jax.ResNetArchitecture((1, 1), (4, 8)))
        with pytest.raises(ValueError, match="RepLKNet as its backbone, not a ResNet") as caught:
            load_into(other, path)
        assert "\n" not in str(caught.value)

    def test_a_backbone_of_another_width(self, path):
        wider = tiny_segmenter(TINY, {"channels": (8, 16)})
        with pytest.raises(ValueError, match=r"do not fit this RepLKNet:\n.*wrong shape") as caught:
            load_into(wider, path)
        assert "load_torch" not in str(caught.value)

    def test_its_backbone_is_no_classifier(self, path):
        with pytest.raises(ValueError, match=r"it holds a TinySegmenter, not a RepLKNet\."):
            load_into(CLASSIFIER, path)


@register_network
class OptionalClasses(CompositeNetwork, kw_only=True):
    """The mean of the last stage, (N, C), or with `num_classes` scores of a head on it."""

    stored_fields: ClassVar[Mapping[str, StoredField]] = CompositeNetwork.stored_fields

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        self.check_call(x)
        x = convolution(self, self.backbone(x, train)[-1], 4, 1, name="neck")
        if self.num_classes is not None:
            x = convolution(self, x, self.num_classes, 1, name="cls")
        return GlobalAveragePool()(x)


class TestBetweenClassesAndNone:
    WITHOUT = OptionalClasses(backbone=PlainNet(num_classes=None, out_indices=(0, 1)))
    WITH = WITHOUT.clone(num_classes=3)

    def test_from_none(self, tmp_path):
        saved = Checkpoint(self.WITHOUT, random_variables(self.WITHOUT), PREPROCESSING)
        path = write(tmp_path / "own.safetensors", saved)
        with pytest.raises(ValueError, match="it has no classes, the model has 3: load with"):
            load_into(self.WITH, path)
        with pytest.warns(UserWarning, match="The weights for 3 classes are drawn at random: cls"):
            loaded = load_into(self.WITH, path, reset_head=True)
        found = flat(loaded.variables)
        new = flat(initial_variables(self.WITH))
        for key in ("params/cls/kernel", "params/cls/bias"):
            np.testing.assert_array_equal(found.pop(key), new[key])
        assert_equal(found, flat(saved.variables))

    def test_to_none(self, tmp_path):
        saved = Checkpoint(self.WITH, random_variables(self.WITH), PREPROCESSING, tuple("abc"))
        path = write(tmp_path / "own.safetensors", saved)
        message = r"^The weights for 3 classes of the file are left out: cls\.$"
        with pytest.warns(UserWarning, match=message):
            loaded = load_into(self.WITHOUT, path)
        found, stored = flat(loaded.variables), flat(saved.variables)
        assert_equal(found, {key: leaf for key, leaf in stored.items() if "/cls/" not in key})
        assert loaded.class_names is None
