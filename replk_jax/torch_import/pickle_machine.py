"""A pickle interpreter that treats everything as data.

A pickle is a program for a small stack machine. Python's interpreter imports and calls what the
program names; this one does neither. Its opcodes, decoded by the standard library's `pickletools`,
build numbers, strings and containers. A name becomes a `Placeholder`, and so does the result of a
call, except for a few functions with replacements: `OrderedDict` gives a dict, PyTorch's functions
that rebuild tensors give a `StoredTensor`.
"""

import _compat_pickle  # the names of Python 2, which protocols before 3 use
import itertools
import pickletools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NoReturn

from replk_jax.io.tensors import StoredTensor
from replk_jax.io.text import brief
from replk_jax.torch_import.call_policy import Call, classify_call
from replk_jax.torch_import.placeholders import Placeholder
from replk_jax.torch_import.pruning import prune

# From the arguments in a file to the result; None for invalid arguments.
Function = Callable[[tuple[Any, ...]], Any]

# The estimated memory that pickles may use, proportional to their size, since training logs are
# long. A list of small dicts uses the most, about fifty bytes for each byte of its pickle.
_BASE_BYTES = 1 << 25
_BYTES_PER_BYTE = 64
_MOST_BYTES = 1 << 31

_OPCODE_BYTES = 16  # a reference on the stack, and time; the value itself is counted separately
_MEMO_BYTES = 112  # an entry of the memo
_OBJECT_BYTES = 208  # a container or a placeholder, and pruning's record of it
_ENTRY_BYTES = 32  # a key or a value in a dict or set
_MARK_BYTES = 64

# Shared values that a traversal of the contents may visit again.
_MOST_SHARED_VALUES = 2_000_000
_MOST_BITS = 4096
_LONGEST_NAME = 1000
_LONGEST_MESSAGE = 300


class Unpickler:
    """Reads pickles, of any protocol from 0 to 5, as data."""

    def __init__(self, stream: BinaryIO):
        """`stream`: at the beginning of the first pickle; left at the end of the last read."""
        self._stream = stream
        self._used_bytes = 0

    def load(
        self,
        functions: Mapping[tuple[str, str], Function] | None = None,
        load_persistent: Function | None = None,
    ) -> Any:
        """Reads the next pickle.

        The result is a tree (see `prune`) of dict, list, tuple, set, frozenset, int, float, bool,
        None, str, bytes, `Placeholder`, and results of the functions. The attributes of an
        `OrderedDict` are dropped. Placeholders replace dict keys other than numbers, strings and
        placeholders, and integers of over 4096 bits.

        Args:
          functions: by module and name, the functions to call instead, with the arguments in the
            file.
          load_persistent: called with each persistent id, the tuple that refers to data outside
            the pickle.

        Raises:
          ValueError: not a pickle; one with a dangerous call (see `classify_call`); or pickles that
            need more memory than 32 MiB plus 64 bytes for each of their bytes, or than 2 GiB.
        """
        machine = _Machine(_PLAIN | dict(functions or {}), load_persistent, self._used_bytes)
        opcodes = 0
        try:
            for opcode, argument, position in pickletools.genops(self._stream):
                opcodes += 1
                assert position is not None  # None only for streams without positions
                machine.do(opcode.name, argument, position)
        except (ValueError, DeprecationWarning) as error:  # of an escape, where that is an error
            near = machine.nearest_string()
            place = f"before byte {self._stream.tell()}" + (f", near {brief(near)}" if near else "")
            raise ValueError(
                f"its pickle cannot be read: {str(error)[:_LONGEST_MESSAGE]} ({place}). "
                "Download it again, from a trusted source."
            ) from None  # Python's own message may quote a whole file
        self._used_bytes = machine.used_bytes
        return prune(machine.result, _MOST_SHARED_VALUES + opcodes)


class _Machine:
    """A stack, the stacks that MARK has saved, and a memo.

    Attributes:
      result: the value on the stack at STOP.
      used_bytes: the estimated memory of all pickles so far.
    """

    def __init__(
        self,
        functions: Mapping[tuple[str, str], Function],
        load_persistent: Function | None,
        used_bytes: int,
    ):
        self.result: Any = None
        self.used_bytes = used_bytes
        self._most_bytes = 0
        self._functions = functions
        self._load_persistent = load_persistent
        self._stack: list[Any] = []
        self._aside: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def do(self, opcode: str, argument: Any, position: int) -> None:
        """Executes the opcode at `position`, in bytes from the beginning of the stream."""
        action = _ACTIONS.get(opcode)
        if action is None:
            raise ValueError(f"the opcode {opcode} is not one of a checkpoint")
        size = sys.getsizeof(argument)
        read = position + size  # about: the argument is part of the pickle as well
        self._most_bytes = min(_BASE_BYTES + _BYTES_PER_BYTE * read, _MOST_BYTES)
        self._count(_OPCODE_BYTES + size)
        action(self, argument)

    def nearest_string(self) -> str:
        """The last string on the stack: in a state dict, the name of the current tensor."""
        stacks = (self._stack, *reversed(self._aside))
        values = itertools.chain.from_iterable(map(reversed, stacks))
        return next((value for value in values if isinstance(value, str)), "")

    # The stack.

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop() if self._stack else _underflow()

    def top(self) -> Any:
        return self._stack[-1] if self._stack else _underflow()

    def pop_many(self, count: int) -> tuple[Any, ...]:
        if len(self._stack) < count:
            _underflow()
        values = tuple(self._stack[-count:])
        del self._stack[-count:]
        return values

    def pop_to_mark(self) -> list[Any]:
        if not self._aside:
            raise ValueError("it has no MARK to go back to")
        values, self._stack = self._stack, self._aside.pop()
        return values

    def mark(self, _: None) -> None:
        self._count(_MARK_BYTES)
        self._aside.append(self._stack)
        self._stack = []

    def discard(self, _: None) -> None:
        if self._stack or not self._aside:
            self.pop()
        else:
            self.pop_to_mark()

    # The memo.

    def put(self, index: int) -> None:
        self._count(_MEMO_BYTES)
        self._memo[index] = self.top()

    def memoize(self, _: None) -> None:
        self.put(len(self._memo))

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise ValueError(f"it has stored nothing under {index}")
        self.push(self._memo[index])

    # Numbers and containers.

    def push_int(self, value: int) -> None:
        """Replaces a huge integer, which Python hashes slowly and does not print."""
        bits = value.bit_length()
        if bits > _MOST_BITS:
            self.push(Placeholder("builtins", "int", (), omitted=f"it has {bits} bits"))
        else:
            self.push(value)

    def append(self, values: Iterable[Any]) -> None:
        target = self.top()
        if isinstance(target, Placeholder):
            target = target.items
        if not isinstance(target, list):
            raise ValueError(f"it appends to a {type(target).__name__}")
        target.extend(values)

    def set_items(self, values: Sequence[Any]) -> None:
        target = self.top()
        if isinstance(target, Placeholder):
            target = target.entries
        if not isinstance(target, dict):
            raise ValueError(f"it stores an entry in a {type(target).__name__}")
        self._count(_ENTRY_BYTES * len(values))
        target.update(_pairs(values))

    def push_container(self, container: Any) -> None:
        self._count(_OBJECT_BYTES)
        self.push(container)

    def push_dict(self, _: None) -> None:
        values = self.pop_to_mark()
        self.push_container({})
        self.set_items(values)

    def push_frozenset(self, _: None) -> None:
        values = self.pop_to_mark()
        self._count(_ENTRY_BYTES * len(values))
        self.push_container(frozenset(map(_key, values)))

    def add_items(self, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, set):
            raise ValueError(f"it adds to a {type(target).__name__}")
        self._count(_ENTRY_BYTES * len(values))
        target.update(map(_key, values))

    # Names and calls.

    def push_name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("it names a class by something that is not a string")
        if len(module) + len(name) > _LONGEST_NAME:
            raise ValueError("it names a class by what is too long for a name")
        self._count(_OBJECT_BYTES)
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        self.push(Placeholder(_compat_pickle.IMPORT_MAPPING.get(module) or module, name))

    def push_global(self, argument: str) -> None:
        self.push_name(*argument.split(" ", 1))

    def call(self, function: Any, args: Any, *, plainly: bool = False) -> None:
        """Implements REDUCE and the like; `plainly` if it only calls `__new__` of a class."""
        if not isinstance(args, tuple):
            raise ValueError(f"it has a {type(args).__name__} as arguments")
        if not (isinstance(function, Placeholder) and function.args is None):
            raise ValueError("it calls what is not a function")
        self._count(_OBJECT_BYTES)
        replacement = self._functions.get((function.module, function.name))
        if replacement is not None:
            self.push(self._replace(replacement, function, args))
            return
        effect = Call.DATA if plainly else classify_call(function, args)
        if effect is Call.DANGEROUS:
            raise ValueError(
                f"it calls {function.path}, so it is a program and no checkpoint, and none of it "
                "has been run"
            )
        called = function.called or effect is Call.UNKNOWN
        self.push(Placeholder(function.module, function.name, args, called=called))

    def reduce(self, _: None) -> None:
        self.call(*self.pop_many(2))

    def new_object(self, _: None) -> None:
        self.call(*self.pop_many(2), plainly=True)

    def new_object_with_keywords(self, _: None) -> None:
        class_, args, keywords = self.pop_many(3)
        self.call(class_, (args, keywords), plainly=True)

    def instance(self, argument: str) -> None:
        args = tuple(self.pop_to_mark())
        self.push_global(argument)
        self.call(self.pop(), args)

    def object(self, _: None) -> None:
        values = self.pop_to_mark()
        self.call(values[0] if values else _underflow(), tuple(values[1:]))

    def build(self, _: None) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Placeholder) and target.args is not None:
            target.state = state
        elif not isinstance(target, dict | StoredTensor):
            raise ValueError(f"it gives attributes to {brief(target)}")

    def load_persistent(self, reference: Any) -> None:
        loaded = self._load_persistent and self._load_persistent(reference)
        if loaded is None:
            raise ValueError(f"it refers to {brief(reference)}, which is no storage")
        self.push_container(loaded)

    def stop(self, _: None) -> None:
        self.result = self.pop()

    def _replace(self, replacement: Function, function: Placeholder, args: tuple) -> Any:
        for value in args:
            if isinstance(value, str | bytes):
                self._count(sys.getsizeof(value))
            elif isinstance(value, list | tuple | dict | set):
                self._count(2 * _ENTRY_BYTES * len(value))
            elif isinstance(value, Placeholder):
                self._count(sys.getsizeof(value.name))
        result = replacement(args)
        if result is None:
            raise ValueError(f"{function.path} does not take {brief(args)}")
        return result

    def _count(self, size: int) -> None:
        self.used_bytes += size
        if self.used_bytes > self._most_bytes:
            raise ValueError("it makes more than any checkpoint: it is too long, or a trap")


_ACTIONS: dict[str, Callable[[_Machine, Any], object]] = {
    "PROTO": lambda machine, version: None,
    "FRAME": lambda machine, size: None,
    "STOP": _Machine.stop,
    "MARK": _Machine.mark,
    "POP": _Machine.discard,
    "POP_MARK": lambda machine, _: machine.pop_to_mark(),
    "DUP": lambda machine, _: machine.push(machine.top()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": _Machine.memoize,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2"), _Machine.push),
    **dict.fromkeys(("INT", "LONG", "LONG1", "LONG4"), _Machine.push_int),
    **dict.fromkeys(("FLOAT", "BINFLOAT"), _Machine.push),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _Machine.push),
    **dict.fromkeys(("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"), _Machine.push),
    "BYTEARRAY8": lambda machine, value: machine.push(bytes(value)),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push_container(machine.pop_many(1)),
    "TUPLE2": lambda machine, _: machine.push_container(machine.pop_many(2)),
    "TUPLE3": lambda machine, _: machine.push_container(machine.pop_many(3)),
    "TUPLE": lambda machine, _: machine.push_container(tuple(machine.pop_to_mark())),
    "EMPTY_LIST": lambda machine, _: machine.push_container([]),
    "LIST": lambda machine, _: machine.push_container(machine.pop_to_mark()),
    "APPEND": lambda machine, _: machine.append(machine.pop_many(1)),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "EMPTY_DICT": lambda machine, _: machine.push_container({}),
    "DICT": _Machine.push_dict,
    "SETITEM": lambda machine, _: machine.set_items(machine.pop_many(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "EMPTY_SET": lambda machine, _: machine.push_container(set()),
    "FROZENSET": _Machine.push_frozenset,
    "ADDITEMS": lambda machine, _: machine.add_items(machine.pop_to_mark()),
    "GLOBAL": _Machine.push_global,
    "STACK_GLOBAL": lambda machine, _: machine.push_name(*machine.pop_many(2)),
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new_object,
    "NEWOBJ_EX": _Machine.new_object_with_keywords,
    "INST": _Machine.instance,
    "OBJ": _Machine.object,
    "BUILD": _Machine.build,
    "PERSID": _Machine.load_persistent,
    "BINPERSID": lambda machine, _: machine.load_persistent(machine.pop()),
}


def _underflow() -> NoReturn:
    raise ValueError("it takes more from its stack than there is")


def _pairs(values: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    if len(values) % 2:
        raise ValueError("it has a key without a value")
    return zip(map(_key, values[::2]), values[1::2], strict=True)


_HASHED_AT_ONCE = (str, bytes, int, float, Placeholder, StoredTensor)


def _key(value: Any) -> Any:
    """A key that hashes fast: nested tuples and huge integers do not."""
    if isinstance(value, int) and value.bit_length() > 64:
        return Placeholder("builtins", "int", (value,))
    if value is None or isinstance(value, _HASHED_AT_ONCE):
        return value
    return Placeholder("builtins", type(value).__name__, (value,))


def _dict(args: tuple[Any, ...]) -> dict[Any, Any] | None:
    match args:
        case ():
            return {}
        case (dict(entries),):
            return dict(entries)
        case (list(pairs) | tuple(pairs),):  # an OrderedDict from Python 2
            if all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
                return {_key(key): value for key, value in pairs}
    return None


def _default_dict(args: tuple[Any, ...]) -> dict[Any, Any] | None:
    return _dict(args[1:])  # the first makes what is missing


def _set(args: tuple[Any, ...]) -> set[Any] | None:
    match args:
        case ():
            return set()
        case (list(values) | tuple(values) | set(values),):
            return set(map(_key, values))
    return None


def _bytes(args: tuple[Any, ...]) -> bytes | Placeholder | None:
    """Bytes in protocols before 3: `bytes()` or `_codecs.encode(text, "latin1")`."""
    match args:
        case ():
            return b""
        case (str(text), "latin1" | "latin-1"):
            return text.encode("latin-1")
        case (str(), str()):
            return Placeholder("_codecs", "encode", args)
    return None


def _attribute(args: tuple[Any, ...]) -> Placeholder | None:
    """The name of a nested class in protocols before 4."""
    match args:
        case (Placeholder(args=None) as owner, str(name)):
            if len(owner.path) + len(name) <= _LONGEST_NAME:
                return Placeholder(owner.module, f"{owner.name}.{name}")
        case (_, str()):
            return Placeholder("builtins", "getattr", args)
    return None


def _reconstruct(args: tuple[Any, ...]) -> Placeholder | None:
    """An object in protocols before 2, from its class, base and the state of the base."""
    match args:
        case (Placeholder(args=None) as class_, Placeholder(), held):
            return Placeholder(class_.module, class_.name, () if held is None else (held,))
    return None


def _builtin_type(args: tuple[Any, ...]) -> Placeholder | None:
    """A type without an importable name, such as that of code, in cloudpickle and dill."""
    match args:
        case (str(name),) if len(name) <= _LONGEST_NAME:
            return Placeholder("types", name)
    return None


def _dynamic_class(args: tuple[Any, ...]) -> Placeholder | None:
    """A class with its code, defined in a script, in cloudpickle and dill."""
    match args:
        case (_, str(name), *_) | (str(name), *_) if len(name) <= _LONGEST_NAME:
            return Placeholder("__main__", name, called=True)
    return None


_CLOUDPICKLE = (
    "cloudpickle",
    "joblib.externals.cloudpickle",
    "pyspark.cloudpickle",
    "ray.cloudpickle",
)
_CODE_PICKLERS = (
    *(f"{package}.cloudpickle" for package in _CLOUDPICKLE),
    "dill._dill",
    "dill.dill",
)
_MAKERS_OF_CLASSES: dict[str, Function] = {
    "_builtin_type": _builtin_type,
    "_load_type": _builtin_type,
    "_make_skeleton_class": _dynamic_class,
    "_make_skeleton_enum": _dynamic_class,
    "_create_type": _dynamic_class,
    "_create_namedtuple": _dynamic_class,
}

_PLAIN: dict[tuple[str, str], Function] = {
    ("collections", "OrderedDict"): _dict,
    ("collections", "Counter"): _dict,
    ("collections", "defaultdict"): _default_dict,
    ("builtins", "dict"): _dict,
    ("builtins", "set"): _set,
    ("builtins", "getattr"): _attribute,
    ("copyreg", "_reconstructor"): _reconstruct,
    ("builtins", "bytes"): _bytes,
    ("_codecs", "encode"): _bytes,
    **{
        (module, name): function
        for module in _CODE_PICKLERS
        for name, function in _MAKERS_OF_CLASSES.items()
    },
}
