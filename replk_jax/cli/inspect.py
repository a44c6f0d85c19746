"""inspect: shows the contents of a checkpoint without running any of it."""

import argparse
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from replk_jax import pretrained
from replk_jax.checkpoint import (
    Checkpoint,
    OrbaxCheckpoint,
    SafetensorsCheckpoint,
    TorchCheckpoint,
    open_checkpoint,
)
from replk_jax.cli.argument_types import user_path
from replk_jax.cli.arguments import add_selection, selection
from replk_jax.cli.text import printable, shortened
from replk_jax.io.tensors import StoredTensor
from replk_jax.io.text import brief
from replk_jax.models.backbone import Backbone
from replk_jax.models.composite import CompositeNetwork
from replk_jax.models.description import joined
from replk_jax.models.in_words import details_of, title_of
from replk_jax.models.network import Network
from replk_jax.models.pretrained_composite import PretrainedComposite
from replk_jax.torch_import import Contents, Placeholder, Recognized, Selection, recognize
from replk_jax.vision.base_preprocessing import BasePreprocessing

_LONGEST_NAME = 80
_WIDEST_COLUMN = 24


def add_parser(verbs) -> None:
    inspect = verbs.add_parser(
        "inspect", help="show the contents of a checkpoint, running none of it"
    )
    inspect.add_argument(
        "file", type=user_path, help="a PyTorch file, or what convert or train wrote"
    )
    add_selection(inspect)
    inspect.add_argument("--tensors", action="store_true", help="list every tensor")
    inspect.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> None:
    selected, opened = Selection(**selection(arguments)), open_checkpoint(arguments.file)
    if isinstance(opened, TorchCheckpoint):
        _print(_of_torch_file(opened, selected, arguments.tensors))
        return
    opened.check_selection(selected)
    if isinstance(opened, SafetensorsCheckpoint):
        _print(_of_own_file(opened, arguments.tensors))
    elif arguments.tensors:
        raise ValueError(f"--tensors lists what a file holds, and {opened.path} is a folder.")
    else:
        _print(_of_folder(opened))


def _print(lines: Iterable[str]) -> None:
    """Prints all output, escaped: a file's text must not control the terminal."""
    for line in lines:
        print(printable(line))


# --- Files -------------------------------------------------------------------------------


def _of_torch_file(opened: TorchCheckpoint, selected: Selection, tensors: bool) -> Iterator[str]:
    path, contents, files = opened.path, opened.contents, opened.files
    yield f"{path}, a PyTorch checkpoint of {_size(files):,} bytes"
    if len(files) > 1 or path.is_dir():
        yield from _indented(f"file {file.name}" for file in files)
    yield from _indented(_entries(contents))
    wanted = (f"requests a call of {name}, which is not done" for name in _wanted_calls(contents))
    yield from _indented(wanted)
    try:
        found = recognize(contents, selected, path)
    except ValueError as error:
        yield from f"no supported network: {error}".splitlines()
    else:
        yield from _recognized(opened, found)
        if found.has_ema and not selected.prefer_ema:
            yield "  it also has an EMA of the weights: --ema"
    if tensors:
        yield from _tensors(contents)


def _recognized(opened: TorchCheckpoint, found: Recognized) -> Iterator[str]:
    yield from str(found).splitlines()
    if found.faults:
        yield from _faults(found.faults)
    else:
        yield from _indented(_around(opened, found.model))


def _of_own_file(opened: SafetensorsCheckpoint, tensors: bool) -> Iterator[str]:
    yield f"{opened.path}, a network in replk_jax's format, of {_size(opened.files):,} bytes"
    yield f"  {_summary(opened.tensors)}"
    yield from _description(opened.description)
    yield from _faults(opened.faults())
    if tensors:
        yield from _tensors(opened.tensors)


def _of_folder(opened: OrbaxCheckpoint) -> Iterator[str]:
    files = [file for file in opened.path.rglob("*") if file.is_file()]
    yield f"{opened.path}, a checkpoint in Orbax's format, of {_size(files):,} bytes"
    yield from _description(opened.description)
    yield "  its tensors are checked only on loading"


def _size(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


# --- Networks ----------------------------------------------------------------------------


def _description(network: Checkpoint) -> Iterator[str]:
    """The description in a checkpoint of this package."""
    model, names = network.model, network.class_names
    kind = f"{model.num_classes} classes" if model.num_classes else "no classifier"
    structure = "re-parameterized" if model.deploy else "training-time"
    yield f"{title_of(model)}, {kind}, {structure}"
    yield from _indented(details_of(model))
    yield from _indented(_use(model))
    if names:
        yield f"  names of the classes: {printable(list(names))}"
    yield from _indented(_images(network.preprocessing, model))


def _use(model: Network) -> Iterator[str]:
    """The differences of the network, or its backbone, from a classifier of this architecture."""
    if isinstance(model, CompositeNetwork):
        yield from _use(model.backbone)
    if not isinstance(model, Backbone):
        return
    if model.output_stride is not None:
        yield f"dilated for an output stride of {model.output_stride}"
    if model.out_indices is not None:
        yield f"a backbone that returns the stages {joined(model.out_indices)}"


def _around(opened: TorchCheckpoint, model: Network) -> Iterator[str]:
    """The metadata in a PyTorch checkpoint, in the files next to it and by its name."""
    known = opened.describe(model)
    if known.unrecorded:
        yield f"its configuration has a backbone with {known.unrecorded}"
    yield from _images(known.preprocessing, model, known.preprocessing_source)
    if known.class_names:
        names = printable(list(known.class_names))
        yield f"names of the classes, from {known.class_names_source}: {names}"
    yield from _published(opened.path, model)


def _published(path: Path, model: Network) -> Iterator[str]:
    """The accuracy of a published checkpoint, by the file's name."""
    entry = pretrained.recognize(path, model)
    if isinstance(entry, PretrainedComposite):
        yield f"published by this name: {entry.results()}"
    elif entry and entry.top1 is not None:
        top5 = "" if entry.top5 is None else f", {entry.top5} % top-5"
        yield f"published by this name: {entry.top1} % top-1{top5} on ImageNet-1K"


def _images(
    known: BasePreprocessing | None, model: Network, source: str | None = None
) -> Iterator[str]:
    preprocessing = known or pretrained.default_preprocessing(model)
    if preprocessing is None:
        yield "images: unknown preprocessing"
        return
    yield f"images: {preprocessing.in_words()}{f'; from {source}' if source else ''}"
    if known is None:
        yield "which is a guess: neither the file nor its name determines it"


def _faults(faults: Sequence[str]) -> Iterator[str]:
    if faults:
        yield f"it cannot be loaded: its tensors do not fit; faults: {len(faults):,}"
        yield from _indented(shortened(faults))


# --- Contents ----------------------------------------------------------------------------


def _entries(contents: Contents) -> Iterator[str]:
    """A line for each top-level entry; state dicts are summarised."""
    if not isinstance(contents, Mapping) or not contents or _is_state_dict(contents):
        yield _summary(contents)
        return
    width = min(_WIDEST_COLUMN, max(len(_name(key)) for key in contents))
    lines = (f"{_name(key):{width}}  {_summary(value)}" for key, value in contents.items())
    yield from shortened(lines)


def _summary(value: Any) -> str:
    if _is_state_dict(value):
        tensors = value.values()
        dtypes = sorted({tensor.dtype.name for tensor in tensors})
        values = sum(tensor.size for tensor in tensors)
        return f"{len(tensors):,} tensors, {values:,} values, {', '.join(dtypes)}"
    if isinstance(value, StoredTensor):
        return f"a tensor {value.shape}, {value.dtype.name}"
    if isinstance(value, Mapping):
        return f"{len(value):,} entries: {_name(list(value))}" if value else "nothing"
    return _name(brief(value))


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(entry, StoredTensor) for entry in value.values())
    )


def _tensors(contents: Any, path: str = "") -> Iterator[str]:
    """A line for each tensor, at any level."""
    if isinstance(contents, StoredTensor):
        yield f"{path}  {contents.shape}  {contents.dtype.name}"
    for key, value in _inside(contents):
        yield from _tensors(value, printable(f"{path}.{_name(key)}" if path else _name(key), 200))


def _wanted_calls(contents: Contents) -> list[str]:
    """The functions whose calls a file requests, at any level."""
    names, seen, left = set(), set(), [contents]
    while left:
        value = left.pop()
        if isinstance(value, Placeholder) and value.called:
            names.add(value.path)
        if id(value) not in seen:
            seen.add(id(value))
            left += itertools.chain.from_iterable(_inside(value))
    return sorted(names)


def _inside(value: Any) -> Sequence[tuple[Any, Any]]:
    """The parts of a value, by keys, indices or names."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(enumerate(value))
    if isinstance(value, Placeholder):
        return [(name, getattr(value, name)) for name in ("args", "state", "items", "entries")]
    return []


def _name(value: Any) -> str:
    return printable(value, _LONGEST_NAME)


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)
