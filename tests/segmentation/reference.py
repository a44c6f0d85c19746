"""Segmentation heads in NumPy and float64, by the definitions alone.

Feature maps are (N, H, W, C). The parameters of a head are two trees, as in `variables["params"]`
and `variables["batch_stats"]`.
"""

import math

import numpy as np

Tree = dict


def resize(x, size, align_corners):
    """PyTorch's `interpolate`, bilinear, position by position."""
    height, width = x.shape[1:3]
    y = np.zeros((x.shape[0], *size, x.shape[3]))
    for i in range(size[0]):
        for j in range(size[1]):
            row, column = (
                _source(position, out, before, align_corners)
                for position, out, before in zip((i, j), size, (height, width), strict=True)
            )
            top, left = math.floor(row), math.floor(column)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            down, across = row - top, column - left
            upper = (1 - across) * x[:, top, left] + across * x[:, top, right]
            lower = (1 - across) * x[:, bottom, left] + across * x[:, bottom, right]
            y[:, i, j] = (1 - down) * upper + down * lower
    return y


def _source(position, out, before, align_corners):
    if align_corners:
        return 0.0 if out == 1 else position * (before - 1) / (out - 1)
    return min(max((position + 0.5) * before / out - 0.5, 0.0), before - 1)


def adaptive_pool(x, size):
    """PyTorch's `AdaptiveAvgPool2d`, window by window."""
    height, width = x.shape[1:3]
    y = np.zeros((x.shape[0], *size, x.shape[3]))
    for i in range(size[0]):
        rows = slice(i * height // size[0], math.ceil((i + 1) * height / size[0]))
        for j in range(size[1]):
            columns = slice(j * width // size[1], math.ceil((j + 1) * width / size[1]))
            y[:, i, j] = x[:, rows, columns].mean((1, 2))
    return y


def batch_norm(x, params, stats):
    scale, bias, mean, var = (
        np.float64(each) for each in (params["scale"], params["bias"], stats["mean"], stats["var"])
    )
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def conv(x, kernel, dilation=1):
    """Zero padding, stride 1; depthwise if the kernel has one input channel and x has several."""
    kernel = np.float64(kernel)
    size = kernel.shape[0]
    margin = dilation * (size // 2)
    padded = np.pad(x, [(0, 0), (margin, margin), (margin, margin), (0, 0)])
    height, width = x.shape[1:3]
    y = np.zeros((*x.shape[:3], kernel.shape[3]))
    for i in range(size):
        for j in range(size):
            window = padded[:, i * dilation :, j * dilation :][:, :height, :width]
            tap = kernel[i, j]
            y += window * tap[0] if tap.shape[0] != x.shape[3] else window @ tap
    return y


class Head:
    """A head with variables, whose modules are called by name."""

    def __init__(self, variables: Tree, align_corners: bool):
        self.params, self.stats = variables["params"], variables["batch_stats"]
        self.align_corners = align_corners

    def conv(self, name, x, dilation=1):
        """Convolution, batch norm and ReLU."""
        params, stats = self.params, self.stats
        for part in name.split("/"):
            params, stats = params[part], stats[part]
        y = conv(x, params["conv"]["kernel"], dilation)
        return np.maximum(batch_norm(y, params["bn"], stats["bn"]), 0)

    def separable(self, name, x, dilation):
        y = self.conv(f"{name}/depthwise_conv", x, dilation)
        return self.conv(f"{name}/pointwise_conv", y)

    def resize(self, x, like):
        return resize(x, like.shape[1:3], self.align_corners)

    def classify(self, x):
        layer = self.params["conv_seg"]
        return conv(x, layer["kernel"]) + np.float64(layer["bias"])

    def pyramid(self, x, scales):
        branches = [x]
        for i, scale in enumerate(scales):
            pooled = self.conv(f"psp_modules_{i}_1", adaptive_pool(x, (scale, scale)))
            branches.append(self.resize(pooled, x))
        return self.conv("bottleneck", np.concatenate(branches, -1))

    def upernet(self, maps, scales=(1, 2, 3, 6)):
        """Logits of UPerNet's head."""
        levels = [self.conv(f"lateral_convs_{i}", x) for i, x in enumerate(maps[:-1])]
        levels.append(self.pyramid(maps[-1], scales))
        for i in reversed(range(len(maps) - 1)):
            levels[i] = levels[i] + self.resize(levels[i + 1], levels[i])
        outputs = [self.conv(f"fpn_convs_{i}", x) for i, x in enumerate(levels[:-1])]
        outputs = [self.resize(x, levels[0]) for x in [*outputs, levels[-1]]]
        return self.classify(self.conv("fpn_bottleneck", np.concatenate(outputs, -1)))

    def pspnet(self, maps, scales=(1, 2, 3, 6)):
        """Logits of PSPNet's head."""
        return self.classify(self.pyramid(maps[-1], scales))

    def aspp(self, x, branch):
        image = self.conv("image_pool_1", adaptive_pool(x, (1, 1)))
        branches = [self.resize(image, x), self.conv("aspp_modules_0", x)]
        branches += [
            branch(f"aspp_modules_{i}", x, dilation) for i, dilation in enumerate((12, 24, 36), 1)
        ]
        return self.conv("bottleneck", np.concatenate(branches, -1))

    def deeplabv3(self, maps):
        """Logits of DeepLabv3's head."""
        return self.classify(self.aspp(maps[-1], self.conv))

    def deeplabv3plus(self, maps):
        """Logits of DeepLabv3+'s head."""
        x = self.aspp(maps[-1], self.separable)
        low = self.conv("c1_bottleneck", maps[0])
        x = np.concatenate([self.resize(x, low), low], -1)
        for i in range(2):
            x = self.separable(f"sep_bottleneck_{i}", x, 1)
        return self.classify(x)

    def fcn(self, maps):
        """Logits of FCN's head with two convolutions and concatenation."""
        x = self.conv("convs_1", self.conv("convs_0", maps[-1]))
        return self.classify(self.conv("conv_cat", np.concatenate([maps[-1], x], -1)))
