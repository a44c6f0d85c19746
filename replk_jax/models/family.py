"""What a family of networks is, declared once at the end of its model file."""

import dataclasses
from collections.abc import Mapping

from replk_jax.models.architecture import Architecture
from replk_jax.models.backbone import Backbone


@dataclasses.dataclass(frozen=True)
class ModelFamily:
    """A family: networks that differ in their architectures alone.

    Registry, descriptions and configurations derive from it.

    Attributes:
      name: of its section in a configuration.
      network: its class.
      architecture: the class of its architectures.
      architectures: the registered ones, by name.
      synonyms: names that others give to registered models, as regular expressions of what
        `aliases.plain_name` makes of them; with the registered names.
      lookalikes: names, likewise, that resemble registered ones; with what they stand for and what
        to do.
    """

    name: str
    network: type[Backbone]
    architecture: type[Architecture]
    architectures: Mapping[str, Architecture]
    synonyms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    lookalikes: Mapping[str, str] = dataclasses.field(default_factory=dict)
