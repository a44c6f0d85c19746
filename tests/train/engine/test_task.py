"""A run knows no task and no kind of network: a small segmenter goes the whole way.

It starts from a classifier's file, is trained, evaluated, saved, loaded, merged, exported and
summarised.
"""

import dataclasses
import io
import json

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

import replk_jax
from replk_jax import Checkpoint, check_equivalence
from replk_jax.checkpoint import load
from replk_jax.vision.base_preprocessing import normalize
from replk_jax.vision.preprocessing import Preprocessing
from tests.models.composite import tiny_segmenter
from tests.train import tiny
from train import compare
from train.data.sources import open_source
from train.data.splits import EvaluationSplit, Reading, TrainingSplit
from train.engine.evaluate import evaluate_checkpoint
from train.engine.loop import run
from train.engine.task import Evaluation, Metrics, Preview, Task, TaskKind
from train.reporting.examination import Examination
from train.reporting.metric_writers import read_metrics

MEAN, STD = (0.305,), (0.376,)
PREPROCESSING = Preprocessing(16, crop_fraction=None, mean=MEAN, std=STD)
ARCHITECTURE = replk_jax.RepLKNetArchitecture(
    (5, 5), (1, 1), (16, 16), small_kernel=3, in_channels=1
)


@dataclasses.dataclass(frozen=True)
class WithoutLabels:
    """Images of a set, and where in them there is ink, one in four by four pixels."""

    images: object

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        example = self.images[index]
        pixels = np.asarray(Image.open(io.BytesIO(example["image"])).convert("L").resize((16, 16)))
        ink = pixels.reshape(4, 4, 4, 4).mean((1, 3)) > 64
        return {"pixels": pixels[:, :, None], "ink": ink}


class Mirrored(grain.transforms.RandomMap):
    def random_map(self, example, rng):
        step = -1 if rng.random() < 0.5 else 1
        return {name: array[:, ::step].copy() for name, array in example.items()}


class Unchanged(grain.transforms.Map):
    def map(self, example):
        return example


def inputs(batch):
    return normalize(batch["pixels"], MEAN, STD)


def losses(scores, ink):
    """Cross entropy of every cell: class 1 is ink."""
    return optax.softmax_cross_entropy_with_integer_labels(scores, ink.astype(jnp.int32))


def loss(forward, key, batch):
    outputs = forward(inputs(batch))
    main, auxiliary = (losses(scores, batch["ink"]).mean() for scores in outputs)
    return main + 0.4 * auxiliary, {"decode": main, "auxiliary": auxiliary}


def predict(forward, batch):
    return forward(inputs(batch))


def is_ink(scores):
    return scores[..., 1] > scores[..., 0]


def share():
    """How much of the images is taken for ink."""

    def statistics(scores, batch):
        return (is_ink(scores) & batch["mask"][:, None, None]).sum()

    return Metrics(
        predict, statistics, lambda sums, examples: {"ink": float(sums / examples / 16)}, "ink"
    )


def overlap():
    """How much of the ink is found, and of what is found is ink."""

    def statistics(scores, batch):
        counts = batch["mask"][:, None, None]
        found = is_ink(scores)
        return {
            "both": (found & batch["ink"] & counts).sum(),
            "either": ((found | batch["ink"]) & counts).sum(),
            "loss": jnp.where(counts, losses(scores, batch["ink"]), 0).sum(),
        }

    def scores(sums, examples):
        loss = float(sums["loss"] / examples / 16)
        return {"iou": float(sums["both"] / sums["either"]), "loss": loss}

    return Metrics(predict, statistics, scores, best_by="iou")


def task(config):
    train = WithoutLabels(open_source(config.data, "train"))
    return Task(
        model=tiny_segmenter(
            ARCHITECTURE,
            backbone={"output_stride": 4, "out_indices": (0, 1)},
            num_classes=2,
            channels=16,
        ),
        image_size=(16, 16),
        loss=loss,
        training=TrainingSplit(
            train, Mirrored(), batch_size=config.batch_size, seed=config.seed, reading=Reading()
        ),
        evaluations=evaluations(config),
        preprocessing=PREPROCESSING,
        class_names=("paper", "ink"),
    )


def evaluations(config, network=None):
    """On all of the test images, and on the first 100 by a metric of another kind."""
    found = {}
    for name, split, metrics in (("eval", "test", overlap()), ("few", "test[:100]", share())):
        examples = EvaluationSplit(
            WithoutLabels(open_source(config.data, split)),
            Unchanged(),
            batch_size=config.eval_batch_size,
            reading=Reading(),
        )
        found[name] = Evaluation(metrics, examples, PREPROCESSING)
    return found


INK = TaskKind(
    check=lambda config: None,
    task=task,
    evaluations=evaluations,
    preview=lambda config, count: Preview(np.zeros((count, 16, 16, 3), np.uint8), [[]] * count),
    examine=lambda config: Examination([], [], {}),
)


def iou_of_places(config):
    """Of a guess that knows where ink usually is, and does not look at the image."""
    train, test = (WithoutLabels(open_source(config.data, split)) for split in ("train", "test"))
    usual = np.mean([train[index]["ink"] for index in range(len(train))], axis=0) > 0.5
    ink = np.array([test[index]["ink"] for index in range(len(test))])
    return (usual & ink).sum() / (usual | ink).sum()


@pytest.mark.exhaustive  # segmentation goes the same way
def test_another_task(data_dir, tmp_path, capsys):
    config = tiny.get_config()
    config.data.data_dir = str(data_dir)
    config.epochs = 2.0
    config.eval_every_epochs = 1.0
    config.ema_decay = 0.8
    config.optimizer.layer_decay = 0.95
    config.init_from = str(tmp_path / "classifier.safetensors")
    classifier = replk_jax.create_model(ARCHITECTURE, num_classes=3)
    start = jax.jit(classifier.init)(jax.random.key(1), jnp.zeros((1, 16, 16, 1)))
    replk_jax.save(config.init_from, Checkpoint(classifier, start, PREPROCESSING))
    with pytest.warns(UserWarning, match=r"Drawn at random: auxiliary_head, decode_head"):
        result = run(config, tmp_path, INK)
    assert result["best_by"] == "iou"
    for network in (result, result["ema"]):
        assert network["training"].keys() == {"iou", "loss", "examples"}
        assert network["training"]["examples"] == 299
        assert network["training"]["iou"] > iou_of_places(config) + 0.03
        assert network["merged"] == pytest.approx(network["training"], rel=1e-3)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    out = capsys.readouterr().out
    assert f"iou {result['training']['iou']:.4g} of 299 images" in out

    lines = read_metrics(tmp_path / "metrics.jsonl")
    for line in lines:
        if "train/loss" in line:
            total = line["train/decode"] + 0.4 * line["train/auxiliary"]
            assert total == pytest.approx(line["train/loss"], rel=1e-5)
    few = result["evaluations"]["few"]
    assert few.keys() == {"training", "merged", "largest_difference", "ema", "preprocessing"}
    assert few["training"]["examples"] == 100
    assert f"few               ink {few['training']['ink']:.4g} of 100 images" in out
    evaluations = [line for line in lines if "eval/iou" in line]
    assert evaluations[-1]["few/ink"] == pytest.approx(few["training"]["ink"], rel=1e-2)
    assert evaluations[-1].keys() >= {"few_ema/ink", "few/examples"}
    assert [line["step"] for line in evaluations] == [46, 92]
    assert evaluations[-1]["eval/iou"] == pytest.approx(result["training"]["iou"], rel=1e-3)
    # The best is the one with the higher score, of the network or of its average.
    best = max(evaluations, key=lambda line: max(line["eval/iou"], line["eval_ema/iou"]))
    assert f"best checkpoint   {tmp_path / 'checkpoints' / str(best['step'])}" in out
    assert (tmp_path / "curve.png").stat().st_size > 0
    head, _, row = compare.table([compare.read_run(tmp_path)]).splitlines()
    assert "| EMA iou |" in head
    assert f"| {100 * result['training']['iou']:.2f} |" in row

    config.mode = "eval"
    config.init_from = str(tmp_path / "checkpoints" / "92")
    again = evaluate_checkpoint(config, tmp_path, INK)
    for structure in ("training", "merged"):
        assert again[structure] == pytest.approx(result[structure])
        assert again["evaluations"]["few"][structure] == pytest.approx(few[structure])
    assert json.loads((tmp_path / "evaluation.json").read_text()) == again
    network = load(config.init_from)
    assert network.class_names == ("paper", "ink")
    assert network.model == task(config).model
    assert network.preprocessing.image_size == 16

    # It does not depend on the task from here on.
    images = inputs({"pixels": rng_pixels()})
    assert check_equivalence(network.model, network.variables, images).max_abs < 1e-4
    merged = replk_jax.reparameterize(network.variables)
    assert not any("bn" in path for path in flatten_dict(merged["params"], sep="/"))
    scores = network.model.clone(deploy=True).apply(merged, images)
    assert scores.shape == (3, 4, 4, 2)
    program = replk_jax.export_model(network.model, network.variables, image_size=16)
    np.testing.assert_allclose(program.call(images), scores, rtol=0, atol=1e-5)
    counts = replk_jax.summary(network.model, 16)
    parts = [part.name for part in counts.parts]
    assert {"stem", "stages_0", "stages_1", "decode_head", "auxiliary_head"} <= set(parts)
    assert counts.training.parameters == sum(
        leaf.size for leaf in jax.tree.leaves(network.variables["params"])
    )


def rng_pixels():
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), np.uint8)
