"""Files and folders of other formats: rejected with what they are and what to do."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest

from replk_jax.io.errors import FileError
from replk_jax.torch_import.folders import UnknownFolderError
from replk_jax.torch_import.reader import read

STARTS = {
    "Keras": (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5 file.*state_dict"),
    "NumPy": (b"\x93NUMPY\x01\x00", r"NumPy array \(\.npy\)"),
    "gzip": (gzip.compress(b"a"), "compressed with gzip.*Unpack"),
    "bzip2": (b"BZh91AY", "compressed with bzip2"),
    "xz": (b"\xfd7zXZ\x00", "compressed with xz"),
    "Zstandard": (b"\x28\xb5\x2f\xfd", "compressed with Zstandard"),
    "7z": (b"7z\xbc\xaf\x27\x1c", "7z archive.*Unpack"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS.*git lfs pull"),
    "HTML": (b"\n <HTML><body>", "a web page.*download that failed"),
    "XML": (b"<?xml version='1.0'?>", "an XML file"),
    "JSON": (b'{"architectures": ["x"]}', "JSON text, not weights"),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0", "ONNX model"),
    "GGUF": (b"GGUF\x03", "GGUF"),
    "nothing": (b"", "empty.*Download"),
    "picture": (b"\x89PNG\r\n\x1a\n", "PNG image"),
}


@pytest.mark.parametrize("name", STARTS)
def test_files(name, tmp_path):
    start, message = STARTS[name]
    (tmp_path / "model.pth").write_bytes(start)
    with pytest.raises(FileError, match=rf"^{tmp_path / 'model.pth'}: it is .*{message}"):
        read(tmp_path / "model.pth")


def test_tar(tmp_path):
    with tarfile.open(tmp_path / "model.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("a"), io.BytesIO())
    with pytest.raises(FileError, match=r"tar archive, as PyTorch wrote before.*unpack it"):
        read(tmp_path / "model.tar")


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, kind in members.items():
            archive.writestr(zipfile.ZipInfo(name), b"a" * 99, compress_type=kind)
    return path


STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
ARCHIVES = {
    "TorchScript": (
        {"m/data.pkl": STORED, "m/code/__torch__/m.py": DEFLATED, "m/constants.pkl": STORED},
        r"TorchScript program.*torch\.jit\.load",
    ),
    "TorchScript for mobile": (
        {"m/data.pkl": STORED, "m/code/__torch__/m.py": DEFLATED, "m/bytecode.pkl": STORED},
        "TorchScript program",
    ),
    "TorchScript before 1.4": (
        {"m/model.json": DEFLATED, "m/code/m.py": DEFLATED, "m/tensors/0": STORED},
        "TorchScript program",
    ),
    "torch.export": (
        {"m/models/model.json": STORED, "m/archive_format": STORED, "m/data/weights/w": STORED},
        r"torch\.export.*torch\.export\.load",
    ),
    "torch.export before 2.7": (
        {"serialized_exported_program.json": STORED, "serialized_state_dict.pt": STORED},
        r"torch\.export",
    ),
    "torch.package": ({"m/.data/extern_modules": STORED, "m/a.py": STORED}, r"torch\.package"),
    "NumPy": ({"a.npy": DEFLATED, "b.npy": DEFLATED}, r"NumPy arrays \(\.npz\).*from_numpy"),
    "Keras": ({"config.json": STORED, "model.weights.h5": STORED}, "Keras model"),
    "others": ({"weights/data.txt": DEFLATED}, "zip archive, but not one that torch"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(name, tmp_path):
    members, message = ARCHIVES[name]
    with pytest.raises(FileError, match=message):
        read(write_zip(tmp_path / "f", members))


def test_numpy_writes_such_archives(tmp_path):
    np.savez(tmp_path / "f.npz", a=np.zeros(3))
    with pytest.raises(FileError, match=r"NumPy arrays \(\.npz\)"):
        read(tmp_path / "f.npz")


FOLDERS = {
    "torch.distributed": ([".metadata", "__0_0.distcp"], "dcp_to_torch"),
    "DeepSpeed": (["zero_to_fp32.py", "latest", "global_step1"], "zero_to_fp32.py"),
    "TensorFlow": (["saved_model.pb", "variables"], "TensorFlow model"),
    "files of other names": (["last.pth", "best.pth", "log.txt"], r"\['best.pth', 'last.pth'\]"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders(name, tmp_path):
    names, message = FOLDERS[name]
    for file in names:
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(FileError, match=f"^{tmp_path}: it is a .*{message}") as caught:
        read(tmp_path)
    assert not isinstance(caught.value, UnknownFolderError)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_files_of_torch_distributed(name, tmp_path):
    for start in (b"\x80\x02}.", b"PK\x03\x04", b"\x80\x04}."):
        (tmp_path / name).write_bytes(start)
        with pytest.raises(FileError, match=r"torch\.distributed\.checkpoint.*dcp_to_torch"):
            read(tmp_path / name)


def test_other_folders(tmp_path):
    with pytest.raises(UnknownFolderError, match="a folder without a checkpoint"):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["script", "trace", "mobile", "export"])
def test_programs_that_pytorch_writes(kind, tmp_path):
    torch = pytest.importorskip("torch")
    module, path, images = (
        torch.nn.Conv2d(3, 2, 1).eval(),
        tmp_path / "f.pt2",
        torch.ones(1, 3, 4, 4),
    )
    if kind == "export":
        torch.export.save(torch.export.export(module, (images,)), path)
    elif kind == "mobile":
        torch.jit.script(module)._save_for_lite_interpreter(str(path))
    else:
        program = torch.jit.trace(module, images) if kind == "trace" else torch.jit.script(module)
        program.save(str(path))
    with pytest.raises(FileError, match="TorchScript" if kind != "export" else r"torch\.export"):
        read(path)
