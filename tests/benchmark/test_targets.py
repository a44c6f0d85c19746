"""What is concluded from rows that are made up."""

import itertools

import pytest

from replk_jax.benchmark.depthwise import BOTH, FORWARD, OURS, PACKED, PASSES, Layer, Row
from replk_jax.benchmark.targets import TORCH, conclusions
from replk_jax.benchmark.timing import Timing
from replk_jax.ops.depthwise.shapes import REPLKNET_224, SMALL, TABLE_1, TABLE_1_KERNELS, Shape


def row(shape, batch, passes, contender, seconds):
    fastest = 0.25 * seconds if contender == "xla" else 0.5 * seconds
    timing = Timing(seconds, fastest, 3, 0.25)
    return Row(Layer(shape, batch), passes, contender, timing=timing)


def conclude(rows, device="cpu", dtype="float32", layers=None):
    layers = {row.layer for row in rows} if layers is None else layers
    return list(conclusions(rows, layers, device, dtype))


def line(lines, start):
    (found,) = [each for each in lines if each.startswith(start)]
    return found


@pytest.fixture
def cpu_rows():
    """PyTorch takes a second for everything, XLA a minute; we take one for 14/27, else two."""
    rows = []
    for shape, passes in itertools.product([*REPLKNET_224, *SMALL], PASSES):
        rows.append(row(shape, 4, passes, OURS, 1.0 if shape.name == "14/27" else 2.0))
        rows.append(row(shape, 4, passes, TORCH, 1.0))
        rows.append(row(shape, 4, passes, "xla", 60.0))
    return rows


def test_cpu(cpu_rows):
    lines = conclude(cpu_rows)
    # 2, 2, 18 and 2 layers: (6 * 2 + 18 * 1) / 24
    forward = line(lines, "RepLKNet-31B's large kernels")
    assert ": 1.25; at most 1: MISSED" in forward
    gain = line(lines, "the same layers, forward: smallest speedup over lax.conv")
    assert "30 by the medians, 15 by the minima; at least 50: MISSED" in gain
    assert ": 2; at most 2: reached" in line(lines, "its small")
    compilation = line(lines, "longest time to compile a layer")
    assert ": 0.25; at most 1: reached" in compilation
    slower = line(lines, "Slower than another contender by more than 5%")
    assert slower.endswith(f"{2 * (3 + len(SMALL))} times")
    assert "14/27, 512 channels, batch 4, forward: " not in "".join(lines)


def test_targets_of_what_was_not_measured_are_left_out(cpu_rows):
    without_torch = conclude([each for each in cpu_rows if each.contender != TORCH])
    assert line(without_torch, "the same layers, forward: smallest speedup over lax.conv")
    assert not [each for each in without_torch if "PyTorch" in each]
    assert not [each for each in conclude(cpu_rows, dtype="bfloat16") if each == "Targets"]


def test_layers_without_rows_are_named():
    left_out = [Layer(REPLKNET_224[0], 4), Layer(SMALL[0], 1)]
    rows = [row(REPLKNET_224[0], 4, FORWARD, OURS, 1.0)]
    assert "no time was left for 112/3, 128 channels, batch 1" in conclude(rows, layers=left_out)


def test_h200():
    shape = next(each for each in TABLE_1 if each.name == "64/31")
    rows = [
        row(shape, 64, FORWARD, OURS, 1e-3),
        row(shape, 64, FORWARD, PACKED, 0.5e-3),
        row(shape, 64, FORWARD, "torch NCHW", 30e-3),
        row(shape, 64, BOTH, OURS, 3e-3),
        row(shape, 64, BOTH, "torch NCHW", 30e-3),
        row(REPLKNET_224[0], 64, FORWARD, OURS, 92.83e-6),
    ]
    lines = conclude(rows, "NVIDIA H200", "bfloat16")
    assert "0.5 by the medians" in line(lines, "56/31, batch 64, forward: fraction")
    assert "0.448 by the medians" in line(lines, "Table 1, 64/31, forward: time over")
    forward, both = "Table 1, 64/31, forward: speedup", "Table 1, 64/31, forward+backward: speedup"
    assert line(lines, forward).endswith("at least 20: reached")
    assert line(lines, both).endswith("at least 15: MISSED")
    # The kernel in the packed layout is not another way to compute the same.
    assert line(lines, "Slower").endswith("0 times")


def test_table_1():
    rows = [row(shape, 64, FORWARD, OURS, 1e-3) for shape in TABLE_1[:2]]
    rows.append(row(Shape("64/31", (64, 64), (31, 31), 128), 64, FORWARD, OURS, 1.0))
    lines = conclude(rows)
    at = lines.index("Table 1 of the paper, ms for 24 layers at batch 64")
    assert lines[at + 1].split() == ["R", *map(str, TABLE_1_KERNELS)]
    assert lines[at + 2].split() == [FORWARD, "16", OURS, "24.00", "24.00", *"-" * 8]
    assert lines[at + 3].startswith("Slower")
