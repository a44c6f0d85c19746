"""The declaration of a family of networks; each model file ends with one."""

import dataclasses
from collections.abc import Mapping

from replk_jax.models.architecture import Architecture
from replk_jax.models.backbone import Backbone


@dataclasses.dataclass(frozen=True)
class ModelFamily:
    """Networks that differ only in their architectures.

    The registry and the configurations derive from it.

    Attributes:
      name: of the family's section in a configuration.
      network: the class of the networks.
      architecture: the class of the architectures.
      architectures: the registered architectures by name.
      synonyms: from names in other libraries to registered names. The keys are regular
        expressions, matched with the result of `aliases.plain_name`.
      lookalikes: from names that resemble registered ones, likewise, to what they mean and what to
        do, in words.
    """

    name: str
    network: type[Backbone]
    architecture: type[Architecture]
    architectures: Mapping[str, Architecture]
    synonyms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    lookalikes: Mapping[str, str] = dataclasses.field(default_factory=dict)
