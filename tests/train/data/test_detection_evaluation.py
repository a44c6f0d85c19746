"""Images to evaluate detectors on: each once, few shapes, and pixels of the protocol."""

import itertools
import json

import jax
import numpy as np
import pytest

from replk_jax.detection.protocol import DetectionProtocol
from replk_jax.vision.images import read_image
from tests.train import detection_sets
from train.data.detection_evaluation import DetectionEvaluation, DetectionTestTransform
from train.data.detection_examples import DetectionExamples
from train.data.detection_sources import open_detection_source
from train.data.splits import Reading
from train.errors import RunError

PROTOCOL = DetectionProtocol((64, 48), pad_multiple=16)
BUCKETS = ((48, 64), (64, 48))
SIZES = ((40, 56), (56, 40), (44, 44), (40, 72))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluation") / "set"
    return detection_sets.write_coco(root, {"val": 11}, SIZES)


def evaluation(folder, buckets=BUCKETS, protocol=PROTOCOL, batch_size=4, replace=False, count=None):
    source = open_detection_source(detection_sets.data(folder), "val")
    return DetectionEvaluation(
        DetectionExamples.to_evaluate_on(source),
        DetectionTestTransform(protocol, buckets),
        batch_size=batch_size,
        reading=Reading(threads=2, replace=replace),
        count=count,
    )


def images(folder):
    content = json.loads((folder / "annotations/instances_val.json").read_text())
    return {image["id"]: image for image in content["images"]}


@pytest.mark.parametrize("protocol", [PROTOCOL, DetectionProtocol((64, 48), 8, pad_multiple=16)])
@pytest.mark.parametrize("buckets", [BUCKETS, ()], ids=["buckets", "exact"])
def test_every_image_once_as_the_protocol_says(folder, buckets, protocol):
    expected, found = images(folder), []
    shapes = set()
    for batch in evaluation(folder, buckets, protocol).batches():
        shapes.add(batch["image"].shape[1:3])
        assert batch["image"].shape[0] == 4
        for i in np.flatnonzero(batch["mask"]):
            image = expected[int(batch["image_id"][i])]
            found.append(image["id"])
            size = image["height"], image["width"]
            pixels = protocol.pixels(read_image(folder / "val" / image["file_name"]))
            rows, columns = batch["size"][i]
            assert (rows, columns) == pixels.shape[:2] == protocol.resized_size(*size)
            np.testing.assert_array_equal(batch["image"][i, :rows, :columns], pixels)
            assert not batch["image"][i, rows:].any()
            assert not batch["image"][i, :, columns:].any()
            np.testing.assert_array_equal(batch["scale"][i], protocol.scale_factors(*size))
            assert batch["original_size"][i].tolist() == list(size)
            if not buckets:
                assert batch["image"].shape[1:3] == protocol.padded_size(*size)
    assert sorted(found) == sorted(expected)
    if buckets:
        assert shapes == set(BUCKETS)
    assert batch["scale"].dtype == np.float32
    for name in ("size", "original_size", "image_id"):
        assert batch[name].dtype == np.int32


def test_groups(folder):
    groups = evaluation(folder).groups()
    assert [len(positions) for positions in groups.values()] == sorted(
        (len(positions) for positions in groups.values()), reverse=True
    )
    assert sorted(itertools.chain(*groups.values())) == list(range(11))
    (most,) = evaluation(folder, count=3).groups().items()
    assert most == (next(iter(groups)), groups[next(iter(groups))][:3])
    with pytest.raises(RunError, match=r"becomes \d+ x \d+ pixels, and the buckets"):
        evaluation(folder, buckets=((48, 64),)).groups()


def test_processes_have_their_rows(folder, monkeypatch):
    expected = list(evaluation(folder).batches())
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    rows = []
    for index in range(2):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        rows.append(list(evaluation(folder).batches()))
    for batch, *parts in zip(expected, *rows, strict=True):
        for name in batch:
            np.testing.assert_array_equal(batch[name], np.concatenate([p[name] for p in parts]))


def test_images_that_cannot_be_read(tmp_path):
    folder = detection_sets.write_coco(tmp_path / "set", {"val": 5}, SIZES)
    (folder / "val/001.png").unlink()
    with pytest.raises(RunError, match=r"001\.png.*data\.unreadable=replace"):
        list(evaluation(folder).batches())
    messages = []
    batches = list(evaluation(folder, replace=True).batches(messages.append))
    assert sum(batch["mask"].sum() for batch in batches) == 4
    assert len(messages) == 1
    assert "001.png" in messages[0]
