"""The dtype in which sums are taken."""

import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax.ops.dtypes import accumulation_dtype


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([jnp.bfloat16], np.float32),
        ([jnp.float16, jnp.bfloat16], np.float32),
        (["float32"], np.float32),
        ([jnp.float64], np.float64),
        ([jnp.bfloat16, np.dtype("float64")], np.float64),
        ([], np.float32),
    ],
)
def test_is_float32_or_wider(strict_promotion, dtypes, expected):
    assert accumulation_dtype(*dtypes) == expected
