"""Networks in files: a model, its variables, and how its images are prepared.

Two formats of this package: a single .safetensors file, whose tensors are named by their path
in the variables, and an Orbax checkpoint, a folder, such as training writes. Both carry the
same description. PyTorch checkpoints are read as well.
"""

import contextlib
import dataclasses
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from replk_jax.io import checksums
from replk_jax.io.errors import FileError, error_text, naming
from replk_jax.io.files import json_text
from replk_jax.io.safetensors import write_safetensors
from replk_jax.io.text import brief
from replk_jax.models import pretrained, registry
from replk_jax.models.description import describe, from_description
from replk_jax.models.network import Network
from replk_jax.models.variables import abstract_variables, differences, in_lines
from replk_jax.torch_import.convert import by_official_name
from replk_jax.torch_import.entries import Selection
from replk_jax.torch_import.load import fit, load_contents
from replk_jax.torch_import.metadata import find_metadata
from replk_jax.torch_import.reader import is_pytorch_folder, metadata, read
from replk_jax.vision.preprocessing import Preprocessing

_AVERAGE = "ema"  # the item of a training run's checkpoint with the average of all variables
_KEY = "replk_jax"  # of the description among a .safetensors file's metadata


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A network with all that is needed to run it.

    Attributes:
      model: the network; `deploy=True` where it is re-parameterized.
      variables: of the model.
      preprocessing: of its images; None where it is not known.
      class_names: one for each class; None where they are not known.
      preprocessing_source, class_names_source: where in a PyTorch checkpoint, or beside it, they
        were found; None for other files.
      unrecorded: strides and dilation that a configuration saved with a PyTorch checkpoint gives,
        and the model does not have; None where there is no such difference.
    """

    model: Network
    variables: Mapping[str, Any]
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None
    preprocessing_source: str | None = dataclasses.field(default=None, compare=False)
    class_names_source: str | None = dataclasses.field(default=None, compare=False)
    unrecorded: str | None = dataclasses.field(default=None, compare=False)

    @property
    def name(self) -> str | None:
        """Under which the model is registered, if it is."""
        return registry.name_of(self.model)

    def resolve_preprocessing(self) -> Preprocessing:
        """The preprocessing; where it is not known, with a warning, that of networks like it.

        Raises:
          ValueError: there is none like it.
        """
        if self.preprocessing is not None:
            return self.preprocessing
        usual = pretrained.default_preprocessing(self.model)
        if usual is None:
            raise ValueError("It is not known how the network's images are prepared: say it.")
        warnings.warn(
            "It is not known how the network's images are prepared: the file does not say it, and "
            f"has not the name of a released checkpoint. Assumed: {usual}.",
            stacklevel=3,
        )
        return usual

    def description(self) -> dict[str, Any]:
        """All but the variables, as JSON can hold it."""
        return {
            "name": self.name,
            "model": describe(self.model),
            "preprocessing": self.preprocessing and self.preprocessing.as_dict(),
            "class_names": self.class_names and list(self.class_names),
        }


def save(path: str | os.PathLike, network: Checkpoint, *, overwrite: bool = False) -> None:
    """Writes a network, all of it or nothing.

    Args:
      path: of a file if it ends in .safetensors, else of the folder of an Orbax checkpoint.
      network: what to write.
      overwrite: replace what is there, once the new one is complete.

    Raises:
      FileExistsError: there is something, and `overwrite` is not set.
      OSError: it cannot be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already, and is left as it is.")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.absolute().parent} to write to.")
    if path.suffix.lower() == ".safetensors":
        description = json_text(network.description())
        write_safetensors(path, _by_path(network.variables), {_KEY: description})
    else:
        _write_folder(path.absolute(), network)


def load(
    path: str | os.PathLike,
    *,
    prefer_ema: bool = False,
    preprocessing: Preprocessing | None = None,
    key: str | None = None,
    prefix: str | None = None,
    rename: Callable[[str], str | None] | None = None,
) -> Checkpoint:
    """Reads a network that was saved here, trained here, or published for PyTorch.

    Args:
      path: a .safetensors file or a folder that `save` wrote, a checkpoint of a training run
        (`WORKDIR/checkpoints/STEP`), or a PyTorch checkpoint (see `load_torch`), which may also be
        a folder of Hugging Face's.
      prefer_ema: take the exponential moving average (EMA) that was saved with the weights.
      preprocessing: of the images, in place of what is known. Of a PyTorch checkpoint it is known
        if the file or a JSON file next to it says it (see `torch_import.metadata`), or if it has
        the name of a released one.
      key, prefix, rename: which weights of a PyTorch checkpoint; as in `load_torch`.

    Raises:
      ValueError, OSError: it is not there, cannot be read, or is none of these.
    """
    path = Path(path)
    selection = Selection(prefer_ema, key, prefix, rename)
    network = read_description(path)
    if network is None:
        network = _load_torch(path, None, selection)
    else:
        variables = _read_variables(path, network, selection)
        network = dataclasses.replace(network, variables=variables)
    if preprocessing is None:
        return network
    return dataclasses.replace(network, preprocessing=preprocessing, preprocessing_source=None)


def load_into(
    model: nn.Module,
    path: str | os.PathLike,
    *,
    reset_head: bool = False,
    prefer_ema: bool = False,
    key: str | None = None,
    prefix: str | None = None,
    rename: Callable[[str], str | None] | None = None,
    adapt_input: bool = False,
    seed: int = 0,
) -> Checkpoint:
    """Reads the variables of a network of the caller's, to go on from.

    Args:
      model: the network; its architecture must be that of the file.
      path, prefer_ema, key, prefix, rename: as in `load`.
      adapt_input: make the kernels that see the image take the model's number of channels, as
        `in_channels` of `load_torch` does.
      reset_head, seed: as in `load_torch`.

    Returns:
      The model with its variables, and what is known besides of the network in the file.

    Raises:
      ValueError, OSError: as `load` and `load_torch`, and for a file that is re-parameterized,
        if `model` is not.
    """
    path = Path(path)
    selection = Selection(prefer_ema, key, prefix, rename)
    fitting = dict(reset_head=reset_head, adapt_input=adapt_input, seed=seed)
    network = read_description(path)
    if network is None:
        return _load_torch(path, model, selection, **fitting)
    variables = _read_variables(path, network, selection)
    with naming(path):
        if network.model.deploy:
            raise ValueError(
                "it is re-parameterized, and what is merged cannot be trained on as it was: name "
                "the file from before the merge."
            )
        if type(network.model) is not type(model):
            raise ValueError(
                f"it holds a {type(network.model).__name__}, not a {type(model).__name__}."
            )
        weights = by_official_name(variables, network.model)
        variables = fit(weights, model, source=os.fspath(path), **fitting)
    return dataclasses.replace(network, model=model, variables=variables)


def read_description(path: str | os.PathLike) -> Checkpoint | None:
    """What a file of this package says of itself: all but the variables. None for others.

    Raises:
      ValueError, OSError: it is not there, or cannot be understood.
    """
    path = Path(path)
    if is_own_folder(path):
        return _described(path, _folder_description(path))
    with pointing_to_checkpoint(path):
        text = metadata(path).get(_KEY)
    return None if text is None else _described(path, text)


@contextlib.contextmanager
def pointing_to_checkpoint(path: str | os.PathLike) -> Iterator[None]:
    """Adds to a ValueError which checkpoint may be meant, if `path` is of a run or inside of one.

    Raises:
      FileError: in place of the ValueError, with its message, where there is such a checkpoint.
    """
    try:
        yield
    except ValueError as error:
        if hint := _nearby_checkpoint(Path(path)):
            raise FileError(f"{error}{hint}") from error
        raise


def faults(tensors: Mapping[str, Any], network: Checkpoint) -> list[str]:
    """What keeps the tensors of a .safetensors file from being the network that it describes."""
    return differences(tensors, _by_path(abstract_variables(network.model)))


def torch_description(path: Path, contents: Any, model: nn.Module) -> Checkpoint:
    """What a PyTorch checkpoint says of a network besides its weights; without variables.

    Args:
      path: of the checkpoint.
      contents: of it, as `read` gives them.
      model: the network, with the number of classes of the checkpoint or none.
    """
    found = find_metadata(path, contents, model)
    unrecorded = found.backbone and found.backbone.difference(model)
    if unrecorded:
        warnings.warn(
            f"{path}: its configuration has a backbone with {unrecorded}. The weights do not "
            "record this, and the model does not have it: build one with these fields, and load "
            "into that.",
            stacklevel=4,
        )
    names, count = found.class_names, model.num_classes
    if names is not None and count is not None and len(names) != count:
        warnings.warn(
            f"{path}: its network has {count} classes; the {len(names)} names in "
            f"{found.class_names_source} are not used.",
            stacklevel=4,
        )
    if names is None or len(names) != count:
        names = None
    return Checkpoint(
        model=model,
        variables={},
        preprocessing=found.preprocessing,
        class_names=names,
        preprocessing_source=found.preprocessing_source,
        class_names_source=names and found.class_names_source,
        unrecorded=unrecorded,
    )


def _load_torch(path: Path, model: nn.Module | None, selection: Selection, **options) -> Checkpoint:
    """Reads a PyTorch checkpoint, into a model of the caller's if there is one."""
    with pointing_to_checkpoint(path), naming(path):
        contents = read(path)
        loaded, variables = load_contents(
            contents, model, selection=selection, source=os.fspath(path), **options
        )
    # A classifier of the caller's may have other classes than those of the file.
    described = loaded if model is None else loaded.clone(num_classes=None)
    network = torch_description(path, contents, described)
    return dataclasses.replace(network, model=loaded, variables=variables)


def _read_variables(path: Path, network: Checkpoint, selection: Selection) -> dict[str, Any]:
    if selection != Selection(selection.prefer_ema):
        raise ValueError(f"{path} was saved by this package: key, prefix and rename do not apply.")
    prefer_ema, average = selection.prefer_ema, path / _AVERAGE
    if prefer_ema and not average.is_dir():
        raise ValueError(f"{path} holds one set of weights, no moving average (EMA) beside it.")
    if is_own_folder(path):
        return _read_folder(path, network, prefer_ema)
    return _read_safetensors(path, network)


def is_own_folder(path: Path) -> bool:
    """Whether a folder is one of this package, rather than one with a PyTorch checkpoint."""
    own = (path / "description").exists()
    return path.is_dir() and (own or not is_pytorch_folder(path))


def _read_safetensors(path: Path, network: Checkpoint) -> dict[str, Any]:
    tensors, places = read(path), _by_path(abstract_variables(network.model))
    found = differences(tensors, places)
    if found and tensors.keys() == _by_path(_older_variables(network.model)).keys():
        found = differences({key: tensors[key] for key in places}, places)
    if found:
        raise ValueError(f"{path} is not what it says it is:{in_lines(found)}")
    flat = {key: jnp.asarray(tensors[key].read(), leaf.dtype) for key, leaf in places.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def _by_path(variables: Mapping[str, Any]) -> dict[str, Any]:
    return traverse_util.flatten_dict(variables, sep="/")


def _write_folder(path: Path, network: Checkpoint) -> None:
    import orbax.checkpoint as ocp  # takes a second, which only its users should wait

    items = {name: ocp.args.StandardSave(tree) for name, tree in network.variables.items()}
    items["description"] = ocp.args.JsonSave(network.description())
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(new, args=ocp.args.Composite(**items))
        checksums.record(new)
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(new, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise


def _read_folder(path: Path, network: Checkpoint, prefer_ema: bool) -> dict[str, Any]:
    if checksums.has_record(path) and (fault := checksums.fault(path)):
        raise ValueError(f"{path} is damaged: {fault}.")
    variables = abstract_variables(network.model)
    try:
        restored = _restore(path.absolute(), variables, prefer_ema)
    except (ValueError, KeyError, FileNotFoundError) as error:
        try:
            restored = _restore(path.absolute(), _older_variables(network.model), prefer_ema)
        except (ValueError, KeyError, FileNotFoundError):
            raise ValueError(
                f"{path} is damaged, or not what it says it is: {error_text(error)}"
            ) from error
        restored = {key: _by_path(restored)[key] for key in _by_path(variables)}
        restored = traverse_util.unflatten_dict(restored, sep="/")
    return jax.tree.map(jnp.asarray, restored)  # a training run has saved NumPy's


def _restore(path: Path, variables: Mapping[str, Any], prefer_ema: bool) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        if prefer_ema:
            return checkpointer.restore(path / _AVERAGE, variables)
        return {name: checkpointer.restore(path / name, tree) for name, tree in variables.items()}


def _older_variables(model: nn.Module) -> dict[str, Any]:
    """As `abstract_variables`, of the files of version 0.1.0.

    There a backbone with `norm_intermediate_features` had a norm in each stage, also in those that
    it does not return.
    """
    if getattr(model, "norm_intermediate_features", False) and model.out_indices is not None:
        model = model.clone(out_indices=tuple(range(len(model.stage_channels))))
    return abstract_variables(model)


def _folder_description(path: Path) -> str:
    try:
        return (path / "description" / "metadata").read_text()
    except FileNotFoundError:
        fault = "is empty"
        if any(path.iterdir()):
            fault = "has neither a description of this package nor weights of PyTorch"
        hint = _nearby_checkpoint(path)
        raise ValueError(f"{path} is not a checkpoint: it {fault}.{hint}") from None


def _nearby_checkpoint(path: Path) -> str:
    """A hint for a path in or above a checkpoint, or of a file beside those of a run; else ""."""
    above = path.absolute().parents[:2]
    if part_of := next((folder for folder in above if (folder / "description").is_dir()), None):
        return f" Name the checkpoint itself, {part_of}."
    if path.is_dir():
        found = [*path.glob("checkpoints/*/description"), *path.glob("*/description")]
    else:
        found = [*path.parent.glob("checkpoints/*/description")]
    if found:
        latest = max(found, key=os.path.getmtime).parent
        return f" Name one of its checkpoints, {latest}."
    return ""


def _described(path: Path, text: str) -> Checkpoint:
    """All but the variables."""
    try:
        description = json.loads(text)
        names = description["class_names"]
        preprocessing = description["preprocessing"]
        model = from_description(description["model"])
        return Checkpoint(
            model=model,
            variables={},
            preprocessing=None if preprocessing is None else Preprocessing.from_dict(preprocessing),
            class_names=None if names is None else _names(names, model.num_classes),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error_text(error)
        raise ValueError(f"{path} has a description that cannot be understood: {reason}") from error


def _names(names: Any, count: int | None) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names must be a list of strings; got {brief(names)}")
    if len(names) != count:
        raise ValueError(f"class_names must be {count}; got {len(names)}")
    return tuple(names)
