"""Reads networks from checkpoints of all formats."""

import dataclasses
import os
from collections.abc import Callable

from replk_jax import pretrained
from replk_jax.checkpoint.opening import open_checkpoint
from replk_jax.checkpoint.record import Checkpoint
from replk_jax.checkpoint.torch_format import TorchCheckpoint
from replk_jax.models.fitting import Fitting
from replk_jax.models.network import Network
from replk_jax.torch_import import Selection
from replk_jax.vision.base_preprocessing import BasePreprocessing


def load(
    path: str | os.PathLike,
    *,
    prefer_ema: bool = False,
    preprocessing: BasePreprocessing | None = None,
    like: str | None = None,
    key: str | None = None,
    prefix: str | None = None,
    rename: Callable[[str], str | None] | None = None,
) -> Checkpoint:
    """Reads a checkpoint of this package, of a training run, or of PyTorch.

    Args:
      path: a .safetensors file or a folder that `save` wrote, a checkpoint of a training run
        (`WORKDIR/checkpoints/STEP`), or a PyTorch checkpoint (see `load_torch`) or its folder in
        the layout of Hugging Face.
      prefer_ema: read the exponential moving average (EMA) of the weights.
      preprocessing: replaces that of the checkpoint. A PyTorch checkpoint has one if the file or a
        JSON file next to it records it, or if its name is that of a published checkpoint.
      like: the tag, file name or model of a published checkpoint, as `pretrained.lookup` takes it,
        whose preprocessing replaces that of the checkpoint. For a segmenter of PyTorch also a
        source of `align_corners` and class names, if the file has none; see `load_torch`.
      key, prefix, rename: select the weights in a PyTorch checkpoint; as in `load_torch`.

    Raises:
      ValueError, OSError: no such checkpoint, or one that cannot be read.
    """
    if like is not None:
        if preprocessing is not None:
            raise ValueError("Both preprocessing and like set the preprocessing: give one of them.")
        preprocessing = pretrained.lookup(like).preprocessing
    selection, opened = Selection(prefer_ema, key, prefix, rename), open_checkpoint(path)
    is_torch = isinstance(opened, TorchCheckpoint)
    network = opened.load(selection, like) if is_torch else opened.load(selection)
    if preprocessing is None:
        return network
    return dataclasses.replace(network, preprocessing=preprocessing, preprocessing_source=None)


def load_into(
    model: Network,
    path: str | os.PathLike,
    *,
    reset_head: bool = False,
    prefer_ema: bool = False,
    key: str | None = None,
    prefix: str | None = None,
    rename: Callable[[str], str | None] | None = None,
    adapt_input: bool = False,
    seed: int = 0,
) -> Checkpoint:
    """Reads variables for a given network, such as to fine-tune it.

    A composite network can start from a file of its own class, or of its backbone, with or without
    a classifier. In the latter case, or with prefix="backbone.", the layers after the last stage
    are left out and the heads are initialised at random, with a warning. Output norms of stages
    that the file lacks get their initial values, and those that the backbone lacks are left out.

    Args:
      model: the network. Its architecture, or that of its backbone, must match the file.
      path, prefer_ema, key, prefix, rename: as in `load`.
      adapt_input: adapt the kernels that see the image to the model's number of channels, like
        `in_channels` of `load_torch`.
      reset_head: initialise a new classifier if the file has another number of classes; in a
        composite network, the weights of the heads that depend on that number. Weights that only
        the file has because of its classes are left out, with a warning.
      seed: of the random initialisation.

    Returns:
      The model with its variables, and the file's other metadata.

    Raises:
      ValueError, OSError: as `load` and `load_torch`, and for a re-parameterized file, unless
        `model` is re-parameterized too. It then has to have the same variables.
    """
    selection = Selection(prefer_ema, key, prefix, rename)
    fitting = Fitting(reset_head=reset_head, adapt_input=adapt_input, seed=seed)
    return open_checkpoint(path).load_into(model, selection, fitting)


def read_description(path: str | os.PathLike) -> Checkpoint | None:
    """The description in a checkpoint of this package: all but the variables. None for PyTorch's.

    Raises:
      ValueError, OSError: no such checkpoint, or one that cannot be read.
    """
    opened = open_checkpoint(path)
    return None if isinstance(opened, TorchCheckpoint) else opened.description
