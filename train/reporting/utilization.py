"""Model FLOP utilisation (MFU; PaLM, arXiv:2204.02311, appendix B).

It is the rate of the operations of forward and backward passes, without those that
rematerialization repeats, divided by the peak rate of the devices.
"""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from replk_jax.models.network import Network
from replk_jax.models.summary import summary

# Operations per second by `jax.Device.device_kind`: in bfloat16, and in float32 at XLA's default
# precision (TF32 on GPUs that have it, bfloat16 on TPUs). From the manufacturers' data sheets,
# without sparsity; where a sheet has only figures with sparsity, half of them.
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
    # cloud.google.com/tpu/docs. To JAX, each of the two cores of a chip is a device up to v3; from
    # v4 on the chip is one device.
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
      devices: that it is trained on; None for all devices of all processes.
    """

    def __init__(
        self,
        model: Network,
        image_size: int | tuple[int, int],
        devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stubs
    ):
        kinds = [device.device_kind for device in devices or jax.devices()]
        peaks = [peak_flops(kind, model.dtype) for kind in kinds]
        known = [peak for peak in peaks if peak is not None]
        self._peak_images_per_second = (
            sum(known) / training_flops(model, image_size) if len(known) == len(peaks) else None
        )

    def metrics(self, images_per_second: float) -> dict[str, float]:
        """{"mfu": between 0 and 1}; {} if the peak rate of a device is not known."""
        if self._peak_images_per_second is None:
            return {}
        return {"mfu": images_per_second / self._peak_images_per_second}


def peak_flops(device_kind: str, dtype: np.dtype) -> float | None:
    """The peak rate of a device in operations per second; None for CPUs and unknown kinds.

    Args:
      device_kind: from `jax.Device`.
      dtype: of the network's computation, bfloat16 or float32.
    """
    for pattern, (bfloat16, float32) in _PEAKS.items():
        if re.fullmatch(pattern, device_kind):
            return bfloat16 if dtype == jnp.bfloat16 else float32
    return None


def training_flops(model: Network, image_size: int | tuple[int, int]) -> int:
    """Operations of the forward and backward pass for one image, in the training-time structure.

    A multiply-add of a convolution or the classifier is two operations; the backward pass has twice
    as many as the forward pass. Products with the padding count, as in the papers' figures; they
    are the majority for a large kernel on a small feature map.

    Args:
      model: the network.
      image_size: height and width.
    """
    count = summary(model, image_size).training
    return 3 * 2 * (count.convolution + count.linear)
