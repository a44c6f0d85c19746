"""Which calls of a pickle make data, and which are rejected."""

import argparse
import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import ipaddress
import itertools
import logging
import operator
import os
import pathlib
import pickle
import random
import re
import socket
import time
import types
import typing
import uuid
import zoneinfo

import numpy as np
import pytest

from replk_jax.torch_import.call_policy import Call, classify_call
from replk_jax.torch_import.reader import FileError, read
from replk_jax.torch_import.tensors import Placeholder
from tests.torch_import.archives import write_archive


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass(frozen=True)
class Config:
    lr: float = 0.1
    names: tuple[str, ...] = ("a", "b")


class Pair(typing.NamedTuple):
    left: int
    right: str


T = typing.TypeVar("T")

# What training scripts store beside the weights.
HARMLESS = {
    "paths": [pathlib.PurePath("a"), pathlib.PureWindowsPath("a"), pathlib.Path("a")],
    "type hints": [
        list[int], dict[str, int], int | None, typing.List[int], typing.Optional[int],  # noqa: UP006, UP045
        typing.Dict[str, typing.Any], typing.Callable[[int], str], typing.Tuple[int, ...],  # noqa: UP006
        typing.Literal["a"], typing.Annotated[int, 3], T,
    ],
    "loggers": [logging.getLogger("train"), logging.getLogger()],
    "functions": [
        functools.partial(max, 1), operator.itemgetter(1), operator.attrgetter("a"),
        operator.methodcaller("a"), len, np.add, [].append,
    ],
    "patterns": [re.compile("a+", re.IGNORECASE), re.IGNORECASE],
    "numbers": [
        1 + 2j, 10**50, decimal.Decimal("1.5"), decimal.getcontext(), fractions.Fraction(1, 2),
    ],
    "constants": [Ellipsis, NotImplemented, type(None), range(3), slice(1, 2), object()],
    "dates": [
        datetime.datetime.now(datetime.UTC), datetime.date(2024, 1, 1), datetime.timedelta(1),
        datetime.time(1), time.localtime(0), zoneinfo.ZoneInfo("UTC"),
    ],
    "containers": [
        argparse.Namespace(a=1), types.SimpleNamespace(a=1), collections.deque([1], 3),
        collections.ChainMap({"a": 1}), collections.UserDict(a=1), collections.Counter("a"),
        Config(), Pair(1, "a"), bytearray(b"a"), array.array("f", [1]),
    ],
    "iterators": [
        itertools.count(3), iter([1]), iter({1: 2}), enumerate([1]), zip([1], strict=False),
        itertools.chain([1]), itertools.cycle([1]), itertools.product([1]), reversed([1]),
    ],
    "random states": [
        random.getstate(), random.Random(0), np.random.RandomState(0), np.random.default_rng(0),
    ],
    "numpy": [
        np.float32(1), np.bool_(True), np.arange(3), np.array(["a"]), np.dtype("f4"), np.float64,
        np.array([1, None]), np.dtype([("a", "i4")]), np.datetime64("2020-01-01"),
        np.ma.array([1, 2], mask=[0, 1]),
    ],
    "others": [
        uuid.uuid4(), ipaddress.ip_address("1.2.3.4"), socket.AF_INET, os.stat("/"),
        ValueError("a"), KeyboardInterrupt(),
    ],
}  # fmt: skip


def calls(value):
    """The paths of all calls of unknown effect."""
    match value:
        case Placeholder():
            own = [value.path] if value.called else []
            return own + calls([value.args, value.state, value.items, value.entries])
        case dict():
            return calls([*value.keys(), *value.values()])
        case list() | tuple() | set() | frozenset():
            return [path for inner in value for path in calls(inner)]
    return []


@pytest.mark.parametrize("kind", HARMLESS)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_harmless_objects(kind, protocol, tmp_path):
    for number, value in enumerate(HARMLESS[kind]):
        write_archive(tmp_path / "f", pickle.dumps({"value": value}, protocol))
        assert not calls(read(tmp_path / "f")), number


@pytest.mark.parametrize("name", ["PosixPath", "WindowsPath", "PurePosixPath"])
def test_paths_of_python_3_13(name, tmp_path):
    contents = read(
        write_archive(tmp_path / "f", f"}}Va\ncpathlib._local\n{name}\n(Vb\ntRs.".encode())
    )
    assert repr(contents["a"]) == f"pathlib._local.{name}('b')"
    assert not contents["a"].called


def test_calls_of_unknown_effect_are_listed(tmp_path):
    contents = read(write_archive(tmp_path / "f", pickle.dumps({"value": Color.RED}, 2)))
    assert calls(contents) == [f"{__name__}.Color"]
    contents = read(write_archive(tmp_path / "f", b"}Va\ncbase64\nb64decode\n(Vx\ntRs."))
    assert repr(contents["a"]) == "base64.b64decode('x')"
    assert calls(contents) == ["base64.b64decode"]


DANGEROUS = (
    "os.system", "posix.system", "nt.system", "subprocess.Popen", "subprocess.check_output",
    "builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__", "builtins.open",
    "builtins.setattr", "importlib.import_module", "runpy.run_path", "pty.spawn", "socket.socket",
    "shutil.rmtree", "ctypes.CDLL", "sys.settrace", "code.InteractiveInterpreter", "pickle.loads",
    "_pickle.loads", "marshal.loads", "pkgutil.resolve_name", "pydoc.locate", "timeit.timeit",
    "webbrowser.open", "urllib.request.urlopen", "http.client.HTTPConnection", "io.open",
    "_io.FileIO", "tempfile.mkdtemp", "multiprocessing.Process", "threading.Thread",
    "_thread.start_new_thread", "asyncio.run", "logging.FileHandler", "types.FunctionType",
    "operator.call", "zipimport.zipimporter", "bdb.Bdb", "os.path.join",
)  # fmt: skip


@pytest.mark.parametrize("path", DANGEROUS)
def test_dangerous_calls_are_rejected(path, tmp_path):
    """Wherever they are, and whether or not the result is kept."""
    module, name = path.rsplit(".", 1)
    call = f"c{module}\n{name}\n(Va\ntR".encode()
    for pickle_ in (b"}Va\n" + call + b"s.", b"}Va\n]" + call + b"a0Ns.", b"}" + call + b"0."):
        write_archive(tmp_path / "f", pickle_)
        with pytest.raises(FileError, match=f"calls {re.escape(path)}, so it is a program"):
            read(tmp_path / "f")


def test_functions_that_call_their_argument():
    for path in ("builtins.map", "builtins.filter", "functools.reduce", "itertools.starmap"):
        function = Placeholder(*path.rsplit(".", 1))
        for applied, effect in (
            (Placeholder("os", "system"), Call.DANGEROUS),
            (Placeholder("operator", "or_"), Call.DATA),
            (Placeholder("mine", "function"), Call.UNKNOWN),
        ):
            assert classify_call(function, (applied, [])) is effect


def test_names_alone_are_harmless(tmp_path):
    contents = read(write_archive(tmp_path / "f", b"}Va\ncos\nsystem\ns."))
    assert repr(contents["a"]) == "os.system"
