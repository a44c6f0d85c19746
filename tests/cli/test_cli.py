"""python -m replk_jax"""

import argparse
import json
import sys

import jax
import jax.numpy as jnp
import pytest

from replk_jax import pretrained
from replk_jax.benchmark import depthwise, detection_ops, tune
from replk_jax.benchmark import model as benchmark
from replk_jax.benchmark.depthwise_programs import draw_operands
from replk_jax.benchmark.network_programs import MODES, draw_inputs, network_program
from replk_jax.cli.arguments import add_reading
from replk_jax.cli.main import main
from replk_jax.models import list_models, registry
from replk_jax.ops.depthwise import measurements
from replk_jax.ops.depthwise.shapes import Shape
from replk_jax.pretrained import list_pretrained
from replk_jax.segmentation.registry import list_segmenters
from tests.helpers import ONE_STAGE
from tests.miniatures import miniature


def test_models_are_listed(capsys, monkeypatch):
    names = ["replknet_31b", "repvgg_d2se", "repvgg_b1", "mobilenet_v2"]
    names += ["mobilenet_v2_13_no_shortcuts"]
    assert set(names) < set(list_models())
    monkeypatch.setattr("replk_jax.cli.models.list_models", lambda: names)
    segmenter = "deeplabv3_mobilenet_v2_cityscapes"
    assert segmenter in list_segmenters()
    monkeypatch.setattr("replk_jax.cli.models.list_segmenters", lambda: [segmenter])
    main(["models"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    lines = {name: figures for name, *figures in rows}
    assert lines["replknet_31b"] == ["79,864,168", "79,388,776", "15,352,501,248", "224", "83.48"]
    assert lines["repvgg_d2se"][3:] == ["320", "83.55"]
    assert lines["repvgg_b1"] == ["57,415,016", "51,829,480", "11,813,437,440", "224", "78.37"]
    assert lines["mobilenet_v2"][0] == "3,504,872"
    assert lines["mobilenet_v2_13_no_shortcuts"][3:] == ["224", "53.98", "*"]
    assert lines[segmenter] == ["18,602,022", "18,356,595", "598,553,034,752", "1024x2048"]


def test_models_counts_one_at_its_own_size(capsys):
    main(["models", "repvgg_d2se"])
    assert "RepVGG on 320x320 images" in capsys.readouterr().out


def test_models_counts_a_segmenter(capsys):
    name = "PSPNet-RepVGG-B1g2-fast-Cityscapes"
    main(["models", name])
    out = capsys.readouterr().out
    assert "SegmentationNetwork on 713x713 images: " in out
    assert "decode_head PSPHead (channels 512, pool_scales 1-2-3-6, pool_channels 512)" in out
    main(["models", name, "--image-size", "97"])
    assert "SegmentationNetwork on 97x97 images: " in capsys.readouterr().out


def test_models_knows_the_names_of_others(capsys):
    main(["models", "ResNet18"])
    assert "11,689,512" in capsys.readouterr().out


def test_models_counts_one(capsys):
    main(["models", "replknet_31b", "--image-size", "384"])
    out = capsys.readouterr().out
    for figure in ("79,864,168", "45,117,554,688", "45,952,303,104", "96x96x128"):
        assert figure in out


def test_models_lists_the_checkpoints_of_one(capsys):
    main(["models", "ResNet152", "--pretrained"])
    _, v1, link, v2, other_link = capsys.readouterr().out.splitlines()
    assert v1.split() == ["resnet_152.tv_in1k", "78.31", "94.05", "224", "1000", "BSD-3-Clause"]
    digest = "394f9c45966e3651a89bbb78a48410a6755854ce4a5ab64927cf1c7247f85e58"
    models = "https://download.pytorch.org/models"
    assert link.split() == [f"{models}/resnet152-394f9c45.pth", "SHA-256", digest]
    assert v2.split()[0] == "resnet_152.tv2_in1k"
    assert other_link.split() == [f"{models}/resnet152-f82ba261.pth", "SHA-256", "f82ba261..."]


def test_models_lists_all_checkpoints(capsys):
    main(["models", "--pretrained"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [words[0] for words in lines if words[0] in list_pretrained()] == list_pretrained()
    assert ["replknet_31l.in22k", "-", "-", "224", "21841", "MIT"] in lines
    assert ["replknet_xl.meg73m", "-", "-", "320", "-", "MIT"] in lines
    assert next(words[1] for words in lines if "drive/folders" in words[0]) == "RepVGG-A0-train"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("replknet-13", "replknet_13"),
        ("PSPNet-RepVGG-B2-Cityscapes", "pspnet_repvgg_b2_cityscapes"),
    ],
)
def test_models_says_that_there_are_no_checkpoints(name, shown, capsys):
    main(["models", name, "--pretrained"])
    assert capsys.readouterr().out == f"No checkpoint of {shown} was published.\n"


@pytest.mark.parametrize(
    ("like", "resized"),
    [("resnet_50.tv2_in1k", 232), ("timm/resnet50.tv_in1k", 256), ("resnet50-11ad3fa6.pth", 232)],
)
def test_like_takes_tags_and_file_names(like, resized):
    parser = argparse.ArgumentParser()
    add_reading(parser)
    tag = parser.parse_args(["--like", like]).like
    preprocessing = pretrained.lookup(tag).preprocessing
    assert (preprocessing.image_size, preprocessing.crop_fraction) == (224, 224 / resized)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["models", "replknet_31"], "Did you mean"),
        (["models", "replknet_31", "--pretrained"], "Did you mean"),
        (["models", "upernet-replknet_31l_ade"], "Did you mean 'upernet_replknet_31l_ade20k'"),
        (
            ["models", "pspnet_repvgg_b2_city", "--pretrained"],
            "Did you mean 'pspnet_repvgg_b2_city",
        ),
        (["models", "--pretrained", "--image-size", "224"], "not allowed with"),
        (["models", "replknet_3", "--image-size", "0"], "at least 1"),
        (["bench", "model", "--model", "repvgg_b3", "resnet"], "Unknown model 'resnet'"),
        (["bench", "model", "--modes", "sleep"], "invalid choice"),
        (["bench", "model", "--peer", "tf"], "Unknown peer 'tf'; known: torch, timm:NAME"),
        (["bench", "model", "--json", "nowhere/x.json"], "no folder nowhere"),
        (["bench", "profile", "--json", "nowhere/x.json"], "no folder nowhere"),
        (["bench", "profile", "--model", "resnet"], "Unknown model 'resnet'"),
        (["bench", "depthwise", "--json", "nowhere/x.json"], "no folder nowhere"),
        (["bench", "depthwise", "--suite", "abacus"], "invalid choice"),
        (["bench", "detection-ops", "--json", "nowhere/x.json"], "no folder nowhere"),
        (["bench", "depthwise", "--table", "x.json"], "it needs --tune"),
        (["bench", "depthwise", "--tune", "--batch-size", "2"], "no --batch-size"),
        (["bench", "model", "--json", "."], ". is a folder; name a file"),
        (["bench", "profile", "--json", "."], ". is a folder; name a file"),
        (["bench", "depthwise", "--json", "."], ". is a folder; name a file"),
        (["bench", "depthwise", "--tune", "--table", "."], ". is a folder; name a file"),
        (["bench", "model", "--seconds", "inf"], "more than 0 and finite"),
        (["inspect", ""], "it is empty"),
        (["inspect", "nowhere.pth"], "error: nowhere.pth: No such file or directory"),
        (["convert", "~no_such_user/x.pth", "y.pth"], "~no_such_user/x.pth"),
        (["export", "x.pth", "."], ". is a folder; name a file"),
        ([], "required"),
    ],
)
def test_mistakes_end_with_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_bench_model(tmp_path, capsys, monkeypatch):
    """All modes of a tiny model; what is measured is not looked at."""
    monkeypatch.setitem(registry.ARCHITECTURES, "tiny", ONE_STAGE)
    path = tmp_path / "report.json"
    settings = ["--image-size", "32", "--batch-size", "2", "--seconds", "0.01"]
    main(["bench", "model", "--model", "tiny", *settings, "--json", str(path)])
    report = json.loads(path.read_text())
    (measured,) = report["models"]
    assert [t["mode"] for t in measured["timings"]] == [
        "inference", "inference-merged", "gradients", "training",
    ]  # fmt: skip
    for timing in measured["timings"]:
        assert timing["runs"] >= 3
        assert timing["images_per_second"] == pytest.approx(2 / timing["median"])
    memory = {t["mode"]: t["memory_bytes"] for t in measured["timings"]}
    assert 0 < memory["inference-merged"] <= memory["inference"] < memory["training"]
    assert report["environment"]["jax"]
    out = capsys.readouterr().out
    assert "times as fast" in out
    assert "compile s" in out


def test_bench_model_with_peers(tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch", reason="PyTorch, an optional peer, is not installed")
    monkeypatch.setitem(registry.ARCHITECTURES, "tiny", ONE_STAGE)
    monkeypatch.setitem(sys.modules, "timm", None)
    path = tmp_path / "report.json"
    settings = ["--image-size", "32", "--batch-size", "2", "--seconds", "0.01"]
    modes = ["--modes", "inference-merged", "gradients", "--peer", "torch", "timm:resnet50"]
    main(["bench", "model", "--model", "tiny", *settings, *modes, "--json", str(path)])
    (measured,) = json.loads(path.read_text())["models"]
    timings = measured["timings"]
    assert [t["contender"] for t in timings] == 2 * ["replk_jax", "torch", "timm:resnet50"]
    assert [bool(t["failure"]) for t in timings] == 2 * [False, False, True]
    out = capsys.readouterr().out
    assert "times as fast as torch" in out
    assert "not measured: ModuleNotFoundError" in out


def test_bench_several_models(capsys, monkeypatch):
    """Of every family; a table tells what re-parameterization brings."""
    names = ["replknet_3", "repvgg_a0", "mobilenet_v2", "resnet_101"]
    for name in names:
        architecture = miniature(registry.ARCHITECTURES[name])
        monkeypatch.setitem(registry.ARCHITECTURES, name, architecture)
    settings = ["--image-size", "32", "--seconds", "0.01"]
    main(["bench", "model", "--model", *names, *settings, "--modes", *MODES[:2]])
    out = capsys.readouterr().out
    assert "In batches of 1:\n| model |" in out
    lines = out.splitlines()
    assert [line.split("`")[1] for line in lines if line.startswith("| `")] == names
    with pytest.raises(SystemExit):
        main(["bench", "model", "--model", "repvgg_a0", "--peer", "torch"])
    assert "compare others with timm:NAME" in capsys.readouterr().err


def test_bench_model_in_several_ways(tmp_path, capsys, monkeypatch):
    """In two batch sizes, beside the same with another implementation of the operator."""
    monkeypatch.setitem(registry.ARCHITECTURES, "tiny", ONE_STAGE)
    asked = []

    def program(mode, network, variables, images):
        asked.append((mode, network.implementation, images.shape[0]))
        return network_program(mode, network, variables, images)

    monkeypatch.setattr(benchmark, "network_program", program)
    path = tmp_path / "report.json"
    settings = ["--image-size", "32", "--batch-size", "2", "1", "--seconds", "0.01"]
    ways = ["--modes", "inference", "--implementations", "xla", "shift"]
    main(["bench", "model", "--model", "tiny", *settings, *ways, "--json", str(path)])
    assert asked == [("inference", how, n) for n in (2, 1) for how in (None, "xla", "shift")]
    reports = json.loads(path.read_text())["models"]
    assert [report["batch_size"] for report in reports] == [2, 1]
    for report in reports:
        contenders = [timing["contender"] for timing in report["timings"]]
        assert contenders == ["replk_jax", "replk_jax with xla", "replk_jax with shift"]
        assert all(timing["runs"] >= 3 for timing in report["timings"])
    assert "times as fast as replk_jax with xla" in capsys.readouterr().out


def test_bench_model_without_memory_for_all(tmp_path, capsys, monkeypatch):
    """What could be measured is told and written; the exit status says that it is not all."""
    monkeypatch.setitem(registry.ARCHITECTURES, "tiny", ONE_STAGE)

    def program(mode, network, variables, images):
        if images.shape[0] == 4 and network.implementation is None:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating")
        return network_program(mode, network, variables, images)

    monkeypatch.setattr(benchmark, "network_program", program)
    path = tmp_path / "report.json"
    settings = ["--image-size", "32", "--batch-size", "4", "1", "--seconds", "0.01"]
    ways = ["--modes", *MODES[:2], "--implementations", "xla", "--model", "tiny", "repvgg_a0"]
    small = miniature(registry.ARCHITECTURES["repvgg_a0"])
    monkeypatch.setitem(registry.ARCHITECTURES, "repvgg_a0", small)
    with pytest.raises(SystemExit) as caught:
        main(["bench", "model", *settings, *ways, "--json", str(path)])
    lines = str(caught.value.code).splitlines()
    assert lines[0] == "error: not all could be measured."
    assert lines[1].startswith("tiny, batch 4, inference: JaxRuntimeError: RESOURCE_EXHAUSTED")
    measured = {
        (report["model"], report["batch_size"], timing["mode"], timing["contender"])
        for report in json.loads(path.read_text())["models"]
        for timing in report["timings"]
        if not timing["failure"]
    }
    assert measured == {
        (model, batch, mode, contender)
        for model in ("tiny", "repvgg_a0")
        for batch in (4, 1)
        for mode in MODES[:2]
        for contender in ("replk_jax", "replk_jax with xla")
        if (batch, contender) != (4, "replk_jax")
    }
    out = capsys.readouterr().out
    assert "not measured: JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory\n" in out
    assert "In batches of 4:" in out


def test_bench_detection_ops(tmp_path, capsys, monkeypatch):
    small = {"nms_boxes": (9,), "align_boxes": (3,), "image_size": (32, 64), "channels": 2}
    whole = detection_ops.Benchmark
    monkeypatch.setattr(detection_ops, "Benchmark", lambda **chosen: whole(**chosen, **small))
    path = tmp_path / "report.json"
    main(["bench", "detection-ops", "--no-peers", "--seconds", "0.001", "--json", str(path)])
    report = json.loads(path.read_text())
    assert [(row["operation"], row["boxes"], row["contender"]) for row in report["rows"]] == [
        (*each, "replk_jax") for each in zip(detection_ops.OPERATIONS, (9, 3, 3), strict=True)
    ]
    assert all(row["median"] > 0 and row["runs"] >= 3 for row in report["rows"])
    assert report["environment"]["torchvision"]
    assert "roi_align forward+backward" in capsys.readouterr().out


def test_bench_model_of_nan(capsys, monkeypatch):
    """The speed of a network that computes NaN is not reported."""
    monkeypatch.setitem(registry.ARCHITECTURES, "tiny", ONE_STAGE)

    def draw_nan(*arguments):
        variables, images = draw_inputs(*arguments)
        return variables, images * jnp.nan

    monkeypatch.setattr(benchmark, "draw_inputs", draw_nan)
    settings = ["--image-size", "32", "--seconds", "0.01", "--modes", "inference"]
    with pytest.raises(SystemExit) as caught:
        main(["bench", "model", "--model", "tiny", *settings])
    failure = "FloatingPointError: The result has NaN or infinite elements."
    assert str(caught.value.code).splitlines() == [
        "error: not all could be measured.",
        f"tiny, batch 1, inference: {failure}",
    ]
    assert f"not measured: {failure}" in capsys.readouterr().out


def test_bench_profile(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(registry.ARCHITECTURES, "tiny", ONE_STAGE)
    path, traces = tmp_path / "report.json", tmp_path / "traces"
    files = ["--json", str(path), "--trace", str(traces)]
    settings = ["--image-size", "32", "--batch-size", "2", "--calls", "2", "--lines", "3"]
    main(["bench", "profile", "--model", "tiny", *settings, *files])
    report = json.loads(path.read_text())
    assert (report["model"], report["batch_size"]) == ("tiny", 2)
    assert [profile["mode"] for profile in report["profiles"]] == ["inference-merged", "training"]
    for profile in report["profiles"]:
        layers = {cost["layer"] for cost in profile["costs"]}
        assert "stages_0/blocks_0/pw1/conv" in layers
    assert sorted(folder.name for folder in traces.iterdir()) == ["inference-merged", "training"]
    out = capsys.readouterr().out
    assert out.count("  layer\n") == out.count("  operation\n") == 2
    assert "tiny, training, batch 2: A call takes" in out
    with pytest.raises(SystemExit):
        main(["bench", "profile", "--model", "tiny", *settings, "--trace", str(traces)])
    assert (
        "inference-merged already contains a trace; name another folder" in capsys.readouterr().err
    )


def test_bench_model_without_torch(capsys, monkeypatch):
    """It says so, and goes on."""
    monkeypatch.setitem(registry.ARCHITECTURES, "tiny", ONE_STAGE)
    monkeypatch.setitem(sys.modules, "torch", None)
    settings = ["--image-size", "32", "--seconds", "0.01", "--modes", "inference"]
    main(["bench", "model", "--model", "tiny", *settings, "--peer", "torch"])
    out = capsys.readouterr().out
    assert "No peer was measured. PyTorch cannot be imported" in out
    assert "images/s" in out


@pytest.fixture
def tiny_layers(monkeypatch):
    layers = [depthwise.Layer(Shape("6/3", (6, 6), (3, 3), 2), 1)]
    monkeypatch.setitem(depthwise.SUITES, "cpu", layers)
    monkeypatch.setattr(tune, "grid", lambda platform: layers)
    monkeypatch.setattr(tune, "layers_to_verify", lambda platform: [])


def test_bench_depthwise(tmp_path, capsys, monkeypatch, tiny_layers):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "report.json"
    settings = ["--seconds", "0.001", "--batch-size", "2", "--implementations", "toeplitz"]
    main(["bench", "depthwise", *settings, "--json", str(path)])
    report = json.loads(path.read_text())
    assert (report["suite"], report["dtype"]) == ("cpu", "float32")
    assert "PyTorch cannot be imported" in report["environment"]["torch"]
    rows = [(row["name"], row["batch"], row["contender"]) for row in report["rows"]]
    assert rows == 2 * [("6/3", 2, "replk_jax"), ("6/3", 2, "toeplitz")]
    assert all(row["median"] > 0 for row in report["rows"])
    out = capsys.readouterr().out
    assert "PyTorch cannot be imported" in out
    assert out.count("\n6/3 ") == 4
    assert "Slower than another contender" in out


def test_bench_depthwise_of_nan(capsys, monkeypatch, tiny_layers):
    def draw_nan(*arguments):
        return [(x * jnp.nan, kernel, g) for x, kernel, g in draw_operands(*arguments)]

    monkeypatch.setattr(depthwise, "draw_operands", draw_nan)
    settings = ["--seconds", "0.001", "--implementations", "--no-peers"]
    with pytest.raises(SystemExit) as caught:
        main(["bench", "depthwise", *settings])
    lines = str(caught.value.code).splitlines()
    assert lines[0] == "error: not all could be measured."
    failure = "failed, FloatingPointError: The result[0] has NaN or infinite elements."
    assert lines[1] == f"6/3, 2 channels, batch 1, forward: {failure}"
    assert lines[2].startswith("6/3, 2 channels, batch 1, forward+backward: failed, Floating")
    assert f"not measured: {failure}" in capsys.readouterr().out


def test_bench_depthwise_tune(tmp_path, capsys, monkeypatch, tiny_layers):
    """Without a path, the table goes where the operator looks for it."""
    monkeypatch.setenv("REPLK_JAX_TABLES", str(tmp_path))
    monkeypatch.setattr(measurements, "PACKAGED", tmp_path / "none")
    main(["bench", "depthwise", "--tune", "--seconds", "0.001"])
    assert f"written to {tmp_path / 'cpu.json'}" in capsys.readouterr().out
    assert len(measurements.table_of("cpu").measurements) == 3
    path = tmp_path / "other.json"
    main(["bench", "depthwise", "--tune", "--seconds", "0.001", "--table", str(path)])
    assert path.is_file()
