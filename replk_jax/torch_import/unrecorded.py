"""What a PyTorch file does not record of a network: strides and dilation."""

from collections.abc import Mapping
from typing import Any

from replk_jax.models.network import Network


def expect_recorded(model: Network, assumed: Mapping[str, Any]) -> None:
    """Raises unless a reader of the file would build the same network.

    Args:
      model: whose variables are to be saved.
      assumed: fields of its architecture that no tensor's shape depends on, and what a reader
        takes them to be.

    Raises:
      ValueError: a field is something else, or the model has an `output_stride`.
    """
    other = {
        field: value
        for field, value in assumed.items()
        if getattr(model.architecture, field) != value
    }
    if other:
        found = ", ".join(
            f"{field}={getattr(model.architecture, field)} (a reader assumes {value})"
            for field, value in other.items()
        )
        raise ValueError(
            "A PyTorch file does not tell strides and dilation, and this network has "
            f"{found}: save it in a format of this package."
        )
    if model.output_stride is not None:
        raise ValueError(
            "A PyTorch file does not tell strides and dilation, and this network has "
            f"output_stride={model.output_stride}: save it in a format of this package, or "
            "model.clone(output_stride=None), which has the same variables."
        )
