"""export: writes a network as a program that needs only JAX."""

import argparse
import dataclasses
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from jax.core import ShapedArray

from replk_jax.checkpoint import Checkpoint, load
from replk_jax.cli.argument_types import positive, user_path
from replk_jax.cli.arguments import add_force, add_reading, check_output, reading
from replk_jax.cli.divergence import warn_if_diverged
from replk_jax.cli.text import printable
from replk_jax.detection.network import DetectionNetwork
from replk_jax.detection.protocol import DetectionProtocol
from replk_jax.export import export_model
from replk_jax.inference.detector import require_detector
from replk_jax.inference.detector_export import export_detector
from replk_jax.inference.segmenter import require_segmenter
from replk_jax.inference.segmenter_export import export_segmenter
from replk_jax.io.files import json_text, replacing
from replk_jax.io.user_warnings import warn_user
from replk_jax.ops.depthwise.dispatch import PLATFORMS
from replk_jax.segmentation.protocol import SegmentationProtocol
from replk_jax.segmentation.segmenter import SegmentationNetwork

_DTYPES = ("float32", "bfloat16", "float16")


def add_parser(verbs) -> None:
    export = verbs.add_parser(
        "export",
        help="write a network as a program that needs only JAX",
        description="Writes the re-parameterized network as StableHLO with its weights, for "
        "jax.export.deserialize; and OUT.json, with its inputs and outputs, the preprocessing and "
        "the class names. The program of a segmentation network maps pixels (N, H, W, C) to "
        "classes (N, H, W), both uint8; it slides the window of the weights over the images. That "
        "of a detection network maps pixels to a dictionary of boxes, scores, classes, counts and "
        "masks.",
    )
    export.add_argument(
        "weights", type=user_path, help="a PyTorch checkpoint, or what convert or train wrote"
    )
    export.add_argument(
        "out", type=user_path, metavar="OUT", help="to write, such as NAME.jaxexport"
    )
    export.add_argument(
        "--image-size",
        type=positive,
        nargs="+",
        metavar=("HEIGHT", "WIDTH"),
        help="pixels; one number for squares (that of the weights, or of their window)",
    )
    export.add_argument("--batch-size", type=positive, help="the only one accepted (any)")
    export.add_argument(
        "--platforms",
        nargs="+",
        choices=PLATFORMS,
        default=("cpu", "cuda"),
        help="to run on (cpu cuda)",
    )
    export.add_argument(
        "--dtype", choices=_DTYPES, default="float32", help="of the computation (float32)"
    )
    export.add_argument(
        "--normalize",
        action="store_true",
        help="accept pixels, uint8, and normalise them in the program",
    )
    export.add_argument(
        "--logits",
        action="store_true",
        help="of a segmentation network: write the network alone, without the step from logits to "
        "classes",
    )
    export.add_argument(
        "--custom-calls",
        action="store_true",
        help="use the kernels for Hopper GPUs where they are fastest; on such a machine, and with "
        "--batch-size",
    )
    add_reading(export)
    add_force(export)
    export.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> None:
    out = arguments.out
    check_output(out, arguments.force)
    description_path = out.with_name(f"{out.name}.json")
    check_output(description_path, arguments.force)
    network = load(arguments.weights, **reading(arguments))
    warn_if_diverged(network)
    if isinstance(network.model, SegmentationNetwork) and not arguments.logits:
        program = _segmentation_program(network, arguments)
    elif isinstance(network.model, DetectionNetwork) and not arguments.logits:
        program = _detection_program(network, arguments)
    elif arguments.logits and not isinstance(network.model, SegmentationNetwork):
        raise ValueError("--logits is for segmentation networks; others are written as they are.")
    else:
        network = _sized(network, _image_size(arguments))
        program = _program(network, arguments)
    serialized = program.serialize()
    with replacing(out) as file, replacing(description_path) as description:
        file.write(serialized)
        description.write(_description(program, network).encode())
    (images,), outputs = program.in_avals, program.out_avals
    returned = ", ".join(map(str, outputs))
    written = f"{out}: {len(serialized):,} bytes; {images} to {returned}"
    print(printable(f"{written}; {description_path}: its description"))


def _program(network: Checkpoint, arguments: argparse.Namespace) -> jax.export.Exported:
    """The network as it is, maybe with the normalisation."""
    preprocessing = network.preprocessing
    image_size = _image_size(arguments) or (preprocessing and preprocessing.size)
    if preprocessing is None and (arguments.normalize or image_size is None):
        raise ValueError(
            f"{arguments.weights} does not record the image size and normalisation: give them with "
            "--like; or give --image-size, and normalise images outside the program."
        )
    if image_size is None:
        raise _needs_a_size(arguments)
    return export_model(
        network.model.clone(dtype=jnp.dtype(arguments.dtype)),
        network.variables,
        image_size=image_size,
        normalization=preprocessing if arguments.normalize else None,
        **_platform(arguments),
    )


def _segmentation_program(
    network: Checkpoint, arguments: argparse.Namespace
) -> jax.export.Exported:
    """A segmentation network with all from the normalisation to the classes."""
    protocol = network.preprocessing
    if not isinstance(protocol, SegmentationProtocol):
        raise ValueError(
            f"{arguments.weights} does not record the protocol of its test: give one with --like; "
            "or write the network alone with --logits."
        )
    image_size = _image_size(arguments) or protocol.window
    if image_size is None:
        raise _needs_a_size(arguments)
    if len(protocol.views) > 1:
        warn_user(
            "the program computes a single view, without the other scales and the flip of the "
            f"protocol ({protocol.in_words()})."
        )
    return export_segmenter(
        require_segmenter(network.model.clone(dtype=jnp.dtype(arguments.dtype))),
        network.variables,
        protocol,
        image_size=image_size,
        **_platform(arguments),
    )


def _detection_program(network: Checkpoint, arguments: argparse.Namespace) -> jax.export.Exported:
    """A detection network with all from the normalisation to the objects."""
    protocol = network.preprocessing
    if not isinstance(protocol, DetectionProtocol):
        raise ValueError(
            f"{arguments.weights} does not record how its images are prepared: name a published "
            "checkpoint of the same preprocessing with --like."
        )
    image_size = _image_size(arguments)
    if image_size is None:
        raise _needs_a_size(arguments)
    return export_detector(
        require_detector(network.model.clone(dtype=jnp.dtype(arguments.dtype))),
        network.variables,
        protocol,
        image_size=image_size,
        **_platform(arguments),
    )


def _platform(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "batch_size": arguments.batch_size,
        "platforms": tuple(dict.fromkeys(arguments.platforms)),
        "custom_calls": arguments.custom_calls,
    }


def _image_size(arguments: argparse.Namespace) -> tuple[int, int] | None:
    """(height, width), if given."""
    sizes = arguments.image_size
    if sizes is None:
        return None
    if len(sizes) > 2:
        raise ValueError(f"--image-size has one or two numbers; got {len(sizes)}.")
    return sizes[0], sizes[-1]


def _needs_a_size(arguments: argparse.Namespace) -> ValueError:
    return ValueError(
        f"The preprocessing of {arguments.weights} gives images of different sizes, and a "
        "program accepts one: give --image-size."
    )


def _sized(network: Checkpoint, size: tuple[int, int] | None) -> Checkpoint:
    """The network with its preprocessing changed to images of this size, if given.

    Raises:
      ValueError: a preprocessing with another size that cannot change.
    """
    preprocessing = network.preprocessing
    if size is None or preprocessing is None or preprocessing.size in (None, size):
        return network
    height, width = size
    if height != width:
        raise ValueError(
            f"The preprocessing of this network gives images of one side; got {height} x {width}. "
            "Give one number."
        )
    return dataclasses.replace(network, preprocessing=preprocessing.resized(height))


def _description(program: jax.export.Exported, network: Checkpoint) -> str:
    """JSON of the inputs, outputs and platforms of the program, and of its network."""
    (images,) = program.in_avals
    interface = {
        "images": _type(images),
        "outputs": _outputs(program),
        "platforms": list(program.platforms),
        "jax": jax.__version__,
    }
    model, _ = network.model.without_auxiliary_head({})
    model = model.clone(deploy=model.mergeable)
    deployed = dataclasses.replace(network, model=model)
    return json_text({"program": interface, **deployed.description()}, indent=2) + "\n"


def _outputs(program: jax.export.Exported) -> list[dict[str, Any]]:
    """The type of each output, with its name if the program returns a dictionary."""
    outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
    if isinstance(outputs, dict):
        return [{"name": name, **_type(output)} for name, output in outputs.items()]
    return [_type(output) for output in program.out_avals]


def _type(array: ShapedArray) -> dict[str, Any]:
    return {
        "shape": [size if isinstance(size, int) else str(size) for size in array.shape],
        "dtype": str(array.dtype),
    }
