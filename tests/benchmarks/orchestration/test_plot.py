from xml.etree import ElementTree

import pytest

from benchmarks.orchestration.plot import draw, fill
from benchmarks.orchestration.tables import RIVALS, Cells, tables

_CELLS: Cells = {
    ("l4", "mixtral_8x7b", "decode"): {
        "ours": {"value": 5.0, "share_of_bound": 0.8, "behind": "0.50 of fiddler; waits"},
        "fiddler": {"value": 10.0, "share_of_bound": 0.4},
        **{rival: {"value": 1.0, "share_of_bound": 0.1} for rival in RIVALS if rival != "fiddler"},
        **{
            f"ours_{policy}": {"value": 4.0, "share_of_bound": 0.1}
            for policy in ("popularity", "lru", "layers", "none")
        },
    }
}
_OTHERS = {
    "plan.optimality": {"value": 0.99, "p10": 0.99, "p90": 0.99, "at_least": 0.98},
    "plan.microseconds.e128": {"value": 40.0, "p10": 30.0, "p90": 50.0, "at_most": 50},
    "orchestration.validation.l4.deepspeed": {"value": 0.13, "decode_only": 0.14, "published": 0.12},
}


def test_the_picture_is_xml_with_a_dot_for_each_strategy_and_its_legend() -> None:
    picture = ElementTree.fromstring(draw(_CELLS))
    dots = [element for element in picture.iter() if element.tag.endswith("}use")]
    assert len(dots) == 2 * (1 + len(RIVALS))


def test_tables_replace_what_was_between_their_comments_and_nothing_else() -> None:
    text = "a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\n<!-- end -->\nc\n"
    once = fill(text, {"one": "1", "two": "2"})
    assert once == "a\n<!-- one -->\n1\n<!-- end -->\nb\n<!-- two -->\n2\n<!-- end -->\nc\n"
    assert fill(once, {"one": "1", "two": "2"}) == once
    with pytest.raises(ValueError, match="three"):
        fill(text, {"three": "3"})


def test_tables_tell_who_is_fastest_and_why() -> None:
    made = tables(_CELLS, _OTHERS)
    assert "| Mixtral-8x7B, L4 | 5 |" in made["rates"]
    assert "| 0.50 F |" in made["ratios"]
    assert "0.50 of fiddler; waits" in made["behind"]
    assert "| **5** | 4 | 4 | 4 | 4 |" in made["policies"]
    assert "| L4: DeepSpeed | 0.13 | 0.14 | 0.12 |" in made["paper"]
    assert "at most 50" in made["plans"]
