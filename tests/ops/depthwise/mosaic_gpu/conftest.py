"""The kernels are tested without implicit promotion."""

import pytest


@pytest.fixture(autouse=True)
def _strict_promotion(strict_promotion):
    pass
