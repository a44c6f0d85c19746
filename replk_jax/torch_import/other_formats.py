"""Recognizes files and folders of other formats, and explains what to do."""

import re
from collections.abc import Iterable, Set

_TAR_MAGIC = slice(257, 262)

# The first bytes of a file, which identify the formats below.
START_BYTES = _TAR_MAGIC.stop

_SAVE_STATE_DICT = "In PyTorch: torch.save(model.state_dict(), path)."
_UNPACK = "Unpack it, and name the checkpoint in it."
_DOWNLOAD = "A download that failed often leaves a page of text instead."
_CONVERT_DISTRIBUTED = (
    "Convert the folder: python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
    "FOLDER checkpoint.pth."
)

# The first bytes of a format, its description, and what to do.
_STARTS = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes (.h5)", _SAVE_STATE_DICT),
    (b"\x93NUMPY", "a NumPy array (.npy)", _SAVE_STATE_DICT),
    (b"\x1f\x8b", "compressed with gzip", _UNPACK),
    (b"BZh", "compressed with bzip2", _UNPACK),
    (b"\xfd7zXZ\x00", "compressed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"GGUF", "a GGUF file of llama.cpp", _SAVE_STATE_DICT),
    (
        b"version https://git-lfs",
        "a pointer of Git LFS to the file, not the file itself",
        "Run git lfs pull, or download the file by its link.",
    ),
    (b"%PDF-", "a PDF document", _DOWNLOAD),
    (b"\x89PNG\r\n", "a PNG image", "Name the checkpoint."),
    (b"\xff\xd8\xff", "a JPEG image", "Name the checkpoint."),
)  # fmt: skip
# Names of files with weights of other frameworks.
_NAMES = (
    (re.compile(r".+\.(?:h5|keras)"), "Keras or TensorFlow"),
    (re.compile(r".+\.data-\d{5}-of-\d{5}"), "TensorFlow"),
    (re.compile(r".+\.tflite"), "TensorFlow Lite"),
    (re.compile(r".+\.msgpack"), "Flax"),
    (re.compile(r".+\.onnx"), "ONNX"),
    (re.compile(r".+\.gguf"), "llama.cpp"),
)
_DEEPSPEED_WEIGHTS = re.compile(
    r"(?P<partitioned>.*zero_pp_rank_\d+_)?mp_rank_\d+_model_states\.pt"
)
_MARKUP = ((b"<!doctype html", "a web page"), (b"<html", "a web page"), (b"<?xml", "an XML file"))


def explain_file(name: str, start: bytes) -> str:
    """Explains a file that is neither PyTorch's nor a .safetensors file.

    Args:
      name: of the file, without its folder.
      start: its first `START_BYTES` bytes, or all of them.

    Returns:
      A sentence about "it", and what to do.
    """
    what, remedy = _recognize(name, start)
    began = f": it begins with {start[:16]!r}" if start else ""
    return f"it is {what}{began}. {remedy}"


def is_part_of_distributed(name: str) -> bool:
    """Whether a file has a name as written by `torch.distributed.checkpoint`.

    Such files begin like those of `torch.save`.
    """
    return name == ".metadata" or name.endswith(".distcp")


def _recognize(name: str, start: bytes) -> tuple[str, str]:
    if is_part_of_distributed(name):
        return "a part of a checkpoint of torch.distributed.checkpoint", _CONVERT_DISTRIBUTED
    if start[_TAR_MAGIC] == b"ustar":
        return (
            "a tar archive, as PyTorch wrote before version 0.2",
            "In PyTorch, load it and save it again. If it is a folder packed by tar, unpack it.",
        )
    for magic, what, remedy in _STARTS:
        if start.startswith(magic):
            return what, remedy
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    for magic, what in _MARKUP:
        if text.lower().startswith(magic):
            return f"{what}, neither a PyTorch file nor a .safetensors file", _DOWNLOAD
    if text.startswith((b"{", b"[")):
        return "JSON text, not weights", "Name the file that has the weights."
    if start[4:8] == b"TFL3":
        return "a TensorFlow Lite model", _SAVE_STATE_DICT
    if name.endswith(".onnx") or _begins_like_onnx(start):
        return "an ONNX model", _SAVE_STATE_DICT
    if framework := _framework(name):
        return f"weights of {framework}, by its name", _SAVE_STATE_DICT
    if not start:
        return "empty, neither a PyTorch file nor a .safetensors file", "Download it again."
    return "neither a PyTorch file nor a .safetensors file", _DOWNLOAD


def _begins_like_onnx(start: bytes) -> bool:
    """Whether its fields are those of ONNX's ModelProto: ir_version, then a producer or graph."""
    return start[:1] == b"\x08" and 0 < start[1:2][0] < 32 and start[2:3] in (b"\x12", b"\x3a")


def explain_archive(members: Iterable[str]) -> str | None:
    """Explains a zip archive of a known format other than that of `torch.save`; else None.

    Args:
      members: the names of its members, with their folders.
    """
    members = set(members)
    inner = {name.partition("/")[2] for name in members}
    if inner & {"constants.pkl", "bytecode.pkl", "model.json"} or _any_in(inner, "code/"):
        return (
            "it holds a TorchScript program, not a state dict. In PyTorch: "
            "torch.save(torch.jit.load(path).state_dict(), ...)."
        )
    exported = {"archive_format", "models/model.json", "serialized_exported_program.json"}
    if inner & exported or members & exported:
        return (
            "it holds a program of torch.export, not a state dict. In PyTorch: "
            "torch.save(torch.export.load(path).state_dict, ...)."
        )
    if ".data/extern_modules" in inner:
        return f"it is a package of torch.package, not a state dict. {_SAVE_STATE_DICT}"
    if members and all(name.endswith(".npy") for name in members):
        return (
            "it holds NumPy arrays (.npz), not PyTorch tensors. In PyTorch: torch.save({name: "
            "torch.from_numpy(array) for name, array in numpy.load(path).items()}, ...)."
        )
    if "model.weights.h5" in members:
        return f"it is a Keras model, not a state dict of PyTorch. {_SAVE_STATE_DICT}"
    return None


def _any_in(names: Set[str], folder: str) -> bool:
    return any(name.startswith(folder) for name in names)


def explain_folder(names: Set[str]) -> str | None:
    """Explains a folder of a known format without readable weights; None for others.

    Args:
      names: of its files and folders.
    """
    if any(map(is_part_of_distributed, names)):
        return f"it is a checkpoint of torch.distributed.checkpoint. {_CONVERT_DISTRIBUTED}"
    if "zero_to_fp32.py" in names or ("latest" in names and _any_in(names, "global_step")):
        return (
            "it is a checkpoint of DeepSpeed. Convert it with the script in it: "
            "python zero_to_fp32.py . pytorch_model.bin."
        )
    if weights := [match for match in map(_DEEPSPEED_WEIGHTS.fullmatch, names) if match]:
        return f"it is a part of a checkpoint of DeepSpeed. {_deepspeed_remedy(weights)}"
    if names & {"saved_model.pb", "keras_metadata.pb"}:
        return f"it is a TensorFlow model, not a checkpoint of PyTorch. {_SAVE_STATE_DICT}"
    return None


def _deepspeed_remedy(weights: list[re.Match[str]]) -> str:
    if len(weights) == 1 and not weights[0]["partitioned"]:
        return f"Name the file in it that has the weights: {weights[0][0]}."
    return (
        "Its weights are partitioned. Convert them with the script in the folder above: "
        "python zero_to_fp32.py . pytorch_model.bin."
    )


def explain_other_weights(names: Set[str]) -> str | None:
    """Explains a folder with weights of other frameworks; None for others.

    Args:
      names: of its files and folders.
    """
    found = {name: framework for name in sorted(names) if (framework := _framework(name))}
    if not found:
        return None
    listed = ", ".join(f"{name} ({framework})" for name, framework in found.items())
    return (
        f"it has no weights of PyTorch, but those of other frameworks: {listed}. Download "
        "model.safetensors or pytorch_model.bin of the same network."
    )


def _framework(name: str) -> str | None:
    """The other framework whose weights have such a file name; None if unknown."""
    return next((framework for pattern, framework in _NAMES if pattern.fullmatch(name)), None)
