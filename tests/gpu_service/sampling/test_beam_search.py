"""BeamSearch against transformers' generate on the same table of logits, and against a model of the cache."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from gpu_service.sampling.beam_search import BeamSearch, BeamStep
from gpu_service.sampling.logits_processors import processors
from gpu_service.sampling.outputs import Ending, FinishReason
from gpu_service.sampling.parameters import BeamParameters, SamplingParameters

PROMPT = [1, 2, 3]
PADDING = 1000


class _Table:
    """Logits that depend on the last two tokens and the length of a text."""

    def __init__(self, vocab_size: int, seed: int, coarse: bool) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.vocab_size = vocab_size
        self._rows = torch.randn(61, vocab_size, generator=generator) * 2
        if coarse:  # so that scores tie
            self._rows = self._rows.round()

    def __call__(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """[texts, vocab]."""
        return self._rows[[(31 * text[-2] + 7 * text[-1] + len(text)) % 61 for text in texts]].clone()


class _TableModel(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """A table as a model for transformers' generate."""

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, table: _Table) -> None:
        config: Any = PretrainedConfig()
        config.vocab_size = table.vocab_size
        super().__init__(config)
        self.table = table
        self.anchor = torch.nn.Parameter(torch.zeros(1))  # tells generate the model's device

    def forward(self, input_ids: torch.Tensor, **_: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self.table(input_ids.tolist())[:, None])

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> dict[str, Any]:
        return {"input_ids": input_ids}


class _Cache:
    """The contents of a cache's rows, tokens by position, copied as a search asks."""

    def __init__(self, num_rows: int) -> None:
        self.rows = [list(PROMPT) for _ in range(num_rows)]
        self.outputs: list[list[int]] = [[] for _ in range(num_rows)]
        self.num_copied = 0

    def run(self, search: BeamSearch, table: _Table) -> None:
        """Searches to the end and checks at each step that every row holds its beam."""
        numbers = list(range(len(self.rows)))[::-1]  # the request's rows need not be in order, nor the first
        while not search.is_done:
            texts = [[*PROMPT, *output] for output in self.outputs]
            assert self.rows == texts
            step = search.step(
                torch.cat([torch.full((1, table.vocab_size), torch.nan), table(texts[::-1])]),
                [number + 1 for number in numbers],
            )
            sources, targets = {fork.source for fork in step.forks}, [fork.target for fork in step.forks]
            assert len(set(targets)) == len(targets)
            assert not sources & set(targets)
            for fork in step.forks:
                assert self.rows[fork.source][: fork.start] == self.rows[fork.target][: fork.start]
                self.rows[fork.target][fork.start :] = self.rows[fork.source][fork.start :]
                self.num_copied += len(self.rows[fork.source]) - fork.start
            _follow(self.outputs, step)
            if not search.is_done:
                for row, output in zip(self.rows, self.outputs, strict=True):
                    row.append(output[-1])
                assert list(search.best().token_ids) in self.outputs or search.best().reason is not None


def _follow(outputs: list[list[int]], step: BeamStep) -> None:
    """Applies a step to each row's tokens."""
    for fork in step.forks:
        outputs[fork.target][:] = outputs[fork.source]
    for output, token_id in zip(outputs, step.token_ids, strict=bool(step.token_ids)):
        output.append(token_id)


def _begun(beam: BeamParameters, ending: Ending, sampling: SamplingParameters | None = None) -> BeamSearch:
    chain = processors(sampling or SamplingParameters(), ending, preceding_length=len(PROMPT))
    return BeamSearch(beam, ending=ending, preceding=PROMPT, prompt_length=len(PROMPT), processors=chain)


def _search(table: _Table, max_tokens: int, beam: BeamParameters, **more: Any) -> tuple[BeamSearch, _Cache]:
    sampling = more.pop("sampling", None)
    search, cache = _begun(beam, Ending(max_tokens, **more), sampling), _Cache(beam.num_beams)
    cache.run(search, table)
    return search, cache


def _expected(
    table: _Table, max_tokens: int, beam: BeamParameters, **more: Any
) -> list[tuple[list[int], float | None]]:
    model: Any = _TableModel(table)
    output = model.generate(
        torch.tensor([PROMPT]),
        max_new_tokens=max_tokens,
        do_sample=False,
        num_beams=beam.num_beams,
        length_penalty=beam.length_penalty if beam.num_beams > 1 else None,
        early_stopping=beam.early_stopping if beam.num_beams > 1 else None,
        num_return_sequences=beam.num_return_sequences,
        pad_token_id=PADDING,
        use_cache=False,
        return_dict_in_generate=True,
        output_scores=True,
        **more,
    )
    scores = output.sequences_scores.tolist() if beam.num_beams > 1 else [None]
    return [(ids[len(PROMPT) :], score) for ids, score in zip(output.sequences.tolist(), scores, strict=True)]


def _assert_equal(search: BeamSearch, expected: list[tuple[list[int], float | None]]) -> None:
    results = search.results()
    assert len(results) == len(expected)
    for found, (token_ids, score) in zip(results, expected, strict=True):
        assert list(found.token_ids) == token_ids[: len(found.token_ids)]
        assert set(token_ids[len(found.token_ids) :]) <= {PADDING}
        assert score is None or found.score == pytest.approx(score, abs=1e-6)


@settings(deadline=None, max_examples=200)
@given(
    num_beams=st.integers(1, 6),
    num_return=st.integers(1, 6),
    length_penalty=st.sampled_from([0.0, 1.0, 2.0, 0.6, -1.0]),
    early_stopping=st.sampled_from([False, True, "never"]),
    eos=st.lists(st.integers(4, 11), max_size=3, unique=True),
    max_tokens=st.integers(1, 12),
    vocab_size=st.integers(12, 30),
    seed=st.integers(0, 10**6),
    coarse=st.booleans(),
)
def test_beams_are_those_of_transformers(
    num_beams: int,
    num_return: int,
    length_penalty: float,
    early_stopping: Any,
    eos: list[int],
    max_tokens: int,
    vocab_size: int,
    seed: int,
    coarse: bool,
) -> None:
    table = _Table(vocab_size, seed, coarse)
    beam = BeamParameters(num_beams, length_penalty, early_stopping, min(num_return, num_beams))
    search, _ = _search(table, max_tokens, beam, eos_ids=frozenset(eos[:2]), stop_ids=frozenset(eos[2:]))
    _assert_equal(search, _expected(table, max_tokens, beam, eos_token_id=eos or None))


@settings(deadline=None, max_examples=60)
@given(
    num_beams=st.integers(1, 4),
    penalty=st.sampled_from([1.0, 1.3, 0.7]),
    min_tokens=st.integers(0, 6),
    bias=st.dictionaries(st.integers(0, 11), st.sampled_from([-5.0, 2.0]), max_size=2),
    seed=st.integers(0, 10**6),
)
def test_what_changes_log_probabilities_does_so_as_in_transformers(
    num_beams: int, penalty: float, min_tokens: int, bias: dict[int, float], seed: int
) -> None:
    table, beam = _Table(12, seed, coarse=False), BeamParameters(num_beams)
    sampling = SamplingParameters(repetition_penalty=penalty, logit_bias=tuple(bias.items()))
    search, _ = _search(table, 9, beam, sampling=sampling, min_tokens=min_tokens, eos_ids=frozenset([5]))
    more: dict[str, Any] = {"sequence_bias": {(token,): value for token, value in bias.items()}} if bias else {}
    more |= {"min_new_tokens": min_tokens} if min_tokens else {}
    _assert_equal(search, _expected(table, 9, beam, eos_token_id=5, repetition_penalty=penalty, **more))


def test_rows_whose_beams_live_are_not_copied_over_and_the_prompt_never_is() -> None:
    table = _Table(30, seed=3, coarse=False)
    _, cache = _search(table, 40, BeamParameters(8))
    assert all(row[: len(PROMPT)] == PROMPT for row in cache.rows)
    whole_rows = sum(8 * (len(PROMPT) + step) for step in range(40))
    assert 0 < cache.num_copied < whole_rows / 10


def test_why_each_beam_ended() -> None:
    table = _Table(12, seed=11, coarse=False)
    beam = BeamParameters(4, length_penalty=0.0, num_return_sequences=4)
    search, _ = _search(table, 6, beam, eos_ids=frozenset([4, 5]), stop_ids=frozenset([6, 7]))
    for found in search.results():
        reasons = {4: FinishReason.EOS, 5: FinishReason.EOS, 6: FinishReason.STOP, 7: FinishReason.STOP}
        assert found.reason is reasons.get(found.token_ids[-1], FinishReason.LENGTH)
        assert found.reason is not FinishReason.LENGTH or len(found.token_ids) == 6
    assert {found.reason for found in search.results()} >= {FinishReason.EOS}


def test_the_best_so_far_is_there_from_the_first_step_on() -> None:
    table = _Table(30, seed=5, coarse=False)
    beam = BeamParameters(3, num_return_sequences=2)
    outputs: list[list[int]] = [[], [], []]
    search = _begun(beam, Ending(8))
    assert search.best().token_ids == ()
    for made in range(1, 8):
        _follow(outputs, search.step(table([[*PROMPT, *output] for output in outputs]), range(3)))
        assert len(search.best().token_ids) == made
        assert search.results()[0] == search.best()
        assert search.results()[0].score >= search.results()[1].score
        assert search.results()[0].token_ids != search.results()[1].token_ids


def test_the_best_so_far_may_be_one_that_has_ended() -> None:
    ended = 0
    for seed in range(20):
        table, beam = _Table(12, seed, coarse=False), BeamParameters(3, length_penalty=0.0)
        outputs: list[list[int]] = [[], [], []]
        search = _begun(beam, Ending(12, eos_ids=frozenset([4, 5])))
        while not search.is_done:
            _follow(outputs, search.step(table([[*PROMPT, *output] for output in outputs]), range(3)))
            assert search.best() == search.results()[0]
            ended += not search.is_done and search.best().reason is FinishReason.EOS
    assert ended


@pytest.mark.parametrize("seed", [1, 2, 4])
def test_when_a_search_ends_changes_what_it_finds_as_in_transformers(seed: int) -> None:
    table, found = _Table(12, seed, coarse=False), set()
    for early_stopping in (False, True, "never"):
        beam = BeamParameters(3, 1.0, early_stopping, 3)
        search, _ = _search(table, 30, beam, eos_ids=frozenset([5, 6]))
        _assert_equal(search, _expected(table, 30, beam, eos_token_id=[5, 6]))
        found.add(tuple(each.token_ids for each in search.results()))
    assert len(found) > 1
