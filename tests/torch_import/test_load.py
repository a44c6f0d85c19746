"""From PyTorch files to models that compute what the official code does."""

import functools
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import replk_jax
from replk_jax.torch_import import infer_architecture, load_torch, save_torch
from replk_jax.torch_import.convert import to_state_dict
from replk_jax.torch_import.reader import read
from replk_jax.torch_import.replknet import infer_model, official_names
from replk_jax.torch_import.structures import Structure
from replk_jax.torch_import.writer import write_torch
from tests import reference_data
from tests.helpers import TINY, random_variables

FOLDER = reference_data.ROOT / "checkpoints"


def expected(name):
    return reference_data.arrays("checkpoints/expected.npz")[name]


@functools.partial(jax.jit, static_argnums=0)
def run(model, variables, x):
    return model.apply(variables, x)


def assert_computes(model, variables, name):
    """1e-5 of the largest logit: rounding in float32, and a tenth of the least slip."""
    wanted = expected(name)
    x = reference_data.nhwc(expected("x"))
    actual = run(model, variables, x)
    np.testing.assert_allclose(actual, wanted, atol=1e-5 * max(1, np.abs(wanted).max()))


PLAIN = (
    "bare.pth under_model.pth under_state_dict_module.pth under_model_module.pth mmpretrain.pth "
    "mmpretrain_bare.pth training.pth legacy_bare.pth legacy_training.pth from_gpu.pth "
    "channels_last.pth parameters.pth older_zip.pth one_storage.pth bare.safetensors "
    "mmpretrain.safetensors"
)
LOGITS = dict.fromkeys(PLAIN.split(), "logits") | {
    "float16.pth": "logits_float16",
    "bfloat16.pth": "logits_bfloat16",
    "bfloat16.safetensors": "logits_bfloat16",
    "float64.pth": "logits_float64",
    "deploy.pth": "logits_deploy",
    "deep_fused.pth": "logits_deep_fused",
}


@reference_data.required
class TestOneModelInManyWrappers:
    @pytest.mark.parametrize(("file", "logits"), LOGITS.items())
    def test_logits(self, file, logits):
        model, variables = load_torch(FOLDER / file)
        assert model.deploy == (file in ("deploy.pth", "deep_fused.pth"))
        assert_computes(model, variables, logits)

    @pytest.mark.parametrize("file", ["training.pth", "legacy_training.pth"])
    def test_moving_average(self, file):
        assert_computes(*load_torch(FOLDER / file, prefer_ema=True), "logits_ema")

    def test_no_moving_average(self):
        with pytest.raises(ValueError, match=r"under_model\.pth: there is no EMA"):
            load_torch(FOLDER / "under_model.pth", prefer_ema=True)

    def test_backbone_of_a_segmenter(self):
        with pytest.warns(UserWarning, match="3 tensors of other networks are left out"):
            model, variables = load_torch(FOLDER / "mmseg_backbone.pth")
        maps = jax.jit(model.apply)(variables, reference_data.nhwc(expected("x")))
        assert len(maps) == 4
        for s, actual in enumerate(maps):
            wanted = reference_data.nhwc(expected(f"backbone_out{s}"))
            np.testing.assert_allclose(actual, wanted, atol=1e-5 * max(1, np.abs(wanted).max()))
        found = infer_architecture(FOLDER / "mmseg_backbone.pth")
        assert found.ignored
        assert not any(key.startswith("backbone.") for key in found.ignored)
        assert f"left out: {len(found.ignored)} tensors" in str(found)

    @pytest.mark.parametrize("file", LOGITS)
    def test_architecture(self, file):
        """A merged file does not tell of its small kernels."""
        arch = json.loads((FOLDER / "files.json").read_text())["arch"]
        found = infer_architecture(FOLDER / file)
        merged = found.structure is not Structure.TRAINING
        wanted = replk_jax.RepLKNetArchitecture(
            arch["large_kernel_sizes"],
            arch["layers"],
            arch["channels"],
            small_kernel=None if merged else arch["small_kernel"],
        )
        assert found.model.architecture == wanted
        assert found.model.num_classes == arch["num_classes"]
        assert found.model.deploy == merged
        assert found.naming == ("mmpretrain" if "mmpretrain" in file else "official")
        assert found.name is None

    def test_every_fault_is_named(self):
        """Told apart by the whole of the architecture, so the model of the right file is given."""
        model, _ = load_torch(FOLDER / "bare.pth")
        with pytest.raises(ValueError, match=r"wrong_keys\.pth: ") as caught:
            load_torch(FOLDER / "wrong_keys.pth", model)
        message = str(caught.value)
        assert "missing: stages.2.blocks.0.large_kernel.small_conv.bn.running_var" in message
        assert "wrong shape: stages.0.blocks.0.pw1.conv.weight" in message
        assert "not in the model: surplus.weight" in message
        assert message.count("\n") == 3

    def test_faults_without_a_model(self):
        with pytest.raises(ValueError, match=r"wrong_keys\.pth: "):
            load_torch(FOLDER / "wrong_keys.pth")

    @pytest.mark.parametrize("file", sorted(p.name for p in FOLDER.glob("refuse_*")))
    def test_refused(self, file, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match=file):
            load_torch(FOLDER / file)
        assert not list(tmp_path.iterdir())


SMALL = [
    f"{name}.{form}.pth"
    for name in reference_data.small_cases()
    for form in ("train", "deploy", "deep_fused", "mmpretrain")
    if (reference_data.ROOT / f"small/{name}.{form}.pth").exists()
]


@reference_data.required
@pytest.mark.parametrize("file", SMALL)
def test_architectures_of_the_small_models(file):
    name, form, _ = file.split(".")
    arch = reference_data.small_cases()[name]["arch"]
    model = infer_architecture(reference_data.ROOT / "small" / file).model
    merged = form in ("deploy", "deep_fused")
    wanted = replk_jax.RepLKNetArchitecture(
        arch["large_kernel_sizes"],
        arch["layers"],
        arch["channels"],
        small_kernel=None if merged else arch["small_kernel"],
        dw_ratio=arch.get("dw_ratio", 1.0),
        ffn_ratio=arch.get("ffn_ratio", 4.0),
    )
    assert model.architecture == wanted
    assert model.num_classes == arch.get("num_classes")
    assert model.norm_intermediate_features == arch.get("norm_intermediate_features", False)
    assert (model.out_indices is not None) == bool(arch.get("out_indices"))
    assert model.deploy == merged


class Shaped:
    def __init__(self, shape):
        self.shape = shape


@reference_data.required
@pytest.mark.parametrize(
    "file", [f for f in reference_data.manifest_index() if f.startswith("replknet")]
)
def test_full_models_by_name(file):
    name, naming, form, _ = file.split(".")
    weights = {key: Shaped(shape) for key, shape, _ in reference_data.manifest(file)}
    if naming == "mmpretrain":
        weights = {key.removeprefix("backbone."): value for key, value in weights.items()}
    weights, told = official_names(weights)
    model = infer_model(weights)
    assert told == naming
    assert model.architecture == replk_jax.create_model(name).architecture
    assert model.deploy == ("deploy" in form)
    assert model.num_classes == (None if "backbone" in form else 1000)
    assert model.norm_intermediate_features == ("backbone" in form)


@pytest.fixture(scope="module")
def tiny():
    model = replk_jax.create_model(TINY, num_classes=4)
    return model, random_variables(model)


@pytest.fixture
def tiny_file(tiny, tmp_path):
    model, variables = tiny
    path = tmp_path / "tiny.pth"
    save_torch(variables, model, path)
    return path


class TestHead:
    def test_another_number_of_classes_is_refused(self, tiny_file):
        with pytest.raises(ValueError, match=r"has 4 classes, the model has 7: .*reset_head=True"):
            load_torch(tiny_file, num_classes=7)

    def test_reset(self, tiny, tiny_file):
        with pytest.warns(UserWarning, match="has 4 classes, is left out, and one of 7"):
            model, variables = load_torch(tiny_file, num_classes=7, reset_head=True)
        head = variables["params"].pop("head")
        assert model.num_classes == 7
        assert head["kernel"].shape == (12, 7)
        assert 0 < np.abs(head["kernel"]).max() <= 12**-0.5
        wanted = {**tiny[1]["params"]}
        wanted.pop("head")
        jax.tree.map(np.testing.assert_array_equal, variables["params"], wanted)

    def test_the_same_number_is_kept(self, tiny, tiny_file):
        _, variables = load_torch(tiny_file, num_classes=4, reset_head=True)
        np.testing.assert_array_equal(
            variables["params"]["head"]["kernel"], tiny[1]["params"]["head"]["kernel"]
        )

    def test_seed(self, tiny_file):
        heads = []
        for seed in (0, 0, 1):
            with pytest.warns(UserWarning, match="drawn at random"):
                _, variables = load_torch(tiny_file, num_classes=7, reset_head=True, seed=seed)
            heads.append(variables["params"]["head"]["kernel"])
        np.testing.assert_array_equal(heads[0], heads[1])
        assert (heads[0] != heads[2]).any()

    def test_left_out_for_a_model_without(self, tiny, tiny_file):
        _, variables = load_torch(tiny_file, tiny[0].clone(num_classes=None))
        assert "head" not in variables["params"]
        assert "norm" in variables["params"]
        _, variables = load_torch(tiny_file, tiny[0].clone(out_indices=(0, 1)))
        assert not {"head", "norm"} & variables["params"].keys()

    def test_a_backbone_has_none(self, tiny, tmp_path):
        model = tiny[0].clone(num_classes=None)
        path = tmp_path / "features.pth"
        save_torch(random_variables(model), model, path)
        assert load_torch(path)[0].num_classes is None
        with pytest.raises(ValueError, match="its classifier is not there"):
            load_torch(path, num_classes=5)
        with pytest.warns(UserWarning, match="which is not there"):
            load_torch(path, num_classes=5, reset_head=True)


class TestNormOfTheLastStage:
    """The same tensors are a classifier's final norm, which mmpretrain keeps in the last stage, and
    the norm of the last stage of a backbone."""

    @pytest.fixture
    def backbone(self, tiny):
        last = len(TINY.layers) - 1
        model = tiny[0].clone(out_indices=(last,), norm_intermediate_features=True)
        return model, random_variables(model)

    def test_round_trip(self, backbone, tmp_path):
        model, variables = backbone
        save_torch(variables, model, tmp_path / "backbone.pth")
        _, loaded = load_torch(tmp_path / "backbone.pth", model)
        jax.tree.map(np.testing.assert_array_equal, loaded, variables)

    def test_of_a_classifier(self, tiny, backbone, tmp_path):
        save_torch(tiny[1], tiny[0], tmp_path / "classifier.pth")
        _, loaded = load_torch(tmp_path / "classifier.pth", backbone[0])
        wanted = tiny[1]["params"]["norm"]
        norm = loaded["params"][f"stages_{len(TINY.layers) - 1}"]["norm"]
        jax.tree.map(np.testing.assert_array_equal, norm, wanted)

    def test_of_a_backbone(self, tiny, backbone, tmp_path):
        model, variables = backbone
        save_torch(variables, model, tmp_path / "backbone.pth")
        _, loaded = load_torch(tmp_path / "backbone.pth", tiny[0].clone(num_classes=None))
        wanted = variables["params"][f"stages_{len(TINY.layers) - 1}"]["norm"]
        jax.tree.map(np.testing.assert_array_equal, loaded["params"]["norm"], wanted)


class TestStructures:
    def test_re_parameterized_on_the_way(self, tiny, tiny_file):
        _, variables = load_torch(tiny_file, tiny[0].clone(deploy=True))
        jax.tree.map(np.testing.assert_array_equal, variables, replk_jax.reparameterize(tiny[1]))

    def test_merged_weights_cannot_be_unmerged(self, tiny, tmp_path):
        path = tmp_path / "merged.pth"
        save_torch(tiny[1], tiny[0], path, merged=True)
        with pytest.raises(ValueError, match="merged network, from which"):
            load_torch(path, tiny[0])
        model, variables = load_torch(path)
        assert model.deploy
        x = jnp.ones((1, 32, 32, 3))
        np.testing.assert_allclose(  # rounding in float32
            model.apply(variables, x), tiny[0].apply(tiny[1], x), atol=1e-4
        )

    def test_dtypes(self, tiny, tiny_file):
        _, variables = load_torch(tiny_file, tiny[0].clone(param_dtype=jnp.bfloat16))
        assert variables["params"]["stem_0"]["conv"]["kernel"].dtype == jnp.bfloat16
        assert variables["batch_stats"]["stem_0"]["bn"]["var"].dtype == jnp.float32


class TestSave:
    @pytest.mark.parametrize("ending", ["pth", "pt", "bin", "safetensors"])
    def test_round_trip_is_exact(self, tiny, tmp_path, ending):
        path = tmp_path / f"saved.{ending}"
        save_torch(tiny[1], tiny[0], path)
        model, variables = load_torch(path)
        assert model == tiny[0]
        jax.tree.map(np.testing.assert_array_equal, variables, tiny[1])

    @reference_data.required
    @pytest.mark.parametrize("file", ["bare.pth", "mmseg_backbone.pth", "mmpretrain.safetensors"])
    def test_what_was_loaded_is_saved_unchanged(self, tmp_path, file):
        """But for the counters."""
        with warnings.catch_warnings(action="ignore"):  # of what else is in a segmenter
            model, variables = load_torch(FOLDER / file)
        save_torch(variables, model, tmp_path / "again.pth")
        wanted = reference_data.arrays("checkpoints/weights.npz")
        again = read(tmp_path / "again.pth")
        if file != "mmseg_backbone.pth":
            assert again.keys() == wanted.keys()
        for key, tensor in again.items():
            if key.endswith("num_batches_tracked"):
                assert tensor.read() == 0
            elif not key.endswith(("norm.weight", "norm.bias")) and key in wanted:
                np.testing.assert_array_equal(tensor.read(), wanted[key])

    @reference_data.required
    @pytest.mark.parametrize(
        ("file", "fields"),
        [
            ("replknet_31b.official.train.json", {}),
            pytest.param("replknet_31l.official.train.json", {}, marks=pytest.mark.exhaustive),
            pytest.param("replknet_xl.official.train.json", {}, marks=pytest.mark.exhaustive),
            (
                "replknet_xl.official.backbone_train.json",
                {"out_indices": (0, 1, 2, 3), "norm_intermediate_features": True},
            ),
            ("replknet_31b.official.deploy.json", {}),
        ],
    )
    def test_manifests(self, file, fields):
        """Names, shapes, dtypes and order of the full models' tensors."""
        name, _, form, _ = file.split(".")
        model = replk_jax.create_model(name, **fields)
        variables = jax.tree.map(
            lambda leaf: np.broadcast_to(np.ones((), leaf.dtype), leaf.shape),
            replk_jax.models.variables.abstract_variables(model),
        )
        state_dict = to_state_dict(variables, model, merged=form == "deploy")
        actual = [(key, value.shape, value.dtype.name) for key, value in state_dict.items()]
        assert actual == reference_data.manifest(file)

    def test_torch_loads_it(self, tiny, tiny_file):
        torch = pytest.importorskip("torch")
        loaded = torch.load(tiny_file, weights_only=True)
        wanted = reference_data.by_official_name(tiny[1])
        for key, value in wanted.items():
            np.testing.assert_array_equal(loaded[key].numpy(), value)
        counters = loaded.keys() - wanted.keys()
        assert all(key.endswith("num_batches_tracked") for key in counters)
        assert len(counters) == sum(key.endswith("running_var") for key in wanted)

    def test_errors(self, tiny, tmp_path):
        model, variables = tiny
        with pytest.raises(ValueError, match="no structure without batch norms"):
            save_torch(variables, model.clone(deploy=True), tmp_path / "x.pth")
        with pytest.raises(ValueError, match=r"x\.onnx: the name must end in"):
            save_torch(variables, model, tmp_path / "x.onnx")
        with pytest.raises(ValueError, match=r"wrong shape: head\.weight is \(4, 12\)"):
            save_torch(variables, model.clone(num_classes=5), tmp_path / "x.pth")
        assert not list(tmp_path.iterdir())


def renamed(state_dict, change):
    return {change(key): value for key, value in state_dict.items()}


class TestNames:
    """With the tiny network, in the names that are not in the reference data."""

    @pytest.fixture
    def official(self, tiny):
        return to_state_dict(tiny[1], tiny[0])

    @pytest.mark.parametrize(
        "change",
        [
            lambda key: key,
            lambda key: f"module.{key}",
            lambda key: f"_orig_mod.module.{key}",
            lambda key: f"model.backbone.{key}",
            lambda key: key if key.startswith("head.") else f"backbone.{key}",
        ],
    )
    def test_prefixes(self, tiny, official, tmp_path, change):
        write_torch(tmp_path / "renamed.pth", renamed(official, change))
        model, variables = load_torch(tmp_path / "renamed.pth")
        assert model == tiny[0]
        jax.tree.map(np.testing.assert_array_equal, variables, tiny[1])

    @pytest.mark.parametrize("counter", ["n_averaged", "steps"])
    def test_averages_with_a_counter(self, tiny, official, tmp_path, counter):
        average = {counter: np.int64(7), **renamed(official, lambda key: f"module.{key}")}
        write_torch(tmp_path / "average.pth", average)
        assert load_torch(tmp_path / "average.pth")[0] == tiny[0]

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (
                lambda w: w.update({"head.fc.weight": w["head.weight"]}),
                "two tensors would have the same",
            ),
            (lambda w: w.update({"stem.0.bn.extra": np.ones(3)}), "not in the model: stem.0.bn.ex"),
            (lambda w: w.pop("head.weight"), r"head\.weight is missing"),
            (lambda w: w.update({"head.weight": np.float32(1)}), "kernel of 2 dimensions"),
            (lambda w: w.update({"backbone.stem.0.bn.bias": np.ones(8)}), "with and without"),
            (
                lambda w: w.update({"stages.0.blocks.0.pw2.conv.weight": np.ones((0, 8, 1, 1))}),
                "kernel of 4 dimensions",
            ),
            (
                lambda w: w.update({f"stages.0.blocks.{i}.x": np.ones(1) for i in range(2001)}),
                "is not believed",
            ),
        ],
    )
    def test_faults(self, official, tmp_path, change, reason):
        weights = dict(official)
        change(weights)
        write_torch(tmp_path / "faulty.pth", weights)
        with pytest.raises(ValueError, match=reason) as caught:
            load_torch(tmp_path / "faulty.pth")
        assert str(caught.value).startswith(str(tmp_path / "faulty.pth"))

    def test_a_classifier_of_no_shape(self, tiny, official, tmp_path):
        write_torch(tmp_path / "faulty.pth", {**official, "head.weight": np.float32(1)})
        with pytest.raises(ValueError, match=r"wrong shape: head\.weight is \(\), the model has"):
            load_torch(tmp_path / "faulty.pth", tiny[0])

    def test_a_backbone_gets_no_classifier(self, tiny, tmp_path):
        model = tiny[0].clone(num_classes=None, out_indices=(0, 1))
        save_torch(random_variables(model), model, tmp_path / "backbone.pth")
        with pytest.raises(ValueError, match="needs a classifier, and the model is a backbone"):
            load_torch(tmp_path / "backbone.pth", num_classes=5, reset_head=True)


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ({}, "an empty dictionary"),
        ({"epoch": np.int64(3)}, "known here, which are RepLKNet, RepVGG, MobileNetV2 and ResNet"),
        ({"stem.0.conv.weight": np.ones((8, 3, 3, 3), np.float32)}, "known here, which are RepLK"),
        (
            {
                "stem.0.conv.weight": np.ones((8, 3, 3, 3), np.float32),
                "stages.0.blocks.0.pw2.conv.weight": np.ones((8, 8, 1, 1), np.float32),
            },
            r"lkb_origin\.conv\.weight is missing, which in a RepLKNet is a kernel of 4 dim",
        ),
    ],
)
def test_other_files(contents, reason, tmp_path):
    path = tmp_path / "other.pth"
    write_torch(path, contents)
    with pytest.raises(ValueError, match=reason) as caught:
        load_torch(path)
    assert str(caught.value).startswith(str(path))
