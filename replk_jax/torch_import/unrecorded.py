"""Properties of a network that a PyTorch file does not record: strides and dilation."""

from collections.abc import Mapping
from typing import Any

from replk_jax.models.backbone import Backbone


def expect_recorded(model: Backbone, assumed: Mapping[str, Any]) -> None:
    """Checks that a reader of the file would build the same network.

    Args:
      model: the network to save.
      assumed: fields of the architecture that do not affect shapes, with the values that a reader
        assumes.

    Raises:
      ValueError: a field has another value, or the model has an `output_stride`.
    """
    found = ", ".join(
        f"{field}={getattr(model.architecture, field)} (a reader assumes {value})"
        for field, value in assumed.items()
        if getattr(model.architecture, field) != value
    )
    if found:
        raise ValueError(_not_recorded(found) + ".")
    if model.output_stride is not None:
        raise ValueError(
            _not_recorded(f"output_stride={model.output_stride}")
            + ", or save it for model.clone(output_stride=None), which has the same variables."
        )


def _not_recorded(found: str) -> str:
    return (
        f"A PyTorch file does not record strides and dilation, and this network has {found}: save "
        "it in a format of this package"
    )
