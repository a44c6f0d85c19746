"""Thousands of damaged files: each is read or refused, at once and in little memory."""

import argparse
import codecs
import collections
import contextlib
import functools
import json
import os
import pathlib
import pickle
import random
import resource
import sys
import time
import tracemalloc
import warnings
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util

from replk_jax import checkpoint
from replk_jax.io.errors import FileError
from replk_jax.io.safetensors import write_safetensors
from replk_jax.io.tensors import StoredTensor
from replk_jax.models import RepLKNetArchitecture, create_model
from replk_jax.models.variables import abstract_variables
from replk_jax.segmentation.registry import create_segmenter
from replk_jax.torch_import import infer_architecture, load_torch
from replk_jax.torch_import.convert import to_state_dict
from replk_jax.torch_import.placeholders import Placeholder
from replk_jax.torch_import.reader import WeightsFile
from replk_jax.torch_import.writer import write_torch
from replk_jax.vision.preprocessing import Preprocessing
from tests import reference_data
from tests.torch_import.archives import write_archive, write_with_header

CHECKPOINTS = reference_data.ROOT / "checkpoints"
SECONDS_EACH = 2  # of processor time; a hang is much longer, a busy machine makes it no longer
SECONDS_TO_LOAD = 5  # JAX builds the network
BYTES_EACH = 4 << 20  # and ten times the file, by what Python allocates

# What the interpreter is asked to do while a file is read, by its own account.
_events: list[tuple[str, tuple]] | None = None


@functools.cache
def listen():
    """Hears of every import, compilation, opened file and started process (PEP 578)."""

    def hear(event, args):
        own = event == "builtins.id" or (event == "open" and isinstance(args[0], int))
        if _events is not None and not own:  # not what only looks at what is open already
            _events.append((event, args))

    sys.addaudithook(hear)
    for name in ("raw-unicode-escape", "unicode-escape", "cp437", "latin-1", "utf-8", "ascii"):
        codecs.lookup(name)  # which Python imports when they are first used


def try_to_read(path, files=()):
    """Reads everything there is, or is refused; returns which.

    Fails where anything but the file was touched, or time or memory taken beyond reason.

    Args:
      path: of the file.
      files: paths of the shards that it may name, if it is an index.
    """
    global _events
    listen()
    tracemalloc.start()
    begin = time.process_time()
    _events = []
    try:
        file = WeightsFile(path)
        walk(file.metadata)
        walk(file.contents)
        refusal = None
    except FileError as error:
        refusal = str(error)
    finally:
        events, _events = _events, None
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    named = any(refusal.startswith(f"{file}: ") for file in (path, *files)) if refusal else False
    assert refusal is None or (named and len(refusal) < 2000)
    assert time.process_time() - begin < SECONDS_EACH
    assert peak < BYTES_EACH + 10 * os.path.getsize(path)
    assert all(name == "open" and args[0] in (path, *files) for name, args in events), events
    return "read" if refusal is None else "refused"


def walk(value):
    """Everything that a caller might do with the contents."""
    repr(value)
    if isinstance(value, StoredTensor):
        array = value.read()
        assert (array.shape, array.dtype) == (value.shape, value.dtype)
    elif isinstance(value, Placeholder):
        walk([value.module, value.name, value.args, value.state, value.items, value.entries])
    elif isinstance(value, dict):
        walk([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            walk(inner)
    else:
        assert value is None or type(value) in (int, float, bool, str, bytes)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not pathlib.Path("PICKLE_WAS_EXECUTED").exists()


# Lengths, and opcodes that many pickles have.
TELLING_BYTES = b"\0\1\x7f\x80\xff()}]tRbause.0QcqhrjXKMJ\x85\x86\x87\x88\x8a\x93\x94"


def mutate(data, rng):
    """Some of: other bytes, bytes more or fewer, parts doubled, exchanged or cut off."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        here, there = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
        part = slice(here, here + rng.choice([1, 2, 4, 8, 64]))
        match rng.choice(["flip", "set", "set", "random", "insert", "drop", "double", "exchange"]):
            case "flip":
                data[here : here + 1] = bytes(
                    byte ^ 1 << rng.randrange(8) for byte in data[here : here + 1]
                )
            case "set":
                data[here : here + 1] = [rng.choice(TELLING_BYTES)]
            case "random":
                data[part] = rng.randbytes(len(data[part]))
            case "insert":
                data[here:here] = rng.randbytes(rng.choice([1, 2, 4, 8]))
            case "drop":
                del data[part]
            case "double":
                data[there:there] = data[part]
            case "exchange":
                other = slice(there, there + part.stop - part.start)
                data[part], data[other] = data[other], data[part]
    if rng.random() < 0.05:
        del data[rng.randrange(len(data) + 1) :]
    return bytes(data)


def varied_contents():
    """An object of every kind that pickles have words for."""
    return {
        "numbers": [0, -1, 300, 70_000, 2**40, 2**200, 1.5, True, None],
        "texts": ["a", "größer", "x" * 300, b"bytes", bytearray(b"array")],
        "containers": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {1, 2}, frozenset([3]), {}, []],
        "ordered": collections.OrderedDict(a=1, b=collections.OrderedDict()),
        "objects": [argparse.Namespace(lr=0.1), np.float64(2), np.arange(3), complex(1, 2)],
        "names": [len, argparse.Namespace],
        "shared": [["again"]] * 3,
    }


def fuzz(path, make, times, least_read=5):
    """Tries so many files; that they are all of one outcome would tell that nothing was tried."""
    outcomes = collections.Counter()
    for _ in range(times):
        make(path)
        outcomes[try_to_read(str(path))] += 1
    assert outcomes["refused"] >= 5, outcomes
    assert outcomes["read"] >= least_read, outcomes


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_under_right_checksums(protocol, tmp_path):
    """So that nothing stands before the machine."""
    rng = random.Random(protocol)
    data = pickle.dumps(varied_contents(), protocol)
    fuzz(tmp_path / "f", lambda path: write_archive(path, mutate(data, rng)), 150)


def test_random_programs(tmp_path):
    """What no mutation would come to."""
    rng = random.Random(0)
    words = [
        b"(", b")", b"]", b"}", b"\x8f", b"N", b"\x88", b"K\x01", b"K\x02", b"Va\n", b"U\x01c",
        b"0", b"1", b"2", b"t", b"\x85", b"\x86", b"\x87", b"l", b"d", b"a", b"e", b"s", b"u",
        b"\x90", b"\x91", b"q\0", b"q\1", b"h\0", b"h\1", b"\x94", b"R", b"\x81", b"\x92", b"b",
        b"o", b"Q", b"ca\nb\n", b"ccollections\nOrderedDict\n", b"cbuiltins\ngetattr\n", b"\x93",
        b"cbuiltins\nset\n", b"ccopyreg\n_reconstructor\n", b"c_codecs\nencode\n", b"Vstorage\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"V0\n", b"I00\n",
        b"ctorch\nSize\n", b"cos\nsystem\n",
    ]  # fmt: skip

    def make(path):
        program = b"".join(rng.choices(words, k=rng.randrange(3, 40)))
        end = rng.choice([b".", b"l.", b"\x85.", b"0]."])
        write_archive(path, b"]((((" + program + end, {"0": bytes(16)})

    fuzz(tmp_path / "f", make, 800)


@pytest.mark.parametrize("format_", ["zip", "safetensors"])
def test_small_files(format_, tmp_path):
    rng = random.Random(format_)
    tensors = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(3).astype(ml_dtypes.bfloat16),
        "c": np.int64(7),
    }
    if format_ == "zip":
        write_torch(tmp_path / "sound", tensors)
    else:
        write_safetensors(tmp_path / "sound", tensors, {"key": "value"})
    data = (tmp_path / "sound").read_bytes()
    fuzz(tmp_path / "f", lambda path: path.write_bytes(mutate(data, rng)), 400)


def test_indices_of_shards(tmp_path):
    rng = random.Random(0)
    shards = [str(tmp_path / f"{number}.safetensors") for number in range(2)]
    for number, shard in enumerate(shards):
        write_safetensors(shard, {f"w{number}": np.zeros(2, np.float32)}, {})
    data = b'{"weight_map": {"w0": "0.safetensors", "w1": "1.safetensors"}, "metadata": {"a": 1}}'
    index, outcomes = tmp_path / "model.safetensors.index.json", collections.Counter()
    for _ in range(300):
        index.write_bytes(mutate(data, rng))
        outcomes[try_to_read(str(index), shards)] += 1
    assert outcomes["refused"] >= 5, outcomes
    assert outcomes["read"] >= 5, outcomes


@reference_data.required
class TestGoldenFiles:
    @pytest.mark.parametrize(
        ("name", "times"),
        [("odd_tensors.pth", 250), ("legacy_odd_tensors.pth", 250), ("bfloat16.safetensors", 60)],
    )
    def test_files(self, name, times, tmp_path):
        rng = random.Random(name)
        data = (CHECKPOINTS / name).read_bytes()
        fuzz(tmp_path / "f", lambda path: path.write_bytes(mutate(data, rng)), times)

    @pytest.mark.parametrize(
        ("name", "times", "least_read"),
        [
            ("odd_tensors.pth", 300, 5),
            ("refuse_whole_model.pth", 150, 0),  # few changes make these readable
            ("refuse_runs_code.pth", 15, 0),
        ],
    )
    def test_pickles_under_right_checksums(self, name, times, least_read, tmp_path):
        rng = random.Random(name)
        with zipfile.ZipFile(CHECKPOINTS / name) as archive:
            members = {entry.split("/", 1)[1]: archive.read(entry) for entry in archive.namelist()}
        data = members.pop("data.pkl")

        def make(path):
            write_archive(path, mutate(data, rng), {}, members)

        fuzz(tmp_path / "f", make, times, least_read)


# A network, small enough for hundreds of copies to be tried.
MODEL = create_model(
    RepLKNetArchitecture(
        kernel_sizes=(5, 3), layers=(1, 1), channels=(4, 8), small_kernel=3, ffn_ratio=2.0
    ),
    num_classes=3,
)


@functools.cache
def sound_weights():
    """Of the network, by official names."""
    shapes = abstract_variables(MODEL)
    return to_state_dict(jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes), MODEL)


limits_memory = pytest.mark.skipif(
    not os.path.exists("/proc/self/statm"), reason="Linux tells what memory a process has"
)


@contextlib.contextmanager
def little_memory():
    """A gigabyte more than there is now, which JAX has taken for its own; else a MemoryError."""
    taken = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def loads(load, path):
    """Whether a network is loaded, instead of being refused with an error that names the file."""
    begin = time.process_time()
    try:
        with little_memory(), warnings.catch_warnings(action="ignore"):  # of what is left out
            load(path)
        refusal = None
    except (ValueError, OSError) as error:
        refusal = str(error)
    assert time.process_time() - begin < SECONDS_TO_LOAD
    assert refusal is None or (refusal.startswith(f"{path}") and len(refusal) < 100_000)
    return refusal is None


def is_network(path):
    """Whether its architecture is recognized, and whether it is loaded."""
    loaded = loads(load_torch, path)
    assert loads(checkpoint.load, path) == loaded
    return loads(infer_architecture, path), loaded


BLOCK = "stages.0.blocks.{}.pw1.conv.weight"
LARGE = "stages.0.blocks.0.large_kernel.lkb_origin.conv.weight"
POINTWISE = "stages.0.blocks.0.pw2.conv.weight"


def empty(*shape):
    return np.zeros(shape, np.float32)


# State dicts that no network has, by what is put in the place of some of its tensors.
WRONG_WEIGHTS = {
    "classifier of no axis": {"head.weight": empty()},
    "classifier of no class": {"head.weight": empty(0, 8), "head.bias": empty(0)},
    "classifier of four axes": {"head.weight": empty(3, 8, 1, 1)},
    "bias without a classifier": {"head.weight": None},
    "classifier twice": {"head.fc.weight": empty(3, 8)},
    "norm twice": {"stages.1.norm.weight": empty(8)},
    "no channels": {POINTWISE: empty(0, 4, 1, 1)},
    "more channels than any": {POINTWISE: empty(2**36, 0, 1, 1)},
    "kernel of no size": {LARGE: empty(4, 1, 0, 0)},
    "kernel of even size": {LARGE: empty(4, 1, 4, 4)},
    "kernel that is not square": {LARGE: empty(4, 1, 3, 5)},
    "kernel of two axes": {LARGE: empty(4, 25)},
    "small kernel that is larger": {LARGE.replace("lkb_origin", "small_conv"): empty(4, 1, 7, 7)},
    "widths without a ratio": {LARGE: empty(10_007, 1, 5, 5), POINTWISE: empty(9_973, 1, 1, 1)},
    "image of a million channels": {"stem.0.conv.weight": empty(1, 10**6, 1, 1)},
    "stem of no axis": {"stem.0.conv.weight": empty()},
    "blocks by the thousand": {BLOCK.format(i): empty(0) for i in range(8000)},
    "stages by the thousand": {f"stages.{i}.blocks.0.x": empty(0) for i in range(8000)},
    "stages that are not there": {f"stages.{i}.blocks.0.x": empty(0) for i in (4, 512)},
    "number without end": {BLOCK.format("9" * 5000): empty(0)},
    "number of another script": {BLOCK.format("\u0663"): empty(0)},
    "name without end": {"module." * 200_000: empty(0)},
    "names without end": {"x" * 10_000 + f"{i}": empty(0) for i in range(100)},
    "no name": {"": empty(0)},
    "name of control characters": {"\x1b[2J\n": empty(0)},
    "integers": {POINTWISE: np.zeros((4, 4, 1, 1), np.int32)},
    "truths": {POINTWISE: np.zeros((4, 4, 1, 1), np.bool_)},
}  # fmt: skip


@functools.cache
def sound_segmenter():
    """A segmenter with this backbone, by mmsegmentation's names."""
    backbone = MODEL.clone(num_classes=None, out_indices=(0, 1))
    model = create_segmenter("upernet", backbone, 3, channels=4, auxiliary_channels=2)
    shapes = abstract_variables(model)
    return to_state_dict(jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes), model)


HEAD = "decode_head.bottleneck.conv.weight"
SEG = "decode_head.conv_seg.weight"
# As `WRONG_WEIGHTS`, of the segmenter.
WRONG_HEADS = {
    "classifier of no class": {SEG: empty(0, 4, 1, 1), "decode_head.conv_seg.bias": empty(0)},
    "classifier of no axis": {SEG: empty()},
    "classifier that is a matrix": {SEG: empty(3, 4)},
    "head of no channels": {HEAD: empty(0, 8, 3, 3)},
    "head of two axes": {HEAD: empty(4, 8)},
    "branches by the thousand": {f"decode_head.psp_modules.{i}.1.x": empty(0) for i in range(8000)},
    "levels by the thousand": {f"decode_head.lateral_convs.{i}.x": empty(0) for i in range(8000)},
    "convolutions by the thousand": {f"auxiliary_head.convs.{i}.x": empty(0) for i in range(8000)},
    "auxiliary heads by the thousand": {f"auxiliary_head.{i}.x": empty(0) for i in range(8000)},
    "number without end": {f"auxiliary_head.{'9' * 5000}.x": empty(0)},
    "kernel of even size": {"auxiliary_head.convs.0.conv.weight": empty(2, 4, 2, 2)},
    "a million channels": {"auxiliary_head.convs.0.conv.weight": empty(0, 10**6, 3, 3)},
    "no conv_seg": {SEG: None},
    "integers": {HEAD: np.zeros((4, 24, 3, 3), np.int32)},
}  # fmt: skip


def replaced(weights, changes):
    return {name: value for name, value in {**weights, **changes}.items() if value is not None}


def prefixed(weights):
    return {f"{'module.' * 1000}{name}": value for name, value in weights.items()}


@limits_memory
class TestNetworks:
    """Files that are read, but whose tensors are not those of a network."""

    def test_sound(self, tmp_path):
        write_torch(tmp_path / "f", sound_weights())
        assert is_network(tmp_path / "f") == (True, True)

    @pytest.mark.parametrize("name", WRONG_WEIGHTS)
    def test_wrong_weights(self, name, tmp_path):
        write_safetensors(tmp_path / "f", replaced(sound_weights(), WRONG_WEIGHTS[name]), {})
        assert not is_network(tmp_path / "f")[1]

    def test_sound_segmenter(self, tmp_path):
        write_torch(tmp_path / "f", sound_segmenter())
        assert is_network(tmp_path / "f") == (True, True)

    @pytest.mark.parametrize("name", WRONG_HEADS)
    def test_wrong_heads(self, name, tmp_path):
        write_safetensors(tmp_path / "f", replaced(sound_segmenter(), WRONG_HEADS[name]), {})
        assert not is_network(tmp_path / "f")[1]

    def test_only_wrong_names(self, tmp_path):
        for weights in ({"module." * 200_000: empty(0)}, {}):
            write_torch(tmp_path / "f", weights)
            assert is_network(tmp_path / "f") == (False, False)

    def test_long_prefixes(self, tmp_path):
        """Any prefix is taken off, in time that does not grow with more than its length."""
        write_torch(tmp_path / "f", prefixed(sound_weights()))
        assert is_network(tmp_path / "f") == (True, True)

    def test_random_weights(self, tmp_path):
        """Tensors left out, renamed, and of other shapes and types."""
        rng = random.Random(0)
        shapes = [(), (0,), (1,), (4, 1), (4, 1, 5, 5), (0, 4, 1, 1), (8, 4, 3, 3), (1, 2, 3, 4, 5)]
        outcomes = collections.Counter()
        for _ in range(12):
            weights = dict(sound_weights())
            for name in rng.sample(sorted(weights), rng.choice([1, 1, 2, 5])):
                other = rng.choice([*weights, name.replace("0", "1"), f"module.{name}", "a"])
                array = np.zeros(rng.choice(shapes), rng.choice(["f4", "f2", "i8", "?", "c8"]))
                weights |= rng.choice([{name: None}, {name: array}, {other: weights[name]}])
            write_torch(tmp_path / "f", replaced(weights, {}))
            outcomes[is_network(tmp_path / "f")] += 1
        assert outcomes[True, False] + outcomes[False, False] >= 5, outcomes

    @pytest.mark.parametrize(
        "opcodes",
        [b"N.", b"K\1.", b"].", b"}.", b"(Vmodel\nNd.", b"(Vmodel\n}d.", b"(Vmodel\n(K\1NdVa\nNd.",
         b"(VmodelVstate_dict\n(Vema\n}dd.", b"(Vmodel\nca\nb\n)Rd.", b"(Vstate_dict\n]d.",
         b"(Vmodel\n" * 90 + b"}" + b"d" * 90 + b".", b"(N\x88VmodelVmoduled."],
    )  # fmt: skip
    def test_other_contents(self, opcodes, tmp_path):
        write_archive(tmp_path / "f", opcodes)
        assert is_network(tmp_path / "f") == (False, False)

    def test_pickles_under_right_checksums(self, tmp_path):
        rng = random.Random(0)
        write_torch(tmp_path / "sound", sound_weights())
        with zipfile.ZipFile(tmp_path / "sound") as archive:
            members = {entry.split("/", 1)[1]: archive.read(entry) for entry in archive.namelist()}
        data = members.pop("data.pkl")
        for _ in range(30):
            write_archive(tmp_path / "f", mutate(data, rng), {}, members)
            is_network(tmp_path / "f")


# What a description may hold in any place, in JSON.
ODD_VALUES = (
    "null", "true", "-1", "0", "1", "3", "1.5", "1e999", "NaN", "1" * 5000, "9" * 30, "1000000000",
    '"a"', '""', '"\\ud800"', "[]", "{}", "[-1]", "[0]", "[10000000]", "[3, 3]", '["a"]', "[null]",
    '{"a": 1}', "[[3]]", "[1e300]", "[" * 100_000, "[" * 500 + "]" * 500, '{"family": "RepLKNet"}',
)  # fmt: skip


@limits_memory
class TestOwnFiles:
    """Descriptions that do not describe what is there, or nothing at all."""

    def write(self, path, description):
        flat = traverse_util.flatten_dict(abstract_variables(MODEL), sep="/")
        arrays = {name: np.ones(leaf.shape, leaf.dtype) for name, leaf in flat.items()}
        write_safetensors(path, arrays, {"replk_jax": description})
        return path

    def description(self):
        return checkpoint.Checkpoint(MODEL, {}, Preprocessing(32), ("a", "b", "c")).description()

    def test_sound(self, tmp_path):
        assert loads(checkpoint.load, self.write(tmp_path / "f", json.dumps(self.description())))

    @pytest.mark.parametrize("text", ODD_VALUES, ids=range(len(ODD_VALUES)))
    def test_no_description(self, text, tmp_path):
        assert not loads(checkpoint.load, self.write(tmp_path / "f", text))

    @pytest.mark.parametrize("place", ["model", "architecture", "preprocessing", "others"])
    def test_odd_values(self, place, tmp_path):
        """In the place of every entry."""
        rng, description = random.Random(place), self.description()
        entries = {
            "model": description["model"],
            "architecture": description["model"]["architecture"],
            "preprocessing": description["preprocessing"],
            "others": description,
        }[place]
        outcomes = collections.Counter()
        for key, value in entries.items():
            entries[key] = "HERE"
            for text in ("null", "[-1]", *rng.sample(ODD_VALUES, 2)):
                described = json.dumps(description).replace('"HERE"', text)
                outcomes[loads(checkpoint.load, self.write(tmp_path / "f", described))] += 1
            entries[key] = value
        assert outcomes[False] > len(entries), outcomes

    def test_mutated(self, tmp_path):
        rng = random.Random(0)
        self.write(tmp_path / "sound", json.dumps(self.description()))
        data = (tmp_path / "sound").read_bytes()
        size = 8 + int.from_bytes(data[:8], "little")
        for _ in range(60):
            write_with_header(tmp_path / "f", mutate(data[8:size], rng), data[size:])
            loads(checkpoint.load, tmp_path / "f")
