"""The dtype in which sums are taken."""

from functools import reduce
from typing import Any

import numpy as np


def accumulation_dtype(*dtypes: Any) -> np.dtype:
    """The dtype that `dtypes` and float32 promote to: float32 for 16-bit types.

    `jnp.promote_types` gives the same, but raises `TypePromotionError` where
    `jax_numpy_dtype_promotion="strict"` forbids implicit promotion. This promotion is explicit.

    Args:
      *dtypes: floating-point dtypes, as `numpy.dtype` takes them.
    """
    return reduce(np.promote_types, map(np.dtype, dtypes), np.dtype(np.float32))
