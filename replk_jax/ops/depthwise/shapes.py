"""The convolutions that tests and benchmarks use."""

import dataclasses

from replk_jax.ops.depthwise.convolution import Convolution, Pair


@dataclasses.dataclass(frozen=True)
class Shape:
    """The depthwise convolution of a layer of a network; the padding is half the kernel.

    Attributes:
      name: size/kernel, with the stride or dilation if it is not 1.
      size: (H, W).
      kernel_size: (KH, KW).
      channels: C.
      stride, dilation: of both rows and columns.
    """

    name: str
    size: Pair
    kernel_size: Pair
    channels: int
    stride: int = 1
    dilation: int = 1

    @property
    def convolution(self) -> Convolution:
        """Its geometry."""
        rows, columns = (
            ((k - 1) * self.dilation // 2, k * self.dilation // 2) for k in self.kernel_size
        )
        return Convolution(
            self.size,
            self.kernel_size,
            (self.stride, self.stride),
            (rows, columns),
            (self.dilation, self.dilation),
        )


def square(size: int, kernel: int, channels: int, stride: int = 1) -> Shape:
    """A square kernel on a square feature map."""
    name = f"{size}/{kernel}" + (f" stride {stride}" if stride > 1 else "")
    return Shape(name, (size, size), (kernel, kernel), channels, stride)


# The large kernels of RepLKNet-31B (paper, section 4.1) at 224 and at 384 pixels.
REPLKNET_224 = [
    square(56, 31, 128),
    square(28, 29, 256),
    square(14, 27, 512),
    square(7, 13, 1024),
]
REPLKNET_384 = [
    square(96, 31, 128),
    square(48, 29, 256),
    square(24, 27, 512),
    square(12, 13, 1024),
]
# The number of layers of each of the four shapes.
REPLKNET_31B_DEPTHS = (2, 2, 18, 2)

# Its other depthwise convolutions: stem, transitions, parallel branch.
SMALL = [
    square(112, 3, 128),
    square(112, 3, 128, stride=2),
    square(56, 5, 128),
    square(14, 5, 512),
    square(56, 3, 256, stride=2),
]

# Table 1 of the paper: 24 layers of 384 channels at batch 64.
TABLE_1_KERNELS = (3, 5, 7, 9, 13, 17, 21, 27, 29, 31)
TABLE_1 = [square(size, kernel, 384) for size in (16, 32, 64) for kernel in TABLE_1_KERNELS]

# The same at a detector's 800 x 1344 pixels.
REPLKNET_DETECTION = [
    Shape("200x336/31", (200, 336), (31, 31), 128),
    Shape("100x168/29", (100, 168), (29, 29), 256),
    Shape("50x84/27", (50, 84), (27, 27), 512),
    Shape("25x42/13", (25, 42), (13, 13), 1024),
]

# Shapes that the networks of the paper do not have.
UNUSUAL = [
    Shape("20x24/51x5", (20, 24), (51, 5), 96),  # SLaK
    Shape("24x20/5x51", (24, 20), (5, 51), 96),
    Shape("12x4/13", (12, 4), (13, 13), 64),
    Shape("13x9/4x6", (13, 9), (4, 6), 5),
    Shape("5/31", (5, 5), (31, 31), 3),
    Shape("17x11/7 stride 2", (17, 11), (7, 7), 6, stride=2),
    Shape("15/3 stride 3", (15, 15), (3, 3), 7, stride=3),
    Shape("4/1 stride 3", (4, 4), (1, 1), 2, stride=3),
    Shape("14/5 dilation 2", (14, 14), (5, 5), 4, dilation=2),
    Shape("16x13/3 stride 2 dilation 3", (16, 13), (3, 3), 4, stride=2, dilation=3),
    Shape("1/7", (1, 1), (7, 7), 8),
]
