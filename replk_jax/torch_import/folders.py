"""Finds the file with the weights in a folder, or explains what the folder has instead.

Hugging Face's libraries save the weights in `model.safetensors` or `pytorch_model.bin`, or in
shards (see `shards`), and the training state in other files next to them.
"""

import os
import re
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

from replk_jax.io.errors import FileError, naming
from replk_jax.io.text import brief
from replk_jax.torch_import.other_formats import explain_folder, explain_other_weights
from replk_jax.torch_import.shards import check_whole, index_of

# In order of precedence.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
# The second network in a folder of accelerate.
_SECOND = {"model.safetensors": "model_1.safetensors", "pytorch_model.bin": "pytorch_model_1.bin"}
_ENDINGS = (".safetensors", ".pth", ".pth.tar", ".pt", ".ckpt", ".bin")
# Files and folders with the training state, next to the weights.
_TRAINING_STATE = re.compile(
    r"(?:optim(?:izer)?|(?:lr_)?scheduler|(?:loss_)?scaler|sampler|rng_state|random_states"
    r"|training_args|dl_state_dict|recipe_state)(?:_\d+)*(?:\.\w+)?|.*_optim_states\.pt"
)
_SETTINGS = frozenset(
    ("config.json", "model_index.json", "preprocessor_config.json", "trainer_state.json")
)
_EXPECTED = (
    "Expected in it: model.safetensors or pytorch_model.bin, or their shards with the index, such "
    "as model.safetensors.index.json."
)


class UnknownFolderError(FileError):
    """A folder with neither weights nor anything of another known format."""


def find_file(path: str | os.PathLike) -> Path:
    """The file that has the weights, or the index of their shards: in a folder, or `path` itself.

    Raises:
      UnknownFolderError: a folder without any known file.
      FileError: another folder without weights in one of the usual files, or with several networks;
        or a file that is one shard of several.
    """
    path = Path(path)
    with naming(path):
        if path.is_dir():
            return path / _find_name(path)
        check_whole(path)
        return path


def _find_name(path: Path) -> str:
    names = set(os.listdir(path))
    name = _weights(names)
    if name is None:
        if explanation := _explain(path, names):
            raise ValueError(explanation)
        raise UnknownFolderError(
            f"{path}: this is not a regular file, but a folder without a checkpoint. {_EXPECTED}"
        )
    if _SECOND.get(name) in names:
        raise ValueError(f"it holds several networks. Name one: {name}, {_SECOND[name]}.")
    return name


def _weights(names: Set[str]) -> str | None:
    """The file with the weights, if it has one of the usual names."""
    for name in _WEIGHTS:
        if name in names:
            return name
    indices = names & _indices(names)
    return next(iter(indices)) if len(indices) == 1 else None


def _indices(names: Set[str]) -> set[str]:
    """The names of the indices that the shards among these files need."""
    return {index for name in names if (index := index_of(name))}


def _explain(path: Path, names: Set[str]) -> str | None:
    """Explains what a folder has instead of weights, and what to do; None if unknown."""
    if explanation := explain_folder(names):
        return explanation
    if checkpoints := _checkpoints(names):
        return (
            f"it is a folder without {_WEIGHTS[0]}. Name the checkpoint in it: "
            f"{brief(checkpoints)}."
        )
    if indices := sorted(_indices(names)):
        shards = sorted(filter(index_of, names))
        return (
            f"it has shards without their index: {brief(shards)}. Download the index into it: "
            f"{brief(indices)}."
        )
    return _explain_inner_folders(path) or explain_other_weights(names) or _explain_others(names)


def _checkpoints(names: Set[str]) -> list[str]:
    """The files that may contain weights, by their names."""
    return _in_order(
        name
        for name in names
        if name.endswith(_ENDINGS) and not index_of(name) and not _TRAINING_STATE.fullmatch(name)
    )


def _explain_inner_folders(path: Path) -> str | None:
    """Explains what the inner folders have, such as the checkpoints of a run."""
    found, explanations = [], []
    for name, names in _inner_folders(path):
        if _weights(names):
            found.append(name)
        elif explanation := explain_folder(names):
            explanations.append(f"it has no weights itself. In its folder {name}: {explanation}")
        else:
            found += [f"{name}/{checkpoint}" for checkpoint in _checkpoints(names)]
    if found:
        return f"it has no weights itself. Name one of these in it: {brief(_in_order(found))}."
    return next(iter(explanations), None)


def _inner_folders(path: Path) -> Iterator[tuple[str, Set[str]]]:
    """The folders in a folder, and in the `snapshots` of Hugging Face's cache, with their files."""
    for folder in sorted([*path.glob("*/"), *path.glob("snapshots/*/")]):
        if not _TRAINING_STATE.fullmatch(folder.name):
            try:
                yield folder.relative_to(path).as_posix(), set(os.listdir(folder))
            except PermissionError:
                continue  # another user's folder, such as lost+found


def _explain_others(names: Set[str]) -> str | None:
    others = sorted(name for name in names if name in _SETTINGS or _TRAINING_STATE.fullmatch(name))
    return f"it has {brief(others)}, but no weights. {_EXPECTED}" if others else None


def _in_order(names: Iterable[str]) -> list[str]:
    """Sorts by name, with numbers by value."""

    def parts(name: str) -> list[tuple[int, str]]:
        return [
            (int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)
        ]

    return sorted(names, key=parts)
