import pytest


@pytest.fixture(autouse=True)
def _printed_warnings(printed_warnings):
    pass
