"""Networks in files: a model, its variables, and how its images are prepared.

Two formats of this package: a single .safetensors file, whose tensors are named by their path
in the variables, and an Orbax checkpoint, a folder, such as training writes. Both carry the
same description. PyTorch checkpoints are read as well.
"""

import dataclasses
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import traverse_util

from replk_jax import released
from replk_jax.models.description import describe, from_description
from replk_jax.models.variables import abstract_variables
from replk_jax.preprocessing import Preprocessing
from replk_jax.torch_import import load_torch
from replk_jax.torch_import.convert import to_state_dict
from replk_jax.torch_import.load import fit
from replk_jax.torch_import.reader import metadata, read
from replk_jax.torch_import.writer import write_safetensors

_KEY = "replk_jax"  # of the description among a .safetensors file's metadata


@dataclasses.dataclass(frozen=True)
class SavedNetwork:
    """A network with all that is needed to run it.

    Attributes:
      model: the network; `deploy=True` where it is re-parameterized.
      variables: of the model.
      preprocessing: of its images; None where nothing is known of it.
      class_names: one for each class; None where they are not known.
    """

    model: nn.Module
    variables: Mapping[str, Any]
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None

    def description(self) -> dict[str, Any]:
        """All but the variables, as JSON can hold it."""
        return {
            "model": describe(self.model),
            "preprocessing": self.preprocessing and self.preprocessing.as_dict(),
            "class_names": self.class_names and list(self.class_names),
        }


def save(path: str | os.PathLike, network: SavedNetwork, *, overwrite: bool = False) -> None:
    """Writes a network, all of it or nothing.

    Args:
      path: of a file if it ends in .safetensors, else of the folder of an Orbax checkpoint.
      network: what to write.
      overwrite: replace what is there, once the new one is complete.

    Raises:
      FileExistsError: there is something, and `overwrite` is not set.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already, and is left as it is.")
    if path.suffix == ".safetensors":
        flat = traverse_util.flatten_dict(network.variables, sep="/")
        write_safetensors(path, flat, {_KEY: json.dumps(network.description())})
    else:
        _write_folder(path.absolute(), network)


def load(
    path: str | os.PathLike,
    *,
    prefer_ema: bool = False,
    preprocessing: Preprocessing | None = None,
) -> SavedNetwork:
    """Reads a network that was saved here, trained here, or published for PyTorch.

    Args:
      path: a .safetensors file or a folder that `save` wrote, a checkpoint of a training run
        (`WORKDIR/checkpoints/STEP`), or a PyTorch checkpoint (see `load_torch`).
      prefer_ema: take the moving average of the weights that was saved beside them.
      preprocessing: of the images, in place of what the file says. A PyTorch checkpoint says
        nothing: if it has the name of a released one, theirs is taken; else, with a warning,
        that of one alike (`released.preprocessing_of`).

    Raises:
      ValueError, OSError: it is not there, cannot be read, or is none of these.
    """
    path = Path(path)
    network = read_description(path)
    if network is None:
        model, variables = load_torch(path, prefer_ema=prefer_ema)
        return SavedNetwork(model, variables, preprocessing or _by_name(path, model))
    if prefer_ema:
        raise ValueError(f"{path} holds one set of weights, no moving average beside it.")
    read_variables = _read_folder if path.is_dir() else _read_safetensors
    return dataclasses.replace(
        network,
        variables=read_variables(path, network.model),
        preprocessing=preprocessing or network.preprocessing,
    )


def load_into(
    model: nn.Module,
    path: str | os.PathLike,
    *,
    reset_head: bool = False,
    prefer_ema: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Reads the variables of a network of the caller's, to go on from.

    Args:
      model: the network; its architecture must be that of the file.
      path, prefer_ema: as in `load`.
      reset_head, seed: as in `load_torch`.

    Returns:
      The variables of `model`.

    Raises:
      ValueError, OSError: as `load` and `load_torch`, and for a file that is re-parameterized,
        if `model` is not.
    """
    if read_description(path) is None:
        options = dict(reset_head=reset_head, prefer_ema=prefer_ema, seed=seed)
        return load_torch(path, model, **options)[1]
    network = load(path, prefer_ema=prefer_ema)
    try:
        weights = to_state_dict(network.variables, network.model)
        return fit(weights, model, reset_head=reset_head, seed=seed)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_description(path: str | os.PathLike) -> SavedNetwork | None:
    """What a file of this package says of itself: all but the variables. None for others.

    Raises:
      ValueError, OSError: it is not there, or cannot be understood.
    """
    path = Path(path)
    if path.is_dir():
        return _described(path, _folder_description(path))
    text = metadata(path).get(_KEY)
    return None if text is None else _described(path, text)


def _by_name(path: Path, model: nn.Module) -> Preprocessing | None:
    """The preprocessing of a PyTorch checkpoint, which its file does not hold."""
    preprocessing = released.preprocessing_of(path, model)
    if preprocessing is not None and released.recognize(path, model) is None:
        warnings.warn(
            f"{path} does not say how its images are prepared, and has not the name of a released "
            f"checkpoint. Assumed: {preprocessing}.",
            stacklevel=3,
        )
    return preprocessing


def _read_safetensors(path: Path, model: nn.Module) -> dict[str, Any]:
    places = traverse_util.flatten_dict(abstract_variables(model), sep="/")
    tensors = read(path)
    faults = [f"missing: {key}" for key in places.keys() - tensors.keys()]
    faults += [f"not in the model: {key}" for key in tensors.keys() - places.keys()]
    faults += [
        f"wrong shape: {key} is {tensors[key].shape}, the model has {places[key].shape}"
        for key in places.keys() & tensors.keys()
        if tensors[key].shape != places[key].shape
    ]
    if faults:
        raise ValueError(f"{path} is not what it says it is:\n  " + "\n  ".join(sorted(faults)))
    flat = {key: jnp.asarray(tensors[key].read(), leaf.dtype) for key, leaf in places.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def _write_folder(path: Path, network: SavedNetwork) -> None:
    import orbax.checkpoint as ocp  # takes a second, which only its users should wait

    new = path.with_name(f"{path.name}.new")
    items = {name: ocp.args.StandardSave(tree) for name, tree in network.variables.items()}
    items["description"] = ocp.args.JsonSave(network.description())
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(new, args=ocp.args.Composite(**items), force=True)
        _exchange(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _exchange(new: Path, path: Path) -> None:
    """Gives `new` the name `path`, and deletes what had it only then."""
    if not path.exists():
        os.replace(new, path)
        return
    old = path.with_name(f"{path.name}.old")
    os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink()


def _read_folder(path: Path, model: nn.Module) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        try:
            return {
                name: checkpointer.restore(path.absolute() / name, tree)
                for name, tree in abstract_variables(model).items()
            }
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise ValueError(f"{path} is damaged, or not what it says it is: {error}") from error


def _folder_description(path: Path) -> str:
    try:
        return (path / "description" / "metadata").read_text()
    except FileNotFoundError:
        checkpoints = sorted(path.glob("checkpoints/*/description"), key=os.path.getmtime)
        hint = f" Name one of its checkpoints, {checkpoints[-1].parent}." if checkpoints else ""
        raise ValueError(f"{path} is not a checkpoint: it has no description.{hint}") from None


def _described(path: Path, text: str) -> SavedNetwork:
    """All but the variables."""
    try:
        description = json.loads(text)
        names = description["class_names"]
        preprocessing = description["preprocessing"]
        return SavedNetwork(
            model=from_description(description["model"]),
            variables={},
            preprocessing=preprocessing and Preprocessing.from_dict(preprocessing),
            class_names=names and tuple(names),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has a description that cannot be understood: {error}") from error
