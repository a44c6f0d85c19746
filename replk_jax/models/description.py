"""A network as plain data, to be stored beside its variables, and in words."""

from collections.abc import Mapping
from typing import Any

from replk_jax.models.network import Network


def describe(network: Network) -> dict[str, Any]:
    """What `from_description` builds the network from again, as JSON can hold it.

    Without the type and the implementation of the computation, stochastic depth, dropout and
    rematerialisation.
    """
    return network.describe()


def from_description(description: Mapping[str, Any]) -> Network:
    """Builds the network that `describe` described, with the default type of computation.

    Raises:
      ValueError: something else, whatever it may be.
    """
    try:
        network = Network.from_description(description)
        network.check_fields()
        return network
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"This describes no model of this version: {reason[:200]}.") from error


def architecture_in_words(network: Network) -> str:
    """The hyper-parameters of a network on one line."""
    fields = network.hyperparameters().items()
    return ", ".join(f"{field} {joined(value)}" for field, value in fields)


def joined(value: Any) -> str:
    """Numbers as the tables have them: 31-29-27-13."""
    if not isinstance(value, tuple):
        return str(value)
    return "-".join(map(joined, value)) if value else "none"
