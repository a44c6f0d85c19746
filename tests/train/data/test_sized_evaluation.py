"""Batches of images at their original sizes: each once, few shapes, and pixels of the protocol."""

import io

import numpy as np
import pytest
from PIL import Image

from replk_jax.segmentation.prediction import View, class_scores, side_by_side
from replk_jax.segmentation.protocol import SegmentationProtocol
from replk_jax.vision.label_sets import IGNORED, LabelSet
from tests.train import segmentation_sets
from train.data.sized_evaluation import ProtocolTransform, SizedEvaluation
from train.data.splits import Reading
from train.errors import RunError

LABELS = LabelSet.of(segmentation_sets.CLASSES)
WHOLE = SegmentationProtocol((96, 48))
SLIDE = SegmentationProtocol((96, 48), window=32, stride=21, ratios=(0.75, 1.0), flip=True)


class InMemory:
    """A source of PNG files."""

    label_set = LABELS

    def __init__(self, sizes, seed=0):
        rng = np.random.default_rng(seed)
        self.examples = [segmentation_sets.example(rng, *size) for size in sizes]
        self.damaged = set()

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        image, mask = (encoded(array) for array in self.examples[index])
        if index in self.damaged:
            image = image[:-60]
        return {
            "image": image, "mask": mask, "origin": f"image {index}", "mask_origin": f"mask {index}"
        }  # fmt: skip


def encoded(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def transform(protocol=WHOLE, **fields):
    return ProtocolTransform(protocol, LABELS, 4, False, **fields)


def fail(message):
    raise AssertionError(message)


@pytest.mark.parametrize("batch_size", [1, 4, 7])
@pytest.mark.parametrize("protocol", [WHOLE, SLIDE], ids=["whole", "slide"])
def test_every_image_counts_once(batch_size, protocol):
    sizes = [(40, 60), (50, 40), (40, 60), (80, 120), (36, 54), (40, 60), (50, 40)]
    source = InMemory(sizes)
    examples = SizedEvaluation(
        source, transform(protocol, with_image=True), batch_size=batch_size, reading=Reading()
    )
    seen, shapes = [], set()
    for batch in examples.batches(fail):
        assert len(batch["mask"]) == batch_size
        shapes.add(tuple((name, array.shape[1:]) for name, array in sorted(batch.items())))
        for row in np.flatnonzero(batch["mask"]):
            height, width = batch["size"][row]
            image, label = batch["image"][row], batch["label"][row]
            seen.append((image[:height, :width].tobytes(), label[:height, :width].tobytes()))
            assert (label[height:] == IGNORED).all()
            assert (label[:, width:] == IGNORED).all()
            assert not image[height:].any()
    assert sorted(seen) == sorted((i.tobytes(), m.tobytes()) for i, m in source.examples)
    assert (
        len(shapes) == len(examples.groups()) == 3
    )  # two aspect ratios; one is also twice as large


def test_pixels_and_scores_are_those_of_the_protocol():
    """Windows, flips and matrices: logits that equal a linear function of the pixels give it at the
    original size, whatever the view."""
    protocol = SegmentationProtocol((96, 48), multiple=8, window=32, stride=21, flip=True)
    source = InMemory([(50, 70)])
    example = ProtocolTransform(protocol, LABELS, 1, False).map(source[0])
    resized = protocol.resized_pixels(Image.fromarray(source.examples[0][0]))
    windows = protocol.windows(resized.shape[:2])
    np.testing.assert_array_equal(example["windows_0"][0], windows.cut(resized))
    np.testing.assert_array_equal(example["windows_0"][1], windows.cut(resized[:, ::-1]))
    results = []
    for view in (0, 1):
        logits = np.float32(example["windows_0"][view])
        grid = side_by_side(logits, windows.grid)
        results.append(
            class_scores(View(grid, example["rows_0"][None], example["columns_0"][view][None]))
        )
    np.testing.assert_allclose(results[0], results[1], rtol=1e-4, atol=1e-3)
    # Shrunk and enlarged again; a shift by a pixel would make four times the difference.
    scores = np.asarray(results[0])[0, :50, :70]
    assert abs(scores - source.examples[0][0]).mean() < 40


def test_resizing_is_that_of_inference():
    source = InMemory([(50, 70), (31, 90)])
    for ratio in (0.5, 1.0, 1.75):
        protocol = SegmentationProtocol((96, 48), multiple=32, ratios=(ratio,))
        for index, (image, _) in enumerate(source.examples):
            windows = transform(protocol).map(source[index])["windows_0"]
            expected = protocol.resized_pixels(image, ratio=ratio)
            np.testing.assert_array_equal(windows[0, 0], expected)


def adelike_sizes(count=2000, seed=0):
    """Short sides of 256 to 1,100 pixels, aspect ratios mostly of 1.2 to 1.6, some upright."""
    rng = np.random.default_rng(seed)
    sizes = []
    for _ in range(count):
        short = 512 if rng.random() < 0.5 else int(rng.uniform(256, 1100))
        long = int(short * np.clip(rng.normal(1.38, 0.15), 1, 2.5))
        sizes.append((short, long) if rng.random() < 0.8 else (long, short))
    return sizes


@pytest.mark.parametrize(
    ("protocol", "most"),
    [
        # Sides in steps of 32: the evaluation in training.
        (SegmentationProtocol((2048, 512), multiple=32), 80),
        # The published tests. Windows at 640 are 512 x 512, 512 x 513, ... 512 x 640 pixels; whole
        # images have as many sizes as they have.
        (SegmentationProtocol((2048, 512), window=640, stride=426), 250),
        (SegmentationProtocol((2048, 512)), 1000),
    ],
    ids=["in training", "slide", "whole"],
)
def test_few_shapes(protocol, most):
    """There is a program for each."""
    shapes = {transform(protocol).shapes(size) for size in adelike_sizes()}
    assert most / 2 < len(shapes) <= most


def test_labels_are_padded_to_few_sizes():
    """The size that the windows cover, times 1, 2 or 4."""
    for protocol in (WHOLE, SLIDE, SegmentationProtocol((2048, 512), multiple=32)):
        for size in [(1, 1), (48, 96), (49, 96), (500, 300), *adelike_sizes(50)]:
            shapes = transform(protocol).shapes(size)
            assert all(side <= padded for side, padded in zip(size, shapes.padded, strict=True))
    whole = transform(SegmentationProtocol((2048, 512), multiple=32))
    padded = {transform.shapes(s).padded for transform in [whole] for s in [(512, 683), (480, 640)]}
    assert padded == {(512, 704)}
    assert whole.shapes((1536, 2048)).padded == (4 * 512, 4 * 704)
    slide = transform(SegmentationProtocol((2048, 512), window=640, stride=426))
    assert slide.shapes((512, 700)).padded == (512, 1066)


@pytest.mark.parametrize("damaged", [0, 2])
def test_an_image_that_cannot_be_read(damaged):
    """It is left out, whatever the size of the next one, or stops the evaluation."""
    source = InMemory([(40, 60), (50, 40), (40, 60)])
    source.damaged.add(damaged)
    examples = SizedEvaluation(source, transform(), batch_size=2, reading=Reading(replace=True))
    messages = []
    masks = [batch["mask"] for batch in examples.batches(messages.append)]
    assert np.concatenate(masks).sum() == 2
    assert len(messages) == 1
    assert f"image {damaged}" in messages[0]
    strict = SizedEvaluation(source, transform(), batch_size=2, reading=Reading())
    with pytest.raises(RunError, match=f"image {damaged}.*config.data.unreadable=replace"):
        list(strict.batches(fail))


def test_masks_of_another_size_or_without_one():
    source = InMemory([(40, 60), (50, 40)])
    source.examples[1] = (source.examples[1][0], source.examples[0][1])
    strict = SizedEvaluation(source, transform(), batch_size=1, reading=Reading())
    with pytest.raises(RunError, match="mask 1 has 60 x 40 pixels, and its image"):
        list(strict.batches(fail))

    class WithoutMasks(InMemory):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "mask": b"no image"}

    for reading in (Reading(), Reading(replace=True)):
        with pytest.raises(RunError, match="mask"):
            list(
                SizedEvaluation(
                    WithoutMasks([(9, 9)]), transform(), batch_size=1, reading=reading
                ).batches(fail)
            )


def test_a_few_examples():
    """Of the most frequent shapes."""
    source = InMemory([(50, 40), (40, 60), (40, 60), (40, 60)])
    few = SizedEvaluation(
        source, transform(with_image=True), batch_size=2, reading=Reading(), count=2
    )
    (batch,) = few.batches(fail)
    assert batch["mask"].tolist() == [True, True]
    assert batch["size"].tolist() == [[40, 60]] * 2
