"""Networks in words, for reports."""

from replk_jax.models.composite import CompositeNetwork
from replk_jax.models.description import architecture_in_words, joined
from replk_jax.models.network import Network
from replk_jax.models.registry import name_of


def title_of(network: Network) -> str:
    """The registered name of a network, or else its class.

    Those of a composite network are followed by its backbone's, as in "SegmentationNetwork on
    replknet_31b".
    """
    title = name_of(network) or type(network).__name__
    if isinstance(network, CompositeNetwork):
        return f"{title} on {title_of(network.backbone)}"
    return title


def details_of(network: Network) -> list[str]:
    """The hyper-parameters of a network on one line; of a composite network, each on its own."""
    if isinstance(network, CompositeNetwork):
        fields = network.hyperparameters().items()
        return [f"{field} {joined(value)}" for field, value in fields]
    return [architecture_in_words(network)]
