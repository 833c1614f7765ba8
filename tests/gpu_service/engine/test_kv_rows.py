"""How little the rows are moved; that they are right is test_scheduler.py's."""

from gpu_service.engine import generation as words
from gpu_service.engine.kv_rows import MIN_SHARED_TOKENS, RowTable
from gpu_service.engine.request import Request
from tests.support.model_of_cache import ModelOfCache, budget_of, request_of, text_of

LONG = list(range(MIN_SHARED_TOKENS + 4))


class _Table:
    """A row table whose prompts are computed at once."""

    def __init__(self, max_rows: int = 4, max_length: int = 64, num_tokens: int | None = None) -> None:
        budget = budget_of(max_rows, max_length, num_tokens)
        self.cache = ModelOfCache(budget)
        self.rows = RowTable(self.cache, budget)
        self.rows.reserve(max_rows if num_tokens is None else 1, max_length if num_tokens is None else 1)

    def begin(self, request: Request, may_share: bool = True) -> int:
        """Returns how much of the prompt was there."""
        sequence = request.sequences[0]
        self.rows.begin(sequence, may_share)
        self.cache.check(sequence)
        return sequence.num_computed

    def compute(self, request: Request) -> None:
        sequence = request.sequences[0]
        text = text_of(sequence)
        for position in range(len(text)):
            self.cache.cells[sequence.row][position] = text[: position + 1]
        sequence.num_computed = len(text)

    def run(self, request: Request) -> Request:
        """Computes the prompt and lets the request decode."""
        self.begin(request, may_share=False)
        self.compute(request)
        self.rows.join(request.sequences)
        for sequence in request.sequences:
            self.cache.check(sequence)
        return request

    def copied(self) -> int:
        """Positions copied since the last look."""
        copied, self.cache.num_copied = self.cache.num_copied, 0
        return copied


def _rows(sequences: list[words.Sequence]) -> list[int]:
    return [sequence.row for sequence in sequences]


def test_one_request_after_another_copies_nothing() -> None:
    table = _Table()
    for prompt in ([1, 2], [3, 4]):
        request = table.run(request_of(prompt))
        assert request.sequences[0].row == 0
        table.rows.release(request.sequences[0])
    assert table.copied() == 0


def test_generations_get_copies_of_the_prompt_and_no_more() -> None:
    table = _Table()
    request = table.run(request_of([1, 2, 3], rows=3))
    assert _rows(request.sequences) == [0, 1, 2]
    assert table.copied() == 2 * 3


def test_a_hole_is_closed_by_the_last_row_alone() -> None:
    table = _Table()
    first, _, last = (table.run(request_of([number, number])) for number in (1, 2, 3))
    table.rows.release(first.sequences[0])
    assert table.copied() == 0  # until someone needs the rows to be adjacent
    assert [each.request.prompt[0] for each in table.rows.decoding()] == [3, 2]
    assert (last.sequences[0].row, table.copied()) == (0, 2)


def test_a_freed_row_at_the_end_closes_without_a_copy() -> None:
    table = _Table()
    requests = [table.run(request_of([number])) for number in (1, 2)]
    table.rows.release(requests[1].sequences[0])
    assert (len(table.rows.decoding()), table.copied()) == (1, 0)


def test_what_a_finished_request_left_is_taken_where_it_is() -> None:
    table = _Table()
    table.rows.release(table.run(request_of(LONG)).sequences[0])
    follower = request_of([*LONG, 77, 78])
    assert (table.begin(follower), follower.sequences[0].row, table.copied()) == (len(LONG), 0, 0)


def test_its_answer_counts_as_left_too() -> None:
    table = _Table()
    request = table.run(request_of(LONG))
    request.sequences[0].output += [90, 91]
    table.compute(request)
    table.rows.release(request.sequences[0])
    assert table.begin(request_of([*LONG, 90, 91, 92])) == len(LONG) + 2


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    table = _Table()
    table.rows.release(table.run(request_of(LONG)).sequences[0])
    assert table.begin(request_of(LONG)) == len(LONG) - 1


def test_what_a_request_under_way_holds_is_copied() -> None:
    table = _Table()
    table.run(request_of(LONG))
    assert (table.begin(request_of([*LONG, 77])), table.copied()) == (len(LONG), len(LONG))


def test_what_is_left_among_rows_that_decode_is_kept_for_who_needs_it() -> None:
    table = _Table()
    left, _ = table.run(request_of(LONG)), table.run(request_of([1]))
    table.rows.release(left.sequences[0])
    follower = request_of([*LONG, 77])
    assert table.begin(follower) == len(LONG)
    assert (follower.sequences[0].row, _rows(table.rows.decoding())) == (1, [0])


def test_conversations_that_take_turns_keep_what_they_have() -> None:
    table = _Table(max_rows=3)
    texts = [[number, *LONG] for number in (100, 200, 300)]
    for text in texts:
        table.rows.release(table.run(request_of(text)).sequences[0])
    for text in [*texts, *reversed(texts)]:
        request = request_of([*text, 77])
        assert table.begin(request) >= len(text)
        table.compute(request)
        table.rows.join(request.sequences)
        table.rows.release(request.sequences[0])


def test_what_was_left_longest_ago_is_overwritten_first() -> None:
    table = _Table(max_rows=3)
    texts = [[number, *LONG] for number in (100, 200, 300, 400)]
    for text in texts:
        table.rows.release(table.run(request_of(text)).sequences[0])
    assert [table.begin(request_of([*text, 77])) for text in texts[1:3]] == [len(text) for text in texts[1:3]]
    assert table.begin(request_of([*texts[0], 77])) == 0


def test_a_longer_text_is_not_overwritten_for_its_beginning_where_there_is_room() -> None:
    table = _Table()
    long = [*LONG, *range(500, 500 + MIN_SHARED_TOKENS)]
    table.rows.release(table.run(request_of(long)).sequences[0])
    assert table.begin(request_of([*LONG, 77])) == len(LONG)
    assert table.begin(request_of([*long, 77])) == len(long)
    for max_rows, stays in ((1, False), (2, True)):
        table = _Table(max_rows)
        for text in (long, [900, *LONG])[:max_rows]:
            table.rows.release(table.run(request_of(text)).sequences[0])
        assert table.begin(request_of([*LONG, 77])) == len(LONG)
        assert (long in table.rows._left) is stays


def test_a_short_beginning_or_one_that_must_be_computed_is_not_shared() -> None:
    table = _Table()
    table.rows.release(table.run(request_of(LONG)).sequences[0])
    assert table.begin(request_of([*LONG[: MIN_SHARED_TOKENS - 1], 99, 98])) == 0
    table = _Table()
    table.rows.release(table.run(request_of(LONG)).sequences[0])
    assert table.begin(request_of([*LONG, 99]), may_share=False) == 0


def test_what_was_made_zeros_is_not_shared() -> None:
    table = _Table()
    table.rows.release(table.run(request_of(LONG)).sequences[0])
    spoiled = request_of([*LONG, 99])
    assert table.begin(spoiled) == len(LONG)
    table.rows.release(spoiled.sequences[0], clear_stop=len(LONG))
    assert table.begin(request_of([*LONG, 99])) == 0


def test_prompts_that_finish_out_of_order_change_places() -> None:
    table = _Table(max_rows=2)
    first, second = request_of([1, 1]), request_of([2, 2, 2])
    for request in (first, second):
        table.begin(request)
        table.compute(request)
    for request in (second, first):
        table.rows.join(request.sequences)
    for request in (first, second):
        table.cache.check(request.sequences[0])
    assert (second.sequences[0].row, first.sequences[0].row) == (0, 1)


def test_memory_is_divided_anew_only_where_it_must_be() -> None:
    table = _Table(max_rows=4, max_length=256, num_tokens=512)
    shapes = []
    for rows, length in ((1, 100), (1, 60), (4, 100), (2, 256), (2, 200)):
        before = table.cache.num_reshaped
        table.rows.reserve(rows, length)
        shapes.append((len(table.cache.cells), len(table.cache.cells[0]), table.cache.num_reshaped - before))
    assert shapes == [(4, 128, 1), (4, 128, 0), (4, 128, 0), (2, 256, 1), (2, 256, 0)]


def test_what_rows_hold_survives_a_division() -> None:
    table = _Table(max_rows=4, max_length=256, num_tokens=512)
    table.rows.reserve(4, 100)
    decoding, prompt = table.run(request_of([1, 2], rows=2)), request_of([3, 4, 5])
    table.begin(prompt)
    table.compute(prompt)
    table.rows.release(decoding.sequences[0])
    table.rows.reserve(2, 200)
    for sequence in (decoding.sequences[1], prompt.sequences[0]):
        table.cache.check(sequence)
    table.rows.join(prompt.sequences)
    assert _rows([decoding.sequences[1], prompt.sequences[0]]) == [0, 1]
