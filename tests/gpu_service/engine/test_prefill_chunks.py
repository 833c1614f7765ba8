from gpu_service.engine.prefill_chunks import PrefillChunks

CHUNKS = PrefillChunks(with_others=512, alone=4096, logprobs=1000)


def test_a_prompt_that_can_be_divided_keeps_the_chunks_in_order() -> None:
    assert CHUNKS.for_storage(True, 8000) == PrefillChunks(with_others=512, alone=4096, logprobs=512)
    small = PrefillChunks(with_others=512, alone=1, logprobs=4)
    assert small.for_storage(True, 8000) == PrefillChunks(with_others=512, alone=512, logprobs=4)


def test_a_prompt_that_cannot_be_divided_is_one_chunk_whose_logits_are_still_bounded() -> None:
    assert CHUNKS.for_storage(False, 8000) == PrefillChunks(with_others=8000, alone=8000, logprobs=1000)


def test_uniform_chunks_are_the_same_in_all_cases() -> None:
    assert PrefillChunks.uniform(8) == PrefillChunks(with_others=8, alone=8, logprobs=8)
