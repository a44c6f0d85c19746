"""Tensors that are not arrays in the file: named, and in nobody's way."""

import re
import warnings

import numpy as np
import pytest

from replk_jax.torch_import.placeholders import Placeholder, UnreadableTensor
from replk_jax.torch_import.reader import read
from replk_jax.torch_import.weights import find_weights
from tests.torch_import.archives import state_dict, tensor, write_archive

# By what makes them, in opcodes: the kind, and what to do.
KINDS = {
    "ctorch._utils\n_rebuild_qtensor\n(NtR": ("quantized", "float weights"),
    "ctorch._utils\n_rebuild_sparse_tensor\n(NtR": ("sparse", "to_dense"),
    "ctorch._utils\n_rebuild_nested_tensor\n(NtR": ("nested", "unbind"),
    "ctorch._utils\n_rebuild_meta_tensor_no_storage\n(NtR": ("on the meta device", "loaded"),
    "ctorch.nn.parameter\nUninitializedParameter\n(NtR": ("uninitialized", "Run the model"),
    "ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_wrapper_subclass\n"
    "ctorch.distributed.tensor\nDTensor\n(tNtR": ("sharded .*DTensor", "full_tensor"),
    "ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_wrapper_subclass\n"
    "ctorch.distributed._shard.sharded_tensor.api\nShardedTensor\n(tNtR": ("sharded", "full_"),
    "ctorch._utils\n_rebuild_wrapper_subclass\n(ctorchao.quantization\nInt8Tensor\ntR": (
        "quantized .*Int8Tensor", "float weights",
    ),
    "ctorch._tensor\n_rebuild_from_type_v2\n(cmine\nmake\ncmine\nOwn\n(tNtR": (
        r"a mine\.Own", "plain tensors",
    ),
    "ctorch._utils\n_rebuild_tensor_v3\n(NI0\n(t(tI00\nNctorch\nfloat8_e4m3fnuz\ntR": (
        r"of torch\.float8_e4m3fnuz", r"float\(\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("opcodes", KINDS, ids=range(len(KINDS)))
def test_kinds(opcodes, tmp_path):
    kind, remedy = KINDS[opcodes]
    pickle_ = state_dict(odd=opcodes.encode(), plain=tensor())
    write_archive(tmp_path / "f", pickle_, {"0": np.arange(4, dtype=np.float32).tobytes()})
    contents = read(tmp_path / "f")
    check(contents["odd"], kind, remedy)
    np.testing.assert_array_equal(contents["plain"].read(), np.arange(4))


def check(value, kind, remedy):
    assert isinstance(value, UnreadableTensor)
    assert re.search(kind, value.kind)
    assert re.search(remedy, value.remedy)
    assert repr(value) == f"UnreadableTensor({value.kind})"


def make(kind):
    import torch

    with warnings.catch_warnings(action="ignore"):  # that quantized tensors will go away
        return {
            "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
            "quantized by channel": lambda: torch.quantize_per_channel(
                torch.ones(3, 2), torch.ones(3), torch.zeros(3), 0, torch.quint8
            ),
            "sparse": lambda: torch.eye(3).to_sparse(),
            "sparse, by rows": lambda: torch.eye(3).to_sparse_csr(),
            "meta": lambda: torch.ones(3, device="meta"),
            "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "nested, jagged": lambda: torch.nested.nested_tensor(
                [torch.ones(2), torch.ones(3)], layout=torch.jagged
            ),
            "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
            "uninitialized": lambda: torch.nn.LazyLinear(3).weight,
            "float8_e4m3fnuz": lambda: torch.ones(3).to(torch.float8_e4m3fnuz),
        }[kind]()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "kind",
    ["quantized", "quantized by channel", "sparse", "sparse, by rows", "meta", "nested",
     "nested, jagged", "conjugate", "uninitialized", "float8_e4m3fnuz"],
)  # fmt: skip
def test_against_pytorch(kind, legacy, tmp_path):
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings(action="ignore"):
        contents = {"odd": make(kind), "plain": torch.arange(4.0)}
        torch.save(contents, tmp_path / "f", _use_new_zipfile_serialization=not legacy)
    contents = read(tmp_path / "f")
    word = {"meta": "meta", "conjugate": "conjugate"}.get(kind, kind.split(",")[0].split(" ")[0])
    assert word in contents["odd"].kind
    np.testing.assert_array_equal(contents["plain"].read(), np.arange(4))


def test_plain_tensors_of_a_subclass_are_read(tmp_path):
    opcodes = (
        tensor().replace(
            b"ctorch._utils\n_rebuild_tensor_v2\n(",
            b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\ncmine\nOwn\n(",
        )[:-1]
        + b"NtR"
    )  # the tuple is an argument instead of the arguments
    write_archive(
        tmp_path / "f", state_dict(own=opcodes), {"0": np.arange(4, dtype=np.float32).tobytes()}
    )
    np.testing.assert_array_equal(read(tmp_path / "f")["own"].read(), np.arange(4))


def test_parameters_of_unreadable_tensors(tmp_path):
    inner = b"ctorch._utils\n_rebuild_qtensor\n(NtR"
    opcodes = b"ctorch._utils\n_rebuild_parameter\n(" + inner + b"I01\nNtR"
    write_archive(tmp_path / "f", state_dict(w=opcodes))
    assert read(tmp_path / "f")["w"].kind == "quantized"


def test_modules_are_recognized(tmp_path):
    module = b"ctorch.nn\nLinear\n)\x81}(V_parameters\n}V_buffers\n}V_modules\n}ub"
    contents = read(
        write_archive(tmp_path / "f", b"}Vmodel\n" + module + b"sVother\nca\nb\n)\x81s.")
    )
    assert contents["model"].is_module
    assert not contents["other"].is_module
    assert not Placeholder("torch.nn", "Linear").is_module


def test_weights_that_are_unreadable(tmp_path):
    """Also those of a network that is not known here."""
    qtensor = b"ctorch._utils\n_rebuild_qtensor\n(NtR"
    for names in (["features.0.0.weight"], ["stages.0.blocks.0.pw1.conv.weight"], ["w"]):
        entries = b"".join(b"V%b\n%bs" % (name.encode(), qtensor) for name in names)
        contents = read(write_archive(tmp_path / "f", b"(d" + entries + b"."))
        with pytest.raises(ValueError, match=r"1 of its 1 tensors are quantized.*float weights"):
            find_weights(contents)


@pytest.mark.parametrize("key", ["model", "ema"])
def test_a_module_in_place_of_weights(key, tmp_path):
    module = b"cmine\nNet\n)\x81}(V_parameters\n}V_buffers\n}V_modules\n}ub"
    pickle_ = b"}V%b\n%bsVepoch\nI1\ns." % (key.encode(), module)
    contents = read(write_archive(tmp_path / "f", pickle_))
    with pytest.raises(ValueError, match=rf"entry '{key}' holds a pickled mine\.Net object"):
        find_weights(contents)
