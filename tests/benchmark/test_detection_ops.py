"""The benchmark of NMS and RoIAlign, at sizes that take no time."""

import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax.benchmark import detection_ops, torchvision_peers
from replk_jax.benchmark.detection_ops import HEADER, NMS, OURS, PEER, Benchmark, Row, draw_boxes
from replk_jax.benchmark.timing import Contender, Timing
from replk_jax.ops.nms import nms
from replk_jax.ops.roi_align import box_levels, levels_roi_align


def test_text_fits_the_header():
    row = Row(NMS, 4000, OURS, Timing(0.5, 0.25, 3, 1.0))
    assert str(row).split() == ["nms", "4000", OURS, "500", "250", "3"]
    assert len(str(row)) == len(HEADER)
    assert row.as_dict()["median"] == 0.5


def test_what_is_not_measured_is_a_row(monkeypatch):
    """A missing peer, and a failure of our own, which is reported as one."""

    def fail():
        raise RuntimeError("out of luck\nand of words")

    monkeypatch.setattr(detection_ops, "contender", lambda *_: Contender(fail))
    monkeypatch.setattr(torchvision_peers, "unsupported_reason", lambda _: "none here")
    rows = list(Benchmark(nms_boxes=(20,), align_boxes=(6,), image_size=(64, 96), channels=2).run())
    reasons = {row.contender: row.skipped for row in rows}
    assert reasons == {OURS: "failed, RuntimeError: out of luck", PEER: "none here"}
    failed = detection_ops.failures(rows)
    assert failed[0] == "nms, 20 boxes: failed, RuntimeError: out of luck"
    assert len(failed) == 3
    assert str(rows[1]).endswith("not measured: none here")


def test_boxes():
    """Inside the image, of many sizes, and most of them overlap another."""
    boxes, scores = draw_boxes(400)
    assert boxes.dtype == scores.dtype == np.float32
    assert ((boxes >= 0) & (boxes <= (1344, 800, 1344, 800))).all()
    assert set(np.asarray(box_levels(boxes, 4)).tolist()) == {0, 1, 2, 3}
    assert nms(boxes, scores, 0.5, max_kept=400)[1] < 250


def test_torchvision():
    """What is compared with is the same computation."""
    pytest.importorskip("torchvision", reason="torchvision, an optional peer, is not installed")
    boxes, scores = draw_boxes(100)
    kept = torchvision_peers.nms_program(boxes, scores, 0.7).start().numpy()
    indices, count = nms(boxes, scores, 0.7, max_kept=100)
    np.testing.assert_array_equal(indices[:count], kept)
    maps = [
        np.float32(np.random.default_rng(0).standard_normal((-(-64 // s), -(-96 // s), 2)))
        for s in detection_ops.STRIDES
    ]
    scales = [1 / stride for stride in detection_ops.STRIDES]
    boxes, _ = draw_boxes(12, (64, 96))
    levels = np.arange(12) % 4
    program = torchvision_peers.roi_align_program(maps, boxes, levels, scales, 3, True)
    for level, result in enumerate(program.start()[0]):
        own = boxes[levels == level]
        expected = levels_roi_align(
            maps[level : level + 1], own, output_size=3, scales=scales[level : level + 1]
        )
        actual = result.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)
    assert jnp.asarray(program.start()[1][0].numpy()).shape == (1, 2, 16, 24)
