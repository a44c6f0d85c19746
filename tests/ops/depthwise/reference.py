"""The depthwise convolution and its gradients, tap by tap, in float64 NumPy."""

import numpy as np

from replk_jax.ops.depthwise.convolution import Convolution


def forward(x, kernel, convolution: Convolution):
    x, y = _padded(x, convolution), 0.0
    for u, v, window in _windows(convolution):
        y = y + x[window] * np.float64(kernel[u, v, 0])
    return y


def input_gradient(g, kernel, convolution: Convolution):
    g = np.float64(g)
    (top, bottom), (left, right) = (np.maximum(pad, 0) for pad in convolution.padding)
    (height, width), (n, *_, c) = convolution.size, g.shape
    dx = np.zeros((n, height + top + bottom, width + left + right, c))
    for u, v, window in _windows(convolution):
        dx[window] += g * np.float64(kernel[u, v, 0])
    return dx[:, top : top + height, left : left + width]


def kernel_gradient(x, g, convolution: Convolution):
    x, dk = _padded(x, convolution), np.zeros((*convolution.kernel_size, 1, g.shape[-1]))
    for u, v, window in _windows(convolution):
        dk[u, v, 0] = np.sum(x[window] * np.float64(g), (0, 1, 2))
    return dk


def _padded(x, convolution):
    return np.pad(np.float64(x), ((0, 0), *convolution.padding, (0, 0)))


def _windows(convolution):
    """For every tap, what it reads of the padded map."""
    for u in range(convolution.kernel_size[0]):
        for v in range(convolution.kernel_size[1]):
            spans = []
            for axis, tap in enumerate((u, v)):
                start = tap * convolution.dilation[axis]
                step, count = convolution.stride[axis], convolution.output_size[axis]
                spans.append(slice(start, start + step * (count - 1) + 1, step))
            yield u, v, (slice(None), *spans)
