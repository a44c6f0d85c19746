"""Parts of composite networks that contain parts."""

import json
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import pytest

from replk_jax.models.parts import NetworkPart, own_fields, register_part, stored_part
from replk_jax.models.stored import COUNT, POSITIVES, StoredField


@register_part
class Inner(NetworkPart, kw_only=True):
    stored_fields: ClassVar[Mapping[str, StoredField]] = {"sizes": POSITIVES}
    shared_fields: ClassVar[tuple[str, ...]] = (*NetworkPart.shared_fields, "num_classes")

    num_classes: int = 1
    sizes: tuple[float, ...] = (1, 2)


@register_part
class Outer(NetworkPart, kw_only=True):
    stored_fields: ClassVar[Mapping[str, StoredField]] = {
        "width": COUNT,
        "inner": stored_part(Inner),
        "other": stored_part(Inner, optional=True),
    }
    shared_fields: ClassVar[tuple[str, ...]] = (*NetworkPart.shared_fields, "num_classes")

    num_classes: int = 80
    width: int = 3
    inner: Inner
    other: Inner | None = None


def test_fields_reach_the_innermost_part():
    part = Outer(inner=Inner(), num_classes=7, dtype=jnp.bfloat16)
    assert (part.inner.num_classes, part.inner.dtype) == (7, jnp.bfloat16)
    changed = part.clone(deploy=True, num_classes=2)
    assert (changed.inner.num_classes, changed.inner.deploy) == (2, True)
    assert own_fields(Outer) == {"width", "inner", "other"}


@pytest.mark.parametrize("other", [None, Inner(sizes=[5])])
def test_description(other):
    part = Outer(inner=Inner(sizes=[0.5, 4]), other=other)
    assert part.inner.sizes == (0.5, 4)
    description = json.loads(json.dumps(part.describe()))
    assert description["inner"] == {"part": "Inner", "sizes": [0.5, 4]}
    assert NetworkPart.from_description(description) == part
    assert part.in_words().startswith("Outer (width 3, inner Inner (sizes 0.5-4), other ")
    part.check_fields()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"part": "Unheard"}, KeyError, "Unheard"),
        ({"inner": {"part": "Outer", "inner": {"part": "Inner"}}}, ValueError, "Outer is no Inner"),
        ({"inner": {"part": "Inner", "sizes": [0]}}, ValueError, r"sizes cannot be \[0\]"),
        ({"inner": {"part": "Inner", "sizes": [float("nan")]}}, ValueError, "sizes cannot be"),
        ({"inner": {"part": "Inner", "sizes": [True]}}, ValueError, r"sizes cannot be \[True\]"),
        ({"inner": None}, ValueError, "inner cannot be None"),
        ({"depth": 3}, KeyError, "depth"),
    ],
)
def test_descriptions_that_are_refused(change, error, message):
    description = {"part": "Outer", "inner": {"part": "Inner"}} | change
    with pytest.raises(error, match=message):
        NetworkPart.from_description(description)


def test_fields_are_checked_in_all_parts():
    with pytest.raises(ValueError, match=r"sizes of a Inner cannot be \(-1,\)"):
        Outer(inner=Inner(sizes=(-1,))).check_fields()


def test_names_are_unique():
    """Defining a class again, as a notebook does, replaces it."""
    again = type("Inner", (NetworkPart,), {"__module__": __name__})
    assert register_part(again) is again
    assert register_part(Inner) is Inner
    elsewhere = type("Inner", (NetworkPart,), {"__module__": "elsewhere"})
    with pytest.raises(ValueError, match=f"There is a part Inner already, in {__name__}"):
        register_part(elsewhere)
