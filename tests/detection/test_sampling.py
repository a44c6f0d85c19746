"""Samples of boxes: their numbers, their order, and that all boxes are equally likely."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax.detection.sampling import sample

SAMPLE = jax.jit(sample, static_argnums=(2, 3))
KEYS = [None, jax.random.key(3)]


@pytest.mark.parametrize("key", KEYS, ids=["first", "random"])
@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        (30, 50, (4, 12)),  # a quarter, and the rest
        (3, 50, (3, 13)),  # negatives in place of positives
        (30, 5, (4, 5)),  # but not the reverse
        (0, 50, (0, 16)),
        (2, 0, (2, 0)),
        (0, 0, (0, 0)),
    ],
)
def test_numbers(positives, negatives, expected, key):
    generator = np.random.default_rng(0)
    kinds = np.zeros(90, int)
    places = generator.permutation(90)
    kinds[places[:positives]] = 1
    kinds[places[positives : positives + negatives]] = 2
    samples = SAMPLE(jnp.asarray(kinds == 1), jnp.asarray(kinds == 2), 16, 0.25, key)
    indices, positive, valid = map(np.asarray, samples)
    number = sum(expected)
    assert valid.tolist() == [True] * number + [False] * (16 - number)
    assert positive.tolist() == [True] * expected[0] + [False] * (16 - expected[0])
    assert np.all(kinds[indices[positive]] == 1)
    assert np.all(kinds[indices[valid & ~positive]] == 2)
    assert len(set(indices[valid])) == number
    if key is None:
        for kind, chosen in ((1, indices[positive]), (2, indices[valid & ~positive])):
            assert chosen.tolist() == np.flatnonzero(kinds == kind)[: len(chosen)].tolist()


def test_fewer_boxes_than_samples():
    samples = SAMPLE(jnp.asarray([True, False, False]), jnp.asarray([False, True, True]), 9, 0.5)
    assert samples.indices.tolist() == [0, 1, 2] + [0] * 6
    assert samples.valid.tolist() == [True] * 3 + [False] * 6


def test_all_boxes_are_equally_likely():
    """2,000 samples: each count is binomial, and 5 standard deviations are the limit."""
    positive = jnp.arange(40) % 4 == 0  # 10 of them, of which 4 are taken
    negative = jnp.arange(40) % 4 == 1  # 10 of them, of which 6 are taken
    keys = jax.random.split(jax.random.key(0), 2000)
    indices = jax.vmap(lambda key: SAMPLE(positive, negative, 10, 0.4, key).indices)(keys)
    counts = np.bincount(np.asarray(indices).ravel(), minlength=40)
    for kind, probability in ((positive, 0.4), (negative, 0.6)):
        deviation = np.sqrt(2000 * probability * (1 - probability))
        assert np.abs(counts[np.asarray(kind)] - 2000 * probability).max() < 5 * deviation
    assert counts[np.asarray(~positive & ~negative)].sum() == 0
