from dataclasses import replace

import numpy as np

from benchmarks.orchestration.batches import Batch
from benchmarks.orchestration.workloads import popularity, workloads
from benchmarks.traces import synthetic

_ROUTING = replace(synthetic.MIXTRAL, num_layers=2)
_TRACE = synthetic.generate(_ROUTING, ("first", "second"), num_generations=18, prompt_tokens=520, output_tokens=3)
_WORKLOADS = {workload.name: workload.requests(_TRACE) for workload in workloads(quick=False)}


def test_popularity_is_counted_on_generations_that_no_request_uses() -> None:
    counted = popularity(_TRACE)
    assert counted.tokens == 2 * 523
    assert all(sum(layer) == 2 * counted.tokens for layer in counted.counts)
    used = {request.prompt.ids.tobytes() for request in _WORKLOADS["decode"]}
    assert used.isdisjoint(generation.prompt.tobytes() for generation in _TRACE.generations[:2])


def test_every_workload_has_a_warm_up_and_something_to_count() -> None:
    assert all(len(requests) >= 2 for requests in _WORKLOADS.values())


def test_prompts_and_beams_have_as_many_rows_as_they_say() -> None:
    for name, requests in _WORKLOADS.items():
        kind, _, rows = name.partition("_")
        if kind == "prefill":
            assert {request.prompt.rows for request in requests} == {int(rows)}
            assert not any(request.steps for request in requests)
        elif kind == "beams":
            assert {step.rows for request in requests for step in request.steps} == {int(rows)}


def test_the_topic_shifts_in_the_middle() -> None:
    first, second = _TRACE.generations[2:18], _TRACE.generations[20:36]
    requests = [request.prompt.ids.tobytes() for request in _WORKLOADS["decode_shift"]]
    assert requests[:3] == [generation.prompt.tobytes() for generation in first[:3]]
    assert requests[3:] == [generation.prompt.tobytes() for generation in second[:3]]


def test_a_batch_is_split_without_losing_rows() -> None:
    batch = _WORKLOADS["prefill_512"][0].prompt
    parts = batch.split(200)
    assert [part.rows for part in parts] == [200, 200, 112]
    assert np.array_equal(np.concatenate([part.ids for part in parts], axis=1), batch.ids)


def test_a_message_holds_the_rows_that_want_its_experts() -> None:
    layer = Batch(np.array([[[0, 3], [1, 2], [3, 1]]], dtype=np.int16), 4).layers[0]
    assert layer.counts == [1, 2, 1, 2]
    assert layer.ids_of((3,)).tolist() == [[-1, 3], [3, -1]]
    assert len(layer.ids_of((0, 1, 2, 3))) == 3
