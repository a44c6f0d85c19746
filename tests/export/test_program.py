"""Networks as programs that need JAX alone, and what converters read."""

import json
import re
import subprocess
import sys
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import replk_jax
from replk_jax import Checkpoint, Preprocessing, export_model, save
from replk_jax.cli.main import main
from replk_jax.export.program import plain_function
from replk_jax.models import registry
from replk_jax.ops.depthwise import dispatch
from replk_jax.ops.depthwise.measurements import Measurement, Table, own_path, write
from replk_jax.vision.base_preprocessing import normalize
from tests.helpers import TINY, random_images, random_variables
from tests.miniatures import miniature, repvgg_variants
from tests.vision.test_preprocessing import Padded

pytestmark = pytest.mark.usefixtures("strict_promotion")

SIZE = 32
PREPROCESSING = Preprocessing(SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))

# A program sums in another order than the training-time network: its convolutions are merged,
# and are computed as matrix products or as sums over taps. Rounding of float32 comes to 1e-6 of
# the outputs, which are about 1; a fault in a merge or in a layout to 1e-2 and more.
TOLERANCE = dict(rtol=1e-5, atol=1e-5)

# What a user without this package writes.
LOADER = """
import sys
import jax
import numpy as np

path, images, outputs = sys.argv[1:]
with open(path, "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
images = np.load(images)
results = {name: jax.jit(program.call)(images[name]) for name in images.files}
assert not {"replk_jax", "flax", "train"} & set(sys.modules)
np.savez(outputs, **results)
"""


def make(**fields):
    return replk_jax.create_model(TINY, **{"num_classes": 4, **fields})


def custom_calls(program):
    return set(re.findall(r"custom_call @(\w+)", program.mlir_module()))


def test_runs_where_only_jax_is(tmp_path):
    """One file for any batch, in a Python that does not know this package."""
    model = make()
    variables = random_variables(model)
    program = export_model(model, variables, image_size=SIZE)
    (tmp_path / "program").write_bytes(program.serialize())
    images = {f"batch{batch}": random_images(model, batch, SIZE) for batch in (1, 3, 8)}
    np.savez(tmp_path / "images.npz", **images)
    paths = [str(tmp_path / name) for name in ("program", "images.npz", "outputs.npz")]
    subprocess.run([sys.executable, "-I", "-c", LOADER, *paths], check=True, cwd=tmp_path)
    with np.load(tmp_path / "outputs.npz") as outputs:
        assert set(outputs.files) == set(images)
        for name, batch in images.items():
            expected = jax.jit(model.apply)(variables, batch)
            np.testing.assert_allclose(outputs[name], expected, **TOLERANCE)
    assert np.ptp(expected, axis=0).min() > 0.01  # the images tell


@pytest.mark.parametrize(
    "fields",
    [
        {"num_classes": None},
        {"out_indices": (1, 0), "norm_intermediate_features": True},
        {"deploy": True},
        pytest.param({"remat": "full", "drop_path_rate": 0.5}, marks=pytest.mark.exhaustive),
        {"output_stride": 4, "out_indices": (1,)},
    ],
    ids=str,
)
def test_other_networks(fields):
    model = make(**fields)
    variables = random_variables(model)
    program = export_model(model, variables, image_size=(33, 20))
    images = random_images(model, 2, (33, 20))
    expected = jax.jit(model.apply)(variables, images)
    actual = program.call(images)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, **TOLERANCE), actual, expected)


def test_one_batch_size():
    model = make()
    program = export_model(model, random_variables(model), image_size=SIZE, batch_size=2)
    assert program.in_avals[0].shape == (2, SIZE, SIZE, 3)
    assert program.call(random_images(model, 2, SIZE)).shape == (2, 4)
    with pytest.raises(ValueError, match="shape"):
        program.call(random_images(model, 3, SIZE))


def test_takes_pixels():
    """The model, given what the preprocessing gives."""
    model = make()
    variables = random_variables(model)
    program = export_model(model, variables, image_size=SIZE, normalization=PREPROCESSING)
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    assert program.in_avals[0].dtype == jnp.uint8
    expected = jax.jit(model.apply)(
        variables, normalize(pixels, PREPROCESSING.mean, PREPROCESSING.std)
    )
    np.testing.assert_allclose(program.call(pixels), expected, **TOLERANCE)


def test_computes_in_the_models_dtype():
    """16 bits: as far from float32 as the model itself is, a few of 2^-8."""
    model = make(dtype=jnp.bfloat16)
    variables = random_variables(make())
    program = export_model(model, variables, image_size=SIZE)
    images = random_images(make(), 2, SIZE)
    assert "tensor<7x7x1x8xbf16>" in program.mlir_module()
    expected = jax.jit(make().apply)(variables, images)
    actual = program.call(images)
    assert actual.dtype == jnp.float32
    assert 0 < np.abs(actual - expected).max() < 0.05


class TestNoCustomCall:
    """But that by which JAX itself checks an open batch, when it fills it in."""

    PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

    @pytest.mark.parametrize("batch", [None, 16])
    def test_on_all_platforms(self, batch):
        model = make(kernel_sizes=(13, 7))
        program = export_model(
            model,
            random_variables(model),
            image_size=64,
            batch_size=batch,
            platforms=self.PLATFORMS,
        )
        assert program.platforms == self.PLATFORMS
        assert custom_calls(program) <= {"shape_assertion"}

    @pytest.fixture
    def hopper(self, monkeypatch, tmp_path):
        """A machine with a GPU whose table says that the kernels are fastest."""
        monkeypatch.setenv("REPLK_JAX_TABLES", str(tmp_path))
        monkeypatch.setattr(dispatch, "_device_kind", lambda platform: "a GPU")
        seconds = {"mosaic_gpu": 1.0, "dft": 2.0}
        entry = Measurement("forward", "bfloat16", 16, 8, (16, 16), (13, 13), (1, 1), seconds)
        write(Table("a GPU", {}, (entry,)), own_path("a GPU"))

    @pytest.mark.parametrize("asked", [False, True])
    def test_where_the_kernels_would_be_chosen(self, hopper, asked):
        model = make(kernel_sizes=(13, 7), dtype=jnp.bfloat16)
        program = export_model(
            model,
            random_variables(model),
            image_size=64,
            batch_size=16,
            platforms=["cuda"],
            custom_calls=asked,
        )
        assert custom_calls(program) == ({"mosaic_gpu_v2"} if asked else set())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "at least 1"),
        ({"image_size": (32, -1)}, "at least 1"),
        ({"image_size": 32, "batch_size": 0}, "batch_size=0"),
        ({"image_size": 32, "platforms": ("cpu", "gpu")}, "'gpu'"),
        ({"image_size": 32, "platforms": ()}, "got none"),
        ({"image_size": 32, "normalization": Preprocessing(32, mean=(0.5,), std=(0.5,))},
         "3 channels; the normalisation is for 1"),
    ],
)  # fmt: skip
def test_mistakes(arguments, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        export_model(model, random_variables(model), **arguments)


class TestPlainFunction:
    @pytest.mark.parametrize(
        "fields",
        [{}, {"out_indices": (0, 1), "num_classes": None}, {"small_kernel": None, "remat": "full"}],
        ids=str,
    )
    def test_computes_what_the_model_does(self, fields):
        model = make(**fields)
        variables = random_variables(model)
        function = plain_function(model, variables)
        images = random_images(model, 2, SIZE)
        expected = jax.jit(model.apply)(variables, images)
        actual = function(images)
        assert jax.tree.structure(actual) == jax.tree.structure(expected)
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, **TOLERANCE), actual, expected)

    def test_has_no_primitive_of_this_package(self):
        model = make()
        function = plain_function(model, random_variables(model), normalization=PREPROCESSING)
        pixels = jnp.zeros((2, SIZE, SIZE, 3), jnp.uint8)
        names = {equation.primitive.name for equation in jax.make_jaxpr(function)(pixels).eqns}
        assert "conv_general_dilated" in names
        assert not names & {"depthwise_conv2d_forward", "materialize", "jit", "custom_jvp_call"}


ONNX_ARCHITECTURES = {"RepLKNet": TINY, **repvgg_variants()} | {
    name: miniature(registry.ARCHITECTURES[name])
    for name in ("repvgg_d2se", "mobilenet_v2_13_reparam", "resnet_101")
}


# Other kinds of blocks are merged to the same network.
DIFFERENT_WHEN_MERGED = ("repvgg residual", "repvgg relu_in_branches")


@pytest.mark.parametrize("fields", [{"num_classes": 4}, {"out_indices": (1, 0)}], ids=str)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.exhaustive)
        if name in repvgg_variants() and name not in DIFFERENT_WHEN_MERGED
        else name
        for name in ONNX_ARCHITECTURES
    ],
)
def test_onnx(tmp_path, name, fields):
    """The steps of the README: the same outputs in ONNX Runtime, for any batch."""
    reason = "ONNX needs the extra of that name: pip install 'replk-jax[onnx]'"
    jax2onnx = pytest.importorskip("jax2onnx", reason=reason)
    onnxruntime = pytest.importorskip("onnxruntime", reason=reason)
    model = replk_jax.create_model(ONNX_ARCHITECTURES[name], **fields)
    variables = random_variables(model)
    path = str(tmp_path / "network.onnx")
    with jax.numpy_rank_promotion("allow"):  # which jax2onnx does, in the place of Flax's layers
        jax2onnx.to_onnx(
            plain_function(model, variables),
            [("batch", SIZE, SIZE, 3)],
            return_mode="file",
            output_path=path,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        images = random_images(model, batch, SIZE)
        actual = session.run(None, {session.get_inputs()[0].name: images})
        expected = jax.tree.leaves(jax.jit(model.apply)(variables, images))
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


@pytest.mark.usefixtures("printed_warnings")
class TestCommandLine:
    @pytest.fixture
    def weights(self, tmp_path):
        model = make()
        network = Checkpoint(model, random_variables(model), PREPROCESSING, tuple("abcd"))
        save(tmp_path / "weights.safetensors", network)
        return str(tmp_path / "weights.safetensors")

    @pytest.fixture
    def out(self, tmp_path):
        (tmp_path / "out").mkdir()
        return tmp_path / "out" / "network.jaxexport"

    def test_writes_a_program_and_its_description(self, weights, out, capsys):
        main(["export", weights, str(out)])
        printed = capsys.readouterr().out
        assert str(out) in printed
        assert sorted(path.name for path in out.parent.iterdir()) == [out.name, f"{out.name}.json"]
        program = jax.export.deserialize(bytearray(out.read_bytes()))
        model = make()
        images = random_images(model, 3, SIZE)
        expected = jax.jit(model.apply)(random_variables(model), images)
        np.testing.assert_allclose(program.call(images), expected, **TOLERANCE)
        description = json.loads(out.with_name(f"{out.name}.json").read_text())
        assert description["program"] == {
            "images": {"shape": ["batch", SIZE, SIZE, 3], "dtype": "float32"},
            "outputs": [{"shape": ["batch", 4], "dtype": "float32"}],
            "platforms": ["cpu", "cuda"],
            "jax": jax.__version__,
        }
        assert Preprocessing.from_dict(description["preprocessing"]) == PREPROCESSING
        assert description["class_names"] == list("abcd")
        assert description["model"]["deploy"]

    def test_options(self, weights, out):
        options = "--image-size 40 --batch-size 2 --platforms cpu --dtype bfloat16 --normalize"
        main(["export", weights, str(out), *options.split()])
        program = jax.export.deserialize(bytearray(out.read_bytes()))
        assert program.platforms == ("cpu",)
        (images,) = program.in_avals
        assert (images.shape, images.dtype) == ((2, 40, 40, 3), jnp.uint8)
        description = json.loads(out.with_name(f"{out.name}.json").read_text())
        assert description["preprocessing"]["image_size"] == 40

    def test_preprocessing_without_one_size(self, out, tmp_path, capsys):
        """And a network that cannot be merged, which the description says."""
        architecture = replk_jax.RepVGGArchitecture((1,), (4, 4), block="relu_in_branches")
        model = replk_jax.create_model(architecture, num_classes=2, in_channels=1)
        path = str(tmp_path / "padded.safetensors")
        save(path, Checkpoint(model, random_variables(model), Padded(8)))
        with pytest.raises(SystemExit):
            main(["export", path, str(out)])
        assert "images of different sizes" in capsys.readouterr().err
        main(["export", path, str(out), "--image-size", "16", "--platforms", "cpu"])
        description = json.loads(out.with_name(f"{out.name}.json").read_text())
        assert description["program"]["images"]["shape"] == ["batch", 16, 16, 1]
        assert description["preprocessing"] == Padded(8).as_dict()
        assert description["model"]["deploy"] is False

    def test_warns_of_weights_that_diverged(self, out, tmp_path, capsys, monkeypatch):
        model = make()
        variables = random_variables(model)
        variables["params"]["head"]["bias"][0] = np.nan
        save(tmp_path / "nan.safetensors", Checkpoint(model, variables, PREPROCESSING))

        def stop(*_, **__):
            raise ValueError("enough for this test")

        monkeypatch.setattr("replk_jax.cli.export.export_model", stop)
        with pytest.raises(SystemExit):
            main(["export", str(tmp_path / "nan.safetensors"), str(out)])
        warning, _ = capsys.readouterr().err.splitlines()
        assert warning.startswith("warning: One tensor has NaN or infinite values")
        assert "it is params/head/bias." in warning

    def test_replaces_nothing_unasked(self, weights, out, capsys):
        beside = out.with_name(f"{out.name}.json")
        for taken in (out, beside):
            taken.write_text("mine")
            with pytest.raises(SystemExit):
                main(["export", weights, str(out)])
            assert f"{taken} exists already; --force" in capsys.readouterr().err
            assert [path.read_text() for path in out.parent.iterdir()] == ["mine"]
            taken.unlink()
        out.write_text("mine")
        main(["export", weights, str(out), "--force"])
        assert jax.export.deserialize(bytearray(out.read_bytes())).platforms == ("cpu", "cuda")

    def test_leaves_nothing_where_it_fails(self, weights, out, monkeypatch):
        def fail(*_, **__):
            raise OSError("no space left")

        monkeypatch.setattr("os.fsync", fail)
        with pytest.raises(SystemExit):
            main(["export", weights, str(out)])
        assert not list(out.parent.iterdir())

    def test_images_of_which_nothing_is_known(self, tmp_path, out, capsys):
        model = make()
        save(tmp_path / "bare.safetensors", Checkpoint(model, random_variables(model)))
        weights = str(tmp_path / "bare.safetensors")
        for options in ([], ["--image-size", "32", "--normalize"]):
            with pytest.raises(SystemExit):
                main(["export", weights, str(out), *options])
            assert "does not record the image size and normalisation" in capsys.readouterr().err
        main(["export", weights, str(out), "--image-size", "32"])
        assert out.exists()
        like = ["--like", "RepLKNet-XL_MegData73M_ImageNet1K", "--normalize", "--force"]
        main(["export", weights, str(out), "--image-size", "32", *like])
        description = json.loads(out.with_name(f"{out.name}.json").read_text())
        assert description["preprocessing"]["mean"] == [0.5] * 3
        assert description["preprocessing"]["image_size"] == 32


@pytest.mark.parametrize("export", [partial(export_model, image_size=SIZE), plain_function])
@pytest.mark.parametrize(("name", "value"), [("mean", np.nan), ("mean", np.inf), ("var", -1.0)])
def test_weights_that_are_not_finite(export, name, value):
    """Before the merge, or after it: the square root of a negative variance."""
    model = make()
    variables = random_variables(model)
    variables["batch_stats"]["norm"][name][3] = value
    with pytest.raises(
        ValueError, match=r"merged weights are NaN or infinite, the first in params"
    ):
        export(model, variables)
