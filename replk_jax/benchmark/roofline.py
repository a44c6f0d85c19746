"""The least time that a depthwise convolution can take on a device."""

from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.shapes import Shape

# Operations and bytes a second, by `jax.Device.device_kind`: a large bfloat16 matrix product and
# a copy as measured, and the CUDA cores' float32 as NVIDIA states it: no bound for a form that
# splits float32 into parts for the tensor cores, or does fewer operations than the definition.
PEAKS = {
    "NVIDIA H200": {"bfloat16": 790e12, "float16": 790e12, "float32": 67e12, "bytes": 4.3e12},
}
ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def useful_flops(shape: Shape, batch: int, backward: bool) -> int:
    """Multiplications and additions with values of the map, not with padding.

    Each of the two gradients takes as many as the result.
    """
    rows, columns = (_pairs(shape.convolution, axis) for axis in (0, 1))
    return (6 if backward else 2) * rows * columns * shape.channels * batch


def least_bytes(shape: Shape, batch: int, dtype: str, backward: bool) -> int:
    """What must be read and written: x and y, and backward x, the cotangent and dx."""
    height, width = shape.convolution.size
    output_height, output_width = shape.convolution.output_size
    x, y = height * width, output_height * output_width
    values = 3 * x + 2 * y if backward else x + y
    return values * shape.channels * batch * ITEM_BYTES[dtype]


def roofline_seconds(
    shape: Shape, batch: int, dtype: str, backward: bool, device: str, unit: str | None = None
) -> float | None:
    """The larger of both times, None for a device whose peaks are not known.

    Args:
      shape, batch, dtype: of the convolution.
      backward: whether both gradients are computed as well.
      device: a key of `PEAKS`.
      unit: the type that the operations are done in, if it is not `dtype`.
    """
    if device not in PEAKS:
        return None
    peaks = PEAKS[device]
    return max(
        useful_flops(shape, batch, backward) / peaks[unit or dtype],
        least_bytes(shape, batch, dtype, backward) / peaks["bytes"],
    )


def _pairs(convolution: Convolution, axis: int) -> int:
    """How often a position of the output and a tap of the kernel meet a value of the map."""
    step, dilation = convolution.stride[axis], convolution.dilation[axis]
    before, _ = convolution.padding[axis]
    return sum(
        0 <= step * i + dilation * tap - before < convolution.size[axis]
        for i in range(convolution.output_size[axis])
        for tap in range(convolution.kernel_size[axis])
    )
