"""Model FLOP utilisation: what share of the devices' arithmetic the training makes use of.

As in PaLM (arXiv:2204.02311, appendix B): the operations that the network needs for its forward and
backward passes, whether or not some are computed again to save memory, over what the devices could
do in the same time.
"""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from replk_jax.models.network import Network
from replk_jax.models.summary import summary

# Operations a second by `jax.Device.device_kind`: with bfloat16, and with float32 as XLA multiplies
# it unless told otherwise: in TF32 on GPUs that have it, in bfloat16 on TPUs. From the makers' data
# sheets, without sparsity; where a sheet states figures with sparsity alone, half of them.
_PEAKS = {
    # "NVIDIA V100 Tensor Core GPU", 2020: FP32, for Volta multiplies neither bfloat16 nor TF32.
    r"Tesla V100-SXM[23]-\d+GB": (15.7e12, 15.7e12),
    r"Tesla V100-PCIE-\d+GB": (14e12, 14e12),
    r"Tesla V100S-PCIE-\d+GB": (16.4e12, 16.4e12),
    # "NVIDIA A100 Tensor Core GPU", 2021: the same for SXM and PCIe.
    r"(NVIDIA )?A100-(SXM4?|PCIE)-\d+GB|NVIDIA A100 80GB PCIe": (312e12, 156e12),
    # "NVIDIA A30 Tensor Core GPU", 2021; "NVIDIA A10 Tensor Core GPU", 2021.
    r"NVIDIA A30": (165e12, 82e12),
    r"NVIDIA A10": (125e12, 62.5e12),
    # "NVIDIA H100 Tensor Core GPU", 2024 (SXM and NVL) and 2022 (PCIe), with sparsity.
    r"NVIDIA H100 80GB HBM3": (989.5e12, 494.5e12),
    r"NVIDIA H100 PCIe": (756.5e12, 378e12),
    r"NVIDIA H100 NVL": (835.5e12, 417.5e12),
    # "NVIDIA H200 Tensor Core GPU", 2024, with sparsity.
    r"NVIDIA H200": (989.5e12, 494.5e12),
    r"NVIDIA H200 NVL": (835.5e12, 417.5e12),
    # "NVIDIA HGX B200", 2024, of eight and with sparsity.
    r"NVIDIA B200": (2250e12, 1100e12),
    # "NVIDIA L4 Tensor Core GPU", 2023, with sparsity; "NVIDIA L40S", 2023.
    r"NVIDIA L4": (121e12, 60e12),
    r"NVIDIA L40S": (362e12, 183e12),
    # "NVIDIA Ampere GA102 GPU architecture", 2020, and "NVIDIA Ada GPU architecture", 2022,
    # appendices A: sums in float32.
    r"NVIDIA GeForce RTX 3090": (71e12, 35.6e12),
    r"NVIDIA GeForce RTX 4090": (165.2e12, 82.6e12),
    # cloud.google.com/tpu/docs, a page for each. Up to v3 the two cores of a chip are two devices
    # to JAX, from v4 on they are one.
    r"TPU v2": (22.5e12, 22.5e12),
    r"TPU v3": (61.5e12, 61.5e12),
    r"TPU v4": (275e12, 275e12),
    r"TPU v5 lite|TPU v5e": (197e12, 197e12),
    r"TPU v5|TPU v5p": (459e12, 459e12),
    r"TPU v6 lite|TPU v6e": (918e12, 918e12),
}


class Utilization:
    """The model FLOP utilisation of a training run, from its speed.

    Args:
      model: the network.
      image_size: height and width of its images.
      devices: that train it; None for all devices of all processes.
    """

    def __init__(
        self,
        model: Network,
        image_size: int | tuple[int, int],
        devices: Sequence[jax.Device] | None = None,
    ):
        kinds = [device.device_kind for device in devices or jax.devices()]
        peaks = [peak_flops(kind, model.dtype) for kind in kinds]
        self._peak_images_per_second = (
            None if None in peaks else sum(peaks) / training_flops(model, image_size)
        )

    def of(self, images_per_second: float) -> dict[str, float]:
        """{"mfu": a share of 1}, or {} where the peak of a device is not known."""
        if self._peak_images_per_second is None:
            return {}
        return {"mfu": images_per_second / self._peak_images_per_second}


def peak_flops(device_kind: str, dtype: jnp.dtype) -> float | None:
    """Operations that a device can do in a second; None for a kind that is not known, and for CPUs.

    Args:
      device_kind: from `jax.Device`.
      dtype: that the network computes in, bfloat16 or float32.
    """
    for pattern, (bfloat16, float32) in _PEAKS.items():
        if re.fullmatch(pattern, device_kind):
            return bfloat16 if dtype == jnp.bfloat16 else float32
    return None


def training_flops(model: Network, image_size: int | tuple[int, int]) -> int:
    """Operations of a forward and a backward pass of one image, through all branches.

    Two for each multiply-add of the convolutions and the classifier; and twice the forward pass
    for the backward one. A tap counts on the padding too, as in the papers' figures: of a large
    kernel on a small map, most taps.

    Args:
      model: the network.
      image_size: height and width.
    """
    count = summary(model, image_size).training
    return 3 * 2 * (count.convolution + count.linear)
