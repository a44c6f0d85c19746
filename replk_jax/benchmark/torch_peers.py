"""PyTorch, as a peer in the same process: the same convolution, the same network, and others.

PyTorch need not be installed; it is imported where it is used.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

from replk_jax.benchmark.timing import Program
from replk_jax.models.replknet import RepLKNetArchitecture
from replk_jax.ops.shapes import Shape

LAYOUTS = ("NCHW", "channels_last")
_COMPILED = "+compile"  # behind the name of a network: by torch.compile


def refuses(platform: str) -> str | None:
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
    if reason := refuses("cpu"):
        return reason
    import torch

    text = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    if _WAIT_POLICY in os.environ:
        text += f", {_WAIT_POLICY}={os.environ[_WAIT_POLICY]}"
    if torch.cuda.is_available():
        tf32 = "with" if torch.backends.cudnn.allow_tf32 else "without"
        text += f", cuDNN {torch.backends.cudnn.version()} with benchmark, {tf32} TF32"
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
        return Program(run, _nothing, calls)
    return Program(_captured(run), _synchronize, calls, asynchronous=True)


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
      mode: as of our networks, but that a training step is without stochastic depth, and that
        timm's models have nothing to merge.
      architecture: of the network that it is compared with.
      image_size, batch_size: of the images.
      dtype: of the computation. For inference the weights have it too; otherwise they are
        float32, and the computation is autocast.
      platform: "cpu" or "gpu".

    Raises:
      ImportError: timm is not there.
    """
    import torch

    network = _network(peer, architecture, deploy=mode == "inference-merged")
    network = network.to(_device(platform), memory_format=torch.channels_last)
    images = torch.randn(
        batch_size, architecture.in_channels, image_size, image_size, device=_device(platform)
    )
    images = images.contiguous(memory_format=torch.channels_last)
    dtype = getattr(torch, dtype)
    finish = _nothing if platform == "cpu" else _synchronize

    if mode in ("inference", "inference-merged"):
        network, images = network.eval().to(dtype), images.to(dtype)
        call = torch.compile(network) if peer.endswith(_COMPILED) else network

        @torch.inference_mode()
        def infer():
            return call(images)

        return Program(infer, finish)

    call = torch.compile(network) if peer.endswith(_COMPILED) else network
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

    return Program(train, finish)


def _network(peer: str, architecture: Any, deploy: bool) -> Any:
    name = peer.removesuffix(_COMPILED)
    if name == "torch":
        from replk_jax.benchmark.torch_replknet import RepLKNet

        return RepLKNet(architecture, deploy=deploy)
    import timm

    return timm.create_model(name.removeprefix("timm:"))


def _device(platform: str) -> str:
    """The name of PyTorch's device; on a GPU, cuDNN looks for its fastest algorithms."""
    if platform == "cpu":
        return "cpu"
    import torch

    torch.backends.cudnn.benchmark = True
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


def _nothing(_: Any) -> None:
    """On a CPU PyTorch's functions return when they are done."""
