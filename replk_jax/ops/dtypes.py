"""The dtype in which sums are accumulated."""

from functools import reduce
from typing import Any

import numpy as np


def accumulation_dtype(*dtypes: Any) -> np.dtype:
    """The dtype that `dtypes` and float32 promote to: float32 for 16-bit types.

    `jnp.promote_types` returns the same dtype, but raises `TypePromotionError` under
    `jax_numpy_dtype_promotion="strict"`, which forbids implicit promotion. This one is explicit.

    Args:
      *dtypes: floating-point dtypes, in any form that `numpy.dtype` accepts.
    """
    return reduce(np.promote_types, map(np.dtype, dtypes), np.dtype(np.float32))
