"""Average precision of collected detections, and the loss, with networks that compute next to
nothing."""

import copy
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax.detection.pasting import paste_mask
from replk_jax.detection.protocol import DetectionProtocol
from replk_jax.detection.structures import Detections
from replk_jax.models.network import Network
from replk_jax.vision.images import ImageError
from tests import reference_data
from tests.helpers import data_mesh
from train.data import coco_masks
from train.engine import parallel
from train.engine.evaluation import Evaluator
from train.engine.step_programs import StepPrograms
from train.errors import RunError
from train.tasks.detection_losses import DetectionLoss
from train.tasks.detection_metrics import average_precision, coco_results

PROTOCOL = DetectionProtocol((64, 48))
HEIGHT, WIDTH = 40, 60
BOX = [10, 5, 20, 30]  # x, y, width, height
TRUTH = {
    "images": [{"id": number, "height": HEIGHT, "width": WIDTH} for number in (7, 3, 5)],
    "categories": [{"id": 9, "name": "cell"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"image_id": 7, "category_id": 9, "bbox": BOX, "area": 600, "iscrowd": 0},
        {"image_id": 3, "category_id": 2, "bbox": BOX, "area": 600, "iscrowd": 0},
        {"image_id": 5, "category_id": 2, "bbox": BOX, "area": 600, "iscrowd": 0},
    ],
}


def metrics_of(truth=TRUTH, *, masks=False):
    return average_precision(lambda: truth, PROTOCOL, masks=masks, library="faster_coco_eval")


def padded(images, count, masks=None):
    """`Detections` of (box as x1, y1, x2, y2, score, class) of each image."""
    boxes, scores = np.zeros((len(images), count, 4), np.float32), np.zeros((len(images), count))
    classes = np.full((len(images), count), -1)
    for i, found in enumerate(images):
        for j, (box, score, number) in enumerate(found):
            boxes[i, j], scores[i, j], classes[i, j] = box, score, number
    return Detections(boxes, scores, classes, np.array([len(found) for found in images]), masks)


def batch_of(detections, ids, **fields):
    count = len(ids)
    return {
        "detections": detections,
        "image_id": np.array(ids),
        "original_size": np.full((count, 2), (HEIGHT, WIDTH)),
        "mask": np.ones(count, bool),
        "finite": np.ones(count, bool),
        **fields,
    }


def corners(box):
    x, y, width, height = box
    return [x, y, x + width, y + height]


@reference_data.required
def test_reference_numbers():
    """1e-6: coordinates and areas of boxes are in single precision here."""
    folder = reference_data.ROOT / "downstream/coco_eval"
    truth = json.loads((folder / "truth.json").read_text())
    expected = json.loads((folder / "expected.json").read_text())["bbox"]
    numbers = [category["id"] for category in truth["categories"]]
    by_image = {image["id"]: [] for image in truth["images"]}
    for entry in json.loads((folder / "detections.json").read_text()):
        kind = numbers.index(entry["category_id"])
        by_image[entry["image_id"]].append((corners(entry["bbox"]), entry["score"], kind))
    metrics, collected = metrics_of(truth), None
    ids = list(by_image)
    for some in (ids[:3], ids[3:]):
        detections = padded([by_image[number] for number in some], 150)
        collected = metrics.add(collected, batch_of(detections, some))
    scores = metrics.scores(collected, len(ids))
    for name, value in scores.items():
        assert value == pytest.approx(expected[name], abs=1e-6), name
    assert set(scores) >= {"AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"}
    table = metrics.table(collected, len(ids))
    assert {name: row["AP"] for name, row in table.items()} == {
        name: value if value is None else pytest.approx(value, abs=1e-6)
        for name, value in expected["AP_per_category"].items()
    }


def test_what_does_not_count():
    """Rows of padding, detections beyond the count, and images that could not be read."""
    found = [[(corners(BOX), 0.9, 0)], [(corners(BOX), 0.8, 1)], [(corners(BOX), 1.0, 1)]]
    detections = padded(found, 4)
    detections.boxes[0, 1:], detections.scores[0, 1:], detections.classes[0, 1:] = 5, 0.99, 1
    metrics = metrics_of()
    batch = batch_of(detections, [7, 3, 3], mask=np.array([True, True, False]))
    batch["finite"][2] = False
    collected = metrics.add(None, batch)
    scores = metrics.scores(collected, 2)
    # The image 5 is left out, and there are no small and no large objects.
    assert scores == {"AP": 1, "AP50": 1, "AP75": 1, "AP_small": 1, "AR_100": 1}
    assert metrics.table(collected, 2)["dog"] == {"AP": 1, "AP50": 1, "AP75": 1}


def test_more_batches_change_the_result():
    metrics = metrics_of()
    collected = metrics.add(None, batch_of(padded([[(corners(BOX), 0.9, 0)]], 4), [7]))
    assert metrics.scores(collected, 1)["AP"] == 1
    collected = metrics.add(collected, batch_of(padded([[]], 4), [3]))
    assert metrics.scores(collected, 2)["AP"] == 0.5


def test_outputs_that_are_not_finite():
    metrics = metrics_of()
    found = [[], [(corners(BOX), np.nan, 0)]]
    batch = batch_of(padded(found, 4), [7, 3], finite=np.array([True, False]))
    collected = metrics.add(None, batch)
    scores = metrics.scores(collected, 2)
    assert "AP" in scores
    assert np.isnan(list(scores.values())).all()
    assert metrics.table(collected, 2) == {}


def test_nothing_to_be_found():
    metrics = metrics_of({**TRUTH, "annotations": []})
    batch = batch_of(padded([[(corners(BOX), 0.9, 0)]], 4), [7])
    scores = metrics.scores(metrics.add(None, batch), 1)
    assert list(scores) == ["AP"]
    assert np.isnan(scores["AP"])


def test_a_truth_that_makes_no_sense():
    detections = padded([[]], 4, np.zeros((1, 4, 28, 28), np.float32))
    metrics = metrics_of(masks=True)
    with pytest.raises(RunError, match="image 7 has no segmentation"):
        metrics.scores(metrics.add(None, batch_of(detections, [7])), 1)

    def unreadable():
        raise ImageError("a.png is damaged.")

    metrics = average_precision(unreadable, PROTOCOL, masks=True, library="faster_coco_eval")
    with pytest.raises(RunError, match=r"cannot be read: a\.png is damaged"):
        metrics.add(None, batch_of(detections, [7]))


def test_masks_are_pasted_into_their_boxes():
    """The left half of a box is an object; half of the cells are."""
    bitmap = np.zeros((HEIGHT, WIDTH), bool)
    bitmap[5:35, 10:20] = True
    truth = copy.deepcopy(TRUTH)
    for annotation in truth["annotations"]:
        annotation["segmentation"] = coco_masks.from_bitmap(bitmap)
        annotation["area"] = 300
    probabilities = np.zeros((1, 4, 28, 28), np.float32)
    probabilities[:, :, :, :14] = 1
    detections = padded([[(corners(BOX), 0.9, 0)]], 4, probabilities)
    metrics = metrics_of(truth, masks=True)
    collected = metrics.add(None, batch_of(detections, [7]))
    scores = metrics.scores(collected, 1)
    assert scores["mask_AP"] == scores["mask_AP_small"] == scores["AP"] == 1
    row = metrics.table(collected, 1)["cell"]
    assert list(row) == ["AP", "AP50", "AP75", "mask_AP", "mask_AP50", "mask_AP75"]
    (result,) = coco_results(detections, [7], [(HEIGHT, WIDTH)], [9, 2])
    np.testing.assert_array_equal(
        coco_masks.to_bitmap(result.pop("segmentation"), HEIGHT, WIDTH), bitmap
    )
    assert result == {"image_id": 7, "category_id": 9, "score": 0.9, "bbox": BOX}


def test_results_of_a_batch():
    """Threads do not change their order, and each mask goes into the image of its box."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 20, (3, 6, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 30, (3, 6, 2))], axis=2)
    masks = rng.random((3, 6, 28, 28)).astype(np.float32)
    scores, classes = rng.random((3, 6)), rng.integers(0, 2, (3, 6))
    count, sizes = np.array([6, 0, 3]), [(40, 60), (20, 20), (60, 41)]
    found = coco_results(Detections(boxes, scores, classes, count, masks), [7, 3, 5], sizes, [9, 2])
    rows = [(0, j) for j in range(6)] + [(2, j) for j in range(3)]
    assert len(found) == len(rows)
    for result, (i, j) in zip(found, rows, strict=True):
        pasted = paste_mask(masks[i, j], boxes[i, j], sizes[i])
        assert result["segmentation"] == coco_masks.from_bitmap(pasted)
        assert (result["image_id"], result["score"]) == ((7, 3, 5)[i], scores[i, j])
        assert result["category_id"] == (9, 2)[classes[i, j]]


class Brightest(Network, kw_only=True):
    """Detects the whole image, with its mean as the score."""

    mergeable = True
    in_channels = 3

    @nn.compact
    def __call__(self, x, train=False, *, sizes=None, scales=None, truths=None, key=None):
        score = jax.nn.sigmoid(x.mean((1, 2, 3)) + self.param("bias", nn.initializers.zeros, ()))
        if truths is not None:
            return {"loss_cls": score.mean(), "loss_bbox": 2 * score.mean(), "acc": score.sum()}
        count = len(x)
        ends = (sizes / scales)[:, ::-1]
        boxes = jnp.concatenate([jnp.zeros((count, 2)), ends], axis=1)[:, None]
        zeros = jnp.zeros((count, 1), jnp.int32)
        return Detections(boxes, score[:, None], zeros, jnp.ones(count, jnp.int32))

    def comparable(self, x):
        return x.mean((1, 2, 3)) + self.get_variable("params", "bias")


def inputs(ids, height, width):
    count = len(ids)
    return {
        "image": np.full((count, height, width, 3), 200, np.uint8),
        "size": np.full((count, 2), (32, 48), np.int32),
        "scale": np.full((count, 2), 0.8, np.float32),
        "original_size": np.full((count, 2), (HEIGHT, WIDTH), np.int32),
        "image_id": np.array(ids, np.int32),
        "mask": np.ones(count, bool),
    }


def test_an_evaluation_compiles_a_program_for_each_bucket():
    """Boxes are in pixels of the originals, and both structures are compared by `comparable`."""
    whole = {"bbox": [0, 0, WIDTH, HEIGHT], "area": WIDTH * HEIGHT}
    truth = {**TRUTH, "annotations": [{**row, **whole} for row in TRUTH["annotations"]]}
    model, mesh = Brightest(), data_mesh(2)
    evaluator = Evaluator(model, metrics_of(truth), mesh)
    variables = {"params": {"bias": jnp.zeros(())}}
    rows = [inputs([7, 3], 32, 64), inputs([5, 5], 64, 32), inputs([7, 3], 32, 64)]
    rows[1]["mask"][1] = False
    for _ in range(2):
        scores = evaluator.evaluate(variables, parallel.global_batches(rows[:2], mesh))
    # All are called cells; one of three is, among three detections.
    assert (scores["examples"], scores["AR_100"]) == (3, 0.5)
    assert evaluator._evaluate.compilations == 2
    (batch,) = parallel.global_batches(rows[:1], mesh)
    mean = np.asarray(evaluator.largest_output(variables, batch))
    normalised = (200 / 255 - np.array(PROTOCOL.mean)) / np.array(PROTOCOL.std)
    assert mean == pytest.approx(normalised.mean() * 48 / 64, rel=1e-5)  # padding is 0
    variables["params"]["bias"] = jnp.float32(np.nan)
    assert np.isnan(evaluator.evaluate(variables, [batch])["AP"])


def test_a_step_is_compiled_for_each_bucket():
    said = []
    step = jax.jit(lambda state, batch: (state + batch["image"].sum(), {}))
    programs = StepPrograms(step, said.append)
    for shape in [(2, 4, 6, 3), (2, 6, 4, 3), (2, 4, 6, 3), (2, 6, 4, 3)]:
        batch = {"image": jnp.ones(shape)}
        state, _ = programs(jnp.zeros(()), batch)(jnp.zeros(()), batch)
        assert state == np.prod(shape)
    assert len(programs) == len(said) == 2
    assert "with images of 6 x 4 takes up to" in said[0]
    assert "with images of 4 x 6 takes up to" in said[1]


def test_the_loss():
    """The sum of the losses; the network gets normalised images with zeros in the padding."""
    given = {}

    def forward(images, *, sizes, truths, key):
        given.update(images=images, sizes=sizes, truths=truths, key=key)
        return {"loss_cls": jnp.float32(1), "s0.loss_mask": jnp.float32(2), "s0.acc": jnp.ones(())}

    key = jax.random.key(3)
    batch = {
        "image": np.full((1, 4, 6, 3), 255, np.uint8), "size": np.array([[3, 5]], np.int32),
        "boxes": np.zeros((1, 2, 4), np.float32), "classes": np.zeros((1, 2), np.int32),
        "valid": np.ones((1, 2), bool), "masks": np.zeros((1, 2, 4, 1), np.uint8),
    }  # fmt: skip
    loss = DetectionLoss((0.5,) * 3, (0.25,) * 3, np.dtype(np.float32))
    total, terms = loss(forward, key, batch)
    assert float(total) == 3
    assert set(terms) == {"loss_cls", "s0.loss_mask", "s0.acc"}
    expected = np.zeros((1, 4, 6, 3))
    expected[:, :3, :5] = 2
    np.testing.assert_allclose(given["images"], expected, atol=1e-6)
    assert given["key"] is key
    assert given["sizes"] is batch["size"]
    assert given["truths"].masks is batch["masks"]
    loss(forward, key, {name: rows for name, rows in batch.items() if name != "masks"})
    assert given["truths"].masks is None
