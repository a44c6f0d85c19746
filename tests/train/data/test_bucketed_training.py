"""Batches of detection: one shape each, every image once an epoch, resumable, in any process."""

import itertools
import multiprocessing
import pickle
from collections import Counter

import jax
import numpy as np
import pytest

from tests.train import detection_sets
from train.data.bucketed_training import BatchPlan, DetectionTraining
from train.data.detection_draws import DetectionAugmentation, default_buckets
from train.data.detection_examples import DetectionExamples
from train.data.detection_sources import open_detection_source
from train.data.splits import Reading
from train.errors import RunError

SCALES = ((64, 40), (64, 48))
BUCKETS = default_buckets(SCALES, 16)
CROPS = DetectionAugmentation(SCALES, ((64, 36), (64, 44)), (24, 36))
TWO_THREADS = Reading(threads=2)
PLAIN = DetectionAugmentation(SCALES)
SIZES = ((48, 64), (64, 48), (48, 48))


def plan(count=23, batch_size=4, augmentation=CROPS, buckets=BUCKETS, seed=0, sizes=SIZES):
    of_images = np.array([sizes[i % len(sizes)] for i in range(count)])
    return BatchPlan(of_images, augmentation, buckets, batch_size, seed)


def batches_of(plan, steps, batch_size=4):
    return [[plan.at(s * batch_size + i) for i in range(batch_size)] for s in range(steps)]


@pytest.mark.parametrize("augmentation", [PLAIN, CROPS], ids=["resize", "crop"])
@pytest.mark.parametrize("batch_size", [1, 4, 23])
def test_every_image_once_an_epoch_and_one_bucket_in_a_batch(augmentation, batch_size):
    made = plan(batch_size=batch_size, augmentation=augmentation)
    epochs = 12
    found = batches_of(made, epochs * 23 // batch_size, batch_size)
    counts = Counter()
    for batch in found:
        assert len({item.bucket for item in batch}) == 1
        for item in batch:
            assert all(np.less_equal(item.draws.size, item.bucket))
            counts[item.image] += 1
    # The two sequences, of wide and of high images, have each an incomplete batch.
    assert sum(counts.values()) == len(found) * batch_size
    if batch_size == 1:
        assert set(counts.values()) == {epochs}
    else:
        assert max(counts.values()) <= epochs + 2
        assert min(counts.values()) >= epochs - 2


def test_no_image_is_lost_or_repeated_in_the_sequence_of_a_bucket():
    """Without crops, images keep their bucket: its sequence is one epoch after the other."""
    made = plan(count=20, augmentation=PLAIN, sizes=((48, 64), (64, 48)))
    found = batches_of(made, 100)
    for bucket in BUCKETS:
        images = [item.image for batch in found for item in batch if item.bucket == bucket]
        # Batches of one epoch are shuffled; 10 images and batches of 4 make whole epochs of 20.
        for start in range(0, len(images) - 19, 20):
            assert set(Counter(images[start : start + 20]).values()) == {2}


def test_batches_of_buckets_are_mixed():
    buckets = [batch[0].bucket for batch in batches_of(plan(count=200), 50)]
    changes = sum(a != b for a, b in itertools.pairwise(buckets))
    assert changes > 10


def test_a_plan_depends_on_its_arguments_alone():
    """Not on the order of questions, on the process, or on what it was asked before."""
    expected = batches_of(plan(), 60)
    late = plan()
    assert [late.at(59 * 4 + i) for i in range(4)] == expected[59]
    assert [late.at(3 * 4 + i) for i in range(4)] == expected[3]
    sent = pickle.loads(pickle.dumps(late))
    assert batches_of(sent, 60) == expected
    assert batches_of(plan(seed=1), 60) != expected
    draws = [item.draws for batch in expected for item in batch if item.image == 0]
    assert len(set(draws)) > 5


def test_a_replacement_has_the_bucket():
    made = plan()
    for row in range(40):
        first = made.at(row)
        for offset in range(1, 4):
            other = made.at(row, offset)
            assert other.bucket == first.bucket
            assert all(np.less_equal(other.draws.size, other.bucket))
    assert len({made.at(0, offset).image for offset in range(3)}) == 3


def test_too_few_images_and_too_small_buckets():
    with pytest.raises(RunError, match=r"3 training examples do not fill one batch of 4"):
        plan(count=3)
    made = plan(buckets=((48, 64),))
    with pytest.raises(
        RunError, match=r"An image becomes \d+ x \d+ pixels, and config.data.buckets"
    ):
        made.at(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return detection_sets.write_coco(tmp_path_factory.mktemp("coco") / "set", {"train": 17}, SIZES)


def training(folder, augmentation=CROPS, reading=TWO_THREADS, **fields):
    source = open_detection_source(detection_sets.data(folder), "train")
    examples = DetectionExamples.to_train_on(source, filter_empty=False, masks=True, max_objects=4)
    return DetectionTraining(
        examples, augmentation, max_objects=4, masks=True, buckets=BUCKETS,
        **{"batch_size": 4, "seed": 0, "reading": reading, **fields},
    )  # fmt: skip


def first(training, count, start=0):
    batches = training.batches(start)
    found = [next(batches) for _ in range(count)]
    batches.close()
    return found


def test_batches(folder):
    found = first(training(folder), 12)
    shapes, squares = set(), 0
    for batch in found:
        height, width = batch["image"].shape[1:3]
        shapes.add((height, width))
        assert batch["image"].shape == (4, height, width, 3)
        assert batch["image"].dtype == np.uint8
        assert batch["masks"].shape == (4, 4, height, width // 8)
        assert {name: array.dtype for name, array in batch.items() if name != "image"} == {
            "size": np.int32, "boxes": np.float32, "classes": np.int32, "valid": bool,
            "masks": np.uint8,
        }  # fmt: skip
        masks = np.unpackbits(batch["masks"], axis=-1)
        for i, (rows, columns) in enumerate(batch["size"]):
            assert batch["image"][i, :rows, :columns].any(axis=-1).mean() > 0.9
            assert not batch["image"][i, rows:].any()
            assert not batch["image"][i, :, columns:].any()
            rows_of = zip(
                batch["boxes"][i], masks[i], batch["valid"][i], batch["classes"][i], strict=True
            )
            for box, mask, valid, kind in rows_of:
                assert valid or not (box.any() or mask.any())
                assert (box >= 0).all()
                assert (box <= (columns, rows, columns, rows)).all()
                ys, xs = np.nonzero(mask)
                if not len(ys):
                    continue
                # The nearest value is taken twice, and each time may be a pixel off.
                inside = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) - box
                assert (inside[:2] >= -3).all()
                assert (inside[2:] <= 3).all()
                if kind == 0:  # a part of a disc may be smaller than the part of its box
                    assert np.abs(inside).max() <= 3
                    squares += 1
    assert squares > 10
    assert shapes == set(BUCKETS)


def assert_same(some, others):
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_resuming_and_threads_change_nothing(folder):
    expected = first(training(folder), 9)
    assert_same(first(training(folder), 2, start=7), expected[7:])
    assert_same(first(training(folder, reading=Reading(threads=1)), 3), expected[:3])


@pytest.mark.exhaustive
def test_worker_processes_change_nothing(folder):
    expected = first(training(folder), 5)
    assert_same(first(training(folder, reading=Reading(threads=1, workers=2)), 5), expected)
    assert not multiprocessing.active_children()


def test_processes_have_their_rows_of_the_same_batches(folder, monkeypatch):
    expected = first(training(folder), 6)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    rows = []
    for index in range(2):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        rows.append(first(training(folder), 6))
    joined = [
        {name: np.concatenate([one[name], other[name]]) for name in one}
        for one, other in zip(*rows, strict=True)
    ]
    assert_same(joined, expected)


def test_images_that_cannot_be_read(tmp_path):
    folder = detection_sets.write_coco(tmp_path / "set", {"train": 8}, SIZES)
    (folder / "train/003.png").unlink()
    with pytest.raises(RunError, match=r"003\.png.*data\.unreadable=replace"):
        first(training(folder), 4)
    messages = []
    batches = training(folder, reading=Reading(threads=1, replace=True)).batches(0, messages.append)
    for _ in range(4):
        assert next(batches)["image"].shape[0] == 4
    batches.close()
    assert messages
    assert all("003.png" in message for message in messages)
