"""PyTorch, as a peer in the same process: the same convolution, the same network, and others.

PyTorch need not be installed; it is imported where it is used.
"""

# PyTorch and timm are optional: they are absent where the types are usually checked.
# pyright: reportMissingImports=false

import os
import sys
from collections.abc import Callable
from typing import Any

from replk_jax.benchmark.network_programs import DROP_PATH_RATE, MODES
from replk_jax.benchmark.timing import Program
from replk_jax.models.replknet import RepLKNetArchitecture
from replk_jax.ops.depthwise.shapes import Shape

LAYOUTS = ("NCHW", "channels_last")
_INFERENCE = ("inference", "inference-merged")
_COMPILED = "+compile"  # behind the name of a network: by torch.compile


def unsupported_reason(platform: str) -> str | None:
    """Why there is no peer for JAX's platform ("cpu", "gpu", ...), or None if there is."""
    _let_idle_threads_sleep()
    try:
        import torch
    except ImportError as error:
        return f"PyTorch cannot be imported: {error}"
    if platform == "cpu" or (platform == "gpu" and torch.cuda.is_available()):
        return None
    return f"PyTorch {torch.__version__} finds no {platform}"


_WAIT_POLICY = "OMP_WAIT_POLICY"


def _let_idle_threads_sleep() -> None:
    """Spinning threads would take the cores from JAX's. OpenMP reads this when it is loaded."""
    if "torch" not in sys.modules:
        os.environ.setdefault(_WAIT_POLICY, "passive")


def describe() -> str:
    """Version and settings, or why it is not there."""
    if reason := unsupported_reason("cpu"):
        return reason
    import torch

    text = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    if _WAIT_POLICY in os.environ:
        text += f", {_WAIT_POLICY}={os.environ[_WAIT_POLICY]}"
    if torch.cuda.is_available():
        # As `_device` has it.
        text += f", cuDNN {torch.backends.cudnn.version()} with benchmark, float32 by TF32"
    return text


def convolution_program(
    shape: Shape,
    batch: int,
    *,
    dtype: str,
    layout: str,
    backward: bool,
    calls: int,
    platform: str,
) -> Program:
    """The depthwise convolution of random images, `calls` times, each with its own operands.

    On a GPU the calls are one CUDA graph, so that nothing but the device is timed.

    Args:
      shape: one whose padding is the same before and after.
      batch: images at once.
      dtype: of all tensors.
      layout: one of `LAYOUTS`.
      backward: whether both gradients follow, for a random cotangent.
      calls: convolutions in a run.
      platform: "cpu" or "gpu".
    """
    import torch

    convolution, channels = shape.convolution, shape.channels
    device = _device(platform)
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format

    def draw(*sizes, requires_grad=False):
        values = torch.randn(sizes, device=device).to(getattr(torch, dtype))
        return values.contiguous(memory_format=memory_format).requires_grad_(requires_grad)

    operands = [
        (
            draw(batch, channels, *convolution.size, requires_grad=backward),
            draw(channels, 1, *convolution.kernel_size, requires_grad=backward),
            draw(batch, channels, *convolution.output_size),
        )
        for _ in range(calls)
    ]
    padding = tuple(before for before, _ in convolution.padding)

    def run():
        results = []
        for x, kernel, cotangent in operands:
            y = torch.conv2d(
                x, kernel, None, convolution.stride, padding, convolution.dilation, channels
            )
            gradients = torch.autograd.grad(y, (x, kernel), cotangent) if backward else ()
            results.append((y.detach(), *gradients))
        return results

    if platform == "cpu":
        return Program(run, _nothing, calls, check=_nothing)
    return Program(_captured(run), _synchronize, calls, asynchronous=True, check=_nothing)


def check_network(peer: str, architecture: Any) -> None:
    """Checks the name of a network that is to be a peer of one of this architecture.

    Raises:
      ValueError: it is neither "torch" nor "timm:NAME", with or without "+compile" behind it; or
        it is "torch", and the architecture is no RepLKNet's.
    """
    network, _, suffix = peer.partition("+")
    library, _, name = network.partition(":")
    known = network == "torch" or (library == "timm" and name)
    if not known or suffix not in ("", _COMPILED[1:]):
        raise ValueError(
            f"Unknown peer {peer!r}; known: torch, timm:NAME, and {_COMPILED} behind either."
        )
    if network == "torch" and not isinstance(architecture, RepLKNetArchitecture):
        raise ValueError("The peer torch is a RepLKNet: compare others with timm:NAME.")


def is_timm(peer: str) -> bool:
    """Whether the peer of this name is a model of timm's."""
    return peer.startswith("timm:")


def network_program(
    peer: str,
    mode: str,
    architecture: Any,
    *,
    image_size: int,
    batch_size: int,
    dtype: str,
    platform: str,
) -> Program:
    """A network with random weights on random images, channels_last; compiled where asked for.

    Args:
      peer: one that `check_network` allows.
      mode: as of our networks. timm's models have nothing to merge.
      architecture: of the network that it is compared with.
      image_size, batch_size: of the images.
      dtype: of the computation. For inference the weights have it too; otherwise they are
        float32, and the computation is autocast.
      platform: "cpu" or "gpu".

    Raises:
      ImportError: timm is not there.
      ValueError: an unknown mode.
    """
    import torch

    if mode not in MODES:
        raise ValueError(f"Unknown mode {mode}; known: {', '.join(MODES)}.")
    network = _network(peer, mode, architecture)
    network = network.to(_device(platform), memory_format=torch.channels_last)
    call = _compiled(network) if peer.endswith(_COMPILED) else network
    images = torch.randn(
        batch_size, architecture.in_channels, image_size, image_size, device=_device(platform)
    )
    images = images.contiguous(memory_format=torch.channels_last)
    dtype = getattr(torch, dtype)
    finish = release = _nothing
    if platform != "cpu":
        # What PyTorch keeps for itself is wanting elsewhere.
        finish, release = _synchronize, torch.cuda.empty_cache

    if mode in _INFERENCE:
        network.eval().to(dtype)
        images = images.to(dtype)

        @torch.inference_mode()
        def infer():
            return call(images)

        return Program(infer, finish, release=release, check=_nothing)

    labels = torch.zeros(batch_size, dtype=torch.int64, device=images.device)
    fused = platform == "gpu" or None  # None leaves it to PyTorch
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=fused)

    def train():
        optimizer.zero_grad()
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            logits = call(images)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        if mode == "training":
            optimizer.step()

    return Program(train, finish, release=release, check=_nothing)


def _network(peer: str, mode: str, architecture: Any) -> Any:
    name = peer.removesuffix(_COMPILED)
    drop_path_rate = DROP_PATH_RATE if mode == "training" else 0.0
    if name == "torch":
        from replk_jax.benchmark.torch_replknet import RepLKNet

        deploy = mode == "inference-merged"
        return RepLKNet(architecture, deploy=deploy, drop_path_rate=drop_path_rate)
    import timm

    # Some models have stochastic depth unless told otherwise.
    settings = {} if mode in _INFERENCE else {"drop_path_rate": drop_path_rate}
    return timm.create_model(name.removeprefix("timm:"), **settings)


def _compiled(network: Any) -> Any:
    """The network by `torch.compile`, for the one shape that it is called with.

    What is compiled belongs to the network's code, not to the network: a second shape would be
    compiled for shapes of all kinds, and after a few nothing any more, in silence.
    """
    import torch

    torch._dynamo.config.recompile_limit = 1000
    torch._dynamo.config.accumulated_recompile_limit = 10000
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(network, dynamic=False)


def _device(platform: str) -> str:
    """The name of PyTorch's device.

    On a GPU, cuDNN looks for its fastest algorithms, and float32 is multiplied in TF32, in linear
    layers as in convolutions, as XLA does.
    """
    if platform == "cpu":
        return "cpu"
    import torch

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    return "cuda"


def _captured(run: Callable[[], Any]) -> Callable[[], None]:
    """The device's work of a function, as a CUDA graph to replay."""
    import torch

    # As PyTorch asks for: first on another stream, where cuDNN chooses its algorithms.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # JAX's threads may allocate memory meanwhile, which the graph has nothing to do with.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    return graph.replay


def _synchronize(_: Any) -> None:
    import torch

    torch.cuda.synchronize()


def _nothing(*_: Any) -> None:
    """On a CPU PyTorch's functions return when they are done, and memory is the system's."""
