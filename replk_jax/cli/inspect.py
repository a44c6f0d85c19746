"""inspect: what is in a checkpoint, before anyone trusts it."""

import argparse
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from replk_jax import released
from replk_jax.preprocessing import Preprocessing
from replk_jax.saved import SavedNetwork, read_description
from replk_jax.torch_import import Recognized, infer_architecture
from replk_jax.torch_import.reader import read
from replk_jax.torch_import.tensors import StoredTensor
from replk_jax.torch_import.weights import has_average


def add_parser(verbs) -> None:
    inspect = verbs.add_parser("inspect", help="tell what is in a checkpoint, running none of it")
    inspect.add_argument("file", type=Path, help="a PyTorch file, or what convert or train wrote")
    inspect.add_argument("--ema", action="store_true", help="look at the moving average")
    inspect.add_argument("--tensors", action="store_true", help="list every tensor")
    inspect.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> None:
    path = arguments.file
    network = read_description(path)
    if network is not None:
        print(f"{path}, written by replk_jax")
        print(*_of_network(network), sep="\n")
        return
    contents = read(path)
    print(f"{path}, a PyTorch checkpoint of {path.stat().st_size:,} bytes")
    print(*_entries(contents), sep="\n")
    try:
        print(*_of_recognized(infer_architecture(path, prefer_ema=arguments.ema), path), sep="\n")
    except ValueError as error:
        print(f"No network that is known here. {error}")
    if has_average(contents) and not arguments.ema:
        print("  a moving average of the weights lies beside them: --ema")
    if arguments.tensors:
        print(*_tensors(contents), sep="\n")


def _of_network(network: SavedNetwork) -> Iterator[str]:
    model = network.model
    yield f"{type(model).__name__}, {'re-parameterized' if model.deploy else 'training-time'}"
    yield f"  {model.architecture}"
    yield f"  classes: {model.num_classes or 'no classifier'}"
    yield f"  {_images(network.preprocessing)}"


def _of_recognized(found: Recognized, path: Path) -> Iterator[str]:
    yield str(found)
    yield f"  {_images(released.preprocessing_of(path, found.model))}"
    entry = released.recognize(path, found.model)
    if entry is None:
        yield "  which is a guess: no released checkpoint of this network has the file's name"
    elif entry.top1 is not None:
        yield f"  published: {entry.top1} % top-1, {entry.top5} % top-5 on ImageNet-1K"


def _images(preprocessing: Preprocessing | None) -> str:
    if preprocessing is None:
        return "images: not known how they are prepared"
    size, crop = preprocessing.image_size, preprocessing.crop_fraction
    cut = "warped" if crop is None else f"the centre of {int(size / crop)}"
    return (
        f"images: {size} x {size}, {cut}, {preprocessing.interpolation}, "
        f"mean {preprocessing.mean}, std {preprocessing.std}"
    )


def _entries(contents: Any) -> Iterator[str]:
    """A line for each entry at the top; state dicts are summed up."""
    if not isinstance(contents, Mapping) or _is_state_dict(contents):
        yield f"  {_summary(contents)}"
        return
    width = max(len(str(key)) for key in contents)
    for key, value in contents.items():
        yield f"  {key!s:{width}}  {_summary(value)}"


def _summary(value: Any) -> str:
    if _is_state_dict(value):
        tensors = value.values()
        dtypes = sorted({tensor.dtype.name for tensor in tensors})
        values = sum(math.prod(tensor.shape) for tensor in tensors)
        return f"{len(tensors)} tensors, {values:,} values, {', '.join(dtypes)}"
    if isinstance(value, StoredTensor):
        return f"a tensor {value.shape}, {value.dtype.name}"
    if isinstance(value, Mapping):
        return f"{len(value)} entries: {_shortened(', '.join(map(str, value)))}"
    return _shortened(repr(value))


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(entry, StoredTensor) for entry in value.values())
    )


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _tensors(contents: Any, path: str = "") -> Iterator[str]:
    if isinstance(contents, StoredTensor):
        yield f"{path}  {contents.shape}  {contents.dtype.name}"
    elif isinstance(contents, Mapping):
        for key, value in contents.items():
            yield from _tensors(value, f"{path}.{key}" if path else str(key))
    elif isinstance(contents, (list, tuple)):
        for i, value in enumerate(contents):
            yield from _tensors(value, f"{path}[{i}]")
