"""Exports detection networks as programs from pixels to objects."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from replk_jax.detection.network import DetectionNetwork
from replk_jax.detection.protocol import DetectionProtocol
from replk_jax.detection.structures import Detections
from replk_jax.export.program import export_model


def export_detector(
    model: DetectionNetwork,
    variables: Mapping[str, Any],
    protocol: DetectionProtocol,
    *,
    image_size: int | tuple[int, int],
    batch_size: int | None = None,
    platforms: Sequence[str] = ("cpu", "cuda"),
    custom_calls: bool = False,
) -> jax.export.Exported:
    """The re-parameterized network as StableHLO, from pixels to objects.

        program = export_detector(model, variables, protocol, image_size=(800, 1216))

    The program normalises images of one size as the protocol does, and pads them to its multiple.
    Resizing is left to its users.

    Args:
      model, variables: a detection network, in either structure.
      protocol: its preprocessing.
      image_size: side of the images in pixels, or (height, width).
      batch_size, platforms, custom_calls: as in `export_model`.

    Returns:
      The program: its `call` maps images, uint8 (N, H, W, C), to a dictionary of arrays for the D
      objects of each, the most confident first: `boxes` float32 (N, D, 4), x1, y1, x2, y2 in pixels
      of the images; `scores` float32 (N, D); `classes` int32 (N, D), -1 for padding; `count` int32
      (N,), the number of objects; and of a network with masks `masks` float32 (N, D, h, w), the
      probability that the object covers each cell of a grid over its box.

    Raises:
      ValueError: as `export_model`.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    multiple = protocol.pad_multiple

    def compute(network: Callable[..., Detections], images: jax.Array) -> dict[str, jax.Array]:
        padding = [(0, -side % multiple) for side in size]
        padded = jnp.pad(images, [(0, 0), *padding, (0, 0)])
        sizes = jnp.broadcast_to(jnp.asarray([size], jnp.float32), (images.shape[0], 2))
        found = network(padded, sizes=sizes)._asdict()
        return {name: array for name, array in found.items() if array is not None}

    return export_model(
        model,
        variables,
        image_size=size,
        batch_size=batch_size,
        platforms=platforms,
        normalization=protocol,
        custom_calls=custom_calls,
        compute=compute,
    )
