"""The roofline: a lower bound on the time of a depthwise convolution on a device."""

from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.shapes import Shape

# Operations and bytes per second, by `jax.Device.device_kind`. The 16-bit and copy peaks were
# measured, with a large bfloat16 matrix product and a copy. The float32 peak is NVIDIA's for the
# CUDA cores. It does not bound implementations that split float32 for the tensor cores, or that
# need fewer operations than the definition.
PEAKS = {
    "NVIDIA H200": {"bfloat16": 790e12, "float16": 790e12, "float32": 67e12, "bytes": 4.3e12},
}
ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def useful_flops(shape: Shape, batch: int, backward: bool) -> int:
    """The multiplications and additions with input values, without those with padding.

    Each of the two gradients takes as many as the forward direction.
    """
    rows, columns = (_pairs(shape.convolution, axis) for axis in (0, 1))
    return (6 if backward else 2) * rows * columns * shape.channels * batch


def least_bytes(shape: Shape, batch: int, dtype: str, backward: bool) -> int:
    """The bytes that must be read and written: x, y; and backward x, the cotangent, dx."""
    height, width = shape.convolution.size
    output_height, output_width = shape.convolution.output_size
    x, y = height * width, output_height * output_width
    values = 3 * x + 2 * y if backward else x + y
    return values * shape.channels * batch * ITEM_BYTES[dtype]


def roofline_seconds(
    shape: Shape, batch: int, dtype: str, backward: bool, device: str, unit: str | None = None
) -> float | None:
    """The larger of the times for arithmetic and for memory traffic.

    Args:
      shape, batch, dtype: of the convolution.
      backward: whether both gradients are computed as well.
      device: `jax.Device.device_kind`.
      unit: the dtype of the arithmetic, a key of the peaks; None for `dtype`.

    Returns:
      Seconds; None for a device that is not in `PEAKS`.
    """
    if device not in PEAKS:
        return None
    peaks = PEAKS[device]
    return max(
        useful_flops(shape, batch, backward) / peaks[unit or dtype],
        least_bytes(shape, batch, dtype, backward) / peaks["bytes"],
    )


def _pairs(convolution: Convolution, axis: int) -> int:
    """The number of pairs of output positions and taps that read a value inside the input."""
    step, dilation = convolution.stride[axis], convolution.dilation[axis]
    before, _ = convolution.padding[axis]
    return sum(
        0 <= step * i + dilation * tap - before < convolution.size[axis]
        for i in range(convolution.output_size[axis])
        for tap in range(convolution.kernel_size[axis])
    )
