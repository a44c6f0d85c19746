"""convert: between PyTorch's files and those of this package."""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from replk_jax.cli.arguments import add_like
from replk_jax.reparam import check_equivalence, reparameterize
from replk_jax.saved import SavedNetwork, load, save
from replk_jax.torch_import import save_torch

_TORCH_ENDINGS = {".pth", ".pt", ".bin"}

# Of an output's size: rounding in float32 comes to 1e-5, an error in a merge to 1e-2.
_TOLERANCE = 1e-3


def add_parser(verbs) -> None:
    convert = verbs.add_parser("convert", help="convert a checkpoint, from PyTorch or to it")
    convert.add_argument("source", type=Path, help="a PyTorch file, or what convert or train wrote")
    convert.add_argument(
        "destination",
        type=Path,
        help="to write: NAME.safetensors; NAME.pth for the official PyTorch code; or the folder "
        "of an Orbax checkpoint",
    )
    convert.add_argument(
        "--deploy",
        action="store_true",
        help="re-parameterize, and compare both structures before anything is written",
    )
    add_like(convert)
    convert.add_argument("--ema", action="store_true", help="the moving average of the weights")
    convert.add_argument("--force", action="store_true", help="replace what is there")
    convert.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> None:
    source, destination = arguments.source, arguments.destination
    if destination.exists() and not arguments.force:
        raise FileExistsError(f"{destination} exists already; --force replaces it.")
    if not destination.absolute().parent.is_dir():
        raise ValueError(f"There is no folder {destination.absolute().parent} to write to.")
    network = load(source, prefer_ema=arguments.ema, preprocessing=arguments.preprocessing)
    if arguments.deploy and not network.model.deploy:
        network = _merge(network)
    if destination.suffix in _TORCH_ENDINGS:
        save_torch(network.variables, network.model, destination)
    else:
        save(destination, network, overwrite=arguments.force)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(network.variables["params"]))
    structure = "re-parameterized" if network.model.deploy else "training-time"
    print(f"{destination}: {parameters:,} parameters, {structure} structure")


def _merge(network: SavedNetwork) -> SavedNetwork:
    """The re-parameterized network, having seen that it computes the same.

    Raises:
      ValueError: it does not.
    """
    model = network.model
    size = network.preprocessing.image_size if network.preprocessing else 224
    shape = (1, size, size, model.architecture.in_channels)
    images = jax.random.normal(jax.random.key(0), shape, jnp.float32)
    difference = check_equivalence(model, network.variables, images).max_rel
    print(f"largest difference of the structures on noise: {difference:.1e} of the output's size")
    if not difference <= _TOLERANCE:
        raise ValueError(
            f"the structures differ by more than {_TOLERANCE:g}, so nothing is written. Weights "
            "with a variance of a batch norm that is not finite or negative would do that."
        )
    merged = jax.jit(reparameterize)(network.variables)
    return dataclasses.replace(network, model=model.clone(deploy=True), variables=merged)
