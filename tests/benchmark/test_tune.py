"""Tuning, on layers that take no time."""

import jax.numpy as jnp
import pytest

from replk_jax.benchmark import tune as tuning
from replk_jax.benchmark.depthwise import Layer
from replk_jax.benchmark.tune import grid, tune
from replk_jax.benchmark.verify import find_faults, layers_to_verify
from replk_jax.ops import explain
from replk_jax.ops.depthwise import measurements, shift
from replk_jax.ops.depthwise.implementation import DIRECTIONS
from replk_jax.ops.depthwise.measurements import Measurement, Table
from replk_jax.ops.depthwise.shapes import REPLKNET_224, SMALL, Shape, square

LAYERS = [
    Layer(Shape("6/3", (6, 6), (3, 3), 2), 1),
    Layer(Shape("14/5 stride 2", (14, 14), (5, 5), 2, stride=2), 2),
]


def test_writes_a_table_that_chooses(tmp_path, monkeypatch):
    monkeypatch.setenv("REPLK_JAX_TABLES", str(tmp_path))
    monkeypatch.setattr(measurements, "PACKAGED", tmp_path / "none")
    path = measurements.own_path("cpu")
    lines = list(tune(path, ("float32",), layers=LAYERS, verified=[], minutes=1, seconds=0.001))
    table = measurements.table_of("cpu")
    assert (table.device, table.setting["device"]) == ("cpu", "cpu")
    assert [(each.direction, each.kernel_size) for each in table.measurements] == [
        (direction, layer.shape.kernel_size) for layer in LAYERS for direction in DIRECTIONS
    ]
    assert [line for line in lines if str(path) not in line] == [
        f"{each.direction}: {each}" for each in table.measurements
    ]
    for each in table.measurements[:3]:
        assert each.seconds.keys() == {"xla", "dft", "shift", "toeplitz"}
    for each in table.measurements[3:]:
        assert each.seconds.keys() <= {"xla", "dft", "shift"}
        assert each.stride == (2, 2)
    choices = LAYERS[0].explain("float32").choices
    for direction, each in zip(DIRECTIONS, table.measurements, strict=False):
        assert choices[direction].name == each.fastest(each.seconds)
        assert "at the nearest measured convolution" in choices[direction].reason


def test_keeps_what_is_not_measured_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("REPLK_JAX_TABLES", str(tmp_path))
    path = measurements.own_path("cpu")
    packaged = measurements.table_of("cpu").measurements
    for _ in range(2):
        list(tune(path, ("float32",), layers=LAYERS[:1], verified=[], minutes=1, seconds=0.001))
        table = measurements.table_of("cpu")
        assert table.measurements[: len(packaged)] == packaged
        assert len(table.measurements) == len(packaged) + len(DIRECTIONS)


def test_every_type_is_measured(tmp_path):
    dtypes = "float32", "bfloat16"
    list(
        tune(tmp_path / "t.json", dtypes, layers=LAYERS[:1], verified=[], minutes=1, seconds=0.001)
    )
    assert (tmp_path / "t.json").read_text().count('"dtype": "bfloat16"') == len(DIRECTIONS)


def test_says_what_time_was_not_left_for(tmp_path):
    lines = list(tune(tmp_path / "t.json", ("float32",), layers=LAYERS, verified=[], minutes=-1))
    assert lines == ["-1 minutes are over: 2 convolutions are left out"]


def test_every_type_is_verified(tmp_path, monkeypatch):
    """Whatever is measured: measurements of one are used for another where there are no nearer."""
    exact = shift.forward

    def wrong_in_float16(x, kernel, convolution):
        return exact(x, kernel, convolution) * (2 if x.dtype == jnp.float16 else 1)

    monkeypatch.setattr(shift, "forward", wrong_in_float16)
    path = tmp_path / "t.json"
    (fault, _) = tune(path, ("float32",), layers=LAYERS, verified=LAYERS[:1], minutes=-1)
    assert fault.startswith("shift is unusable on this device: forward: largest error")
    assert '"shift": "forward: largest error' in path.read_text()


def test_says_what_failed(tmp_path, monkeypatch):
    def fail(*_):
        raise NotImplementedError("not today")

    monkeypatch.setattr(shift, "forward", fail)
    path = tmp_path / "t.json"
    lines = list(tune(path, ("float32",), layers=LAYERS[:1], verified=[], minutes=1, seconds=0.001))
    assert "forward: shift failed at 6/3, 2 channels, batch 1, float32: " in lines[0]
    assert "not today" in lines[0]
    assert lines[1].startswith("forward: 1 x 6 x 6 x 2")
    assert "shift" not in lines[1]


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (lambda x, kernel, convolution: 1.01 * x, "forward: largest error"),
        (lambda x, kernel, convolution: jnp.full_like(x, jnp.nan), "forward: largest error nan"),
        (lambda x, kernel, convolution: 1 / 0, "ZeroDivisionError"),
    ],
    ids=["wrong", "nan", "raises"],
)
def test_what_errs_is_unusable(tmp_path, monkeypatch, broken, fault):
    """It is recorded with its error, not measured, and not chosen."""
    monkeypatch.setenv("REPLK_JAX_TABLES", str(tmp_path))
    monkeypatch.setattr(measurements, "PACKAGED", tmp_path / "none")
    monkeypatch.setattr(shift, "forward", broken)
    path = measurements.own_path("cpu")
    layers = LAYERS[:1]
    lines = tune(path, ("float32",), layers=layers, verified=layers, minutes=1, seconds=0.001)
    assert next(lines).startswith("shift is unusable on this device: ")
    list(lines)
    table = measurements.table_of("cpu")
    assert table.unusable.keys() == {"shift"}
    assert fault in table.unusable["shift"]
    assert "at 6/3, 2 channels, batch 1, float32" in table.unusable["shift"]
    assert not table.has_measured("shift")
    explanation = layers[0].explain("float32")
    assert "shift" in explanation.only_by_name
    assert "shift" not in {choice.name for choice in explanation.choices.values()}


def test_gradients_are_compared_too(monkeypatch):
    exact = shift.kernel_gradient
    monkeypatch.setattr(shift, "kernel_gradient", lambda *operands: 1.01 * exact(*operands))
    assert "kernel gradient: largest error" in find_faults(LAYERS[:1], ("float32",))["shift"]


@pytest.mark.parametrize(
    "dtype",
    ["bfloat16", *(pytest.param(d, marks=pytest.mark.exhaustive) for d in ("float32", "float16"))],
)
def test_rounding_is_no_fault(dtype):
    assert find_faults([*LAYERS, Layer(square(12, 9, 2), 1)], (dtype,)) == {}


def test_what_needs_a_gpu_is_verified_where_it_can_run():
    """All that custom calls compute, and nothing of it on a CPU."""
    for layer in layers_to_verify("gpu"):
        explanation = explain(
            (layer.batch, *layer.shape.size, layer.shape.channels),
            (*layer.shape.kernel_size, 1, layer.shape.channels),
            "bfloat16",
            platform="cuda",
            stride=layer.shape.stride,
            padding=layer.shape.convolution.padding,
        )
        large = min(layer.shape.size) > 8 and max(layer.shape.kernel_size) >= 9
        assert ("mosaic_gpu" not in explanation.unsupported) >= large
    assert max(layer.batch for layer in layers_to_verify("cpu")) < 16


def test_implementations_that_are_too_slow_are_not_measured():
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

    def too_slow(name, direction="forward"):
        return tuning._is_too_slow(direction, name, layer, "float32", table)

    assert too_slow("xla")
    assert not too_slow("dft")  # slow, but not as slow
    assert not too_slow("shift")
    assert not too_slow("toeplitz")  # for a kernel four times as large
    assert not too_slow("mosaic_gpu")  # not measured at all
    assert not too_slow("xla", "kernel_gradient")


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_grid(platform):
    layers = grid(platform)
    assert len(set(layers)) == len(layers) < 120
    first = layers[0].batch
    networks = {Layer(shape, first) for shape in [*SMALL, *REPLKNET_224]}
    assert set(layers[: len(networks)]) == networks
    assert {layer.batch for layer in layers} == {1, 4, 32}
    assert all(jnp.prod(jnp.array(layer.shape.convolution.output_size)) > 0 for layer in layers)
