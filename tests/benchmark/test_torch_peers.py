"""What PyTorch is compared with is the same computation."""

import dataclasses
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import replk_jax
from replk_jax.benchmark import torch_peers
from replk_jax.benchmark.network_programs import DROP_PATH_RATE, MODES
from replk_jax.models.variables import abstract_variables
from replk_jax.ops.depthwise.shapes import REPLKNET_224, SMALL, UNUSUAL
from tests.helpers import TINY
from tests.ops.depthwise import reference

torch = pytest.importorskip("torch", reason="PyTorch, an optional peer, is not installed")
from replk_jax.benchmark import torch_replknet  # noqa: E402

SHAPES = [
    shape
    for shape in [*SMALL, *REPLKNET_224, *UNUSUAL]
    if all(before == after for before, after in shape.convolution.padding)
    and np.prod(shape.size) < 600
]


@pytest.mark.parametrize("layout", torch_peers.LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_convolution(shape, layout, monkeypatch):
    """Result and gradients of what is timed are those of the reference."""
    drawn = []

    def draw(*arguments, original=torch.randn, **settings):
        drawn.append(original(*arguments, **settings))
        return drawn[-1]

    monkeypatch.setattr(torch, "randn", draw)
    few = dataclasses.replace(shape, channels=3)
    program = torch_peers.convolution_program(
        few, 2, dtype="float32", layout=layout, backward=True, calls=2, platform="cpu"
    )
    results = program.start()
    program.finish(results)
    assert program.calls == len(results) == 2
    convolution = shape.convolution
    for call, (y, dx, dk) in enumerate(results):
        memory_format = {"channels_last": torch.channels_last}.get(layout, torch.contiguous_format)
        assert y.is_contiguous(memory_format=memory_format)
        x, kernel, g = drawn[3 * call : 3 * call + 3]
        x, g = nhwc(x), nhwc(g)
        kernel = kernel.detach().numpy().transpose(2, 3, 1, 0)
        close(nhwc(y), reference.forward(x, kernel, convolution))
        close(nhwc(dx), reference.input_gradient(g, kernel, convolution))
        close(dk.numpy().transpose(2, 3, 1, 0), reference.kernel_gradient(x, g, convolution))


def nhwc(tensor):
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize(
    "architecture", [TINY, replk_jax.RepLKNetArchitecture((9, 5), (2, 1), (8, 12), None, 1.5)]
)
def test_network_has_the_same_parameters(architecture, deploy):
    """As many of every shape, and the structures' outputs are of the right size."""
    from replk_jax.benchmark.torch_replknet import RepLKNet

    network = RepLKNet(architecture, deploy=deploy).eval()
    shapes = sorted(sorted(parameter.shape) for parameter in network.parameters())
    model = replk_jax.create_model(architecture, deploy=deploy)
    leaves = jax.tree.leaves(abstract_variables(model)["params"])
    assert shapes == sorted(sorted(leaf.shape) for leaf in leaves)
    with torch.inference_mode():
        assert network(torch.zeros(2, 3, 33, 40)).shape == (2, 1000)


def network_program(peer, mode, dtype="float32", batch_size=2):
    settings = {"image_size": 32, "batch_size": batch_size, "dtype": dtype, "platform": "cpu"}
    return torch_peers.network_program(peer, mode, TINY, **settings)


@pytest.fixture
def networks(monkeypatch):
    """The networks of the programs that a test makes."""
    built = []

    def build(*arguments, original=torch_peers._network):
        built.append(original(*arguments))
        return built[-1]

    monkeypatch.setattr(torch_peers, "_network", build)
    return built


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", MODES)
def test_network_programs_run(mode, dtype, networks):
    """Inference gives logits; gradients change no parameter, a training step all."""
    program = network_program("torch", mode, dtype)
    parameters = list(networks[0].parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    result = program.start()
    changed = [not torch.equal(now, then) for now, then in zip(parameters, before, strict=True)]
    assert set(changed) == {mode == "training"}
    if mode in ("gradients", "training"):
        assert result is None
        assert all(parameter.grad.any() for parameter in parameters)
    else:
        assert (result.shape, result.dtype) == ((2, 1000), getattr(torch, dtype))


def test_gradients_are_of_one_step(networks):
    """They are not added to those of the step before."""
    program = network_program("torch", "gradients")
    gradients = []
    for _ in range(2):
        program.start()
        gradients.append([parameter.grad.clone() for parameter in networks[0].parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_stochastic_depth(networks):
    """In a training step alone, and as ours: per image, the kept ones scaled up."""
    for mode in MODES:
        network_program("torch", mode)
    rates = [
        [block.drop_path_rate for block in network if hasattr(block, "drop_path_rate")]
        for network in networks
    ]
    ours = TINY.drop_path_rates(DROP_PATH_RATE)
    expected = [rate for stage in ours for rate in stage for _ in range(2)]
    assert rates == [[0.0] * len(expected)] * 3 + [expected]
    assert max(expected) == DROP_PATH_RATE
    block = torch_replknet.Residual(torch.nn.Identity(), drop_path_rate=0.25)
    x = torch.ones(4000, 2, 3, 3)
    dropped = (block(x) == 1).flatten(1)
    assert (dropped.all(1) == dropped.any(1)).all(), "an image is dropped as a whole"
    assert 0.2 < dropped[:, 0].float().mean() < 0.3  # 7 standard deviations
    torch.testing.assert_close(block(x)[:, 0, 0, 0].max().item(), 1 + 1 / 0.75)
    assert (block.eval()(x) == 2).all()


@pytest.fixture
def compiled_shapes(monkeypatch):
    """Those of the inputs of all that `torch.compile` makes, which makes nothing of it here."""
    shapes = []

    def count(graph, inputs):
        shapes.append({tuple(each.shape) for each in inputs})
        return graph

    compile_any = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **k: compile_any(*a, **k, backend=count))
    return shapes


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_networks_are_compiled(mode, compiled_shapes):
    network_program("torch+compile", mode).start()
    assert any((2, 3, 32, 32) in shapes for shapes in compiled_shapes)


def test_every_shape_is_compiled_for_itself(compiled_shapes):
    """Whatever was compiled before, of a network of the same code."""
    for batch_size in range(1, 12):
        network = torch_replknet.Residual(torch.nn.Linear(3, 3), drop_path_rate=0.0)
        torch_peers._compile(network)(torch.ones(batch_size, 3))
    assert len(compiled_shapes) == 11
    assert all((n, 3) in found for n, found in zip(range(1, 12), compiled_shapes, strict=True))


def test_timm_is_told_of_stochastic_depth(monkeypatch):
    """Where it would have some unless told otherwise."""
    asked = []

    def create_model(name, **settings):
        asked.append((name, settings))

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    for mode in MODES:
        torch_peers._network("timm:swin", mode, TINY)
    rates = [{}, {}, {"drop_path_rate": 0.0}, {"drop_path_rate": DROP_PATH_RATE}]
    assert asked == [("swin", settings) for settings in rates]


def test_unknown_mode():
    with pytest.raises(ValueError, match="Unknown mode sleep; known: inference"):
        network_program("torch", "sleep")


@pytest.mark.exhaustive  # a C++ compiler's work, for a minute
@pytest.mark.parametrize("mode", MODES)
def test_compiled_networks_run(mode):
    result = network_program("torch+compile", mode).start()
    assert result is None if mode in ("gradients", "training") else result.shape == (2, 1000)


@pytest.mark.parametrize(
    ("peer", "known"),
    [
        ("torch", True), ("timm:resnet50", True), ("torch+compile", True),
        ("timm:resnet50+compile", True), ("timm:", False), ("timm:+compile", False),
        ("torch+fast", False), ("resnet50", False),
    ],
)  # fmt: skip
def test_names_of_networks(peer, known):
    if known:
        torch_peers.check_network(peer, TINY)
    else:
        with pytest.raises(ValueError, match="Unknown peer"):
            torch_peers.check_network(peer, TINY)


def test_descriptions():
    assert torch_peers.unsupported_reason("cpu") is None
    assert "finds no tpu" in torch_peers.unsupported_reason("tpu")
    assert torch_peers.describe().startswith(f"torch {torch.__version__}, ")
