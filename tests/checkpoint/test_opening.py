"""Files are opened and parsed once, whatever reads them; warnings point to the caller's line."""

import collections
import contextlib
import json
import os
import sys

import pytest

from replk_jax import Classifier, FeatureExtractor, save, save_torch
from replk_jax.checkpoint import Checkpoint, load, load_into, read_description
from replk_jax.cli.main import main
from replk_jax.io import safetensors
from replk_jax.io.safetensors import write_safetensors
from replk_jax.models.registry import create_model
from replk_jax.torch_import import shards
from replk_jax.torch_import.pickle_machine import Unpickler
from replk_jax.torch_import.reader import read
from replk_jax.vision.preprocessing import Preprocessing
from tests.helpers import ONE_STAGE, random_variables

PREPROCESSING = Preprocessing(32)
MODEL = create_model(ONE_STAGE, num_classes=2)
NETWORK = Checkpoint(MODEL, random_variables(MODEL), PREPROCESSING)


def write_torch_file(path):
    save_torch(NETWORK.variables, MODEL, path)
    return [path]


def write_own_file(path):
    save(path, NETWORK)
    return [path]


def write_folder(path):
    path.mkdir()
    (path / "config.json").write_text("{}")
    return [*write_torch_file(path / "pytorch_model.bin"), path / "config.json"]


def write_shards(path):
    path.mkdir()
    save_torch(NETWORK.variables, MODEL, path / "whole.safetensors")
    tensors = read(path / "whole.safetensors")
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    places = {tensor: names[number % 2] for number, tensor in enumerate(tensors)}
    for name in names:
        part = {tensor: tensors[tensor] for tensor, place in places.items() if place == name}
        write_safetensors(path / name, part, {})
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    return [index, *(path / name for name in names)]


# By the name that is loaded: what writes it and gives the files that are to be opened; how many
# pickles and JSON objects they have.
KINDS = {
    "torch.pth": (write_torch_file, 1, 0),
    "torch.safetensors": (write_torch_file, 0, 1),
    "own.safetensors": (write_own_file, 0, 1),
    "shards": (write_shards, 0, 3),
    "folder": (write_folder, 1, 0),
}
VERBS = {
    "load": lambda path, out: load(path),
    "load_into": lambda path, out: load_into(MODEL, path),
    "classifier": lambda path, out: Classifier.from_file(path, preprocessing=PREPROCESSING),
    "features": lambda path, out: FeatureExtractor.from_file(path, preprocessing=PREPROCESSING),
    "inspect": lambda path, out: main(["inspect", str(path), "--tensors"]),
    "convert": lambda path, out: main(["convert", str(path), str(out)]),
}

_opened: collections.Counter | None = None  # paths, while `opened_files` counts


def _count(event, arguments):
    if _opened is not None and event == "open":
        _opened[str(arguments[0])] += 1


@pytest.fixture(scope="module", autouse=True)
def audited():
    """By the interpreter's own account; such a hook stays until the end."""
    sys.addaudithook(_count)


@contextlib.contextmanager
def opened_files():
    global _opened
    _opened = counts = collections.Counter()
    try:
        yield counts
    finally:
        _opened = None


def counting(monkeypatch, place, name):
    """Replaces a function by one that counts its calls in the list that is returned."""
    calls, function = [], getattr(place, name)

    def counted(*arguments):
        calls.append(name)
        return function(*arguments)

    monkeypatch.setattr(place, name, counted)
    return calls


@pytest.mark.parametrize("kind", KINDS)
def test_once(kind, tmp_path, monkeypatch):
    write, pickles, objects = KINDS[kind]
    files = write(tmp_path / kind)
    loads = counting(monkeypatch, Unpickler, "load")
    parses = [counting(monkeypatch, room, "parse_json_object") for room in (safetensors, shards)]
    for verb, run in VERBS.items():
        for calls in (loads, *parses):
            calls.clear()
        with opened_files() as counts:
            run(tmp_path / kind, tmp_path / f"{verb}.safetensors")
        assert {path: counts[os.fspath(path)] for path in files} == dict.fromkeys(files, 1), verb
        assert (len(loads), sum(map(len, parses))) == (pickles, objects), verb


@pytest.mark.parametrize("kind", KINDS)
def test_a_description_needs_no_tensors(kind, tmp_path, monkeypatch):
    write, _, _ = KINDS[kind]
    file = write(tmp_path / kind)[0]
    loads = counting(monkeypatch, Unpickler, "load")
    with opened_files() as counts:
        description = read_description(tmp_path / kind)
    assert (description is not None) == (kind == "own.safetensors")
    assert counts[os.fspath(file)] == 1
    assert not loads


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_warning_points_to_the_line_that_loads(name, tmp_path):
    write = write_torch_file if name == "a.pth" else write_own_file
    write(tmp_path / name)
    with pytest.warns(UserWarning, match="one of 3 classes is drawn") as caught:
        load_into(MODEL.clone(num_classes=3), tmp_path / name, reset_head=True)
    assert [warning.filename for warning in caught] == [__file__]


def test_a_warning_of_an_assumption_points_to_the_line_that_asks():
    with pytest.warns(UserWarning, match="Assumed") as caught:
        Checkpoint(MODEL, {}).resolve_preprocessing()
    assert [warning.filename for warning in caught] == [__file__]
