"""Published checkpoints of composite networks, such as segmenters and detectors."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from replk_jax.models.composite import CompositeNetwork
from replk_jax.models.network import Network
from replk_jax.models.pretrained_table import PublishedFile
from replk_jax.models.registry import name_of
from replk_jax.vision.base_preprocessing import BasePreprocessing


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainedComposite:
    """A published checkpoint of a composite network; a subclass adds its evaluation.

    Attributes:
      tag: `KIND_BACKBONE_DATASET.SOURCE`, where SOURCE names the data set that the backbone was
        first trained on: `in1k`, `in22k` or `meg73m`.
      files: the weights.
      pretraining: the data set that the backbone was first trained on.
      data_set: of the network, a name of `label_sets.names()`.
      num_classes: K.
      preprocessing: that of the published evaluation.
      licence: SPDX identifier of the licence of the project that publishes the weights.
      paper: arXiv identifier.
    """

    network: ClassVar[type[CompositeNetwork]]  # the class of the networks
    usual_data_set: ClassVar[str]  # whose preprocessing is a guess for other networks

    tag: str
    files: tuple[PublishedFile, ...]
    pretraining: str
    data_set: str
    num_classes: int
    preprocessing: BasePreprocessing
    licence: str | None
    paper: str

    @property
    def model(self) -> str:
        """Name of the network, such as "upernet_replknet_31b_ade20k"."""
        return self.tag.partition(".")[0]

    @property
    def backbone(self) -> str:
        """Name of the backbone for `create_model`."""
        raise NotImplementedError

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the weights do not record, as `Composite.read_settings` gives it."""
        raise NotImplementedError

    def is_of(self, model: Network) -> bool:
        """Whether a network is that of the checkpoint, whatever its classes."""
        return isinstance(model, self.network) and name_of(model.backbone) == self.backbone

    def results(self) -> str:
        """The published evaluation in words."""
        raise NotImplementedError


def from_google_drive(file_id: str, name: str | None = None) -> tuple[PublishedFile, ...]:
    """A file of RepLKNet's authors.

    Args:
      file_id: at Google Drive.
      name: of the file without its ending; None where it is not stated.
    """
    url = f"https://drive.google.com/file/d/{file_id}/view?usp=sharing"
    return (PublishedFile(name, url),)
