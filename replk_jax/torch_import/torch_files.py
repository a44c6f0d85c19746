"""The two formats of `torch.save`.

Since PyTorch 1.6 a file is a zip archive of a pickle, FOLDER/data.pkl, and the bytes of each
storage, FOLDER/data/KEY. Before, it was five pickles (a magic number, a version, properties of the
machine, the object, the keys of its storages), followed for each storage by the number of its
elements and their bytes. In both, the object's pickle describes tensors as views of storages, which
it references by key.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from replk_jax.io.byte_file import ByteFile
from replk_jax.io.tensors import DTYPES, Storage, StoredTensor
from replk_jax.io.text import brief
from replk_jax.torch_import import unreadable
from replk_jax.torch_import.other_formats import explain_archive
from replk_jax.torch_import.pickle_machine import Function, Unpickler
from replk_jax.torch_import.placeholders import Placeholder, UnreadableTensor
from replk_jax.torch_import.storage_classes import STORAGE_CLASSES
from replk_jax.torch_import.zip_archive import Member, open_member, read_members

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001

_STORAGE_DTYPES = {class_: DTYPES[name] for name, class_ in STORAGE_CLASSES.items()}
_STORAGE_DTYPES["UntypedStorage"] = np.dtype(np.uint8)
# Storages of quantized tensors contain integers that are not the values of a plain tensor.
_QUANTIZED = {
    "QInt8Storage": np.dtype(np.int8),
    "QInt32Storage": np.dtype(np.int32),
    "QUInt8Storage": np.dtype(np.uint8),
    "QUInt4x2Storage": np.dtype(np.uint8),
    "QUInt2x4Storage": np.dtype(np.uint8),
}
_STORAGE_DTYPES |= _QUANTIZED
_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")

# The longest string or bytes in a pickle. Training logs contain long texts and arrays.
_MOST_AT_ONCE = 1 << 28

# The contents of a file. Deeper levels also contain set, frozenset, int, float, bool, None, str,
# bytes, `StoredTensor`, `UnreadableTensor` and `Placeholder`.
Contents = dict[Any, Any] | list[Any] | tuple[Any, ...]

# Maps a key, the number of elements and their type to the storage.
_FindStorage = Callable[[str, int, np.dtype], Storage]


def read_zip(file: ByteFile) -> Contents:
    """The contents of a file in the zip format.

    Raises:
      ValueError: a damaged or malicious file, or one whose pickle is not of a container.
    """
    members = read_members(file)
    folder = _folder(members)
    big_endian = _big_endian(file, members.get(f"{folder}/byteorder"))
    storages: dict[str, Storage] = {}

    def find(key: str, count: int, dtype: np.dtype) -> Storage:
        if key not in storages:
            member = members.get(f"{folder}/data/{key}")
            if member is None:
                raise ValueError(f"storage {brief(key)} is not in the file")
            member.require_stored()
            storages[key] = Storage(
                file,
                f"storage {brief(key)}",
                member.size,
                member.start,
                member.checksum,
                big_endian,
            )
        return storages[key]

    pickle = open_member(file, members[f"{folder}/data.pkl"], _MOST_AT_ONCE)
    return _TorchObjects(find).read(Unpickler(pickle))


def read_legacy(file: ByteFile) -> Contents:
    """The contents of a file in the older format.

    Raises:
      ValueError: as `read_zip`.
    """
    stream = file.stream(_MOST_AT_ONCE)
    pickles = Unpickler(stream)
    if pickles.load() != LEGACY_MAGIC:
        raise ValueError("it is a pickle, but not one that torch.save has written.")
    if (version := pickles.load()) != _LEGACY_VERSION:
        raise ValueError(f"its format has version {brief(version)}; known: {_LEGACY_VERSION}.")
    pickles.load()  # properties of the machine, which are not needed
    storages: dict[str, Storage] = {}
    counts: dict[str, int] = {}

    def find(key: str, count: int, dtype: np.dtype) -> Storage:
        counts.setdefault(key, count)
        return storages.setdefault(
            key, Storage(file, f"storage {brief(key)}", count * dtype.itemsize)
        )

    contents = _TorchObjects(find).read(pickles)
    keys, start = pickles.load(), stream.tell()
    if not _are_names(keys) or sorted(keys) != sorted(storages):
        raise ValueError("its storages are not those that its tensors need.")
    for key in keys:
        if int.from_bytes(file.read(start, 8), "little", signed=True) != counts[key]:
            raise ValueError(f"storage {brief(key)} does not have its {counts[key]} elements.")
        storages[key].start = start + 8
        start += 8 + storages[key].size
    if start > file.size:
        raise ValueError("it ends within its storages. Copy or download it again.")
    return contents


def _folder(members: Mapping[str, Member]) -> str:
    """The folder of the archive that contains everything.

    Raises:
      ValueError: an archive of another kind.
    """
    if explanation := explain_archive(members):
        raise ValueError(explanation)
    folders = {name.split("/")[0] for name in members}
    folders = {folder for folder in folders if f"{folder}/data.pkl" in members}
    if len(folders) != 1:
        raise ValueError("it is a zip archive, but not one that torch.save has written.")
    (folder,) = folders
    return folder


def _big_endian(file: ByteFile, member: Member | None) -> bool:
    order = b"little" if member is None else open_member(file, member, most=8).read(8)
    if order not in (b"little", b"big"):
        raise ValueError(f"its byte order is {brief(order)}; known: little, big.")
    return order == b"big"


def _are_names(keys: Any) -> bool:
    return isinstance(keys, list) and all(isinstance(key, str) for key in keys)


class _TypedStorage(Placeholder):
    """A reference to a storage in the pickle.

    Attributes:
      storage: the bytes.
      dtype: of the elements.
      offset: start of the referenced part in `storage`, in bytes.
    """

    __slots__ = ("dtype", "offset", "storage")

    def __init__(self, type_: str, storage: Storage, dtype: np.dtype, offset: int):
        super().__init__("torch", type_, (storage.name,))
        self.storage, self.dtype, self.offset = storage, dtype, offset


class _TorchObjects:
    """Builds the tensors in a pickle of `torch.save` from storages."""

    def __init__(self, find: _FindStorage):
        self._find = find

    @property
    def _functions(self) -> dict[tuple[str, str], Function]:
        """Built on each access: an attribute would create a reference cycle."""
        return {
            **{maker: functools.partial(unreadable.of_maker, maker) for maker in unreadable.MAKERS},
            ("torch", "Size"): _size,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self._tensor_of_dtype,
            ("torch._utils", "_rebuild_parameter"): _first_tensor,
            ("torch._utils", "_rebuild_parameter_with_state"): _first_tensor,
            ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _first_tensor,
            ("torch._utils", "_rebuild_wrapper_subclass"): _subclass,
            ("torch._tensor", "_rebuild_from_type_v2"): self._tensor_of_class,
        }

    def read(self, pickles: Unpickler) -> Contents:
        contents = pickles.load(self._functions, self._storage)
        if not isinstance(contents, dict | list | tuple):
            raise ValueError(_no_container(contents))
        return contents

    def _storage(self, reference: Any) -> Placeholder | None:
        match reference:
            case ("storage", Placeholder(module=module, name=name), str(key), _, int(count), *view):
                if module not in _STORAGE_MODULES or name not in _STORAGE_DTYPES:
                    raise _unknown_storage(f"{module}.{name}")
                return self._typed_storage(name, key, count, view)
            case ("module", Placeholder() as class_, *_):  # with its source code
                return class_
        return None

    def _typed_storage(self, name: str, key: str, count: int, view: list) -> _TypedStorage | None:
        dtype = _STORAGE_DTYPES[name]
        storage = self._find(key, count, dtype)
        if not 0 <= count * dtype.itemsize <= storage.size:
            wanted = f"{brief(count)} elements of {dtype}"
            raise ValueError(f"{storage.name} has {storage.size} bytes, which are not {wanted}")
        match view:
            case [] | [None]:
                return _TypedStorage(name, storage, dtype, 0)
            case [(_, int(offset), int())]:
                return _TypedStorage(name, storage, dtype, offset * dtype.itemsize)
        return None

    def _tensor(self, args: tuple[Any, ...]) -> StoredTensor | UnreadableTensor | None:
        match args:
            case (_, _, _, _, _, _, metadata) if metadata:
                return unreadable.of_lazy_view(args)
            case (_TypedStorage() as storage, int(), tuple(), tuple(), *_):
                if storage.name in _QUANTIZED:
                    raise _unknown_storage(storage.path)
                return _view(storage, storage.dtype, args)
        return None

    def _tensor_of_dtype(self, args: tuple[Any, ...]) -> StoredTensor | UnreadableTensor | None:
        match args:
            case (*_, Placeholder(module="torch", name=name)) if name not in DTYPES:
                return unreadable.of_dtype(name, args)
            case (*_, Placeholder(), metadata) if metadata:
                return unreadable.of_lazy_view(args)
            case (
                _TypedStorage() as storage, int(), tuple(), tuple(), _, _,
                Placeholder(module="torch", name=name), *_,
            ) if name in DTYPES:  # fmt: skip
                return _view(storage, DTYPES[name], args)
        return None

    def _tensor_of_class(self, args: tuple[Any, ...]) -> StoredTensor | UnreadableTensor | None:
        """A tensor with attributes or of a subclass, from the function for a plain tensor."""
        match args:
            case (Placeholder(args=None) as make, Placeholder() as class_, tuple(inner), _):
                known = self._functions if make.module == "torch._utils" else {}
                function = known.get((make.module, make.name), _subclass)
                return (
                    unreadable.of_class(class_, args) if function is _subclass else function(inner)
                )
        return None


def _view(
    typed: _TypedStorage, dtype: np.dtype, args: tuple[Any, ...]
) -> StoredTensor | UnreadableTensor:
    """A view of a storage, from the arguments of PyTorch's function."""
    _, offset, shape, strides, *_ = args
    start = typed.offset + offset * dtype.itemsize
    tensor = StoredTensor(typed.storage, dtype, start, shape, strides)
    return unreadable.of_expanded(args) if tensor.nbytes > tensor.file.size else tensor


def _no_container(contents: Any) -> str:
    """The error for a file whose pickle is not of a container."""
    match contents:
        case Placeholder(omitted=str(reason)) if reason:
            return f"its {contents.path} cannot be read: {reason}."
        case StoredTensor() | UnreadableTensor():
            what = "a single tensor"
        case Placeholder():
            what = f"a pickled {contents.path} object"
        case _:
            what = f"a pickled {type(contents).__name__} object"
    return f"it holds {what}, not a state dict. In PyTorch: torch.save(model.state_dict(), ...)."


def _size(args: tuple[Any, ...]) -> tuple | None:
    match args:
        case (tuple(lengths),):
            return lengths
    return None


def _first_tensor(args: tuple[Any, ...]) -> StoredTensor | UnreadableTensor | None:
    match args:
        case (StoredTensor() | UnreadableTensor() as tensor, *_):
            return tensor
    return None


def _subclass(args: tuple[Any, ...]) -> UnreadableTensor | None:
    match args:
        case (Placeholder(args=None) as class_, *_):
            return unreadable.of_class(class_, args)
    return None


def _unknown_storage(path: str) -> ValueError:
    return ValueError(f"{path} is not a type of storage that is known here")
