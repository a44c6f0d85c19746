"""Accuracy, counted by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import replk_jax
from tests.helpers import ONE_STAGE, TINY, data_mesh, random_variables
from train.engine import parallel
from train.engine.evaluation import Evaluator, require_finite_scores
from train.engine.evaluations import check_names
from train.engine.task import Evaluation, Metrics, add_in_64_bits
from train.errors import RunError
from train.tasks.classification import accuracy

METRICS = accuracy(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
EXAMPLES = 21


@pytest.fixture(scope="module")
def model():
    return replk_jax.create_model(ONE_STAGE, num_classes=8)


@pytest.fixture(scope="module")
def variables(model):
    return random_variables(model)


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (EXAMPLES, 16, 16, 3), np.uint8)
    return images, rng.integers(0, 8, EXAMPLES, np.int32)


def batches(examples, batch_size, mesh):
    """The examples once, then what fills the last batch."""

    def rows():
        images, labels = examples
        for start in range(0, EXAMPLES, batch_size):
            index = np.arange(start, start + batch_size)
            mask = index < EXAMPLES
            index = np.minimum(index, EXAMPLES - 1)
            yield {"image": images[index], "label": labels[index], "mask": mask}

    return parallel.global_batches(rows(), mesh)


def logits_of(model, variables, examples):
    images = (examples[0] / 255 - 0.5) / 0.25
    return np.float64(jax.jit(model.apply)(variables, images.astype(np.float32)))


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 1), (1, 8), (1, 21), (8, 8), (8, 32)])
def test_counts_do_not_depend_on_batches_and_devices(
    model, variables, examples, devices, batch_size
):
    mesh = data_mesh(devices)
    scores = Evaluator(model, METRICS, mesh).evaluate(
        variables, batches(examples, batch_size, mesh)
    )
    logits, labels = logits_of(model, variables, examples), examples[1]
    order = np.argsort(-logits, 1)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert scores["examples"] == EXAMPLES
    assert scores["top1"] == pytest.approx(np.mean(order[:, 0] == labels))
    assert scores["top5"] == pytest.approx(np.mean((order[:, :5] == labels[:, None]).any(1)))
    assert scores["loss"] == pytest.approx(-log_p[np.arange(EXAMPLES), labels].mean(), rel=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_without_finite_logits_is_a_miss(value):
    """Else its first class would count as the likeliest."""
    logits = jnp.float32([[value] * 3, [2, 1, 0], [0, value, 1]])
    batch = {"label": jnp.int32([0, 0, 1]), "mask": jnp.ones(3, bool)}
    sums = jax.device_get(METRICS.statistics(logits, batch))
    assert (sums["top1"], sums["top5"]) == (1, 1)
    assert np.isnan(sums["loss"])
    batch["mask"] = jnp.array([False, True, False])
    sums = jax.device_get(METRICS.statistics(logits, batch))
    assert sums["loss"] == pytest.approx(np.log(1 + np.exp(-1) + np.exp(-2)))


def test_results_that_are_not_finite_are_named():
    require_finite_scores({"training": {"loss": 1.5, "examples": 3}, "not_merged": "why"})
    result = {"training": {"loss": np.nan, "top1": 0.5}, "largest_difference": np.inf}
    with pytest.raises(RunError, match=r"\(training\.loss, largest_difference\)"):
        require_finite_scores(result)


def test_comparison_of_both_structures(model, variables, examples):
    mesh = parallel.device_mesh(8)
    evaluator = Evaluator(model, METRICS, mesh)
    result = evaluator.compare(variables, batches(examples, 8, mesh))
    assert 0 < result["largest_difference"] < 1e-4
    scores = evaluator.evaluate(variables, batches(examples, 8, mesh))
    assert result["training"] == pytest.approx(scores, rel=1e-5)
    assert result["merged"]["top1"] == scores["top1"]
    assert result["merged"]["examples"] == EXAMPLES


def test_comparison_measures_the_largest_difference(monkeypatch, model, variables, examples):
    """With a merge that is wrong by a known amount, another for each image."""
    reparameterize = replk_jax.reparameterize

    def wrong(variables):
        merged = reparameterize(variables)
        kernel = merged["params"]["head"]["kernel"]
        merged["params"]["head"]["kernel"] = kernel.at[:, 3].multiply(1.5)
        return merged

    monkeypatch.setattr(replk_jax, "reparameterize", wrong)
    logits = logits_of(model, variables, examples)
    difference = np.abs(logits_of(model.clone(deploy=True), wrong(variables), examples) - logits)
    mesh = parallel.device_mesh(8)
    result = Evaluator(model, METRICS, mesh).compare(variables, batches(examples, 8, mesh))
    assert result["largest_difference"] == pytest.approx(difference.max(), rel=1e-4)
    assert difference.max() > 1.01 * difference[-5:].max()  # so the last batch is not enough


def test_comparison_does_not_hide_nan(model, variables, examples):
    broken = jax.tree.map(np.copy, variables)
    broken["params"]["head"]["bias"][0] = np.nan
    mesh = parallel.device_mesh(8)
    result = Evaluator(model, METRICS, mesh).compare(broken, batches(examples, 8, mesh))
    assert np.isnan(result["largest_difference"])


def test_a_network_that_cannot_be_merged(examples):
    """It is evaluated all the same, in float32 like the others, and the reason is told."""
    model = replk_jax.create_model(
        "repvgg_a0", layers=(2,), channels=(4, 4), block="relu_in_branches", num_classes=8
    )
    variables, mesh = random_variables(model), parallel.device_mesh(8)
    scores = Evaluator(model, METRICS, mesh).evaluate(variables, batches(examples, 8, mesh))
    half = Evaluator(model.clone(dtype=jnp.bfloat16), METRICS, mesh)
    result = half.compare(variables, batches(examples, 8, mesh))
    assert result.keys() == {"training", "not_merged"}
    assert result["training"] == pytest.approx(scores, rel=1e-5)
    assert "no merged structure" in result["not_merged"]


def test_fewer_than_five_classes(examples):
    model = replk_jax.create_model(ONE_STAGE, num_classes=3)
    mesh = parallel.device_mesh(8)
    few = examples[0], examples[1] % 3
    scores = Evaluator(model, METRICS, mesh).evaluate(
        random_variables(model), batches(few, 8, mesh)
    )
    assert scores["top5"] == 1


def test_no_example_that_counts(model, variables, examples):
    mesh = parallel.device_mesh(8)
    evaluator = Evaluator(model, METRICS, mesh)
    masked = ({**b, "mask": b["mask"] & False} for b in batches(examples, 8, mesh))
    with pytest.raises(RunError, match="None of the images"):
        evaluator.evaluate(variables, masked)


def test_another_task(examples):
    """Of arrays for each pixel, which are no classes, some of them not to be counted."""
    model = replk_jax.create_model(TINY, out_indices=(0, 1))
    variables, mesh = random_variables(model), parallel.device_mesh(8)

    def statistics(maps, batch):
        fine, coarse = maps
        counts = batch["mask"][:, None, None]
        return {
            "values": jnp.where(counts[..., None], fine, 0).sum((0, 1, 2)),
            "positive": ((coarse[..., 0] > 0) & counts).sum(),
        }

    def scores(sums, examples):
        loss = sums["values"].max() / examples
        return {"loss": loss, "share": sums["positive"] / examples}

    metrics = Metrics(
        lambda forward, batch: forward(batch["image"] / 255), statistics, scores, best_by="share"
    )
    evaluator = Evaluator(model, metrics, mesh)
    found = evaluator.evaluate(variables, batches(examples, 8, mesh))
    fine, coarse = map(np.float64, jax.jit(model.apply)(variables, np.float32(examples[0] / 255)))
    assert found["examples"] == EXAMPLES
    assert found["loss"] == pytest.approx(fine.sum((0, 1, 2)).max() / EXAMPLES, rel=1e-4)
    assert found["share"] == (coarse[..., 0] > 0).sum() / EXAMPLES
    both = evaluator.compare(variables, batches(examples, 8, mesh))
    assert both["merged"] == pytest.approx(found, rel=1e-3)
    assert 0 < both["largest_difference"] < 1e-4


def test_statistics_that_are_no_sums(model, variables, examples):
    """As detection wants: what each example gave, put together on the host, in order."""
    mesh = parallel.device_mesh(8)

    def add(total, more):
        scores, counts = more
        return [*(total or []), *scores[counts]]

    metrics = Metrics(
        lambda forward, batch: forward((batch["image"] / 255 - 0.5) / 0.25),
        lambda logits, batch: (logits[:, 0], batch["mask"]),
        lambda scores, examples: {"median": float(np.median(scores)), "first": float(scores[0])},
        best_by="median",
        add=add,
    )
    found = Evaluator(model, metrics, mesh).evaluate(variables, batches(examples, 8, mesh))
    expected = logits_of(model, variables, examples)[:, 0]
    assert found["median"] == pytest.approx(np.median(expected), rel=1e-4)
    assert found["first"] == pytest.approx(expected[0], rel=1e-4)
    assert found["examples"] == EXAMPLES


def test_sums_are_in_64_bits():
    """Whatever the type; bfloat16 is none of NumPy's floating types, but floats all the same."""
    total = None
    for value in (2**31 - 1, 0.75, 0.75, True):
        of_type = {"a": jnp.bfloat16, "b": np.float32}
        more = {name: np.asarray(value).astype(type) for name, type in of_type.items()}
        total = add_in_64_bits(total, {**more, "c": np.int32(value)})
    assert total["a"] == 2.0**31 + 2.5
    assert total["b"] == 2.0**31 + 2.5
    assert total["c"] == 2**31
    assert np.isnan(add_in_64_bits(None, np.array(np.nan, jnp.bfloat16)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_largest_output(model, variables, examples, value):
    """Of examples that count, on whatever device; of one that is not finite, that."""
    mesh = parallel.device_mesh(8)
    evaluator = Evaluator(model, METRICS, mesh)
    *_, last = batches(examples, 8, mesh)  # three of its images are there to fill it
    expected = np.abs(logits_of(model, variables, examples)[16:]).max()
    assert evaluator.largest_output(variables, last) == pytest.approx(expected, rel=1e-4)
    broken = jax.tree.map(np.copy, variables)
    broken["params"]["head"]["bias"][3] = value
    assert np.array_equal(evaluator.largest_output(broken, last), abs(value), equal_nan=True)


def test_predictions_of_several_passes(model, variables, examples):
    """As for crops or scales: the network is called as often as the metrics want."""

    def predict(forward, batch):
        images = (batch["image"] / 255 - 0.5) / 0.25
        return (forward(images) + forward(images[:, :, ::-1])) / 2

    metrics = dataclasses.replace(METRICS, predict=predict)
    mesh = parallel.device_mesh(8)
    scores = Evaluator(model, metrics, mesh).evaluate(variables, batches(examples, 8, mesh))
    mirrored = examples[0][:, :, ::-1], examples[1]
    logits = (logits_of(model, variables, examples) + logits_of(model, variables, mirrored)) / 2
    assert scores["top1"] == pytest.approx(np.mean(logits.argmax(1) == examples[1]))


def test_what_is_checked_of_predictions(model, variables, examples):
    """Neither padding of minus infinity nor class numbers count as a network that diverged."""

    def predict(forward, batch):
        logits = forward((batch["image"] / 255 - 0.5) / 0.25)
        padded = jnp.pad(logits, [(0, 0), (0, 3)], constant_values=-jnp.inf)
        return {"logits": logits, "padded": padded, "class": logits.argmax(1)}

    def score(predictions, batch):
        return {"hits": ((predictions["class"] == batch["label"]) & batch["mask"]).sum()}

    def scores(sums, examples):
        return {"hits": float(sums["hits"] / examples)}

    mesh = parallel.device_mesh(8)
    metrics = Metrics(predict, score, scores, "hits", checked=lambda *of: of[-1]["logits"])
    evaluator = Evaluator(model, metrics, mesh)
    first = next(batches(examples, 16, mesh))
    expected = np.abs(logits_of(model, variables, examples)[:16]).max()
    assert evaluator.largest_output(variables, first) == pytest.approx(expected, rel=1e-4)
    evaluator.check(variables, first)
    assert evaluator.compare(variables, [first])["largest_difference"] < 1e-4
    numbers_alone = dataclasses.replace(metrics, checked=lambda *of: of[-1]["class"])
    assert Evaluator(model, numbers_alone, mesh).largest_output(variables, first) == 0
    misspelt = dataclasses.replace(metrics, best_by="hit")
    with pytest.raises(ValueError, match="best_by='hit' is none of the scores hits"):
        Evaluator(model, misspelt, mesh).check(variables, first)


@pytest.mark.parametrize("name", ["", "train", "a/b", "val_ema"])
def test_names_of_evaluations(name):
    evaluation = Evaluation(METRICS, None, None)
    check_names({"eval": evaluation, "val": evaluation})
    with pytest.raises(RunError, match="cannot be named"):
        check_names({"eval": evaluation, name: evaluation})
    with pytest.raises(RunError, match="needs an evaluation"):
        check_names({})
