"""JSON objects in files that may be damaged."""

import json
from typing import Any


def parse_json_object(data: bytes) -> dict[str, Any]:
    """Parses a JSON object in UTF-8.

    Raises:
      ValueError: not JSON, nested too deep, not an object, or an object with a name twice.
    """
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name is there twice")
    return value
