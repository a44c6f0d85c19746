"""JSON that every parser reads."""

import json
import math

import numpy as np
import pytest

from replk_jax.io.files import json_text, replace_json

NAN, INF = math.nan, math.inf


def strict(text):
    """The value of JSON as RFC 8259 has it, section 6: without NaN and Infinity."""

    def refuse(name):
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (NAN, None),
        (INF, None),
        (-INF, None),
        (np.float64(NAN), None),
        (1.5, 1.5),
        (3, 3),
        (True, True),
        ("NaN", "NaN"),
        ({"a": [1.0, NAN, {"b": (INF, None)}]}, {"a": [1.0, None, {"b": [None, None]}]}),
    ],
)
def test_what_is_not_finite_is_null(value, read, tmp_path):
    assert strict(json_text(value)) == read
    replace_json(tmp_path / "x.json", value)
    assert strict((tmp_path / "x.json").read_text()) == read
