"""Tuning, on layers that take no time."""

import jax.numpy as jnp
import pytest

from replk_jax.benchmark import tune as tuning
from replk_jax.benchmark.depthwise import Layer
from replk_jax.benchmark.tune import grid, tune
from replk_jax.ops.depthwise import measurements, shift
from replk_jax.ops.depthwise.dispatch import ROLES
from replk_jax.ops.depthwise.measurements import Measurement, Table
from replk_jax.ops.depthwise.shapes import REPLKNET_224, SMALL, Shape

LAYERS = [
    Layer(Shape("6/3", (6, 6), (3, 3), 2), 1),
    Layer(Shape("14/5 stride 2", (14, 14), (5, 5), 2, stride=2), 2),
]


def test_writes_a_table_that_chooses(tmp_path, monkeypatch):
    monkeypatch.setenv("REPLK_JAX_TABLES", str(tmp_path))
    monkeypatch.setattr(measurements, "PACKAGED", tmp_path / "none")
    path = measurements.own_path("cpu")
    lines = list(tune(path, ("float32",), layers=LAYERS, minutes=1, seconds=0.001))
    table = measurements.table_of("cpu")
    assert (table.device, table.setting["device"]) == ("cpu", "cpu")
    assert [(each.role, each.kernel_size) for each in table.measurements] == [
        (role, layer.shape.kernel_size) for layer in LAYERS for role in ROLES
    ]
    assert [line for line in lines if str(path) not in line] == [
        f"{each.role}: {each}" for each in table.measurements
    ]
    for each in table.measurements[:3]:
        assert each.seconds.keys() == {"xla", "dft", "shift", "toeplitz"}
    for each in table.measurements[3:]:
        assert each.seconds.keys() <= {"xla", "dft", "shift"}
        assert each.stride == (2, 2)
    choices = LAYERS[0].explain("float32").choices
    for role, each in zip(ROLES, table.measurements, strict=False):
        assert choices[role].name == each.fastest(each.seconds)
        assert "at the nearest measured convolution" in choices[role].reason


def test_keeps_what_is_not_measured_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("REPLK_JAX_TABLES", str(tmp_path))
    path = measurements.own_path("cpu")
    packaged = measurements.table_of("cpu").measurements
    for _ in range(2):
        list(tune(path, ("float32",), layers=LAYERS[:1], minutes=1, seconds=0.001))
        table = measurements.table_of("cpu")
        assert table.measurements[: len(packaged)] == packaged
        assert len(table.measurements) == len(packaged) + len(ROLES)


def test_every_type_is_measured(tmp_path):
    dtypes = "float32", "bfloat16"
    list(tune(tmp_path / "t.json", dtypes, layers=LAYERS[:1], minutes=1, seconds=0.001))
    assert (tmp_path / "t.json").read_text().count('"dtype": "bfloat16"') == len(ROLES)


def test_says_what_time_was_not_left_for(tmp_path):
    lines = list(tune(tmp_path / "t.json", ("float32",), layers=LAYERS, minutes=-1))
    assert lines == ["-1 minutes are over: 2 convolutions are left out"]


def test_says_what_failed(tmp_path, monkeypatch):
    def fail(*_):
        raise NotImplementedError("not today")

    monkeypatch.setattr(shift, "forward", fail)
    path = tmp_path / "t.json"
    lines = list(tune(path, ("float32",), layers=LAYERS[:1], minutes=1, seconds=0.001))
    assert "forward: shift failed at 6/3, 2 channels, batch 1, float32: " in lines[0]
    assert "not today" in lines[0]
    assert lines[1].startswith("forward: 1 x 6 x 6 x 2")
    assert "shift" not in lines[1]


def test_hopeless_ones_are_left_out():
    """By the nearest convolution that they were measured for, unless it is far."""
    layer = Layer(Shape("14/5", (14, 14), (5, 5), 4), 2)

    def measured(kernel, **seconds):
        return Measurement("forward", "float32", 2, 4, (14, 14), (kernel, kernel), (1, 1), seconds)

    table = Table(
        "cpu",
        {},
        (
            measured(5, shift=1.0, dft=49.0),
            measured(7, shift=1.0, xla=51.0),
            measured(21, shift=1.0, toeplitz=51.0),
        ),
    )

    def hopeless(name, role="forward"):
        return tuning._is_hopeless(role, name, layer, "float32", table)

    assert hopeless("xla")
    assert not hopeless("dft")  # slow, but not as slow
    assert not hopeless("shift")
    assert not hopeless("toeplitz")  # for a kernel four times as large
    assert not hopeless("mosaic_gpu")  # not measured at all
    assert not hopeless("xla", "kernel_gradient")


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_grid(platform):
    layers = grid(platform)
    assert len(set(layers)) == len(layers) < 120
    first = layers[0].batch
    networks = {Layer(shape, first) for shape in [*SMALL, *REPLKNET_224]}
    assert set(layers[: len(networks)]) == networks
    assert {layer.batch for layer in layers} == {1, 4, 32}
    assert all(jnp.prod(jnp.array(layer.shape.convolution.output_size)) > 0 for layer in layers)
