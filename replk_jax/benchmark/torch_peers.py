"""PyTorch programs to compare with, in the same process: convolutions and networks.

PyTorch is optional and imported only when used.
"""

# PyTorch and timm are optional, so types are usually checked without them.
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
_COMPILED = "+compile"  # suffix of the name of a peer that torch.compile compiles


def unsupported_reason(platform: str) -> str | None:
    """Why PyTorch cannot run on JAX's platform ("cpu", "gpu", ...); None if it can."""
    _make_idle_threads_sleep()
    try:
        import torch
    except ImportError as error:
        return f"PyTorch cannot be imported: {error}"
    if platform == "cpu" or (platform == "gpu" and torch.cuda.is_available()):
        return None
    return f"PyTorch {torch.__version__} finds no {platform}"


_WAIT_POLICY = "OMP_WAIT_POLICY"


def _make_idle_threads_sleep() -> None:
    """Prevents idle OpenMP threads from spinning, which would slow down JAX's threads.

    OpenMP reads the variable when PyTorch is imported.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault(_WAIT_POLICY, "passive")


def describe() -> str:
    """The version and settings of PyTorch, or why it is missing."""
    if reason := unsupported_reason("cpu"):
        return reason
    import torch

    text = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    if _WAIT_POLICY in os.environ:
        text += f", {_WAIT_POLICY}={os.environ[_WAIT_POLICY]}"
    if torch.cuda.is_available():
        # The settings of `_device`.
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
    """Runs `calls` depthwise convolutions, each with its own random operands.

    On a GPU the calls form one CUDA graph, so that only the work of the device is timed.

    Args:
      shape: a shape with the same padding before and after.
      batch: number of images.
      dtype: of all tensors.
      layout: one of `LAYOUTS`.
      backward: whether to compute both gradients as well, for a random cotangent.
      calls: number of convolutions in a run.
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
        return Program(run, _no_op, calls, check=_no_op)
    return Program(_capture_graph(run), _synchronize, calls, asynchronous=True, check=_no_op)


def check_network(peer: str, architecture: Any) -> None:
    """Checks the name of a network to compare with a network of this architecture.

    Raises:
      ValueError: it is not "torch" or "timm:NAME", with an optional suffix "+compile"; or it is
        "torch", and the architecture is not a RepLKNet.
    """
    network, _, suffix = peer.partition("+")
    library, _, name = network.partition(":")
    known = network == "torch" or (library == "timm" and name)
    if not known or suffix not in ("", _COMPILED[1:]):
        raise ValueError(
            f"Unknown peer {peer!r}; known: torch, timm:NAME, and either + {_COMPILED!r}."
        )
    if network == "torch" and not isinstance(architecture, RepLKNetArchitecture):
        raise ValueError("The peer torch is a RepLKNet: compare others with timm:NAME.")


def is_timm(peer: str) -> bool:
    """Whether the peer of this name is a timm model."""
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
    """Runs a network with random weights on random images, in the layout channels_last.

    Args:
      peer: a name that `check_network` accepts.
      mode: one of `MODES`; timm models have the same structure in both inference modes.
      architecture: of the network to compare with.
      image_size, batch_size: of the images.
      dtype: of the computation. For inference the weights have it too; otherwise they are
        float32, and the computation is under autocast.
      platform: "cpu" or "gpu".

    Raises:
      ImportError: timm is not installed.
      ValueError: an unknown mode.
    """
    import torch

    if mode not in MODES:
        raise ValueError(f"Unknown mode {mode}; known: {', '.join(MODES)}.")
    network = _network(peer, mode, architecture)
    network = network.to(_device(platform), memory_format=torch.channels_last)
    call = _compile(network) if peer.endswith(_COMPILED) else network
    images = torch.randn(
        batch_size, architecture.in_channels, image_size, image_size, device=_device(platform)
    )
    images = images.contiguous(memory_format=torch.channels_last)
    torch_dtype = getattr(torch, dtype)
    finish = release = _no_op
    if platform != "cpu":
        # PyTorch caches freed memory, which the other programs need.
        finish, release = _synchronize, torch.cuda.empty_cache

    if mode in _INFERENCE:
        network.eval().to(torch_dtype)
        images = images.to(torch_dtype)

        @torch.inference_mode()
        def infer():
            return call(images)

        return Program(infer, finish, release=release, check=_no_op)

    labels = torch.zeros(batch_size, dtype=torch.int64, device=images.device)
    fused = platform == "gpu" or None  # None: PyTorch decides
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=fused)

    def train():
        optimizer.zero_grad()
        with torch.autocast(images.device.type, torch_dtype, enabled=torch_dtype != torch.float32):
            logits = call(images)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        if mode == "training":
            optimizer.step()

    return Program(train, finish, release=release, check=_no_op)


def _network(peer: str, mode: str, architecture: Any) -> Any:
    name = peer.removesuffix(_COMPILED)
    drop_path_rate = DROP_PATH_RATE if mode == "training" else 0.0
    if name == "torch":
        from replk_jax.benchmark.torch_replknet import RepLKNet

        deploy = mode == "inference-merged"
        return RepLKNet(architecture, deploy=deploy, drop_path_rate=drop_path_rate)
    import timm

    # Some models have stochastic depth by default.
    kwargs = {} if mode in _INFERENCE else {"drop_path_rate": drop_path_rate}
    return timm.create_model(name.removeprefix("timm:"), **kwargs)


def _compile(network: Any) -> Any:
    """Applies `torch.compile`, which then compiles the network for each shape separately.

    By default, PyTorch shares compiled code between networks of the same class: it compiles a
    second shape for dynamic shapes, and after a few recompilations silently stops compiling.
    """
    import torch

    torch._dynamo.config.recompile_limit = 1000
    torch._dynamo.config.accumulated_recompile_limit = 10000
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(network, dynamic=False)


def _device(platform: str) -> str:
    """The name of PyTorch's device for JAX's platform.

    On a GPU, this enables cuDNN's search for the fastest algorithms, and TF32 for float32 products
    in linear layers and convolutions, the default of XLA.
    """
    if platform == "cpu":
        return "cpu"
    import torch

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    return "cuda"


def _capture_graph(run: Callable[[], Any]) -> Callable[[], None]:
    """Captures the GPU work of a function as a CUDA graph and returns the function to replay it."""
    import torch

    # PyTorch requires warm-up runs on another stream. In these, cuDNN chooses its algorithms.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # "thread_local" permits JAX's threads to allocate memory during the capture.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    return graph.replay


def _synchronize(_: Any) -> None:
    import torch

    torch.cuda.synchronize()


def _no_op(*_: Any) -> None:
    """Does nothing: on a CPU, PyTorch is synchronous and keeps no memory. Peers are not checked."""
