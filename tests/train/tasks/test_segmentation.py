"""A segmentation network from data to pictures: runs, evaluations, bad input."""

import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import replk_jax
from replk_jax.segmentation.prediction import View, class_maps
from replk_jax.segmentation.protocol import SegmentationProtocol
from replk_jax.vision import label_sets
from tests.helpers import data_mesh, random_variables
from tests.train import segmentation_sets, tiny_segmentation
from tests.train.conftest import once_a_session
from tests.train.runs import ends, losses, start_two
from train import compare
from train import preview as preview_program
from train.engine import parallel
from train.engine.checkpoints import Checkpoints
from train.engine.evaluate import evaluate_checkpoint
from train.engine.evaluation import Evaluator, require_finite_scores
from train.engine.interruption import Interrupted, Interruption
from train.engine.loop import run
from train.engine.setup import set_up
from train.engine.step import init_state, make_train_step
from train.errors import RunError
from train.reporting.console import warn
from train.reporting.metric_writers import read_metrics
from train.tasks.segmentation import SEGMENTATION, make_evaluations, make_task
from train.tasks.segmentation_config import build_segmenter


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Runs have one device, whose sums have one order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "device_mesh", lambda *_, **__: data_mesh(1))
        yield


SIZES = [(40, 60), (60, 40)]
PROTOCOL = SegmentationProtocol((96, 48), window=32, stride=20, ratios=(0.75, 1.0), flip=True)

# Of tiny_segmentation.
BACKBONE = {"kernel_sizes": (7, 5), "layers": (1, 1), "channels": (16, 24), "small_kernel": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    counts = {"train": 16, "val": 5}
    return segmentation_sets.write(tmp_path_factory.mktemp("set"), counts, SIZES)


def configuration(folder, **fields):
    config = tiny_segmentation.get_config()
    config.data.folder = str(folder)
    config.data.eval_split = "val"
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """The folder of a run, its result, and what it printed."""

    def train(workdir):
        return run(configuration(folder), workdir, SEGMENTATION)

    return once_a_session(tmp_path_factory, "finished_segmentation", train)


def drawn(config):
    """A network that predicts all classes, unlike one after so few steps."""
    model = build_segmenter(config, 3)
    variables = random_variables(model)
    return replk_jax.Checkpoint(model, variables, PROTOCOL, segmentation_sets.CLASSES)


@pytest.mark.slow
def test_a_run(finished, capsys):
    workdir, result = finished
    assert result["best_by"] == "mIoU"
    assert result["training"].keys() == {"mIoU", "mAcc", "aAcc", "examples"}
    assert result["training"]["examples"] == 5
    assert result["merged"] == pytest.approx(result["training"], abs=2e-3)
    assert result["protocol"] == ("resize to at most 96 x 48, multiples of 32, whole, single scale")
    assert result["preprocessing"]["kind"] == "segmentation"
    table = result["table"]
    assert list(table) == list(segmentation_sets.CLASSES)
    ious = [row["IoU"] for row in table.values()]
    assert np.mean(ious) == pytest.approx(result["training"]["mIoU"])
    assert json.loads((workdir / "result.json").read_text()) == result

    lines = read_metrics(workdir / "metrics.jsonl")
    for line in lines:
        if "train/loss" in line:
            total = line["train/decode.loss_ce"] + line["train/aux.loss_ce"]
            assert total == pytest.approx(line["train/loss"], rel=1e-5)
            assert 0 <= line["train/decode.acc_seg"] <= 100
    curve = list(losses(workdir).values())
    assert curve[-1] < 0.9 * curve[0]
    scored = [line for line in lines if "eval/mIoU" in line]
    assert [line["step"] for line in scored] == [15, 30]
    assert scored[-1]["eval/mIoU"] == pytest.approx(result["training"]["mIoU"], abs=2e-3)
    assert {path.name for path in (workdir / "pictures").iterdir()} == {"eval_0.png", "eval_1.png"}
    events = b"".join(path.read_bytes() for path in (workdir / "tensorboard").iterdir())
    assert events.count(b"\x89PNG") == 2 * len(scored)
    row = compare.table([compare.read_run(workdir)])
    assert " mIoU |" in row
    assert f"| {100 * result['training']['mIoU']:.2f} |" in row


@pytest.mark.slow
def test_evaluation_of_a_file(finished, folder, tmp_path, capsys):
    """By the full protocol that is stored with it, as inference has it; merged as well."""
    workdir, _ = finished
    network = replk_jax.load(workdir / "checkpoints" / "30")
    assert network.preprocessing == SegmentationProtocol((96, 48))
    assert network.class_names == segmentation_sets.CLASSES
    path = tmp_path / "network.safetensors"
    config = configuration(folder, mode="eval", init_from=str(path))
    replk_jax.save(path, drawn(config))
    result = evaluate_checkpoint(config, tmp_path, SEGMENTATION)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == result
    out = capsys.readouterr().out
    words = PROTOCOL.in_words()
    assert result["protocol"] == words
    assert f"on 5 images, prepared with {words}" in out
    assert "square" in out
    assert len(list((tmp_path / "pictures").iterdir())) == 2

    segmenter = replk_jax.Segmenter.from_file(path)
    images = sorted((folder / "images" / "val").iterdir())
    predicted = segmenter([str(image) for image in images])
    assert all(len(np.unique(classes)) > 1 for classes in predicted)
    confusion = np.zeros((3, 3), int)
    for image, classes in zip(images, predicted, strict=True):
        truth = np.asarray(Image.open(folder / "masks" / "val" / image.name))
        counts = truth != label_sets.IGNORED
        np.add.at(confusion, (truth[counts], classes[counts]), 1)
    hits = np.diag(confusion)
    iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    # A pixel whose two best classes are as good as equal may have the other one.
    assert result["merged"]["mIoU"] == pytest.approx(iou.mean(), abs=1e-3)
    assert result["merged"]["aAcc"] == pytest.approx(hits.sum() / confusion.sum(), abs=1e-3)

    config.data.eval_as_configured = True
    assert make_evaluations(config, network)["eval"].preprocessing == SegmentationProtocol((96, 48))
    config.init_from = str(tmp_path / "classifier.safetensors")
    classifier = replk_jax.create_model("replknet_31b", num_classes=3, **BACKBONE)
    replk_jax.save(config.init_from, replk_jax.Checkpoint(classifier, random_variables(classifier)))
    with pytest.raises(RunError, match="RepLKNet, which is no segmentation network"):
        evaluate_checkpoint(config, None, SEGMENTATION)


@pytest.mark.slow
def test_counts_do_not_depend_on_batches_and_devices(folder):
    network = drawn(configuration(folder))
    found = []
    for devices, batch_size in [(1, 8), (2, 2)]:  # the first is compiled for other tests
        config = configuration(folder, init_from="FILE", eval_batch_size=batch_size)
        (evaluation,) = make_evaluations(config, network).values()
        mesh = data_mesh(devices)
        evaluator = Evaluator(network.model, evaluation.metrics, mesh)
        batches = parallel.global_batches(evaluation.examples.batches(warn), mesh)
        found.append(evaluator.evaluate(dict(network.variables), batches))
    for scores in found[1:]:
        assert scores == pytest.approx(found[0], abs=2e-3)
        assert scores["examples"] == 5


@pytest.mark.exhaustive  # the engine's part is tested with classification
def test_an_interrupted_run_ends_as_if_it_had_not_been(finished, folder, tmp_path, monkeypatch):
    workdir, expected = finished
    with monkeypatch.context() as patch:
        patch.setattr(Interruption, "requested", lambda self, step: step == 7)
        with pytest.raises(Interrupted):
            run(configuration(folder), tmp_path, SEGMENTATION)
    result = run(configuration(folder), tmp_path, SEGMENTATION)
    assert result == expected
    states = [replk_jax.load(path / "checkpoints" / "30").variables for path in (workdir, tmp_path)]
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(one, other)


def first_losses(config, workdir, devices, steps=2):
    """The metrics of the first steps on some devices."""
    task = make_task(config)
    setup = set_up(config, workdir, task)
    mesh = data_mesh(devices)
    step = make_train_step(
        task.model, setup.optimizer, task.loss, seed=config.seed, mesh=mesh,
        accumulation=config.accumulation,
    )  # fmt: skip
    state = init_state(task.model, setup.optimizer, task.image_size, config.seed, mesh)
    batches = parallel.global_batches(task.training.batches(0, warn), mesh)
    found = []
    for _ in range(steps):
        state, metrics = step(state, next(batches))
        found.append({name: float(value) for name, value in metrics.items()})
    return found


@pytest.mark.exhaustive
def test_the_same_on_two_devices(folder, tmp_path):
    """Up to the order of sums, which batch norm and the gradient amplify."""
    config = configuration(folder, **{"model.replknet.drop_path_rate": 0.0})
    one, two = (first_losses(config, tmp_path, devices) for devices in (1, 2))
    for expected, actual in zip(one, two, strict=True):
        assert actual == pytest.approx(expected, rel=1e-3)


@pytest.mark.exhaustive
def test_two_processes_do_what_one_does(folder, start, tmp_path):
    """With as many devices, the sums are the same; each evaluates some of the images."""
    options = [
        f"--config.data.folder={folder}", "--config.data.eval_split=val", "--config.steps=4",
        "--config.eval_every_steps=4", "--config.log_every_steps=1",
    ]  # fmt: skip
    config = {"config": "tests/train/tiny_segmentation.py"}
    one, two = tmp_path / "one", tmp_path / "two"
    both = start_two(start, two, *((option, option) for option in options), **config)
    for status, _, err in ends([*both, start(one, *options, devices=2, **config)]):
        assert status == 0, err
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    results = [json.loads((workdir / "result.json").read_text()) for workdir in (one, two)]
    for result in results:
        assert result["training"]["examples"] == 5
    assert results[1]["training"] == pytest.approx(results[0]["training"], abs=2e-3)
    assert len(list((two / "pictures").iterdir())) == 2


@pytest.mark.exhaustive
def test_all_options_of_the_engine_at_once(folder, tmp_path, monkeypatch):
    """A frozen stem and frozen batch norms in the backbone, an EMA, accumulation, bfloat16,
    rematerialisation, and parameters sharded over two of four devices."""
    monkeypatch.setattr(parallel, "device_mesh", lambda *_, **__: data_mesh(4, fsdp=2))
    options = {
        "freeze.stages": 0, "freeze.batch_norm": True, "model.dtype": "bfloat16",
        "model.remat": "full", "mesh.fsdp": 2, "optimizer.warmup_steps": 0,
        "optimizer.layer_decay": 0.9, "optimizer.head_lr_factor": 2.0, "test.pictures": 1,
    }  # fmt: skip
    config = configuration(folder, steps=2, accumulation=2, ema_decay=0.5, **options)
    result = run(config, tmp_path, SEGMENTATION)
    for scores in (result, result["ema"]):
        assert scores["training"]["examples"] == 5
        assert scores["merged"].keys() == scores["training"].keys()
        assert list(scores["table"]) == list(segmentation_sets.CLASSES)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert {"eval/mIoU", "eval_ema/mIoU"} <= {name for line in lines for name in line}
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["eval_0.png"]

    network = replk_jax.load(tmp_path / "checkpoints" / "2")
    start = jax.jit(network.model.init)(
        jax.random.key(config.seed), jnp.zeros((1, 32, 32, 3), network.model.dtype)
    )

    def has_changed(collection, *path):
        one, other = start[collection], network.variables[collection]
        for name in path:
            one, other = one[name], other[name]
        return not all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))

    assert not has_changed("params", "backbone", "stem_0")
    assert not has_changed("batch_stats", "backbone")
    assert has_changed("params", "backbone", "stages_0")
    for head in ("decode_head", "auxiliary_head"):
        assert has_changed("params", head)
        assert has_changed("batch_stats", head)


@pytest.mark.slow
def test_from_a_classifier(folder, tmp_path):
    """The backbone starts from its file, the heads from random weights."""
    classifier = replk_jax.create_model("replknet_31b", num_classes=9, **BACKBONE)
    variables = random_variables(classifier)
    path = tmp_path / "classifier.safetensors"
    replk_jax.save(path, replk_jax.Checkpoint(classifier, variables))
    config = configuration(folder, init_from=str(path))
    task = make_task(config)
    setup = set_up(config, tmp_path, task)
    description = setup.task.description
    with (
        Checkpoints(
            tmp_path / "checkpoints", 1, description, on_failure="stop", report=warn
        ) as checkpoints,
        pytest.warns(UserWarning, match="Drawn at random: auxiliary_head, decode_head"),
    ):
        state, step = setup.first_state(checkpoints)
    assert step == 0
    np.testing.assert_array_equal(
        state.params["backbone"]["stem_0"]["conv"]["kernel"],
        variables["params"]["stem_0"]["conv"]["kernel"],
    )


def rewrite(folder, tmp_path, split, change):
    """A copy of the data set, with every mask of a split changed."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for path in (copy / "masks" / split).iterdir():
        Image.fromarray(change(np.array(Image.open(path)))).save(path)
    return copy


@pytest.mark.slow
def test_images_without_labels(folder, tmp_path):
    """In training the loss is 0 and the accuracy 100; an evaluation of nothing else is an error."""
    ignored = rewrite(folder, tmp_path, "train", lambda mask: np.full_like(mask, 255))
    for metrics in first_losses(configuration(ignored, accumulation=2), tmp_path, 1):
        assert metrics["loss"] == metrics["decode.loss_ce"] == metrics["aux.loss_ce"] == 0
        assert metrics["decode.acc_seg"] == metrics["aux.acc_seg"] == 100
        assert metrics["grad_norm"] == 0
    shutil.rmtree(ignored)
    ignored = rewrite(folder, tmp_path, "val", lambda mask: np.full_like(mask, 255))
    config = configuration(ignored, init_from="FILE")
    network, mesh = drawn(config), data_mesh(1)
    (evaluation,) = make_evaluations(config, network).values()
    batches = parallel.global_batches(evaluation.examples.batches(warn), mesh)
    evaluator = Evaluator(network.model, evaluation.metrics, mesh)
    scores = evaluator.evaluate(dict(network.variables), batches)
    with pytest.raises(RunError, match="no image has a label that counts"):
        require_finite_scores({"training": scores})


@pytest.mark.slow
def test_one_class_and_images_smaller_than_the_crop(folder, tmp_path):
    single = rewrite(
        folder, tmp_path, "train", lambda mask: np.where(mask < 3, 0, mask).astype("u1")
    )
    rewritten = single / "masks" / "val"
    for path in rewritten.iterdir():
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask < 3, 0, mask).astype(np.uint8)).save(path)
    (single / "classes.txt").write_text("ground")
    config = configuration(
        single,
        steps=1,
        batch_size=2,
        **{"optimizer.warmup_steps": 0, "data.crop_size": (96, 160)},
    )
    task = make_task(config)
    batch = next(task.training.batches(0, warn))
    assert batch["image"].shape == (2, 96, 160, 3)
    for size, mask in zip(batch["valid_size"], batch["mask"], strict=True):
        assert (mask[size[0] :] == 255).all()
        assert (mask[:, size[1] :] == 255).all()
    (metrics,) = first_losses(config, tmp_path, 1, steps=1)
    assert metrics["loss"] == 0  # a softmax over one class
    assert np.isfinite(metrics["grad_norm"])


def test_objects_that_are_255(folder, tmp_path, capsys):
    """They are ignored; training without them would look perfect."""
    binary = rewrite(
        folder, tmp_path, "train", lambda mask: np.where(mask % 255, 255, 0).astype("u1")
    )
    make_task(configuration(binary))
    assert (
        "looked at have only ground and ignored pixels; 255 is ignored" in capsys.readouterr().err
    )
    make_task(configuration(folder))
    assert "looked at" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask: np.full_like(mask, 7), r"values that are no class: 7 \("),
        (lambda mask: mask[:-1], "the sizes must be equal"),
        (lambda mask: np.stack([mask] * 3, -1), "index PNG"),
        (lambda mask: mask.astype(np.uint16) * 257, "more than 8 bits"),
    ],
    ids=["beyond the classes", "size", "colours", "16 bits"],
)
def test_wrong_masks(folder, tmp_path, change, message):
    wrong = rewrite(folder, tmp_path, "train", change)
    with pytest.raises(RunError, match=message):
        next(make_task(configuration(wrong)).training.batches(0, warn))


def test_splits_and_files_of_other_classes(folder, tmp_path, finished):
    network = replk_jax.load(finished[0] / "checkpoints" / "30")
    copy = rewrite(folder, tmp_path, "val", lambda mask: mask)
    (copy / "classes.txt").write_text("ground\nsquare\nring")
    with pytest.raises(RunError, match="class 2 is 'disc' in the file and 'ring' in the split"):
        make_evaluations(configuration(copy, init_from="FILE"), network)
    (copy / "classes.txt").write_text("\n".join("abcd"))
    with pytest.raises(RunError, match="FILE has 3 classes; the split 'val' has 4"):
        make_evaluations(configuration(copy, init_from="FILE"), network)
    with pytest.raises(RunError, match="class_weights has 2 values, and the data set has 3"):
        make_task(configuration(folder, **{"loss.class_weights": (1.0, 2.0)}))


def test_a_network_that_diverged(finished, folder):
    network = replk_jax.load(finished[0] / "checkpoints" / "30")
    variables = jax.tree.map(np.array, dict(network.variables))
    variables["params"]["decode_head"]["conv_seg"]["bias"][:] = np.nan
    (evaluation,) = make_evaluations(configuration(folder, init_from="FILE"), network).values()
    mesh = data_mesh(1)
    evaluator = Evaluator(network.model, evaluation.metrics, mesh)
    batches = list(parallel.global_batches(evaluation.examples.batches(warn), mesh))
    scores = evaluator.evaluate(variables, batches)
    assert np.isnan([scores[name] for name in ("mIoU", "mAcc", "aAcc")]).all()
    assert np.isnan(evaluator.largest_output(variables, batches[0]))


def test_preview(folder):
    """Each image beside its mask in colours, and a legend of the classes below."""
    config = configuration(folder, accumulation=2)
    shown = SEGMENTATION.preview(config, 3)
    assert shown.pictures.shape == (3, 32, 64, 3)
    batch = next(make_task(configuration(folder, batch_size=6)).training.batches(0, warn))
    np.testing.assert_array_equal(shown.pictures[:, :, :32], batch["image"][::2])
    assert all(lines[0].split()[0] in segmentation_sets.CLASSES for lines in shown.captions)
    assert shown.legend is not None
    assert shown.legend(300).shape[1] == 300
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = preview_program.preview(config, 3)
    assert figure.get_size_inches()[0] > 0
    with pytest.raises(RunError, match="--count=5 is more than the 4"):
        SEGMENTATION.preview(config, 5)


def test_programs_are_bounded(finished, folder):
    """One for each shape; the oldest make room."""
    network = replk_jax.load(finished[0] / "checkpoints" / "30")
    (evaluation,) = make_evaluations(configuration(folder, init_from="FILE"), network).values()
    mesh = data_mesh(1)
    evaluator = Evaluator(network.model, evaluation.metrics, mesh)
    for _ in range(2):
        batches = parallel.global_batches(evaluation.examples.batches(warn), mesh)
        evaluator.evaluate(dict(network.variables), batches)
    assert evaluator._evaluate.compilations == len(SIZES)


def test_the_memory_of_an_evaluation_does_not_grow_with_the_classes():
    """Scores of all classes at the original size exist for some rows at a time only."""

    def memory(height):
        view = View(
            jax.ShapeDtypeStruct((1, 64, 64, 150), jnp.float32),
            jax.ShapeDtypeStruct((1, height, 64), jnp.float32),
            jax.ShapeDtypeStruct((1, 1024, 64), jnp.float32),
        )
        compiled = jax.jit(lambda *parts: class_maps([View(*parts)])).lower(*view).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(2048) < 2 * memory(512) < 4 * 2048 * 1024 * 150 / 2
