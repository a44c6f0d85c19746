"""NMS against loops in NumPy, and against mmcv's and torchvision's semantics in numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax.ops import nms as module
from replk_jax.ops.nms import nms
from tests import reference_data
from tests.ops import detection_reference as reference

pytestmark = pytest.mark.usefixtures("strict_promotion")


@pytest.fixture
def small_blocks(monkeypatch):
    """So that few boxes make several blocks."""
    monkeypatch.setattr(module, "BLOCK", 16)
    monkeypatch.setattr(module, "KEPT_BLOCK", 8)


def draw(number, seed=0, spread=60.0):
    """Boxes with whole coordinates, of which many overlap and some are the same, and scores, of
    which several are equal."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, int(spread), (number, 2))
    boxes = np.float32(np.concatenate([corner, corner + rng.integers(0, 30, (number, 2))], axis=1))
    return boxes, np.float32(rng.integers(0, number, number) / number)


def check(actual, expected, number, max_kept):
    indices, count = actual
    assert indices.shape == (max_kept,)
    assert (indices.dtype, count.dtype) == (jnp.int32, jnp.int32)
    expected = expected[:max_kept]
    assert count == len(expected)
    assert indices.tolist() == [*expected, *[number] * (max_kept - len(expected))]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("max_kept", [150, 9])
def test_random_boxes(max_kept):
    """With and without groups and padding, all in one program. At 0, boxes that touch stay."""
    boxes, scores = draw(150)
    rng = np.random.default_rng(1)
    groups, valid = rng.integers(0, 3, 150), rng.random(150) < 0.7
    run = jax.jit(lambda t, g, v: nms(boxes, scores, t, groups=g, valid=v, max_kept=max_kept))
    for threshold in (0.0, 0.3, 0.5, 0.9):
        for g in (groups, np.zeros(150, int)):
            for v in (valid, np.ones(150, bool)):
                expected = reference.nms(boxes, scores, threshold, g, v)
                check(run(threshold, g, v), expected, 150, max_kept)


@reference_data.required
@pytest.mark.parametrize("groups", ["", "batched_"])
def test_mmcv(groups):
    arrays = reference_data.arrays("downstream/cascade_mask_rcnn/small/nms.npz")
    boxes, scores = arrays["boxes"], arrays["scores"]
    run = jax.jit(
        lambda t: nms(boxes, scores, t, groups=arrays["ids"] if groups else None, max_kept=82)
    )
    for threshold in (0.3, 0.5, 0.7):
        expected = arrays[f"{groups}keep_{10 * threshold:.0f}"].tolist()
        check(run(threshold), expected, 82, 82)


def test_a_chain_within_a_block():
    """Each suppresses the next, so that every second one stays; the longest fixed point."""
    left = 4.0 * np.arange(100, dtype=np.float32)
    boxes = np.stack([left, 0 * left, left + 10, 0 * left + 10], axis=1)
    check(nms(boxes, -left, 0.4, max_kept=100), list(range(0, 100, 2)), 100, 100)


@pytest.mark.usefixtures("small_blocks")
def test_a_batch():
    """Members of unequal lengths, nested; the state of the shorter does not change."""
    boxes, scores = (np.stack(each) for each in zip(*map(partial(draw, 60), range(6)), strict=True))
    valid = np.arange(60) < np.array([[60], [0], [1], [16], [17], [40]])
    shape = (2, 3)

    def one(boxes, scores, valid):
        return nms(boxes, scores, 0.5, valid=valid, max_kept=20)

    operands = (each.reshape(*shape, *each.shape[1:]) for each in (boxes, scores, valid))
    indices, counts = jax.jit(jax.vmap(jax.vmap(one)))(*operands)
    for i, actual in enumerate(zip(indices.reshape(6, 20), counts.reshape(6), strict=True)):
        check(actual, reference.nms(boxes[i], scores[i], 0.5, valid=valid[i]), 60, 20)


@pytest.mark.usefixtures("small_blocks")
def test_a_sharded_batch():
    mesh = jax.sharding.Mesh(jax.devices(), "batch")
    sharding = jax.NamedSharding(mesh, jax.P("batch"))
    boxes, scores = (np.stack(each) for each in zip(*map(partial(draw, 40), range(8)), strict=True))
    placed = jax.device_put((boxes, scores), sharding)
    run = jax.jit(jax.vmap(lambda b, s: nms(b, s, 0.5, max_kept=30)))
    indices, counts = run(*placed)
    assert indices.sharding.is_equivalent_to(sharding, 2)
    for i in range(8):
        check((indices[i], counts[i]), reference.nms(boxes[i], scores[i], 0.5), 40, 30)


def test_degenerate_boxes():
    """Empty ones overlap nothing, not even themselves; the same box twice is suppressed."""
    boxes = np.float32(
        [[5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 1e-3, 1e-3], [0, 0, 1e-3, 1e-3], [9, 9, 2, 4]]
    )
    check(nms(boxes, np.float32([5, 4, 3, 2, 1]), 0.5, max_kept=5), [0, 1, 2, 4], 5, 5)


def test_order_of_scores():
    """Equal ones by index; infinite ones have a rank; padding comes after -inf."""
    boxes = np.float32([[i, 0, i + 0.5, 1] for i in range(7)])
    scores = np.float32([-np.inf, 1, 0, np.inf, -0.0, 1, 9])
    valid = np.array([True] * 6 + [False])
    check(nms(boxes, scores, 0.5, valid=valid, max_kept=9), [3, 1, 5, 2, 4, 0], 7, 9)


def test_one_box_and_none():
    box = np.float32([[0, 0, 1, 1]])
    check(nms(box, np.ones(1, np.float32), 0.5, max_kept=2), [0], 1, 2)
    nobody = np.zeros(1, bool)
    check(nms(box, np.ones(1, np.float32), 0.5, valid=nobody, max_kept=2), [], 1, 2)
    check(nms(np.zeros((0, 4)), np.zeros(0), 0.5, max_kept=2), [], 0, 2)


def test_nan_scores():
    """An error where values are known; under jit not valid. In padding they do not matter."""
    boxes, _ = draw(4, spread=1e3)
    scores = np.float32([np.nan, 1, np.nan, 2])
    with pytest.raises(ValueError, match=r"score of box 0 is NaN \(2 of 4 are\).*`valid`"):
        nms(boxes, scores, 0.5, max_kept=4)
    valid = ~np.isnan(scores)
    expected = [3, 1]
    check(nms(boxes, scores, 0.5, valid=valid, max_kept=4), expected, 4, 4)
    check(jax.jit(lambda s: nms(boxes, s, 0.5, max_kept=4))(scores), expected, 4, 4)


def test_padding_of_the_indices_fills():
    x = jnp.arange(3.0)
    indices, _ = nms(np.zeros((3, 4)), np.float32([1, 2, 3]), 0.5, max_kept=5)
    assert x.at[indices].get(mode="fill", fill_value=-1).tolist() == [2, 1, 0, -1, -1]


@pytest.mark.parametrize(
    ("boxes", "scores", "max_kept", "message"),
    [
        ((3, 5), 3, 1, r"got \(3, 5\), \(3,\)"),
        ((3, 4), 2, 1, r"got \(3, 4\), \(2,\)"),
        ((3, 4), 3, 0, "max_kept must be at least 1; got 0"),
    ],
)
def test_errors(boxes, scores, max_kept, message):
    with pytest.raises(ValueError, match=message):
        nms(np.zeros(boxes), np.zeros(scores), 0.5, max_kept=max_kept)
