"""What the device does to a batch: by definition, in distribution and on several devices.

The draws of the statistical tests have fixed keys; their bounds are five standard errors.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, digits
from tests.helpers import data_mesh
from train.data.augmentation import (
    Augmentation,
    Boxes,
    Mixing,
    count_groups,
    draw_erasing,
    draw_mixing,
    erase,
    mix,
)
from train.engine import parallel
from train.errors import RunError
from train.tasks.classification import make_augmentation

PAPER = Augmentation(
    num_classes=10, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), label_smoothing=0.1,
    erasing_probability=0.25, mixup_alpha=0.8, cutmix_alpha=1.0, mix_probability=1.0,
    switch_probability=0.5, mixup_group_size=8,
)  # fmt: skip
OFF = dataclasses.replace(PAPER, erasing_probability=0.0, mix_probability=0.0)
PAPERS_DRAWS = dict(
    mixup_alpha=0.8, cutmix_alpha=1.0, mix_probability=1.0, switch_probability=0.5
)  # fmt: skip
RARER_CUTS = PAPERS_DRAWS | {"switch_probability": 0.3}
KEY = jax.random.key(7)
MANY = 20_000

pytestmark = pytest.mark.usefixtures("strict_promotion")

erase = jax.jit(erase, static_argnums=2)
mix = jax.jit(mix)
draw_erasing = jax.jit(draw_erasing, static_argnums=(1, 2, 3))
draw_mixing = jax.jit(
    draw_mixing,
    static_argnums=(1, 2),
    static_argnames=("mixup_alpha", "cutmix_alpha", "mix_probability", "switch_probability"),
)


def random_batch(count, size=(12, 12), channels=3):
    rng = np.random.default_rng(count)
    return {
        "image": rng.integers(0, 256, (count, *size, channels), dtype=np.uint8),
        "label": rng.integers(0, 10, count).astype(np.int32),
    }


def assert_mean(values, expected):
    """Within five standard errors."""
    values = np.asarray(values, np.float64)
    error = values.std() / np.sqrt(len(values))
    assert error > 0
    assert abs(values.mean() - expected) < 5 * error


# Each by definition.


def test_without_augmentation_images_are_normalised_and_targets_smoothed():
    batch = random_batch(6)
    images, targets = jax.jit(OFF)(KEY, batch)
    expected = (batch["image"] / 255.0 - OFF.mean) / OFF.std
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-6)  # float32 of values up to 3
    assert images.dtype == targets.dtype == jnp.float32
    for target, label in zip(np.asarray(targets), batch["label"], strict=True):
        share = np.full(10, 0.01)
        share[label] += 0.9
        np.testing.assert_allclose(target, share, rtol=1e-6)


@pytest.mark.parametrize("size", [(12, 12), (9, 13)])
def test_boxes_mark_their_pixels(size):
    rng = np.random.default_rng(0)
    edges = [np.sort(rng.integers(0, n + 1, (5, 2, 2)), axis=-1) for n in size]
    boxes = Boxes(edges[0][..., 0], edges[0][..., 1], edges[1][..., 0], edges[1][..., 1])
    mask = np.asarray(boxes.mask(*size))
    assert mask.shape == (5, 2, *size, 1)
    for index in np.ndindex(5, 2):
        top, bottom, left, right = (int(edge[index]) for edge in boxes)
        expected = np.zeros(size, bool)
        expected[top:bottom, left:right] = True
        np.testing.assert_array_equal(mask[index][..., 0], expected)
        assert boxes.area[index] == expected.sum()


def test_erasing_replaces_the_box_by_normal_values_and_nothing_else():
    images = np.random.default_rng(0).uniform(10, 20, (400, 20, 15, 3)).astype(np.float32)
    erased = np.asarray(erase(KEY, images, 0.5))
    of_boxes, _ = jax.random.split(KEY)
    boxes = draw_erasing(of_boxes, 400, (20, 15), 0.5)
    inside = np.broadcast_to(boxes.mask(20, 15), images.shape)
    np.testing.assert_array_equal(erased[~inside], images[~inside])
    noise = erased[inside]
    assert len(noise) > 5_000
    assert_mean(noise, 0)
    assert_mean(noise**2, 1)
    assert_mean(noise**4, 3)  # of a normal distribution
    assert len(np.unique(noise)) > 0.99 * len(noise)  # for each pixel and channel its own


@pytest.mark.parametrize(("size", "channels"), [((12, 12), 3), ((9, 13), 1)])
@pytest.mark.parametrize(("count", "groups"), [(24, 3), (10, 2), (7, 1)])  # odd groups as well
def test_mixing_image_by_image(size, channels, count, groups):
    rng = np.random.default_rng(1)
    images = rng.standard_normal((count, *size, channels), np.float32)
    targets = rng.dirichlet(np.ones(10), count).astype(np.float32)
    ends = [np.sort(rng.integers(0, n + 1, (2, groups)), axis=0) for n in size]
    mixing = Mixing(rng.random(groups, np.float32), Boxes(*ends[0], *ends[1]))
    mixed, mixed_targets = mix(mixing, images, targets)
    members = count // groups
    for number in range(count):
        group, member = divmod(number, members)
        partner = group * members + members - 1 - member
        opacity = float(mixing.opacity[group])
        top, bottom, left, right = (int(edge[group]) for edge in mixing.boxes)
        expected = opacity * images[number] + (1 - opacity) * images[partner]
        expected[top:bottom, left:right] = images[partner][top:bottom, left:right]
        share = opacity * (1 - (bottom - top) * (right - left) / (size[0] * size[1]))
        target = share * targets[number] + (1 - share) * targets[partner]
        np.testing.assert_allclose(mixed[number], expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(mixed_targets[number], target, rtol=0, atol=1e-6)


def test_the_order_is_normalise_erase_mix():
    """The parts one after another, each with its key."""
    batch = random_batch(64)
    images, targets = jax.jit(OFF)(KEY, batch)
    erasing_key, mixing_key = jax.random.split(KEY)
    images = erase(erasing_key, images, 0.25)
    images, targets = mix(draw_mixing(mixing_key, 8, (12, 12), **PAPERS_DRAWS), images, targets)
    actual, actual_targets = jax.jit(PAPER)(KEY, batch)
    np.testing.assert_allclose(actual, images, rtol=0, atol=1e-5)
    np.testing.assert_allclose(actual_targets, targets, rtol=0, atol=1e-6)


# What is drawn.


@pytest.mark.parametrize("size", [(224, 224), (150, 260)])
def test_what_is_erased(size):
    height, width = size
    boxes = jax.tree.map(np.asarray, draw_erasing(KEY, MANY, size, 0.25))
    h, w = boxes.bottom - boxes.top, boxes.right - boxes.left
    erased = boxes.area > 0
    assert_mean(erased, 0.25)
    assert (boxes.top >= 0).all()
    assert (boxes.bottom <= height).all()
    assert (boxes.left >= 0).all()
    assert (boxes.right <= width).all()
    h, w = h[erased], w[erased]
    assert max(h.max() / height, w.max() / width) < 1
    share, aspect = h * w / (height * width), np.log(h / w)
    # Up to the rounding of the sides; a square image cuts nothing off but for 1/3 at 0.3.
    assert 0.019 < share.min() < 0.023
    assert 0.32 < share.max() < 0.336
    assert np.abs(aspect).max() < np.log(1 / 0.3) + 0.03
    if height == width:
        assert_mean(share, (0.02 + 1 / 3) / 2)
        assert_mean(aspect, 0)
        assert_mean(aspect**2, np.log(0.3) ** 2 / 3)
        # Where there is room, a place is uniform from edge to edge.
        assert_mean(boxes.top[erased] / (height - h), 0.5)
        assert_mean((boxes.left[erased] / (width - w) - 0.5) ** 2, 1 / 12)
        assert (boxes.top[erased] == 0).any()
        assert (boxes.bottom == height).any()


def test_a_box_that_never_fits_is_not_erased_and_a_rare_one_is_tried_again():
    """On one row no box is lower than the image, unless it has no height at all; on eight rows
    of 224 columns one draw in two is too high, and one in a thousand ten times."""
    assert not np.any(draw_erasing(KEY, 1000, (1, 224), 1.0).area)
    flat = draw_erasing(KEY, 2000, (8, 224), 1.0)
    h = np.asarray(flat.bottom - flat.top)
    once = np.random.default_rng(0)
    area = 8 * 224 * once.uniform(0.02, 1 / 3, MANY)
    aspect = np.exp(once.uniform(np.log(0.3), np.log(1 / 0.3), MANY))
    fits = np.rint(np.sqrt(area * aspect)) < 8
    assert 0.05 < fits.mean() < 0.4
    assert h.max() == 7
    assert_mean(h > 0, 1 - (1 - fits.mean()) ** 10)


def test_what_is_mixed():
    """Which of the two, Beta's mean and variance, and cutmix's box around a uniform centre."""
    size = 64, 96
    mixing = jax.tree.map(np.asarray, draw_mixing(KEY, MANY, size, **RARER_CUTS))
    cuts = mixing.opacity == 1  # lambda itself is 1 in mixup once in a million
    assert_mean(cuts, 0.3)
    assert not mixing.boxes.area[~cuts].any()
    shares = mixing.opacity[~cuts]
    assert_mean(shares, 0.5)
    assert_mean((shares - 0.5) ** 2, 1 / (4 * (2 * 0.8 + 1)))  # of Beta(a, a)
    top, bottom, left, right = mixing.boxes
    assert min(top.min(), left.min()) == 0
    assert (bottom.max(), right.max()) == size
    assert (top <= bottom).all()
    assert (left <= right).all()
    # Boxes that no edge has cut have the image's shape up to rounding, an even size and, as
    # lambda is uniform, sides whose square is: P(side < s) = s^2. Those of less than half of the
    # height and a centre well inside are never cut.
    middle = (top + bottom) // 2, (left + right) // 2
    small = (bottom - top < 32) & (right - left < 48) & cuts
    inside = small & (abs(middle[0] - 32) < 16) & (abs(middle[1] - 48) < 24)
    h, w = (bottom - top)[inside], (right - left)[inside]
    assert not (h % 2).any()
    assert not (w % 2).any()
    assert np.abs(h / 64 - w / 96).max() < 3 / 64
    assert_mean(h / 64 < 0.25, 0.25**2 / 0.5**2)
    # A quarter of the boxes have a centre in a half of the height and a half of the width.
    tiny = cuts & (bottom - top <= 4) & (bottom > top)
    assert_mean(middle[0][tiny] < 32, 0.5)
    assert_mean(middle[1][tiny] < 48, 0.5)


def test_lambda_is_the_share_that_is_kept():
    """Up to the rounding of float32."""
    size = 64, 96
    drawn = draw_mixing(KEY, MANY, size, **RARER_CUTS)
    mixing = jax.tree.map(lambda values: values[:500], drawn)
    kept = np.asarray(mixing.weights(*size), np.float64).mean((1, 2, 3))
    assert 0 < kept.min() < 0.05
    np.testing.assert_allclose(mixing.share(*size), kept, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("draws", "cut", "mixed"),
    [
        ({"cutmix_alpha": 0.0, "mix_probability": 0.3}, 0, 0.3),
        ({"mixup_alpha": 0.0, "switch_probability": 0.2}, 1, 1),
    ],
)
def test_a_kind_that_is_off_and_groups_that_are_not_mixed(draws, cut, mixed):
    size = 64, 64
    mixing = jax.tree.map(np.asarray, draw_mixing(KEY, MANY, size, **PAPERS_DRAWS | draws))
    cuts = mixing.boxes.area > 0
    assert cuts.any() == (mixing.opacity == 1).all() == cut
    if cut:
        assert cuts.mean() > 0.998  # lambda close to 1: the box has no pixel
    else:
        assert_mean(mixing.opacity < 1, mixed)


@pytest.mark.parametrize(
    "off", [{"mixup_alpha": 0.0, "cutmix_alpha": 0.0}, {"mix_probability": 0.0}]
)
def test_nothing_is_mixed(off):
    """Nor does the batch have to make groups."""
    augmentation = dataclasses.replace(PAPER, erasing_probability=0.0, **off)
    batch = random_batch(12)
    for actual, expected in zip(
        jax.jit(augmentation)(KEY, batch), jax.jit(OFF)(KEY, batch), strict=True
    ):
        np.testing.assert_array_equal(actual, expected)


# As a step has it.


@pytest.mark.parametrize(("fsdp", "mixup_group_size"), [(1, 8), (2, 64)])
def test_eight_devices_give_what_one_gives(fsdp, mixup_group_size):
    """Up to fused products; a wrong draw would be far off. With whole groups on each device no
    image leaves it."""
    batch = random_batch(64)
    augment = jax.jit(dataclasses.replace(PAPER, mixup_group_size=mixup_group_size))
    split = next(parallel.global_batches([batch], data_mesh(8, fsdp)))
    compiled = augment.lower(KEY, split).compile()
    for actual, expected in zip(compiled(KEY, split), augment(KEY, batch), strict=True):
        assert len({str(shard.index) for shard in actual.addressable_shards}) == 8
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
    if mixup_group_size == 8:
        for moving in ("all-gather", "all-to-all", "collective-permute"):
            assert moving not in compiled.as_text()


def test_bfloat16_is_the_same_rounded():
    batch = random_batch(64)
    images, targets = jax.jit(PAPER)(KEY, batch)
    rounded, same = jax.jit(dataclasses.replace(PAPER, dtype=jnp.bfloat16))(KEY, batch)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rounded, images.astype(jnp.bfloat16))
    np.testing.assert_array_equal(same, targets)


def test_a_key_gives_the_same_again_and_another_key_something_else():
    augment, batch = jax.jit(PAPER), random_batch(64)
    first, again, other = (augment(jax.random.key(seed), batch) for seed in (0, 0, 1))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


def test_groups_of_a_batch():
    assert count_groups(2048, 64) == 32
    assert count_groups(64, 64) == count_groups(17, 64) == count_groups(1, 64) == 1
    with pytest.raises(RunError, match=r"96 images .*mixup_group_size = 64; .* divisor of 96"):
        count_groups(96, 64)
    with pytest.raises(RunError, match="12 images"):
        jax.jit(PAPER)(KEY, random_batch(12))


def test_augmentation_of_a_configuration():
    config = common.get_config()
    config.model.dtype = "bfloat16"
    augmentation = make_augmentation(config, 1000)
    assert augmentation == Augmentation(
        num_classes=1000, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        label_smoothing=0.1, erasing_probability=0.25, mixup_alpha=0.8, cutmix_alpha=1.0,
        mix_probability=1.0, switch_probability=0.5, mixup_group_size=64, dtype=jnp.bfloat16,
    )  # fmt: skip
    grey = make_augmentation(digits.get_config(), 10)
    images, _ = jax.jit(grey)(KEY, random_batch(3, channels=1))
    assert images.shape == (3, 12, 12, 1)


def test_opacity_and_box_at_their_ends():
    """All of the partner, by either kind, and nothing of it."""
    images = np.random.default_rng(0).standard_normal((6, 4, 5, 3), np.float32)
    targets = np.eye(6, dtype=np.float32)
    zero, four, five = np.int32([0, 0, 0]), np.int32([0, 4, 0]), np.int32([0, 5, 0])
    mixing = Mixing(np.float32([0, 1, 1]), Boxes(zero, four, zero, five))
    mixed, shares = mix(mixing, images, targets)
    np.testing.assert_array_equal(mixed, images[[1, 0, 3, 2, 4, 5]])
    np.testing.assert_array_equal(shares, targets[[1, 0, 3, 2, 4, 5]])
