"""Snapshots from written expositions, two seconds apart."""

from collections.abc import Sequence

import grpc
import pytest

from client import ClientError, UnavailableError
from client.metrics.monitor import Monitor
from client.metrics.snapshot import Bandwidth, HotExpert, Layer, Snapshot
from tests.support.expositions import Script, cpu_expert_service, gpu_service

GONE = UnavailableError("--gpu http://x: connection refused", grpc.StatusCode.UNAVAILABLE)


def _samples(
    gpu: Sequence[str | ClientError],
    cpu: Sequence[str | ClientError] = (),
    *,
    window: float = 2.0,
    half_life: float = 60.0,
) -> list[Snapshot]:
    with Monitor(
        Script(gpu),
        Script(cpu) if cpu else None,
        interval_seconds=2.0,
        window_seconds=window,
        half_life_seconds=half_life,
        timeout_seconds=1.0,
    ) as monitor:
        return [monitor.sample() for _ in gpu]


def test_rates_are_of_the_last_interval() -> None:
    first, second = _samples(
        [
            gpu_service(generation_tokens_total=100, prompt_tokens_total=7),
            gpu_service(generation_tokens_total=130, prompt_tokens_total=7, requests_running=3, requests_waiting=1),
        ]
    )
    assert first.window_seconds is None
    assert first.tokens_per_second is None
    assert second.window_seconds == 2
    assert (second.tokens_per_second, second.prompt_tokens_per_second) == (15, 0)
    assert (second.running, second.waiting) == (3, 1)


def test_a_longer_window_keeps_more_readings_and_drops_those_that_are_older() -> None:
    tokens = [0, 10, 10, 10, 50]
    samples = _samples([gpu_service(generation_tokens_total=count) for count in tokens], window=6.0)
    assert [sample.window_seconds for sample in samples] == [None, 2, 4, 6, 6]
    assert samples[3].tokens_per_second == pytest.approx(10 / 6)
    assert samples[4].tokens_per_second == pytest.approx(40 / 6)


def test_selections_are_by_layer_expert_and_route() -> None:
    _, sample = _samples(
        [
            gpu_service([[1, 1], [2, 2]], routes=[{"resident": 2}, {"remote": 4}], resident=[[0], []]),
            gpu_service([[7, 3], [2, 2]], routes=[{"resident": 8, "remote": 2}, {"remote": 4}], resident=[[0], []]),
        ]
    )
    first = Layer(
        layer=0,
        routes={"resident": 6, "streamed": 0, "remote": 2},
        selections=[6, 2],
        decayed_selections=[6, 2],
        imbalance=1.5,
        resident=[0],
        num_resident=1,
    )
    assert sample.layers[0] == first
    assert sample.layers[1].selections == [0, 0]
    assert sample.layers[1].imbalance is None
    assert sample.routes == {"resident": 0.75, "streamed": 0.0, "remote": 0.25}
    assert sample.hottest == [
        HotExpert(layer=0, expert=0, share=0.75, resident=True),
        HotExpert(layer=0, expert=1, share=0.25, resident=False),
    ]


def test_selections_decay_by_half_within_the_half_life() -> None:
    counts = [[[0, 0]], [[8, 0]], [[8, 4]]]
    *_, sample = _samples([gpu_service(each) for each in counts], half_life=2.0)
    assert sample.layers[0].decayed_selections == [4, 4]
    assert sample.layers[0].selections == [0, 4]


def test_a_service_that_is_gone_is_said_and_seen_again() -> None:
    text = gpu_service([[4]], generation_tokens_total=5)
    samples = _samples([text, text, GONE, gpu_service([[8]], generation_tokens_total=9), text])
    gone, back, later = samples[2:]
    assert gone.gpu_service is not None
    assert gone.gpu_service.error == GONE.message
    assert (gone.tokens_per_second, gone.layers, gone.degraded, gone.window_seconds) == (None, [], None, None)
    assert back.gpu_service is not None
    assert back.gpu_service.error is None
    # The window holds only one reading again.
    assert back.tokens_per_second is None
    assert later.window_seconds == 2


def test_a_service_that_was_started_anew_with_another_model_is_counted_anew() -> None:
    _, _, sample = _samples(
        [gpu_service([[5, 5]]), gpu_service([[9, 9]]), gpu_service([[1, 2, 3], [1, 2, 3]], start=2000.0)]
    )
    assert [layer.decayed_selections for layer in sample.layers] == [[1, 2, 3], [1, 2, 3]]
    assert sample.layers[0].selections == [1, 2, 3]


def test_what_is_not_exported_is_not_available() -> None:
    routes = [{"remote": 3.0}], [{"remote": 5.0}]
    _, sample = _samples([gpu_service(routes=each, degraded=1) for each in routes])
    only_routes = Layer(
        layer=0,
        routes={"resident": 0, "streamed": 0, "remote": 2},
        selections=None,
        decayed_selections=None,
        imbalance=None,
        resident=None,
        num_resident=None,
    )
    assert sample.layers == [only_routes]
    assert sample.hottest == []
    assert sample.degraded is True
    assert (sample.running, sample.swaps, sample.inter_token_seconds) == (None, None, None)
    assert sample.cpu_expert_service is None
    assert sample.bandwidth == Bandwidth(None, None, None)


def test_without_selections_by_expert_the_services_own_figures_are_taken() -> None:
    figures = 'fiddler_expert_imbalance_ratio{layer="0"} 2.5\nfiddler_resident_experts{layer="0"} 7\n'
    text = gpu_service(routes=[{"remote": 3.0}]) + figures
    _, sample = _samples([text, text])
    assert (sample.layers[0].imbalance, sample.layers[0].num_resident) == (2.5, 7)


def test_bandwidth_is_what_was_read_while_reading_beside_the_limit() -> None:
    limit = {"memory_read_bytes_per_second": 20e9}
    before = cpu_expert_service(
        weight_read_bytes_total=1e9, weight_read_seconds_total=1.0, compute_seconds_sum=2.0, **limit
    )
    after = cpu_expert_service(
        weight_read_bytes_total=4e9, weight_read_seconds_total=1.25, compute_seconds_sum=2.5, **limit
    )
    _, sample = _samples([gpu_service()] * 2, [before, after])
    assert sample.bandwidth == Bandwidth(12e9, 20e9, 0.25)
    _, idle = _samples([gpu_service()] * 2, [before, before])
    assert idle.bandwidth == Bandwidth(None, 20e9, 0.0)


def test_either_service_alone_is_enough() -> None:
    cpu = cpu_expert_service(memory_read_bytes_per_second=5.0)
    with Monitor(
        None, Script([cpu, cpu]), interval_seconds=1, window_seconds=1, half_life_seconds=1, timeout_seconds=1
    ) as monitor:
        sample = monitor.sample()
    assert sample.gpu_service is None
    assert sample.layers == []
    assert sample.bandwidth.measured_bytes_per_second == 5.0
