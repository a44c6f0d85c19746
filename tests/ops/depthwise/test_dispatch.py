"""Which implementation is chosen, why, and what users can do about it."""

import dataclasses
import inspect
import json
import os
import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from replk_jax import depthwise_conv2d
from replk_jax.ops import explain
from replk_jax.ops.depthwise import measurements, shapes
from replk_jax.ops.depthwise.dispatch import IMPLEMENTATIONS, Case
from replk_jax.ops.depthwise.implementation import (
    DIRECTIONS,
    Estimate,
    Implementation,
    Properties,
    RequiredGPU,
)
from replk_jax.ops.depthwise.measurements import Measurement, Table
from tests.helpers import data_mesh

LAYER = shapes.REPLKNET_224[0].convolution


def measured(seconds, direction="forward", size=56, kernel=31, stride=1, batch=4, channels=128):
    return Measurement(
        direction,
        "float32",
        batch,
        channels,
        (size, size),
        (kernel, kernel),
        (stride, stride),
        seconds,
    )


@pytest.fixture
def own_table(tmp_path, monkeypatch):
    """Writes the user's own table of the CPU."""
    monkeypatch.setenv("REPLK_JAX_TABLES", str(tmp_path))

    def write(*entries, **unusable):
        path = measurements.own_path("cpu")
        measurements.write(Table("cpu", {"note": "invented"}, entries, unusable), path)
        return path

    return write


def fastest(direction="forward", convolution=LAYER, batch=4, channels=128, platform="cpu"):
    return (
        Case(convolution, batch, channels, jnp.dtype("float32"), platform).fastest(direction).name
    )


@pytest.fixture
def hopper(monkeypatch):
    """A convolution for a Hopper GPU whose table is the CPU's, for a batch that its kernels are
    made for."""
    monkeypatch.setattr("replk_jax.ops.depthwise.dispatch._device_kind", lambda platform: "cpu")
    return Case(LAYER, 64, 128, jnp.dtype("bfloat16"), "cuda")


class TestTable:
    def test_the_users_own_goes_before_the_packages(self, own_table):
        own_table(measured({"xla": 1.0, "dft": 2.0}))
        assert fastest() == "xla"
        own_table(measured({"xla": 2.0, "dft": 1.0, "shift": 3.0}))
        assert fastest() == "dft"

    def test_is_used_by_the_operator(self, own_table):
        x, kernel = jnp.ones((1, 12, 12, 2)), jnp.ones((3, 3, 1, 2))
        own_table(*(measured({"dft": 1.0}, direction=direction) for direction in DIRECTIONS))
        # A function of its own, since JAX remembers what it has lowered before.
        text = jax.jit(lambda x: depthwise_conv2d(x, kernel)).lower(x).as_text()
        assert "stablehlo.dot_general" in text
        assert "stablehlo.convolution" not in text

    def test_a_devices_part_of_the_batch_decides_on_a_mesh(self, own_table):
        """Where every device computes its part by itself: here XLA's convolution for 16 images,
        another for 2."""
        own_table(
            measured({"xla": 1.0}, size=12, kernel=3, batch=16, channels=2),
            measured({"dft": 1.0}, size=12, kernel=3, batch=2, channels=2),
        )
        x, kernel = jnp.ones((16, 12, 12, 2)), jnp.ones((3, 3, 1, 2))
        by_batch = NamedSharding(data_mesh(8), PartitionSpec("data"))

        def text(**sharding):
            function = jax.jit(lambda x: depthwise_conv2d(x, kernel), **sharding)
            return function.lower(x).compile().as_text()

        assert " convolution(" in text()
        assert " convolution(" not in text(in_shardings=by_batch)

    def test_nearest_entry_decides(self, own_table):
        own_table(
            measured({"shift": 1.0, "dft": 2.0}, kernel=5),
            measured({"shift": 2.0, "dft": 1.0}, kernel=31),
            measured({"xla": 1.0, "dft": 2.0, "shift": 3.0}, kernel=5, stride=2),
            measured({"toeplitz": 1.0, "dft": 2.0}, size=7, kernel=13),
            measured({"dft": 2.0, "xla": 1.0}, direction="kernel_gradient"),
        )
        for size, kernel, stride, name in [
            (56, 7, 1, "shift"),
            (56, 21, 1, "dft"),
            (48, 3, 2, "xla"),
            (6, 11, 1, "toeplitz"),
        ]:
            shape = shapes.Shape("", (size, size), (kernel, kernel), 128, stride)
            assert fastest(convolution=shape.convolution) == name, (size, kernel, stride)
        assert fastest("kernel_gradient") == "xla"

    def test_skips_what_cannot_compute_the_case(self, own_table):
        """The nearest entry has only the Toeplitz matrix, which is for small maps."""
        own_table(measured({"toeplitz": 1.0}), measured({"dft": 1.0}, kernel=3, size=7))
        assert fastest() == "dft"

    def test_a_file_that_is_no_table(self, own_table):
        path = own_table()
        path.write_text('{"device": "cpu"}')
        with pytest.raises(ValueError, match=r"cpu\.json is not a table.*--tune"):
            fastest()

    def test_an_older_file(self, own_table):
        """With the former name of the direction, and without what is unusable."""
        path = own_table(measured({"xla": 1.0}))
        content = json.loads(path.read_text())
        del content["unusable"]
        for entry in content["measurements"]:
            entry["role"] = entry.pop("direction")
        path.write_text(json.dumps(content))
        assert measurements._read(path, 0).measurements == (measured({"xla": 1.0}),)

    def test_survives_an_interrupted_write(self, own_table, monkeypatch):
        own_table(measured({"xla": 1.0}))

        def interrupted(_):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            own_table(measured({"dft": 1.0}))
        assert fastest() == "xla"

    def test_tables_of_the_package(self):
        paths = list(measurements.PACKAGED.glob("*.json"))
        assert paths
        for path in paths:
            table = measurements._read(path, 0)
            assert {each.direction for each in table.measurements} == set(DIRECTIONS)
            assert {"date", "jax"} <= table.setting.keys()
            for each in table.measurements:
                assert each.seconds.keys() <= IMPLEMENTATIONS.keys()
                assert min(each.seconds.values()) > 0


class TestUnmeasuredDevice:
    """By arithmetic and bandwidth."""

    @pytest.mark.parametrize(
        ("shape", "name"),
        [
            (shapes.REPLKNET_224[0], "dft"),
            (shapes.REPLKNET_224[3], "toeplitz"),
            (shapes.SMALL[0], "xla"),
            (shapes.SMALL[1], "xla"),
        ],
        ids=lambda value: getattr(value, "name", value),
    )
    def test_choice(self, shape, name):
        assert fastest(convolution=shape.convolution, platform="tpu") == name


class TestPortable:
    """On a Hopper GPU, for a batch that its kernels are made for."""

    @pytest.fixture
    def case(self, own_table, hopper):
        seconds = {"mosaic_gpu": 1.0, "dft": 2.0, "xla": 3.0}
        own_table(*(measured(seconds, direction=each, batch=64) for each in DIRECTIONS))
        return hopper

    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_is_the_fastest_without_a_custom_call(self, case, direction):
        assert case.choose(None, direction).name == "mosaic_gpu"
        assert case.choose("portable", direction).name == "dft"
        assert case.choose("mosaic_gpu", direction).name == "mosaic_gpu"

    def test_is_looked_up_as_well(self, case, own_table):
        own_table(measured({"mosaic_gpu": 1.0, "toeplitz": 2.0, "xla": 3.0, "dft": 4.0}, batch=64))
        assert case.choose(None, "forward").name == "mosaic_gpu"
        assert case.choose("portable", "forward").name == "xla"  # toeplitz is for small maps

    def test_computes(self):
        x = jax.random.normal(jax.random.key(0), (1, 12, 12, 2))
        kernel = jax.random.normal(jax.random.key(1), (9, 9, 1, 2))
        y = depthwise_conv2d(x, kernel, implementation="portable")
        expected = depthwise_conv2d(x, kernel, implementation="xla")
        assert jnp.allclose(y, expected, rtol=1e-5, atol=1e-4)


class TestCustomCalls:
    """Kernels of this package are chosen only where they were measured and are faster."""

    @pytest.mark.parametrize("batch", [1, 16, 64])
    @pytest.mark.parametrize("shape", [*shapes.REPLKNET_224, *shapes.REPLKNET_384])
    def test_not_without_a_table(self, shape, batch):
        case = Case(shape.convolution, batch, shape.channels, jnp.dtype("bfloat16"), "cuda")
        for direction in DIRECTIONS:
            chosen = IMPLEMENTATIONS[case.choose(None, direction).name]
            assert not chosen.PROPERTIES.custom_calls

    def test_not_where_others_were_measured(self, own_table, hopper):
        own_table(measured({"dft": 2.0, "xla": 1.0}, batch=64))
        assert hopper.choose(None, "forward").name == "xla"
        assert "--tune" in hopper.only_by_name()["mosaic_gpu"]

    def test_not_where_they_are_slower(self, own_table, hopper):
        own_table(measured({"mosaic_gpu": 2.0, "dft": 1.0}, batch=64))
        assert hopper.choose(None, "forward").name == "dft"
        assert "mosaic_gpu" not in hopper.only_by_name()

    def test_where_they_are_faster(self, own_table, hopper):
        own_table(measured({"mosaic_gpu": 1.0, "dft": 2.0}, batch=64))
        assert hopper.choose(None, "forward").name == "mosaic_gpu"

    def test_named(self, hopper):
        assert hopper.choose("mosaic_gpu", "forward").name == "mosaic_gpu"

    def test_explained(self):
        explanation = explain((64, 56, 56, 128), (31, 31, 1, 128), "bfloat16", platform="cuda")
        assert {choice.name for choice in explanation.choices.values()} == {"dft"}
        reason = "mosaic_gpu only if named: kernels of this package run by default only on devices"
        assert reason in str(explanation)
        assert "mosaic_gpu" not in explanation.unsupported


class TestUnusable:
    """What failed its comparison when the table was made is not chosen, however fast it is."""

    @pytest.mark.parametrize("name", ["mosaic_gpu", "dft"])
    def test_is_not_chosen(self, own_table, hopper, name):
        own_table(measured({name: 1.0, "xla": 2.0}, batch=64), **{name: "off by 0.3"})
        for implementation in (None, "portable"):
            assert hopper.choose(implementation, "forward").name == "xla"
        assert "'xla' on this device: off by 0.3" in hopper.only_by_name()[name]
        assert hopper.choose(name, "forward").name == name

    def test_is_not_chosen_by_its_estimate(self, own_table, hopper):
        own_table(dft="off by 0.3")
        assert hopper.choose(None, "forward").name == "xla"


class TestAnotherImplementation:
    """Dispatch knows implementations by their properties, and none by its name."""

    @pytest.fixture
    def listed(self, monkeypatch):
        def add(**properties):
            other = types.SimpleNamespace(
                NAME="other",
                PROPERTIES=Properties(**properties),
                unsupported_reason=lambda *_: None,
                estimate=lambda convolution: Estimate(9, "it says so"),
            )
            known = {**IMPLEMENTATIONS, "other": other}
            monkeypatch.setattr("replk_jax.ops.depthwise.dispatch.IMPLEMENTATIONS", known)

        return add

    def test_estimate(self, listed):
        listed()
        assert fastest(platform="tpu") == "other"

    @pytest.mark.parametrize(
        "properties",
        [{"custom_calls": True}, {"required_gpu": RequiredGPU("GPUs of one kind", "9.0")}],
    )
    def test_is_left_out(self, listed, properties):
        listed(**properties)
        assert fastest(platform="tpu") == "dft"

    def test_errors(self, listed):
        listed(error_scales_with_largest=True)
        bounded = dataclasses.replace(LAYER, bounded_by_terms=True)
        assert fastest(platform="tpu") == "other"
        assert fastest(platform="tpu", convolution=bounded) == "xla"


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_implementations_fulfil_the_protocol(name):
    """What type checkers check, for those who have none."""
    module = IMPLEMENTATIONS[name]
    assert name == module.NAME
    assert isinstance(module.PROPERTIES, Properties)
    for function in ("unsupported_reason", "estimate", *DIRECTIONS):
        contract = inspect.signature(getattr(Implementation, function)).parameters
        positional = [each for each in contract if each != "self"]
        assert [*inspect.signature(getattr(module, function)).parameters][: len(positional)] == (
            positional
        )


class TestExplain:
    def test_names_the_measurement(self):
        explanation = explain((4, 56, 56, 128), (31, 31, 1, 128), platform="cpu")
        assert explanation.choices.keys() == set(DIRECTIONS)
        assert explanation.choices["forward"].name == "dft"
        text = str(explanation)
        assert "forward: dft (fastest supported one at the nearest measured convolution" in text
        assert "not toeplitz: the matrix of toeplitz squares the feature map" in text
        assert "not mosaic_gpu: its kernels are for NVIDIA Hopper GPUs" in text

    def test_takes_the_devices_platform(self):
        shapes = (1, 9, 9, 4), (3, 3, 1, 4)
        assert explain(*shapes) == explain(*shapes, platform="cpu")

    def test_options(self):
        explanation = explain((1, 9, 9, 4), (3, 3, 1, 4), platform="cpu", stride=2)
        assert explanation.choices.keys() == set(DIRECTIONS)

    def test_precision(self):
        shapes = (64, 56, 56, 128), (31, 31, 1, 128)
        explanation = explain(*shapes, platform="cuda", precision="highest")
        assert "less exactly than HIGHEST" in explanation.unsupported["mosaic_gpu"]
        assert "mosaic_gpu" not in explain(*shapes, platform="cuda").unsupported

    @pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
    def test_highest_precision(self, platform):
        """What errs in proportion to the largest value is left out, and why."""
        shapes = (4, 56, 56, 128), (31, 31, 1, 128)
        explanation = explain(*shapes, platform=platform, precision="highest")
        assert {choice.name for choice in explanation.choices.values()} == {"xla"}
        assert explanation.only_by_name.keys() == {"dft"}
        assert "dft only if named: its rounding errors grow with the largest" in str(explanation)
        assert explain(*shapes, platform=platform, precision="float32") == explanation
        assert explain(*shapes, platform=platform, precision="high").only_by_name == {}
        assert explain(*shapes, platform=platform).choices["forward"].name == "dft"

    @pytest.mark.parametrize("asked", ["highest", "float32"])
    def test_the_configuration_is_about_products_alone(self, asked):
        """Else networks of large kernels would be slow wherever TF32 is switched off."""
        shapes = (4, 56, 56, 128), (31, 31, 1, 128)
        with jax.default_matmul_precision(asked):
            explanation = explain(*shapes, platform="cuda")
        assert explanation.only_by_name == {}
        assert explanation.choices["forward"].name == "dft"
        assert "mosaic_gpu" in explanation.unsupported

    def test_integers(self):
        with pytest.raises(TypeError, match="floating-point"):
            explain((1, 9, 9, 4), (3, 3, 1, 4), "int32")

    def test_unknown_platform(self):
        with pytest.raises(ValueError, match="Unknown platform 'npu'; known: cpu, cuda"):
            explain((1, 9, 9, 4), (3, 3, 1, 4), platform="npu")

    def test_shapes_that_do_not_belong_together(self):
        with pytest.raises(ValueError, match=r"must be \(KH, KW, 1, 4\)"):
            explain((1, 9, 9, 4), (3, 3, 1, 5))


class TestDemand:
    @pytest.mark.parametrize(
        ("name", "size", "message"),
        [
            ("cudnn", 9, "Unknown implementation 'cudnn'; known: xla, dft, shift, toeplitz"),
            (
                "toeplitz",
                30,
                "squares the feature map, and 900 positions.*Use one of xla, dft, shift",
            ),
            ("mosaic_gpu", 30, r"Hopper GPUs \(compute capability 9.0\), not cpu"),
        ],
    )
    def test_what_cannot_be(self, name, size, message):
        x, kernel = jnp.ones((1, size, size, 2)), jnp.ones((9, 9, 1, 2))
        with pytest.raises(ValueError, match=message):
            depthwise_conv2d(x, kernel, implementation=name)


def test_decided_for_the_platform_a_program_is_lowered_for():
    """Traced on a CPU, lowered for a TPU."""
    x, kernel = jnp.ones((4, 7, 7, 8)), jnp.ones((3, 3, 1, 8))
    traced = jax.jit(lambda x, kernel: depthwise_conv2d(x, kernel)).trace(x, kernel)
    assert "stablehlo.convolution" in traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.convolution" not in traced.lower(lowering_platforms=("cpu",)).as_text()
