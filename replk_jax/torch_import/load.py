"""Loads PyTorch files as models with their variables."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from replk_jax.io.errors import naming
from replk_jax.io.text import brief
from replk_jax.io.user_warnings import warn_user
from replk_jax.models.backbone import Backbone
from replk_jax.models.composite import CompositeNetwork
from replk_jax.models.fitting import Fitted, Fitting
from replk_jax.models.network import Network
from replk_jax.torch_import.entries import Selection
from replk_jax.torch_import.fitting import fit, fit_composite
from replk_jax.torch_import.names import without_classifier
from replk_jax.torch_import.reader import read
from replk_jax.torch_import.recognition import infer_composite
from replk_jax.torch_import.torch_files import Contents
from replk_jax.torch_import.weights import Weights, find_weights


def load_torch(
    path: str | os.PathLike,
    model: Network | None = None,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    reset_head: bool = False,
    prefer_ema: bool = False,
    key: str | None = None,
    prefix: str | None = None,
    rename: Callable[[str], str | None] | None = None,
    like: str | None = None,
    seed: int = 0,
) -> tuple[Network, dict[str, Any]]:
    """Loads a PyTorch checkpoint, without PyTorch and without running code in it.

        model, variables = load_torch("RepLKNet-31B_ImageNet-1K_224.pth")
        logits = model.apply(variables, images)

    Loading is strict: it uses every tensor of the network and fills every variable. There are two
    exceptions: it leaves out the classifier for a model without one (`num_classes=None`), and the
    layers after the last stage for a backbone (`out_indices`). Tensors of other networks in the
    file, such as the heads of a detector, are left out with a warning.

    A checkpoint of mmsegmentation with a supported head gives a `SegmentationNetwork`. Its weights
    do not record `align_corners`, pooling scales and dilation. They are taken from the
    configuration in the file, from the table of published checkpoints if the file has such a name,
    or from the checkpoint `like`. The rest have mmsegmentation's defaults, with a warning. A
    backbone as `model`, or prefix="backbone.", loads the backbone alone. In the same way, one of
    mmdetection with FCOS, or Faster, Mask or Cascade R-CNN gives a `DetectionNetwork`; its weights
    do not record, for example, `norm_on_bbox`, anchors and the settings of the test.

    The state dict may be in any entry of the file, and its names may have any prefix. For a file
    with several networks, `key` or `prefix` selects one.

    Args:
      path: .pth, .pt, .bin or .safetensors, in official, torchvision, mmpretrain, mmsegmentation,
        mmdetection or timm naming.
      model: the network to load into; None for the one that `infer_architecture` identifies. With
        `deploy=True` training-time weights are re-parameterized.
      num_classes: replaces that of the model; 0 for no classifier.
      in_channels: replaces the number of input channels. For one channel the first kernel is
        summed over its inputs. For other numbers its inputs are repeated in turn and scaled to
        keep their sum, as in timm. A warning reports it.
      reset_head: draw a new classifier if the file's has another number of classes; in a segmenter
        the classifiers of its heads.
      prefer_ema: load the exponential moving average (EMA) of the weights.
      key: of the entry that holds the state dict, such as "model"; of an entry within another
        one, "checkpoint/model".
      prefix: of the names of the network's tensors, such as "encoder."; it is removed.
      rename: maps the name of a tensor, without the prefix, to its name in a supported naming, or
        to None to leave it out.
      seed: of the new classifier.

    Returns:
      The model and its variables. A merged file gives a model with `deploy=True`, whose remaining
      batch norms are folded.

    Raises:
      ValueError: a file that cannot be read, of an unsupported network or with several networks;
        or tensors that are missing, unexpected or of the wrong shape, all in one error.
      OSError: it cannot be opened.
    """
    with naming(path):
        model, fitted = load_contents(
            read(path),
            model,
            selection=Selection(prefer_ema, key, prefix, rename),
            source=os.fspath(path),
            num_classes=num_classes,
            in_channels=in_channels,
            fitting=Fitting(reset_head=reset_head, seed=seed),
            like=like,
        )
        return model, fitted.variables


def load_contents(
    contents: Contents,
    model: Network | None = None,
    *,
    selection: Selection,
    source: str,
    num_classes: int | None = None,
    in_channels: int | None = None,
    fitting: Fitting,
    like: str | None = None,
) -> tuple[Network, Fitted]:
    """As `load_torch`, from the contents of a file. Errors do not name the file.

    Args:
      contents: of the file.
      model, num_classes, in_channels, like: as in `load_torch`.
      selection: which weights to load.
      source: path of the file, for warnings and for the name of a published checkpoint.
      fitting: the permitted changes to the weights.

    Raises:
      ValueError: as `load_torch`.
    """
    found = find_weights(contents, selection)
    if isinstance(model, Backbone):
        found = found.backbone_alone()
    _warn_of_what_is_there(found, selection, source, strides_assumed=model is None)
    if fitting.reset_head and num_classes is None and model is None:
        raise ValueError("reset_head=True draws a new classifier: give its num_classes.")
    if model is None and found.composite is None:
        model = _infer_model(found, num_classes, fitting.reset_head)
    elif model is None:
        model, assumed = infer_composite(found, contents, source, like)
        if assumed:
            warn_user(
                f"{source}: assumed, since neither the weights, a configuration in the file nor "
                f"its name determine it: {assumed}. like=TAG (--like) takes it from a published "
                "checkpoint."
            )
    known = (found.composite or found.family).NETWORK
    if not isinstance(model, known):
        raise ValueError(
            f"its weights are those of a {known.__name__}, and the model is a "
            f"{type(model).__name__}."
        )
    if num_classes is not None:
        model = _with_classes(model, num_classes)
    if in_channels is not None:
        model = _with_in_channels(model, in_channels)
        fitting = dataclasses.replace(fitting, adapt_input=True)
    if isinstance(model, CompositeNetwork):
        return model, fit_composite(found.with_heads(), model, fitting, source=source)
    assert isinstance(model, Backbone)
    weights, _ = found.by_official_names()
    return model, fit(weights, model, fitting, source=source)


def _infer_model(found: Weights, num_classes: int | None, reset_head: bool) -> Backbone:
    weights, _ = found.by_official_names()
    # A classifier that is replaced may be of any kind.
    return found.family.infer_model(
        without_classifier(weights) if reset_head or num_classes == 0 else weights
    )


def _warn_of_what_is_there(
    found: Weights, selection: Selection, source: str, *, strides_assumed: bool
) -> None:
    if found.ignored:
        text = (
            f"{source}: {len(found.ignored)} tensors of other networks are left out: "
            f"{brief(found.ignored)}."
        )
        if strides_assumed and found.ignores_convolutions:
            text += (
                " The backbone of a segmenter or detector may have other strides than those "
                f"assumed ({found.family.ASSUMED}): if so, pass a model with its output_stride."
            )
        warn_user(text)
    if found.is_ema and not selection.prefer_ema:
        warn_user(
            f"{source}: it holds only an EMA of the weights ({found.place}), which is loaded."
        )


def _with_classes(model: Network, num_classes: int) -> Network:
    if isinstance(model, Backbone) and model.out_indices is not None:
        raise ValueError("num_classes needs a classifier, and the model is a backbone.")
    if isinstance(model, CompositeNetwork) and not num_classes:
        raise ValueError(
            f"A {type(model).__name__} needs classes. Its backbone alone is loaded with "
            'prefix="backbone.".'
        )
    return model.clone(num_classes=num_classes or None)


def _with_in_channels(model: Network, in_channels: int) -> Network:
    if type(in_channels) is not int or in_channels < 1:
        raise ValueError(f"in_channels must be a positive integer; got {in_channels!r}.")
    if isinstance(model, CompositeNetwork):
        return model.clone(backbone=_with_in_channels(model.backbone, in_channels))
    assert isinstance(model, Backbone)
    return model.clone(
        architecture=dataclasses.replace(model.architecture, in_channels=in_channels)
    )
