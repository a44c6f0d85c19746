"""Classifies the calls in a pickle: they make data, have an unknown effect, or are dangerous.

This package imports and calls nothing that a file names, so no file can do harm through it. The
policy decides how a file is treated:

- A call in `_DATA` only makes data. It becomes an ordinary `Placeholder`.
- A call into the packages, modules and functions of `_DANGEROUS_...` runs programs or code, loads
  modules, or accesses files, the network, memory or other processes. No checkpoint needs it, and
  opening the file with PyTorch would run it: the file is rejected.
- Any other call becomes a `Placeholder` with `called=True`.
"""

import builtins
import enum
from typing import Any

from replk_jax.torch_import.placeholders import Placeholder
from replk_jax.torch_import.stdlib_classes import ENUMERATIONS, EXCEPTIONS


class Call(enum.Enum):
    """The effect that a call would have."""

    DATA = "makes data"
    UNKNOWN = "unknown"
    DANGEROUS = "dangerous"


def classify_call(function: Placeholder, args: tuple[Any, ...]) -> Call:
    """Classifies a call of a function or class, given by name as a placeholder."""
    match args:
        case (Placeholder(args=None) as applied, *_) if function.path in _APPLYING:
            return classify_call(applied, ())
    if function.path in _DATA:
        return Call.DATA
    return Call.DANGEROUS if _is_dangerous(function) else Call.UNKNOWN


def _is_dangerous(function: Placeholder) -> bool:
    package = function.module.split(".")[0]
    owner = f"{function.module}.{function.name.split('.')[0]}"
    return (
        package in _DANGEROUS_PACKAGES
        or function.module in _DANGEROUS_MODULES
        or owner in _DANGEROUS_FUNCTIONS
    )


def _paths(names: dict[str, str]) -> frozenset[str]:
    return frozenset(f"{module}.{name}" for module in names for name in names[module].split())


def _words(*texts: str) -> frozenset[str]:
    return frozenset(word for text in texts for word in text.split())


_NUMPY_ARRAYS = "_reconstruct scalar"
_NUMPY_RANDOM = "__bit_generator_ctor __generator_ctor __randomstate_ctor"
_PATHS = "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath"
_OPERATORS = "attrgetter getitem itemgetter methodcaller or_"

_POSIX = "sched_param times_result uname_result"

_BUILTIN_EXCEPTIONS = " ".join(
    name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException)
)

_DATA = _paths(
    {
        "_codecs": "encode",
        "_collections": "OrderedDict deque defaultdict",
        "_functools": "partial reduce",
        "_operator": _OPERATORS,
        "_struct": "Struct",
        "argparse": "Namespace",
        "array": "_array_reconstructor array",
        "builtins": "Ellipsis NotImplemented bool bytearray bytes complex dict enumerate filter "
        "float frozenset getattr int iter list map object range reversed set slice str tuple type "
        f"zip {_BUILTIN_EXCEPTIONS}",
        "collections": "ChainMap Counter OrderedDict UserDict UserList defaultdict deque",
        "collections.abc": "_CallableGenericAlias",
        "copyreg": "__newobj__ __newobj_ex__ _reconstructor",
        "datetime": "date datetime time timedelta timezone",
        "decimal": "Context Decimal",
        "fractions": "Fraction",
        "functools": "partial reduce",
        "inspect": "Parameter Signature",
        "ipaddress": "IPv4Address IPv4Network IPv6Address IPv6Network",
        "itertools": "accumulate chain combinations compress count cycle dropwhile filterfalse "
        "islice permutations product repeat starmap takewhile zip_longest",
        "logging": "getLogger",
        "numpy": "dtype",
        "numpy.core.multiarray": _NUMPY_ARRAYS,
        "numpy.core.numeric": "_frombuffer",
        "numpy.ma.core": "_mareconstruct",
        "numpy.random._pickle": _NUMPY_RANDOM,
        "numpy.random.bit_generator": "__pyx_unpickle_SeedSequence",
        "numpy._core.multiarray": _NUMPY_ARRAYS,
        "numpy._core.numeric": "_frombuffer",
        "nt": _POSIX,
        "operator": _OPERATORS,
        "os": "stat_result statvfs_result terminal_size times_result",
        "pathlib": _PATHS,
        "pathlib._local": _PATHS,  # how Python 3.13 names them
        "platform": "uname_result",
        "posix": _POSIX,
        "random": "Random",
        "re": "RegexFlag _compile",
        "struct": "Struct",
        "time": "struct_time",
        "torch": "Generator device",
        "torch._C": "Generator",
        "torch.serialization": "_get_layout",
        "types": "GenericAlias MappingProxyType SimpleNamespace",
        "typing": "ForwardRef NewType ParamSpec TypeVar Union",
        "uuid": "SafeUUID UUID",
        "weakref": "WeakKeyDictionary WeakSet WeakValueDictionary",
        "zoneinfo": "ZoneInfo ZoneInfo._unpickle",
    }
)
_DATA |= _paths(EXCEPTIONS) | _paths(ENUMERATIONS)

# Functions that call their first argument.
_APPLYING = _paths(
    {
        "_functools": "reduce",
        "builtins": "filter iter map",
        "functools": "reduce",
        "itertools": "accumulate dropwhile filterfalse starmap takewhile",
    }
)

# Including all their modules.
_DANGEROUS_PACKAGES = _words(
    "asyncio concurrent ctypes dbm ensurepip http importlib multiprocessing sqlite3 unittest",
    "urllib venv xmlrpc zipfile",
)

# Standard modules that are not packages. Users have packages of the same names: `code.modes` and
# `site.config` have nothing to do with `code` and `site`.
_DANGEROUS_MODULES = _words(
    # Programs and other processes.
    "_posixsubprocess _winapi commands nt os os.path popen2 posix pty signal subprocess",
    # Code, modules and the interpreter.
    "_ctypes _frozen_importlib _frozen_importlib_external _imp _pickle bdb cProfile code codeop",
    "doctest gc imp inspect marshal pdb pickle pkgutil py_compile pydoc runpy site sys",
    "sys.monitoring sysconfig timeit zipapp zipimport",
    # Files.
    "_sqlite3 fileinput linecache mmap shelve shutil tarfile tempfile",
    # The network.
    "_socket _ssl ftplib imaplib logging.config logging.handlers nntplib poplib smtplib socket",
    "socketserver ssl telnetlib webbrowser",
)

_DANGEROUS_FUNCTIONS = _paths(
    {
        "_io": "FileIO open open_code",
        "_operator": "call",
        "_thread": "interrupt_main start_new start_new_thread",
        "atexit": "register",
        "builtins": "__build_class__ __import__ breakpoint compile delattr eval exec execfile exit "
        "file globals help input locals open quit raw_input reload setattr",
        "bz2": "BZ2File open",
        "codecs": "open",
        "gzip": "GzipFile open",
        "io": "FileIO open open_code",
        "logging": "FileHandler basicConfig",
        "lzma": "LZMAFile open",
        "operator": "call",
        "platform": "popen",
        "threading": "Thread Timer setprofile settrace",
        "types": "FunctionType LambdaType",
    }
)
