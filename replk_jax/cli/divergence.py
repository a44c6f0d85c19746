"""A warning about the weights of a run that diverged."""

from replk_jax.checkpoint import Checkpoint
from replk_jax.io.user_warnings import warn_user
from replk_jax.models.variables import diverged_tensors


def warn_if_diverged(network: Checkpoint) -> None:
    """Warns of tensors with NaN or infinite values, or negative running variances."""
    diverged = diverged_tensors(network.variables)
    if diverged:
        count = f"{len(diverged)} tensors have" if len(diverged) > 1 else "One tensor has"
        first = "the first is" if len(diverged) > 1 else "it is"
        warn_user(
            f"{count} NaN or infinite values or negative variances; {first} {diverged[0]}. The "
            "training run may have diverged: the network's outputs may be NaN."
        )
