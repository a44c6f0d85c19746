"""One of two processes that evaluate a detector together.

python -m tests.train.detection_pair PROCESS PORT FOLDER prints what it has found, as JSON.
"""

import json
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp

from replk_jax.detection.protocol import DetectionProtocol
from tests.train import detection_sets
from tests.train.tasks.test_detection_metrics import Brightest
from train.data.coco_truth import coco_truth
from train.data.detection_evaluation import DetectionEvaluation, DetectionTestTransform
from train.data.detection_examples import DetectionExamples
from train.data.detection_sources import open_detection_source
from train.data.splits import Reading
from train.engine import parallel
from train.engine.evaluation import Evaluator
from train.tasks import detection_metrics

PROTOCOL = DetectionProtocol((64, 48))
BUCKETS = ((64, 64),)
BATCH_SIZE = 4


def evaluate(folder: Path, mesh: jax.sharding.Mesh) -> dict:
    """The scores of `Brightest`, which is right about every second image; the images that this
    process has read; and how often it has read the truth and computed AP."""
    source = open_detection_source(detection_sets.data(folder, masks=False), "val")

    def truth() -> dict:
        found = coco_truth(source, masks=False)
        categories = [category["id"] for category in found["categories"]]
        found["annotations"] = [
            {
                "image_id": image["id"],
                "category_id": categories[i % 2],
                "bbox": [0, 0, image["width"], image["height"]],
                "area": image["width"] * image["height"],
                "iscrowd": 0,
            }
            for i, image in enumerate(found["images"])
        ]
        return found

    read_truth = mock.Mock(side_effect=truth)
    metrics = detection_metrics.average_precision(
        read_truth, PROTOCOL, masks=False, library="faster_coco_eval"
    )
    examples = DetectionEvaluation(
        DetectionExamples.to_evaluate_on(source),
        DetectionTestTransform(PROTOCOL, BUCKETS),
        batch_size=BATCH_SIZE,
        reading=Reading(threads=1),
    )
    images = []

    def batches():
        for batch in examples.batches():
            images.extend(batch["image_id"][batch["mask"]].tolist())
            yield batch

    evaluator = Evaluator(Brightest(), metrics, mesh)
    variables = {"params": {"bias": jnp.zeros(())}}
    with mock.patch.object(
        detection_metrics, "evaluate", wraps=detection_metrics.evaluate
    ) as computed:
        scores = evaluator.evaluate(variables, parallel.global_batches(batches(), mesh))
    return {
        "scores": scores,
        "images": images,
        "truths read": read_truth.call_count,
        "times computed": computed.call_count,
    }


if __name__ == "__main__":
    process, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    parallel.start_processes(
        {"coordinator": f"127.0.0.1:{port}", "num_processes": 2, "process_id": process}
    )
    print(json.dumps(evaluate(folder, parallel.device_mesh(BATCH_SIZE))), flush=True)
