"""torchvision's operators of detection to compare with, in the same process.

torchvision is optional and imported only when used.
"""

# PyTorch and torchvision are optional, so types are usually checked without them.
# pyright: reportMissingImports=false

from collections.abc import Sequence
from typing import Any

import numpy as np

from replk_jax.benchmark import torch_peers
from replk_jax.benchmark.timing import Program


def unsupported_reason(platform: str) -> str | None:
    """Why torchvision cannot run on JAX's platform; None if it can. Only CPUs are supported."""
    if reason := torch_peers.unsupported_reason(platform):
        return reason
    if platform != "cpu":
        return f"torchvision is compared with on CPUs only, not on a {platform}"
    try:
        import torchvision.ops  # noqa: F401
    except (ImportError, RuntimeError) as error:  # RuntimeError: a build for another PyTorch
        return f"torchvision cannot be imported: {error}"
    return None


def describe() -> str:
    """The version, or why torchvision is missing."""
    if reason := unsupported_reason("cpu"):
        return reason
    import torchvision

    return f"torchvision {torchvision.__version__}"


def nms_program(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> Program:
    """Runs `torchvision.ops.nms`, which returns the indices of all boxes that are kept."""
    import torch
    import torchvision

    operands = torch.tensor(boxes), torch.tensor(scores)
    return Program(lambda: torchvision.ops.nms(*operands, threshold), _finish, check=_finish)


def roi_align_program(
    feature_maps: Sequence[np.ndarray],
    boxes: np.ndarray,
    levels: np.ndarray,
    scales: Sequence[float],
    output_size: int,
    backward: bool,
) -> Program:
    """Runs `torchvision.ops.roi_align` (adaptive, aligned) once per level, on its boxes.

    Args:
      feature_maps: (H, W, C) each; stored as PyTorch does, (1, C, H, W).
      boxes: (R, 4).
      levels: (R,), the feature map of each box.
      scales: of the feature maps.
      output_size: bins per axis.
      backward: whether to compute the gradients of the feature maps as well.
    """
    import torch
    import torchvision

    maps = [
        torch.tensor(np.ascontiguousarray(each.transpose(2, 0, 1)))[None].requires_grad_(backward)
        for each in feature_maps
    ]
    by_level = [[torch.tensor(boxes[levels == level])] for level in range(len(maps))]

    def run():
        results = [
            torchvision.ops.roi_align(x, own, output_size, scale, 0, True)
            for x, own, scale in zip(maps, by_level, scales, strict=True)
        ]
        if not backward:
            return results
        ones = [torch.ones_like(each) for each in results]
        return [each.detach() for each in results], torch.autograd.grad(results, maps, ones)

    return Program(run, _finish, check=_finish)


def _finish(_: Any) -> None:
    """Does nothing: on a CPU, PyTorch is synchronous. Peers are not checked."""
