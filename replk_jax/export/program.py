"""Exports networks as programs that need only JAX and `flatbuffers`, not this package or Flax.

    program = replk_jax.export_model(model, variables, image_size=224)
    pathlib.Path("replknet.jaxexport").write_bytes(program.serialize())

The program runs on a CPU or GPU with any batch size:

    import jax

    with open("replknet.jaxexport", "rb") as file:
        program = jax.export.deserialize(bytearray(file.read()))
    logits = jax.jit(program.call)(images)
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from replk_jax.export.in_lax import in_lax
from replk_jax.models.network import Network
from replk_jax.models.variables import diverged_tensors
from replk_jax.ops.depthwise.dispatch import PLATFORMS, PORTABLE
from replk_jax.reparam import for_inference
from replk_jax.vision.base_preprocessing import BasePreprocessing, normalize

# The custom call of the kernels for Hopper GPUs.
_OWN_KERNELS = jax.export.DisabledSafetyCheck.custom_call("mosaic_gpu_v2")

# Maps a network, as a function of normalised images, and these images to the outputs.
Computation = Callable[[Callable[..., Any], jax.Array], Any]


def export_model(
    model: Network,
    variables: Mapping[str, Any],
    *,
    image_size: int | tuple[int, int],
    batch_size: int | None = None,
    platforms: Sequence[str] = ("cpu", "cuda"),
    normalization: BasePreprocessing | None = None,
    custom_calls: bool = False,
    compute: Computation | None = None,
) -> jax.export.Exported:
    """The re-parameterized network as StableHLO, weights included.

    JAX guarantees that releases up to six months newer and three weeks older can run the result of
    `serialize` (https://docs.jax.dev/en/latest/export/export.html). For a longer time, keep the
    weights and export again.

    The weights are constants. A barrier prevents the compiler from constant folding, which would
    take up to a minute per batch size for the transforms of large kernels. A file cannot exceed
    2 GiB; RepLKNet-XL in float32 has 1.3 GiB.

    Args:
      model: any network of this package, in either structure; its `dtype` is that of the
        computation.
      variables: of the model.
      image_size: side of the images in pixels, or (height, width).
      batch_size: of the images; None for any.
      platforms: to run on, a subset of "cpu", "cuda", "rocm", "tpu".
      normalization: if given, the program takes pixels and normalises them with its mean and std,
        without resizing or cropping.
      custom_calls: whether to use the kernels of this package if they are known to be the fastest:
        on a machine with a Hopper GPU, for a `batch_size` of at least 16. If False, the program
        contains only operations of StableHLO.
      compute: if given, the program computes this function of the merged network, itself a
        function of normalised images, and of the normalised images. N can be symbolic.

    Returns:
      The program, for one device: its `call` maps images (N, H, W, C), float32 and normalised,
      or uint8 with `normalization`, to what the model or `compute` returns; `serialize` gives the
      bytes of a file.

    Raises:
      ValueError: an invalid size, platform or variables, weights that are NaN or infinite, or a
        normalisation for another number of channels.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 1 or (batch_size is not None and batch_size < 1):
        raise ValueError(
            f"Sizes must be at least 1; got image_size={image_size}, batch_size={batch_size}."
        )
    unknown = sorted(set(platforms) - set(PLATFORMS))
    if unknown or not platforms:
        given = ", ".join(map(repr, unknown)) or "none"
        raise ValueError(f"Platforms must be among {', '.join(PLATFORMS)}; got {given}.")
    batch = "batch" if batch_size is None else batch_size
    shape = f"{batch}, {height}, {width}, {model.in_channels}"
    images = jax.ShapeDtypeStruct(
        jax.export.symbolic_shape(shape), jnp.float32 if normalization is None else jnp.uint8
    )
    model = model.clone(implementation=None if custom_calls else PORTABLE)
    network, weights = _deployed(model, variables, normalization, compute)
    export = jax.export.export(
        jax.jit(lambda images: network(jax.lax.optimization_barrier(weights), images)),
        platforms=tuple(platforms),
        disabled_checks=[_OWN_KERNELS] if custom_calls else [],
    )
    return export(images)


def plain_function(
    model: Network,
    variables: Mapping[str, Any],
    *,
    normalization: BasePreprocessing | None = None,
) -> Callable[[jax.Array], Any]:
    """The re-parameterized network in operations of `jax.lax` only, for converters.

        jax2onnx.to_onnx(
            plain_function(model, variables),
            [("batch", 224, 224, 3)],
            return_mode="file",
            output_path="replknet.onnx",
        )

    Args:
      model, variables, normalization: as in `export_model`.

    Returns:
      A function of images, with the input and output of the program of `export_model`.

    Raises:
      ValueError: invalid variables, weights that are NaN or infinite, or a normalisation for
        another number of channels.
    """
    network, weights = _deployed(model, variables, normalization, None)
    return in_lax(partial(network, weights))


def _deployed(
    model: Network,
    variables: Mapping[str, Any],
    normalization: BasePreprocessing | None,
    compute: Computation | None,
) -> tuple[Callable[[Any, jax.Array], Any], Any]:
    """The merged network as a function of weights and images, and its weights."""
    channels = model.in_channels
    if normalization is not None and normalization.channels != channels:
        raise ValueError(
            f"The network takes images of {channels} channels; the normalisation is for "
            f"{normalization.channels}."
        )
    model, variables = for_inference(model, variables)
    _require_finite(variables)

    def network(weights: Any, images: jax.Array) -> Any:
        if normalization is not None:
            images = normalize(images, normalization.mean, normalization.std)
        apply = partial(model.apply, weights)
        return apply(images) if compute is None else compute(apply, images)

    return network, variables


def _require_finite(variables: Mapping[str, Any]) -> None:
    """Raises ValueError if a weight of a merged network is NaN or infinite.

    The outputs of the program would be too, and its users cannot inspect the weights.
    """
    if bad := diverged_tensors(variables):
        raise ValueError(
            f"{len(bad)} of the merged weights are NaN or infinite, the first in {bad[0]}. The "
            "training run may have diverged, or a variance of a batch norm may be negative."
        )
