"""Reads networks from checkpoints of all formats."""

import dataclasses
import os
from collections.abc import Callable

from replk_jax.checkpoint.opening import open_checkpoint
from replk_jax.checkpoint.record import Checkpoint
from replk_jax.checkpoint.torch_format import TorchCheckpoint
from replk_jax.models.network import Network
from replk_jax.torch_import import Fitting, Selection
from replk_jax.vision.preprocessing import Preprocessing


def load(
    path: str | os.PathLike,
    *,
    prefer_ema: bool = False,
    preprocessing: Preprocessing | None = None,
    key: str | None = None,
    prefix: str | None = None,
    rename: Callable[[str], str | None] | None = None,
) -> Checkpoint:
    """Reads a network that was saved here, trained here, or published for PyTorch.

    Args:
      path: a .safetensors file or a folder that `save` wrote, a checkpoint of a training run
        (`WORKDIR/checkpoints/STEP`), or a PyTorch checkpoint (see `load_torch`), which may also be
        a folder of Hugging Face's.
      prefer_ema: take the exponential moving average (EMA) that was saved with the weights.
      preprocessing: of the images, in place of what is known. Of a PyTorch checkpoint it is known
        if the file or a JSON file next to it says it, or if it has the name of a released one.
      key, prefix, rename: which weights of a PyTorch checkpoint; as in `load_torch`.

    Raises:
      ValueError, OSError: it is not there, cannot be read, or is none of these.
    """
    network = open_checkpoint(path).load(Selection(prefer_ema, key, prefix, rename))
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
    """Reads the variables of a network of the caller's, to train them further.

    A composite network starts from a file of its own, or from one of its backbone or of a
    classifier with it: what follows the last stage is left out, and the heads are drawn at
    random. A warning says so.

    Args:
      model: the network; its architecture, or that of its backbone, must be that of the file.
      path, prefer_ema, key, prefix, rename: as in `load`.
      adapt_input: make the kernels that see the image take the model's number of channels, as
        `in_channels` of `load_torch` does.
      reset_head: draw a new classifier, or in the heads of a composite network new weights for
        its classes, if the file's is for another number of classes.
      seed: of what is drawn.

    Returns:
      The model with its variables, and what else is known of the network in the file.

    Raises:
      ValueError, OSError: as `load` and `load_torch`, and for a file that is re-parameterized,
        if `model` is not.
    """
    selection = Selection(prefer_ema, key, prefix, rename)
    fitting = Fitting(reset_head=reset_head, adapt_input=adapt_input, seed=seed)
    return open_checkpoint(path).load_into(model, selection, fitting)


def read_description(path: str | os.PathLike) -> Checkpoint | None:
    """What a file of this package says of itself: all but the variables. None for others.

    Raises:
      ValueError, OSError: it is not there, or cannot be understood.
    """
    opened = open_checkpoint(path)
    return None if isinstance(opened, TorchCheckpoint) else opened.description
