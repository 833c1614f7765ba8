"""Every naming says how its tensors are laid out, and something reads that layout."""

import typing

import pytest

from fiddler.checkpoint.layouts.build import LAYOUTS
from fiddler.checkpoint.namings import NAMINGS, Layout, Naming


def test_every_layout_is_read() -> None:
    assert LAYOUTS.keys() == set(typing.get_args(Layout)) == {naming.layout for naming in NAMINGS}


@pytest.mark.parametrize("naming", NAMINGS, ids=lambda naming: naming.description)
def test_a_naming_has_the_groups_and_the_parts_that_its_layout_needs(naming: Naming) -> None:
    roles = {role for role in naming.parts.values() if not role.endswith("_bias")}
    needed = {
        "separate": ({"up", "down"}, {"gate", "up", "down"}),
        "fused": ({"gate_up", "down"},),
        "concatenated": ({"gate", "up", "down"},),
        "stacked": ({"factor_gate", "up", "down"},),
    }
    assert roles in needed[naming.layout]
    groups = naming.pattern.groupindex.keys()
    assert {"prefix", "layer", "part"} <= groups
    assert ("expert" in groups) == (naming.layout == "separate")
