"""Folders of checkpoints as Hugging Face's libraries write them, and weights in several files.

A folder has its weights in `model.safetensors` or `pytorch_model.bin`. Large ones are split into
shards, `model-00001-of-00003.safetensors` and so on; `model.safetensors.index.json` beside them
says which shard has which tensor:

    {"metadata": {...}, "weight_map": {"TENSOR": "SHARD", ...}}
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from replk_jax.torch_import.byte_file import ByteFile
from replk_jax.torch_import.other_formats import explain_folder
from replk_jax.torch_import.safetensors import parse_table
from replk_jax.torch_import.tensors import brief

# In the order in which they are looked for.
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
# The second network of a folder that accelerate has written.
_SECOND = {"model.safetensors": "model_1.safetensors", "pytorch_model.bin": "pytorch_model_1.bin"}
_ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>\.\w+)")
_MOST_INDEX_BYTES = 1 << 22


def is_pytorch_folder(path: str | os.PathLike) -> bool:
    """Whether a path is a folder that `find_file` finds weights in, or can say more of."""
    if not os.path.isdir(path):
        return False
    names = set(os.listdir(path))
    return bool(explain_folder(names) or names & {*_WEIGHTS} or _weights_in(names))


def find_file(path: str | os.PathLike) -> Path:
    """The file that has the weights, or the index of their shards: in a folder, or `path` itself.

    Raises:
      ValueError: a folder that has no weights in one of the usual files, or those of several
        networks; or a file that is one shard of several.
    """
    path = Path(path)
    if not path.is_dir():
        _check_whole(path)
        return path
    names = set(os.listdir(path))
    for name in _WEIGHTS:
        if name in names:
            if _SECOND.get(name) in names:
                raise ValueError(f"it holds several networks. Name one: {name}, {_SECOND[name]}.")
            return path / name
    if explanation := explain_folder(names):
        raise ValueError(explanation)
    if weights := _weights_in(names):
        raise ValueError(
            f"it is a folder without {_WEIGHTS[0]}. Name the checkpoint in it: {brief(weights)}."
        )
    raise ValueError("this is not a regular file, but a folder without a checkpoint.")


def read_index(file: ByteFile) -> dict[str, str] | None:
    """Names of tensors to names of shards; None if the file is not an index.

    Raises:
      ValueError: an index that names shards outside its folder, or is damaged.
    """
    start = bytes(file.read(0, min(file.size, 64)))
    if not start.lstrip().startswith(b"{") or file.size > _MOST_INDEX_BYTES:
        return None
    try:
        places = parse_table(bytes(file.read(0, file.size))).get("weight_map")
    except ValueError as error:
        if file.path.endswith(".index.json"):
            raise ValueError(f"it is damaged ({error}). Copy or download it again.") from error
        return None
    if places is None:
        return None
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise ValueError("its weight_map does not say which file each tensor is in.")
    for shard in set(places.values()):
        if shard in ("", ".", "..") or {"/", "\\", "\0", ":"} & set(shard):
            raise ValueError(f"it names a shard {brief(shard)}, which is no file beside it.")
    return places


def read_shards(
    index: Path, places: Mapping[str, str], read: Callable[[Path], Any]
) -> dict[str, Any]:
    """The tensors of all shards, those of the index first and in its order.

    Args:
      index: the path of the index.
      places: names of tensors to names of shards.
      read: reads one shard.

    Raises:
      ValueError: a shard that is missing or is no state dict, or a tensor that is not in its
        shard.
    """
    names = sorted(set(places.values()))
    if missing := [name for name in names if not (index.parent / name).exists()]:
        raise ValueError(
            f"{len(missing)} of its {len(names)} shards are missing: {brief(missing)}. "
            "Put them beside it."
        )
    shards = {name: read(index.parent / name) for name in names}
    if others := [name for name, contents in shards.items() if not isinstance(contents, dict)]:
        raise ValueError(f"its shards {brief(others)} hold no tensors by name.")
    absent = [tensor for tensor, shard in places.items() if tensor not in shards[shard]]
    if absent:
        raise ValueError(
            f"{len(absent)} tensors are not in the shard that it names: {brief(absent)}, first "
            f"in {brief(places[absent[0]])}. Download the index and its shards again."
        )
    listed = {tensor: shards[shard][tensor] for tensor, shard in places.items()}
    unlisted = {
        tensor: value
        for contents in shards.values()
        for tensor, value in contents.items()
        if tensor not in listed
    }
    return listed | unlisted


def _check_whole(path: Path) -> None:
    match = _SHARD.fullmatch(path.name)
    if match is None or int(match["count"]) < 2:
        return
    index = path.with_name(f"{match['stem']}{match['ending']}.index.json")
    remedy = (
        f"Name their index, {index.name}."
        if index.exists()
        else f"Put all of them and their index, {index.name}, into one folder, and name that."
    )
    raise ValueError(
        f"it is shard {int(match['number'])} of {int(match['count'])}, so it has only a part of "
        f"the tensors. {remedy}"
    )


def _weights_in(names: set[str]) -> list[str]:
    return sorted(name for name in names if name.endswith(_ENDINGS))
