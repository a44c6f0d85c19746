"""The tests read what the command line prints, warnings too."""

import pytest


@pytest.fixture(autouse=True)
def _printed_warnings(printed_warnings):
    pass
