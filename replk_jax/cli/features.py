"""features: writes the features of images to a file."""

import argparse
import sys
from pathlib import Path

import numpy as np

from replk_jax.cli import images
from replk_jax.cli.argument_types import user_path
from replk_jax.cli.arguments import add_force, check_output, reading
from replk_jax.cli.text import printable
from replk_jax.inference.features import FeatureExtractor
from replk_jax.io.files import replacing


def add_parser(verbs) -> None:
    features = verbs.add_parser(
        "features",
        help="write the features of images to a file",
        description="Writes a file for numpy.load: names (N,), of the images; features (N, C), the "
        "input of the classifier; stage_0 and so on (N, C), of each stage; and with --maps "
        "final_feature_map, whose mean is the features. " + images.FAILURES,
    )
    images.add_arguments(features)
    features.add_argument(
        "--output", type=user_path, required=True, metavar="FILE", help="the .npz file to write"
    )
    features.add_argument(
        "--maps",
        action="store_true",
        help="feature maps (N, H, W, C) of the stages, not their means: 3 MB per image with "
        "RepLKNet-31B at 224, all of them in memory",
    )
    add_force(features)
    features.set_defaults(run=_features)


def _features(arguments: argparse.Namespace) -> None:
    check_output(arguments.output, arguments.force)
    extractor = FeatureExtractor.from_file(
        arguments.weights,
        **reading(arguments),
        maps=arguments.maps,
        batch_size=arguments.batch_size,
    )
    named = images.NamedImages(arguments.images)
    all_names, parts = [], []
    for names, outputs in named.outputs(extractor):
        all_names += names
        parts.append(outputs)
    if parts:
        arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        _write(arguments.output, {"names": np.array(all_names), **arrays})
        shapes = ", ".join(f"{key} {array.shape}" for key, array in arrays.items())
        print(printable(f"{arguments.output}: {len(all_names)} images; {shapes}"))
    else:
        kept = "; the older file stays" if arguments.output.exists() else ""
        message = f"error: there are no features, so {arguments.output} is not written{kept}."
        print(printable(message), file=sys.stderr)
    named.finish()


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a file, atomically."""
    with replacing(path) as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]  # no array is named allow_pickle
