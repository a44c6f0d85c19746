"""Kinds of tensors that are not stored as arrays, and what to save instead."""

from typing import Any

from replk_jax.torch_import.placeholders import Placeholder, UnreadableTensor

_QUANTIZED = ("quantized", "Save the float weights, from before the model was quantized.")
_SHARDED = (
    "sharded over several devices",
    "Save the full weights: torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
    "options=StateDictOptions(full_state_dict=True)), or tensor.full_tensor().",
)
_SPARSE = ("sparse", "Save dense weights: tensor.to_dense().")
_NESTED = ("nested", "Save one tensor for each of its parts: tensor.unbind().")
_META = ("on the meta device, which has no values", "Save the weights after they are loaded.")
_LAZY = ("uninitialized", "Run the model once before its weights are saved.")
_ON_DEVICE = ("that of an accelerator, as a NumPy array", "Save tensor.cpu().")
_VIEW = (
    "the conjugate or the negative of what is stored",
    "Save tensor.resolve_conj().resolve_neg().",
)
_EXPANDED = (
    "expanded from fewer values to more than the file has",
    "Save tensor.contiguous().",
)

# Functions in pickles that each make one kind of tensor.
MAKERS = {
    ("torch._utils", "_rebuild_qtensor"): _QUANTIZED,
    ("torch._utils", "_rebuild_sparse_tensor"): _SPARSE,
    ("torch._utils", "_rebuild_sparse_csr_tensor"): _SPARSE,
    ("torch._utils", "_rebuild_nested_tensor"): _NESTED,
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _META,
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _ON_DEVICE,
    ("torch._utils", "_rebuild_xla_tensor"): _ON_DEVICE,
    ("torch.nn.parameter", "UninitializedBuffer"): _LAZY,
    ("torch.nn.parameter", "UninitializedParameter"): _LAZY,
}

# Packages whose subclasses of torch.Tensor are one kind.
_PACKAGES = {
    "torch.distributed": _SHARDED,
    "torch.nested": _NESTED,
    "torch.sparse": _SPARSE,
    "torchao": _QUANTIZED,
    "bitsandbytes": _QUANTIZED,
}


def of_maker(function: tuple[str, str], args: tuple[Any, ...]) -> UnreadableTensor:
    """The result of one of `MAKERS`."""
    kind, remedy = MAKERS[function]
    return _unreadable(*function, args, kind, remedy)


def of_class(class_: Placeholder, args: tuple[Any, ...]) -> UnreadableTensor:
    """A tensor of a subclass of `torch.Tensor` with its own layout."""
    kind, remedy = f"a {class_.path}", "Save plain tensors."
    for package, (known_kind, known_remedy) in _PACKAGES.items():
        if f"{class_.module}.".startswith(f"{package}."):
            kind, remedy = f"{known_kind} ({class_.name})", known_remedy
    return _unreadable(class_.module, class_.name, args, kind, remedy)


def of_dtype(name: str, args: tuple[Any, ...]) -> UnreadableTensor:
    """A tensor of dtype `torch.NAME`, which NumPy and ml_dtypes lack."""
    return _unreadable(
        "torch._utils", "_rebuild_tensor_v3", args, f"of torch.{name}", "Save tensor.float()."
    )


def of_lazy_view(args: tuple[Any, ...]) -> UnreadableTensor:
    """A tensor that is conjugated or negated on reading."""
    return _unreadable("torch._utils", "_rebuild_tensor_v2", args, *_VIEW)


def of_expanded(args: tuple[Any, ...]) -> UnreadableTensor:
    """A view (`tensor.expand(...)`) that repeats values and is larger than the file."""
    return _unreadable("torch._utils", "_rebuild_tensor_v2", args, *_EXPANDED)


def _unreadable(
    module: str, name: str, args: tuple[Any, ...], kind: str, remedy: str
) -> UnreadableTensor:
    return UnreadableTensor(module, name, args, called=True, kind=kind, remedy=remedy)
