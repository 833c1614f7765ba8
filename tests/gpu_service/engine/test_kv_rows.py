"""How little KV rows are moved. That their contents are right is tested in test_scheduler.py."""

from gpu_service.engine.generation import Answer, Generation
from gpu_service.engine.kv_rows import MIN_SHARED_TOKENS, KvRows
from tests.support.model_of_cache import ModelOfCache, answer_of, budget_of, text_of

LONG = list(range(MIN_SHARED_TOKENS + 4))


class _Table:
    """KV rows whose prompts are computed at once."""

    def __init__(self, max_rows: int = 4, max_length: int = 64, num_tokens: int | None = None) -> None:
        budget = budget_of(max_rows, max_length, num_tokens)
        self.cache = ModelOfCache(budget)
        self.rows = KvRows(self.cache, budget)
        self.rows.reserve(max_rows if num_tokens is None else 1, max_length if num_tokens is None else 1)

    def begin(self, answer: Answer, may_share: bool = True) -> int:
        """Returns how much of the prompt the cache held already."""
        generation = answer.generations[0]
        self.rows.begin(generation, may_share=may_share)
        self.cache.check(generation)
        return generation.num_computed

    def compute(self, answer: Answer) -> None:
        generation = answer.generations[0]
        text = text_of(generation)
        for position in range(len(text)):
            self.cache.cells[generation.row][position] = (), text[: position + 1]
        generation.num_computed = len(text)

    def run(self, answer: Answer) -> Answer:
        """Computes the prompt and lets the generations decode."""
        self.begin(answer, may_share=False)
        self.compute(answer)
        self.rows.join(answer.generations)
        for generation in answer.generations:
            self.cache.check(generation)
        return answer

    def copied(self) -> int:
        """Positions copied since the last call."""
        copied, self.cache.num_copied = self.cache.num_copied, 0
        return copied


def _rows(generations: list[Generation]) -> list[int]:
    return [generation.row for generation in generations]


def test_one_request_after_another_copies_nothing() -> None:
    table = _Table()
    for prompt in ([1, 2], [3, 4]):
        answer = table.run(answer_of(prompt))
        assert answer.generations[0].row == 0
        table.rows.release(answer.generations[0])
    assert table.copied() == 0


def test_generations_get_copies_of_the_prompt_and_no_more() -> None:
    table = _Table()
    answer = table.run(answer_of([1, 2, 3], rows=3))
    assert _rows(answer.generations) == [0, 1, 2]
    assert table.copied() == 2 * 3


def test_a_hole_is_closed_by_the_last_row_alone() -> None:
    table = _Table()
    first, _, last = (table.run(answer_of([number, number])) for number in (1, 2, 3))
    table.rows.release(first.generations[0])
    assert table.copied() == 0  # until the rows have to be adjacent
    assert [each.request.prompt[0] for each in table.rows.decoding()] == [3, 2]
    assert (last.generations[0].row, table.copied()) == (0, 2)


def test_a_freed_row_at_the_end_closes_without_a_copy() -> None:
    table = _Table()
    answers = [table.run(answer_of([number])) for number in (1, 2)]
    table.rows.release(answers[1].generations[0])
    assert (len(table.rows.decoding()), table.copied()) == (1, 0)


def test_what_a_finished_request_left_is_taken_where_it_is() -> None:
    table = _Table()
    table.rows.release(table.run(answer_of(LONG)).generations[0])
    follower = answer_of([*LONG, 77, 78])
    assert (table.begin(follower), follower.generations[0].row, table.copied()) == (len(LONG), 0, 0)


def test_its_answer_counts_as_left_too() -> None:
    table = _Table()
    answer = table.run(answer_of(LONG))
    answer.generations[0].output += [90, 91]
    table.compute(answer)
    table.rows.release(answer.generations[0])
    assert table.begin(answer_of([*LONG, 90, 91, 92])) == len(LONG) + 2


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    table = _Table()
    table.rows.release(table.run(answer_of(LONG)).generations[0])
    assert table.begin(answer_of(LONG)) == len(LONG) - 1


def test_what_a_request_under_way_holds_is_copied() -> None:
    table = _Table()
    table.run(answer_of(LONG))
    assert (table.begin(answer_of([*LONG, 77])), table.copied()) == (len(LONG), len(LONG))


def test_what_is_left_among_rows_that_decode_is_kept_for_who_needs_it() -> None:
    table = _Table()
    left, _ = table.run(answer_of(LONG)), table.run(answer_of([1]))
    table.rows.release(left.generations[0])
    follower = answer_of([*LONG, 77])
    assert table.begin(follower) == len(LONG)
    assert (follower.generations[0].row, _rows(table.rows.decoding())) == (1, [0])


def test_conversations_that_take_turns_keep_what_they_have() -> None:
    table = _Table(max_rows=3)
    texts = [[number, *LONG] for number in (100, 200, 300)]
    for text in texts:
        table.rows.release(table.run(answer_of(text)).generations[0])
    for text in [*texts, *reversed(texts)]:
        answer = answer_of([*text, 77])
        assert table.begin(answer) >= len(text)
        table.compute(answer)
        table.rows.join(answer.generations)
        table.rows.release(answer.generations[0])


def test_what_was_left_longest_ago_is_overwritten_first() -> None:
    table = _Table(max_rows=3)
    texts = [[number, *LONG] for number in (100, 200, 300, 400)]
    for text in texts:
        table.rows.release(table.run(answer_of(text)).generations[0])
    assert [table.begin(answer_of([*text, 77])) for text in texts[1:3]] == [len(text) for text in texts[1:3]]
    assert table.begin(answer_of([*texts[0], 77])) == 0


def test_a_longer_text_is_not_overwritten_for_its_beginning_where_there_is_room() -> None:
    table = _Table()
    long = [*LONG, *range(500, 500 + MIN_SHARED_TOKENS)]
    table.rows.release(table.run(answer_of(long)).generations[0])
    assert table.begin(answer_of([*LONG, 77])) == len(LONG)
    assert table.begin(answer_of([*long, 77])) == len(long)
    for max_rows, stays in ((1, False), (2, True)):
        table = _Table(max_rows)
        for text in (long, [900, *LONG])[:max_rows]:
            table.rows.release(table.run(answer_of(text)).generations[0])
        assert table.begin(answer_of([*LONG, 77])) == len(LONG)
        assert (long in table.rows._left) is stays


def test_a_short_beginning_or_one_that_must_be_computed_is_not_shared() -> None:
    table = _Table()
    table.rows.release(table.run(answer_of(LONG)).generations[0])
    assert table.begin(answer_of([*LONG[: MIN_SHARED_TOKENS - 1], 99, 98])) == 0
    table = _Table()
    table.rows.release(table.run(answer_of(LONG)).generations[0])
    assert table.begin(answer_of([*LONG, 99]), may_share=False) == 0


def test_what_was_made_zeros_is_not_shared() -> None:
    table = _Table()
    table.rows.release(table.run(answer_of(LONG)).generations[0])
    non_finite = answer_of([*LONG, 99])
    assert table.begin(non_finite) == len(LONG)
    table.rows.release(non_finite.generations[0], clear_stop=len(LONG))
    assert table.begin(answer_of([*LONG, 99])) == 0


def test_prompts_that_finish_out_of_order_change_places() -> None:
    table = _Table(max_rows=2)
    first, second = answer_of([1, 1]), answer_of([2, 2, 2])
    for answer in (first, second):
        table.begin(answer)
        table.compute(answer)
    for answer in (second, first):
        table.rows.join(answer.generations)
    for answer in (first, second):
        table.cache.check(answer.generations[0])
    assert (second.generations[0].row, first.generations[0].row) == (0, 1)


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
    decoding, prompt = table.run(answer_of([1, 2], rows=2)), answer_of([3, 4, 5])
    table.begin(prompt)
    table.compute(prompt)
    table.rows.release(decoding.generations[0])
    table.rows.reserve(2, 200)
    for generation in (decoding.generations[1], prompt.generations[0]):
        table.cache.check(generation)
    table.rows.join(prompt.generations)
    assert _rows([decoding.generations[1], prompt.generations[0]]) == [0, 1]
