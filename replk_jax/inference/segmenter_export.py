"""Exports segmentation networks as programs from pixels to class maps."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from replk_jax.export.program import export_model
from replk_jax.segmentation.prediction import View, class_maps, score_matrices, side_by_side
from replk_jax.segmentation.protocol import SegmentationProtocol
from replk_jax.segmentation.segmenter import SegmentationNetwork


def export_segmenter(
    model: SegmentationNetwork,
    variables: Mapping[str, Any],
    protocol: SegmentationProtocol,
    *,
    image_size: int | tuple[int, int],
    batch_size: int | None = None,
    platforms: Sequence[str] = ("cpu", "cuda"),
    custom_calls: bool = False,
) -> jax.export.Exported:
    """The re-parameterized network as StableHLO, from pixels to the classes of the pixels.

        program = export_segmenter(model, variables, protocol, image_size=(512, 683))

    The program normalises images of one size as the protocol does, and slides the protocol's window
    over them if it has one. It computes a single view: resizing, other scales and flips are left to
    its users. The auxiliary head is left out.

    Args:
      model, variables: a segmentation network with at most 255 classes, in either structure.
      protocol: of the test.
      image_size: side of the images in pixels, or (height, width).
      batch_size, platforms, custom_calls: as in `export_model`.

    Returns:
      The program: its `call` maps images, uint8 (N, H, W, C), to classes, uint8 (N, H, W).

    Raises:
      ValueError: as `export_model`, and for more than 255 classes.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size

    def compute(network: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
        windows = protocol.windows(size)
        logits = network(windows.cut_batch(images))
        _, height, width, _ = logits.shape
        matrices = score_matrices(windows, (height, width), size, size, model.align_corners)
        rows, columns = (
            jnp.broadcast_to(matrix, (images.shape[0], *matrix.shape)) for matrix in matrices
        )
        return class_maps([View(side_by_side(logits, windows.grid), rows, columns)])

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
