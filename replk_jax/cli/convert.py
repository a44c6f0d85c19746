"""convert: converts checkpoints between PyTorch's formats and those of this package."""

import argparse
import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp

from replk_jax.checkpoint import Checkpoint, load, save
from replk_jax.cli.argument_types import user_path
from replk_jax.cli.arguments import add_force, add_reading, check_output, reading
from replk_jax.cli.divergence import warn_if_diverged
from replk_jax.cli.text import printable
from replk_jax.io.errors import naming
from replk_jax.models.in_words import title_of
from replk_jax.reparam import check_equivalence, reparameterize
from replk_jax.torch_import import TORCH_ENDINGS, check_published, save_torch

_OWN_ENDINGS = {".safetensors", ""}

# Relative to the outputs: float32 rounding gives 1e-5, an error in merging 1e-2.
_TOLERANCE = 1e-3


def add_parser(verbs) -> None:
    convert = verbs.add_parser("convert", help="convert a checkpoint, from PyTorch or to it")
    convert.add_argument(
        "source", type=user_path, help="a PyTorch file, or what convert or train wrote"
    )
    convert.add_argument(
        "destination",
        type=user_path,
        help="to write: NAME.safetensors; NAME.pth for the official PyTorch code; or NAME, the "
        "folder of an Orbax checkpoint",
    )
    convert.add_argument(
        "--deploy",
        action="store_true",
        help="re-parameterize, and compare both structures before writing; in a PyTorch file, as "
        "far as the official code does",
    )
    convert.add_argument(
        "--naming",
        choices=("official", "timm"),
        help="of the tensors in a PyTorch file: that of the official code, or timm's",
    )
    add_reading(convert)
    add_force(convert)
    convert.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> None:
    source, destination = arguments.source, arguments.destination
    for_torch = _is_for_torch(destination)
    if for_torch and arguments.like:
        raise ValueError(f"{destination} cannot store a preprocessing: --like does not apply.")
    if arguments.naming and not for_torch:
        raise ValueError(f"{destination} is not a PyTorch file: --naming does not apply.")
    check_output(destination, arguments.force, checkpoint=not for_torch)
    network = load(source, **reading(arguments))
    warn_if_diverged(network)
    merge = arguments.deploy and not network.model.deploy
    if for_torch:
        with naming(source):
            check_published(network.model, merged=merge)
    if merge:
        _compare_structures(network)
    merged = arguments.deploy or network.model.deploy
    if for_torch:
        with naming(source):
            _save_torch(network, destination, merge, arguments.naming or "official")
        structure = "official merged" if merged else "training-time"
    else:
        network = _reparameterized(network) if merge else network
        save(destination, network, overwrite=arguments.force)
        structure = "re-parameterized" if merged else "training-time"
    print(printable(f"{destination}: {title_of(network.model)}, {structure} structure"))


def _save_torch(network: Checkpoint, path: Path, merge: bool, names: str) -> None:
    save_torch(network.variables, network.model, path, merged=merge, naming=names)


def _is_for_torch(path: Path) -> bool:
    """Whether a path has an ending of PyTorch, rather than of this package.

    Raises:
      ValueError: neither.
    """
    ending = path.suffix.lower()
    if ending not in {*TORCH_ENDINGS, *_OWN_ENDINGS}:
        raise ValueError(
            f"{path}: the ending {ending} is of no known format. Use .safetensors; .pth, .pt or "
            ".bin for PyTorch; or none for the folder of an Orbax checkpoint."
        )
    return ending in TORCH_ENDINGS


def _compare_structures(network: Checkpoint) -> None:
    """Prints the difference between the outputs of both structures.

    Raises:
      ValueError: it is too large.
    """
    model = network.model
    size = network.preprocessing.size if network.preprocessing else None
    shape = (1, *(size or (224, 224)), model.in_channels)
    images = jax.random.normal(jax.random.key(0), shape, jnp.float32)
    difference = check_equivalence(model, network.variables, images).max_rel
    print(f"largest difference of the structures on noise: {difference:.1e} of the output's size")
    if not math.isfinite(difference):
        raise ValueError(
            "the outputs are NaN or infinite, so the structures cannot be compared, and nothing is "
            "written. Check the weights for values that are not finite, and batch norms for "
            "negative variances."
        )
    if not difference <= _TOLERANCE:
        raise ValueError(
            f"the structures differ by more than {_TOLERANCE:g}, so nothing is written. A possible "
            "cause is a variance of a batch norm that is negative or not finite."
        )


def _reparameterized(network: Checkpoint) -> Checkpoint:
    merged = jax.jit(reparameterize)(network.variables)
    model = network.model.clone(deploy=True)
    return dataclasses.replace(network, model=model, variables=merged)
