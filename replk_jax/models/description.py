"""Networks as plain data, which is stored with their variables, and in words."""

from collections.abc import Mapping
from typing import Any

from replk_jax.models.network import Network


def describe(network: Network) -> dict[str, Any]:
    """The network as plain data for JSON, from which `from_description` rebuilds it.

    It omits the dtype and the implementation of the computation, stochastic depth, dropout and
    rematerialisation.
    """
    return network.describe()


def from_description(description: Mapping[str, Any]) -> Network:
    """Rebuilds a network from the result of `describe`, with the default computation dtype.

    Raises:
      ValueError: an invalid description.
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
    """A value as the papers' tables print it, such as 31-29-27-13."""
    if not isinstance(value, tuple):
        return str(value)
    return "-".join(map(joined, value)) if value else "none"
