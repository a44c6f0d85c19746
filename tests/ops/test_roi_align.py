"""RoIAlign against loops in float64, and against mmcv's semantics in numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from replk_jax.ops import roi_align as module
from replk_jax.ops import roi_tiles
from replk_jax.ops.roi_align import box_levels, levels_roi_align, mask_targets, roi_align
from tests import reference_data
from tests.ops import detection_reference as reference

pytestmark = pytest.mark.usefixtures("strict_promotion")
FOLDER = "downstream/cascade_mask_rcnn/small"
SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
# In pixels of an image of 52 x 76: inside, on the borders, beyond each, all around, far outside,
# long in either direction, tiny, without width, without height, a point, inverted, of whole bins.
BOXES = np.float32(
    [
        [8.3, 10.1, 40.7, 30.9],
        [0, 0, 76, 52],
        [-6, -6, 9, 9],
        [70, 45, 83, 60],
        [-200, -100, 300, 150],
        [500, 20, 560, 40],
        [-90, 20, -10, 40],
        [1, 20, 75, 24],
        [30, 2, 33, 51],
        [20, 20, 20.01, 20.02],
        [20, 20, 20, 30],
        [20, 20, 30, 20],
        [20, 20, 20, 20],
        [40, 30, 20, 10],
        [2, 2, 30, 30],
        [2, 2, 58, 44],
    ]
)


@pytest.fixture(params=["one tile", "many tiles"])
def tiles(request, monkeypatch):
    """Feature maps within a tile, and boxes of several tiles in several chunks."""
    if request.param == "many tiles":
        monkeypatch.setattr(module, "TILE", 5)
        monkeypatch.setattr(roi_tiles, "CHUNK_ELEMENTS", 300)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(("ratio", "aligned"), [(0, True), (2, True), (0, False), (3, False)])
def test_degenerate_boxes(ratio, aligned):
    """In float64, to the rounding of positions up to 300. The scale is a power of two, so that both
    compute the same positions of samples, of which some are at a border exactly."""
    x = draw(13, 19, 3)
    expected = reference.roi_align(x, BOXES, 3, 0.25, ratio, aligned)
    with jax.enable_x64(True):
        align = partial(roi_align, output_size=3, scale=0.25, sampling_ratio=ratio, aligned=aligned)
        actual = jax.jit(align)(x, np.float64(BOXES))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def test_random_boxes():
    """In float32: positions up to 100 are rounded to 4e-6, and slopes are up to about 5."""
    rng = np.random.default_rng(0)
    x = draw(40, 70, 2)
    low = rng.uniform(-10, 90, (40, 2))
    boxes = np.float32(np.concatenate([low, low + rng.exponential(30, (40, 2))], axis=1))
    actual = jax.jit(partial(roi_align, output_size=7, scale=1.0))(jnp.float32(x), boxes)
    expected = reference.roi_align(np.float64(np.float32(x)), boxes, 7, 1.0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-5)


@reference_data.required
class TestMmcv:
    """Within the rounding of positions in float32."""

    @pytest.fixture
    def arrays(self):
        return reference_data.arrays(f"{FOLDER}/roi_align.npz")

    @staticmethod
    def maps(arrays):
        return [reference_data.nhwc(arrays[f"map_{level}"]) for level in range(4)]

    @staticmethod
    def by_image(rois, run):
        """The results for each image, in the order of the regions."""
        of = [np.flatnonzero(rois[:, 0] == image) for image in (0, 1)]
        results = [run(image, rois[of[image], 1:]) for image in (0, 1)]
        return np.concatenate(results)[np.argsort(np.concatenate(of))]

    @pytest.mark.parametrize("size", [7, pytest.param(14, marks=pytest.mark.exhaustive)])
    def test_levels(self, arrays, size):
        rois = arrays["rois"]
        np.testing.assert_array_equal(box_levels(rois[:, 1:], 4), arrays["levels"])
        run = jax.jit(partial(levels_roi_align, output_size=size, scales=SCALES))
        maps = [[x[image] for x in self.maps(arrays)] for image in (0, 1)]
        actual = self.by_image(rois, lambda i, boxes: run(maps[i], boxes))
        expected = reference_data.nhwc(arrays[f"extractor_{size}"])
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)

    @pytest.mark.parametrize(
        ("name", "settings"),
        [
            ("aligned_adaptive", {}),
            ("aligned_ratio2", {"sampling_ratio": 2}),
            ("not_aligned_adaptive", {"aligned": False}),
        ],
    )
    def test_one_level(self, arrays, name, settings):
        rois, x = arrays["rois"][:20], self.maps(arrays)[0]
        run = jax.jit(partial(roi_align, output_size=7, scale=0.25, **settings))
        actual = self.by_image(rois, lambda i, boxes: run(x[i], boxes))
        expected = reference_data.nhwc(arrays[f"level0_{name}_7"])
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)

    def test_gradient(self, arrays):
        """To 1e-6 of the largest value. Both images as a batch, with padding for boxes."""
        rois, x = arrays["rois"][:20], self.maps(arrays)[0]
        weight = reference_data.nhwc(arrays["grad_weight"])
        boxes, weights = np.zeros((2, 20, 4), np.float32), np.zeros((2, 20, 7, 7, 6), np.float32)
        for image in (0, 1):
            of = rois[:, 0] == image
            boxes[image, : of.sum()], weights[image, : of.sum()] = rois[of, 1:], weight[of]
        align = jax.vmap(partial(roi_align, output_size=7, scale=0.25))
        actual = jax.jit(jax.grad(lambda x: (align(x, boxes) * weights).sum()))(x)
        expected = reference_data.nhwc(arrays["grad_level0"])
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * abs(expected).max())

    def test_mask_targets(self):
        """Every pixel of the targets of three stages; the masks are padded to 96 x 192."""
        arrays = reference_data.arrays(f"{FOLDER}/train_frozen_bn.npz")
        run = jax.jit(mask_targets)
        for stage in range(3):
            targets = []
            for image in (0, 1):
                shape = arrays[f"gt_masks_shape_{image}"]
                bits = np.unpackbits(arrays[f"gt_masks_packed_{image}"], count=shape.prod())
                packed = np.packbits(bits.reshape(shape), axis=-1)
                of = f"stage{stage}/image{image}"
                targets.append(run(packed, arrays[f"{of}/pos_boxes"], arrays[f"{of}/pos_gt"]))
            expected = arrays[f"stage{stage}/mask_targets"]
            np.testing.assert_array_equal(np.concatenate(targets), expected)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(("ratio", "aligned"), [(0, True), (2, False)])
def test_gradient(ratio, aligned):
    """By finite differences in float64; none goes to the boxes."""
    with jax.enable_x64(True):
        align = partial(roi_align, output_size=2, scale=0.25, sampling_ratio=ratio, aligned=aligned)
        boxes = jnp.float64(BOXES)
        check_grads(jax.jit(lambda x: align(x, boxes)), (draw(13, 19, 1),), 1, modes="rev")
        of_boxes = jax.grad(lambda boxes: align(jnp.ones((13, 19, 1)), boxes).sum())
        assert not jax.jit(of_boxes)(boxes).any()


def test_batches_on_several_devices():
    """Two images on each of four devices, forward and backward, equal one image after another."""
    sharding = jax.NamedSharding(jax.sharding.Mesh(jax.devices()[:4], "batch"), jax.P("batch"))
    maps = [np.float32(draw(8, *size, 3, seed=i)) for i, size in enumerate([(26, 38), (13, 19)])]
    # Images with few boxes and with many on the finer level.
    boxes = np.stack([np.roll(BOXES, shift, axis=0)[:6] for shift in range(8)])
    weights = np.float32(draw(8, 6, 3, 3, 3))

    def run(maps, boxes, weights):
        align = partial(levels_roi_align, output_size=3, scales=(0.5, 0.25), finest_size=16)
        result, pull_back = jax.vjp(lambda maps: align(maps, boxes), maps)
        return result, *pull_back(weights)[0]

    results = jax.jit(jax.vmap(run))(*jax.device_put((maps, boxes, weights), sharding))
    one = jax.jit(run)
    for i in range(8):
        for actual, expected in zip(
            results, one([x[i] for x in maps], boxes[i], weights[i]), strict=True
        ):
            np.testing.assert_allclose(actual[i], expected, rtol=0, atol=1e-5)
    assert all(each.sharding.is_equivalent_to(sharding, each.ndim) for each in results)


def test_samples_of_whole_bins():
    """A side of 7 k pixels has k samples per bin, of which the last is half a step from its end: a
    division that rounds up would have k + 1. The feature map is x^2, whose means tell."""
    sides = 7.0 * np.arange(1, 25)
    boxes = np.float32(np.stack([0 * sides, 0 * sides, sides, 0 * sides + 7], axis=1))
    x = np.broadcast_to(np.arange(200.0)[None, :, None] ** 2, (8, 200, 1))
    expected = reference.roi_align(x, boxes, 7, 1.0)
    actual = jax.jit(partial(roi_align, output_size=7, scale=1.0))(jnp.float32(x), boxes)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)


def test_levels_at_powers_of_two():
    """The bounds themselves belong to the coarser level. A box without area is on the finest."""
    sides = np.float32([0, 1, 111.9, 112, 223.9, 224, 448, 5000])
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    assert box_levels(boxes, 4).tolist() == [0, 0, 0, 1, 1, 2, 3, 3]
    assert box_levels(boxes, 1).tolist() == [0] * 8
    assert box_levels(np.float32([[9, 9, 2, 200]]), 4).tolist() == [0]


def test_16_bits_are_rounded_once():
    """Forward of positive values; the gradient of a pixel sums 900, more than 16 bits could."""
    x = jnp.asarray(np.abs(draw(9, 9, 2)) + 0.5, jnp.bfloat16)
    boxes = jnp.broadcast_to(jnp.float32([1.3, 2.1, 7.7, 6.4]), (900, 4))
    align = partial(roi_align, output_size=2, scale=1.0)

    @jax.jit
    def both(x):
        y, pull_back = jax.vjp(lambda x: align(x, boxes), x)
        return y, *pull_back(jnp.ones_like(y))

    y, gradient = both(x)
    assert y.dtype == gradient.dtype == jnp.bfloat16
    eps = float(jnp.finfo(jnp.bfloat16).eps)
    expected = reference.roi_align(np.asarray(x, np.float64), np.asarray(boxes[:1]), 2, 1.0)
    np.testing.assert_allclose(np.float64(y[:1]), expected, rtol=eps)
    total = np.float64(gradient).sum()
    np.testing.assert_allclose(total, y.size, rtol=eps)


def test_other_boxes_do_not_matter():
    """A box that is not finite gives NaN, and others do not."""
    boxes = np.float32([[1, 1, 5, 5], [np.nan, 1, 5, 5], [1, 1, np.inf, 5]])
    y = jax.jit(partial(roi_align, output_size=2, scale=1.0))(jnp.ones((6, 8, 2)), boxes)
    np.testing.assert_array_equal(y[0], 1)
    assert np.isnan(y[1:]).all()


def test_no_boxes():
    y, pull_back = jax.vjp(
        lambda x: roi_align(x, np.zeros((0, 4), np.float32), output_size=2, scale=1.0),
        jnp.ones((6, 8, 2)),
    )
    assert y.shape == (0, 2, 2, 2)
    assert not pull_back(y)[0].any()
    masks = np.zeros((1, 4, 1), np.uint8)
    assert mask_targets(masks, np.zeros((0, 4)), np.zeros(0, int)).shape == (0, 28, 28)


@pytest.mark.parametrize("tile", [16, 128])
def test_mask_targets(tile, monkeypatch):
    """Of a width that fills no byte, beyond whose border the last column is repeated."""
    monkeypatch.setattr(module, "_MASK_TILE", tile)
    masks = np.random.default_rng(0).random((3, 33, 45)) < 0.5
    boxes = np.float32([[1, 2, 43, 30], [30, 20, 60, 50], [20.2, 3, 25, 9], [44, 1, 47, 30]])
    objects = np.array([2, 0, 1, 1])
    means = [
        reference.roi_align(np.float64(masks[n])[..., None], box[None], 5, 1.0)[0, ..., 0]
        for n, box in zip(objects, boxes, strict=True)
    ]
    assert np.abs(np.array(means) - 0.5).min() > 1e-4  # none is decided by rounding
    run = jax.jit(partial(mask_targets, width=45, size=5))
    actual = run(np.packbits(masks, axis=-1), boxes, objects)
    np.testing.assert_array_equal(actual, np.array(means) >= 0.5)


def test_memory():
    """At full size nothing grows with both the boxes and the feature map, in either direction: the
    temporary memory of the program is a fraction of the feature map."""
    wanted = partial(roi_align, output_size=7, scale=0.25)

    def both(x, boxes, weights):
        y, pull_back = jax.vjp(lambda x: wanted(x, boxes), x)
        return y, pull_back(weights)

    x = jax.ShapeDtypeStruct((200, 336, 256), jnp.float32)
    boxes = jax.ShapeDtypeStruct((1000, 4), jnp.float32)
    weights = jax.ShapeDtypeStruct((1000, 7, 7, 256), jnp.float32)
    memory = jax.jit(both).lower(x, boxes, weights).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 40e6


@pytest.mark.parametrize(
    ("shape", "boxes", "settings", "message"),
    [
        ((1, 6, 8, 2), (3, 4), {}, r"\(H, W, C\).*got float32 \(1, 6, 8, 2\)"),
        ((6, 8, 2), (3, 5), {}, r"\(R, 4\).*got \(3, 5\)"),
        ((6, 0, 2), (3, 4), {}, r"got float32 \(6, 0, 2\)"),
        ((6, 8, 2), (3, 4), {"output_size": 0}, "output_size must be at least 1; got 0"),
        ((6, 8, 2), (3, 4), {"scale": 0.0}, "must be positive; got 0.0"),
        ((6, 8, 2), (3, 4), {"sampling_ratio": -1}, "sampling_ratio .* got -1"),
    ],
)
def test_errors(shape, boxes, settings, message):
    with pytest.raises(ValueError, match=message):
        roi_align(
            jnp.zeros(shape), jnp.zeros(boxes), **{"output_size": 2, "scale": 1.0, **settings}
        )


def test_errors_of_levels():
    maps = [jnp.zeros((6, 8, 2)), jnp.zeros((3, 4, 3))]
    run = partial(levels_roi_align, boxes=jnp.zeros((1, 4)), output_size=2)
    with pytest.raises(ValueError, match="needs a scale; got 2 and 1"):
        run(maps, scales=(1.0,))
    with pytest.raises(ValueError, match="float32 of 2 and float32 of 3"):
        run(maps, scales=(1.0, 0.5))


def test_errors_of_mask_targets():
    boxes, objects = np.zeros((1, 4), np.float32), np.zeros(1, int)
    with pytest.raises(ValueError, match=r"uint8 \(M, H, .*got bool \(1, 4, 8\)"):
        mask_targets(np.zeros((1, 4, 8), bool), boxes, objects)
    with pytest.raises(ValueError, match=r"objects \(R,\); got \(1, 4\) and \(2,\)"):
        mask_targets(np.zeros((1, 4, 1), np.uint8), boxes, np.zeros(2, int))
    with pytest.raises(ValueError, match="9 pixels are 2 bytes; the masks have 1"):
        mask_targets(np.zeros((1, 4, 1), np.uint8), boxes, objects, width=9)
