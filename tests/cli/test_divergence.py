"""Weights of runs that diverged."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from replk_jax.models.variables import diverged_tensors


def test_what_no_sound_network_has():
    """In any dtype; only a variance may not be negative."""
    sound = np.array([-1.0, 2.0], np.float32)
    variables = {
        "batch_stats": {"norm": {"mean": sound, "var": sound}, "zero": {"var": np.zeros(2)}},
        "params": {
            "bfloat16": np.array([0, np.nan], ml_dtypes.bfloat16),
            "float16": np.array([0, np.inf], np.float16),
            "jax": jnp.array(-jnp.inf),
            "sound": sound,
            "whole": np.array([-1, 2]),
        },
    }
    assert diverged_tensors(variables) == [
        "batch_stats/norm/var",
        "params/bfloat16",
        "params/float16",
        "params/jax",
    ]
