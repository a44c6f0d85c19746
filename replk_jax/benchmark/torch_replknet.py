"""A plain RepLKNet in PyTorch, for speed comparisons."""

# PyTorch is optional, so types are usually checked without it.
# pyright: reportMissingImports=false

from functools import partial

import torch
from torch import nn

from replk_jax.models.replknet import RepLKNetArchitecture


def conv_norm(
    inputs: int,
    outputs: int,
    kernel_size: int = 1,
    stride: int = 1,
    *,
    depthwise: bool = False,
    deploy: bool,
) -> nn.Module:
    """A convolution and its batch norm, or with `deploy` a convolution with bias."""
    groups = inputs if depthwise else 1
    conv = nn.Conv2d(
        inputs, outputs, kernel_size, stride, kernel_size // 2, groups=groups, bias=deploy
    )
    return conv if deploy else nn.Sequential(conv, nn.BatchNorm2d(outputs))


def norm(channels: int, deploy: bool) -> nn.Module:
    """A batch norm, or with `deploy` the identity: merging folds it into the next layer."""
    return nn.Identity() if deploy else nn.BatchNorm2d(channels)


class LargeKernelConv(nn.Module):
    """A large depthwise convolution with a parallel small one."""

    def __init__(self, channels: int, kernel_size: int, small_kernel: int | None, deploy: bool):
        super().__init__()
        branch = partial(conv_norm, channels, channels, depthwise=True, deploy=deploy)
        self.large = branch(kernel_size)
        self.small = None if deploy or small_kernel is None else branch(small_kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.large(x)
        return y if self.small is None else y + self.small(x)


class Residual(nn.Sequential):
    """x + layers(x), with stochastic depth per image in training."""

    def __init__(self, *layers: nn.Module, drop_path_rate: float):
        super().__init__(*layers)
        self.drop_path_rate = drop_path_rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        if self.training and self.drop_path_rate:
            keep_rate = 1 - self.drop_path_rate
            y = y * y.new_empty((len(y), 1, 1, 1)).bernoulli_(keep_rate).div_(keep_rate)
        return x + y


class RepLKNet(nn.Sequential):
    """The classifier of 1000 classes: (N, in_channels, H, W) to (N, 1000).

    Args:
      architecture: of the network in JAX.
      deploy: whether to build the merged structure.
      drop_path_rate: of the last blocks; it increases linearly from 0 in the first blocks.
    """

    def __init__(
        self, architecture: RepLKNetArchitecture, *, deploy: bool, drop_path_rate: float = 0.0
    ):
        convolve = partial(conv_norm, deploy=deploy)
        channels, layers = architecture.channels, []

        def convolve_relu(*sizes, **settings):
            layers.extend([convolve(*sizes, **settings), nn.ReLU()])

        width = channels[0]
        convolve_relu(architecture.in_channels, width, 3, 2)
        convolve_relu(width, width, 3, depthwise=True)
        convolve_relu(width, width)
        convolve_relu(width, width, 3, 2, depthwise=True)
        for stage, kernel_size in enumerate(architecture.kernel_sizes):
            if stage > 0:
                convolve_relu(width, channels[stage])
                width = channels[stage]
                convolve_relu(width, width, 3, 2, depthwise=True)
            inner, hidden = (
                int(width * ratio) for ratio in (architecture.dw_ratio, architecture.ffn_ratio)
            )
            for rate in architecture.drop_path_rates(drop_path_rate)[stage]:
                large_kernel = Residual(
                    norm(width, deploy),
                    convolve(width, inner),
                    nn.ReLU(),
                    LargeKernelConv(inner, kernel_size, architecture.small_kernel, deploy),
                    nn.ReLU(),
                    convolve(inner, width),
                    drop_path_rate=rate,
                )
                feed_forward = Residual(
                    norm(width, deploy),
                    convolve(width, hidden),
                    nn.GELU(),
                    convolve(hidden, width),
                    drop_path_rate=rate,
                )
                layers.extend([large_kernel, feed_forward])
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000)]
        super().__init__(*layers, norm(width, deploy), *head)
