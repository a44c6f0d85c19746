"""Weights in several files, as Hugging Face's libraries write them.

Large weights are split into shards, `model-00001-of-00003.safetensors` and so on.
`model.safetensors.index.json` next to them maps tensors to shards:

    {"metadata": {...}, "weight_map": {"TENSOR": "SHARD", ...}}
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from replk_jax.io.byte_file import ByteFile
from replk_jax.io.json_object import parse_json_object
from replk_jax.io.tensors import StoredTensor
from replk_jax.io.text import brief
from replk_jax.torch_import.torch_files import Contents

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>\.\w+)")
_MOST_INDEX_BYTES = 1 << 22


def index_of(name: str) -> str | None:
    """The name of the index that belongs to a file of this name; None if it is not a shard."""
    match = _match_shard(name)
    return match and f"{match['stem']}{match['ending']}.index.json"


def check_whole(path: Path) -> None:
    """Checks that a file is not one shard of several.

    Raises:
      ValueError: it is, by its name.
    """
    match, index = _match_shard(path.name), index_of(path.name)
    if match is None or index is None:
        return
    remedy = (
        f"Name their index, {index}."
        if path.with_name(index).exists()
        else f"Put all of them and their index, {index}, into one folder, and name that."
    )
    raise ValueError(
        f"it is shard {int(match['number'])} of {int(match['count'])}, so it has only a part of "
        f"the tensors. {remedy}"
    )


def read_index(file: ByteFile) -> dict[str, str] | None:
    """From names of tensors to names of shards; None if the file is not an index.

    Raises:
      ValueError: an index that is damaged or names shards outside its folder.
    """
    start = bytes(file.read(0, min(file.size, 64)))
    if not start.lstrip().startswith(b"{") or file.size > _MOST_INDEX_BYTES:
        return None
    try:
        places = parse_json_object(bytes(file.read(0, file.size))).get("weight_map")
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
            raise ValueError(f"it names a shard {brief(shard)}, which is not a file next to it.")
    return places


def read_shards(
    index: Path, places: Mapping[str, str], read: Callable[[Path], Contents]
) -> dict[str, StoredTensor]:
    """The tensors of all shards, first those in the index, in its order.

    Args:
      index: the path of the index.
      places: from names of tensors to names of shards.
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
    return _tensors_of(shards, places)


def _tensors_of(
    shards: Mapping[str, Contents], places: Mapping[str, str]
) -> dict[str, StoredTensor]:
    dicts = {name: contents for name, contents in shards.items() if isinstance(contents, dict)}
    if others := [name for name in shards if name not in dicts]:
        raise ValueError(f"its shards {brief(others)} hold no tensors by name.")
    absent = [tensor for tensor, shard in places.items() if tensor not in dicts[shard]]
    if absent:
        raise ValueError(
            f"{len(absent)} tensors are not in the shard that it names: {brief(absent)}, first "
            f"in {brief(places[absent[0]])}. Download the index and its shards again."
        )
    listed = {tensor: dicts[shard][tensor] for tensor, shard in places.items()}
    unlisted = {
        tensor: value
        for contents in dicts.values()
        for tensor, value in contents.items()
        if tensor not in listed
    }
    return listed | unlisted


def _match_shard(name: str) -> re.Match[str] | None:
    match = _SHARD.fullmatch(name)
    return match if match and int(match["count"]) > 1 else None
