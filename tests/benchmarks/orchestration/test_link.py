import pytest

from benchmarks.orchestration.link import Link, overlap

_CHUNK = 32 * 2**20


def test_work_that_leaves_memory_bandwidth_over_is_not_slowed() -> None:
    both = overlap(first_seconds=3.0, first_share=0.4, second_seconds=2.0, second_share=0.6)
    assert both.end(3.0) == 3.0
    assert both.end(2.0) == 2.0


def test_work_that_asks_for_too_much_is_slowed_while_both_run_and_not_after() -> None:
    both = overlap(first_seconds=3.0, first_share=1.0, second_seconds=1.0, second_share=0.5)
    # the second takes half as long again; the first loses half a second to it
    assert both.end(1.0) == pytest.approx(1.5)
    assert both.end(3.0) == pytest.approx(3.5)
    # part of the first, inside and beyond the time that both run
    assert both.end(0.5) == pytest.approx(0.75)
    assert both.end(2.0) == pytest.approx(2.5)


def test_background_copies_land_in_order_and_only_while_nothing_is_demanded() -> None:
    landed: list[str] = []
    link = Link(bytes_per_second=100)
    link.in_background((0, 1), 200, lambda: landed.append("first"))
    link.in_background((0, 2), 100, lambda: landed.append("second"))
    link.advance(1.0)
    assert link.pending(0) == {1: 0.5, 2: 1.0}
    assert link.pending(1) == {}
    link.occupy(until=3.0, num_bytes=200)
    link.advance(3.5)
    assert landed == []
    assert link.pending(0) == {1: 0.25, 2: 1.0}
    link.advance(5.1)
    assert landed == ["first", "second"]
    assert link.copied_bytes == pytest.approx(500)


def test_a_demanded_copy_waits_for_the_chunk_under_way_and_for_no_more() -> None:
    link = Link(bytes_per_second=_CHUNK)
    link.in_background((0, 1), 3 * _CHUNK, lambda: None)
    assert link.demand_begins(1.25) == pytest.approx(2.0)
    assert link.pending(0) == {1: pytest.approx(1 / 3)}


def test_a_background_copy_that_has_not_begun_is_not_waited_for() -> None:
    link = Link(bytes_per_second=_CHUNK)
    link.advance(1.0)
    link.in_background((0, 1), 3 * _CHUNK, lambda: None)
    assert link.demand_begins(1.0) == 1.0


def test_a_demanded_copy_waits_for_the_one_before() -> None:
    link = Link(bytes_per_second=100)
    link.occupy(until=4.0, num_bytes=400)
    assert link.demand_begins(1.0) == 4.0


def test_a_copy_that_is_claimed_lands_and_leaves_what_is_still_to_do() -> None:
    landed: list[int] = []
    link = Link(bytes_per_second=100)
    link.in_background((0, 1), 200, lambda: landed.append(1))
    link.advance(0.5)
    assert link.claim((0, 1)) == 150
    assert landed == [1]
    assert link.num_background == 0
    with pytest.raises(KeyError):
        link.claim((0, 1))
