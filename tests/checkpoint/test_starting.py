"""A network with heads starts from a file of its backbone, or from one of its own."""

import warnings

import jax
import numpy as np
import pytest
from flax import traverse_util

import replk_jax
from replk_jax import Checkpoint, save, save_torch
from replk_jax.checkpoint import load_into
from replk_jax.vision.preprocessing import Preprocessing
from tests.helpers import TINY, random_variables
from tests.models.composite import tiny_segmenter

pytestmark = pytest.mark.usefixtures("quick_compilation")

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

    def test_its_backbone_is_no_classifier(self, path):
        with pytest.raises(ValueError, match=r"it holds a TinySegmenter, not a RepLKNet\."):
            load_into(CLASSIFIER, path)
