"""The benchmark of the operator, on layers that take no time."""

import jax
import numpy as np
import pytest

from replk_jax.benchmark import torch_peers
from replk_jax.benchmark.depthwise import (
    BOTH,
    FORWARD,
    OURS,
    PASSES,
    SUITES,
    Benchmark,
    Layer,
    layers_of,
)
from replk_jax.benchmark.depthwise_programs import (
    contender,
    direction_function,
    draw_operands,
    operator,
)
from replk_jax.ops.depthwise.implementation import DIRECTIONS
from replk_jax.ops.depthwise.shapes import (
    REPLKNET_224,
    REPLKNET_384,
    REPLKNET_DETECTION,
    TABLE_1,
    Shape,
)
from tests.ops.depthwise import reference

SMALL = Layer(Shape("14/5", (14, 14), (5, 5), 3), 2)
LARGER = Layer(Shape("16/7", (16, 16), (7, 7), 3), 2)


def rows_of(layers, **settings):
    return list(Benchmark(seconds=0.001, **settings).run(layers))


def test_rows():
    rows = rows_of([SMALL], implementations=("xla", "toeplitz"), peers=False)
    names = [OURS, "xla", "toeplitz"]
    assert [(row.passes, row.contender) for row in rows] == [
        (passes, name) for passes in PASSES for name in names
    ]
    for row in rows:
        if row.contender == "toeplitz":
            assert row.timing is None
            assert "196 positions" in row.skipped
            assert "not measured: the matrix of toeplitz" in str(row)
        else:
            assert row.skipped is None
            assert row.timing.compile_seconds > 0
            assert row.roofline is None  # of a CPU it is not known
    assert [len(row.chosen) for row in rows if row.contender == OURS] == [1, 3]


def test_what_would_take_too_long_is_skipped():
    """By what the same contender took for a layer before; never the operator itself."""
    rows = rows_of([SMALL, LARGER], implementations=("xla",), peers=False, limit=1e-9)
    first, second = rows[:4], rows[4:]
    assert all(row.timing for row in first)
    for row in second:
        assert (row.timing is None) == (row.contender == "xla")
        assert row.skipped is None or "expected, more than 1e-09 s" in row.skipped


def test_no_layer_is_begun_once_time_is_over():
    benchmark = Benchmark(implementations=(), peers=False, seconds=0.001)
    assert list(benchmark.run([SMALL], minutes=-1)) == []


def test_a_failure_is_a_row(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of luck\nand of words")

    monkeypatch.setattr(torch_peers, "unsupported_reason", lambda platform: None)
    monkeypatch.setattr(torch_peers, "convolution_program", fail)
    rows = rows_of([SMALL], implementations=())
    assert all(row.timing for row in rows if row.contender == OURS)
    reasons = {row.skipped for row in rows if row.contender.startswith("torch")}
    assert reasons == {"failed, RuntimeError: out of luck"}


def test_unknown_implementation():
    with pytest.raises(ValueError, match="Unknown implementation abacus"):
        Benchmark(implementations=("xla", "abacus"))


def test_suites():
    paper = SUITES["paper"]
    assert len(set(paper)) == len(paper)
    expected = {Layer(shape, 64) for shape in TABLE_1}
    for batch in (1, 8, 64, 128):
        expected |= {Layer(shape, batch) for shape in REPLKNET_224 + REPLKNET_384}
    expected |= {Layer(shape, batch) for shape in REPLKNET_DETECTION[:1] for batch in (1, 2, 4)}
    assert set(paper) == expected
    expected = {Layer(shape, batch) for shape in REPLKNET_DETECTION for batch in (1, 2, 4)}
    assert set(SUITES["detection"]) == expected
    assert {layer.batch for layer in layers_of("paper", 2)} == {2}
    assert len(layers_of("paper", 2)) == len({layer.shape for layer in paper})


@pytest.fixture
def operands():
    return draw_operands(SMALL.shape, SMALL.batch, "float32", 2)


def test_operands_differ(operands):
    assert [[a.shape for a in each] for each in operands] == 2 * [
        [(2, 14, 14, 3), (5, 5, 1, 3), (2, 14, 14, 3)]
    ]
    assert not np.array_equal(operands[0][0], operands[1][0])


def test_programs_compute_the_convolution(operands):
    """What is timed is all of what is said, for every one of the operands."""
    convolution = SMALL.shape.convolution
    results = contender(operator(SMALL.shape, True, None), operands).prepare().start()
    assert len(results) == 2
    for (y, dx, dk), (x, kernel, g) in zip(results, operands, strict=True):
        x, kernel, g = (np.asarray(each) for each in (x, kernel, g))
        close(y, reference.forward(x, kernel, convolution))
        close(dx, reference.input_gradient(g, kernel, convolution))
        close(dk, reference.kernel_gradient(x, g, convolution))
    (y, *_), *_ = results
    close(jax.jit(operator(SMALL.shape, False, "dft"))(*operands[0]), y)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_directions(direction, operands):
    _, expected_dx, expected_dk = operator(SMALL.shape, True, "xla")(*operands[0])
    expected = {"input_gradient": expected_dx, "kernel_gradient": expected_dk}.get(
        direction, operator(SMALL.shape, False, "xla")(*operands[0])
    )
    close(direction_function(direction, SMALL.shape.convolution, "shift")(*operands[0]), expected)


def test_text_fits_the_header():
    from replk_jax.benchmark.depthwise import HEADER, Row
    from replk_jax.benchmark.timing import Timing

    row = Row(LARGER, BOTH, OURS, ("xla",), Timing(0.5, 0.25, 3, 1.0), roofline=0.5)
    words = str(row).split()
    assert words == [
        "16/7", "2", "3", BOTH, OURS, "500", "250", "3", "50.0%", "1.00", "xla",
    ]  # fmt: skip
    assert str(row).index("1.00") + len("1.00") == len(HEADER)
    assert FORWARD in str(Row(LARGER, FORWARD, OURS, skipped="why"))


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())
