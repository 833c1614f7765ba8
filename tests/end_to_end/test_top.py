"""`python -m client.top` on a real pair."""

import json
from typing import Any

import pytest

from client import Client
from client.metrics import names
from client.metrics.monitor import Monitor
from client.metrics.scrape import Endpoint
from client.top.__main__ import main
from pair import Pair
from tests.support.pairs import start, write_tiny

PROMPT = [11, 29, 8, 117, 45, 61, 33]
NUM_TOKENS = 12
TOP_K = 2
NUM_LAYERS = 3
NUM_EXPERTS = 8


def _endpoints(pair: Pair) -> tuple[Endpoint, Endpoint]:
    return (
        Endpoint("--gpu", "gpu_service", f"127.0.0.1:{pair.gpu_metrics_port}"),
        Endpoint("--cpu", "cpu_expert_service", f"127.0.0.1:{pair.cpu_metrics_port}"),
    )


def _monitor(pair: Pair) -> Monitor:
    return Monitor(
        *_endpoints(pair), interval_seconds=60, window_seconds=60, half_life_seconds=3600, timeout_seconds=30
    )


def _generate(pair: Pair) -> None:
    with Client(pair.target) as client:
        client.generate(PROMPT, max_tokens=NUM_TOKENS, temperature=0).text()


def test_a_generation_is_seen_as_it_was(pair: Pair) -> None:
    with _monitor(pair) as monitor:
        monitor.sample()
        _generate(pair)
        sample = monitor.sample()
    assert not monitor.errors
    assert sample.window_seconds is not None
    assert sample.tokens_per_second == pytest.approx(NUM_TOKENS / sample.window_seconds)
    assert sample.prompt_tokens_per_second == pytest.approx(len(PROMPT) / sample.window_seconds)
    # the last token is chosen, but not computed
    selections = TOP_K * (len(PROMPT) + NUM_TOKENS - 1)
    assert len(sample.layers) == NUM_LAYERS
    for layer in sample.layers:
        assert layer.selections is not None
        assert len(layer.selections) == NUM_EXPERTS
        assert sum(layer.selections) == selections
        assert layer.decayed_selections == pytest.approx(layer.selections, rel=0.05)
        assert layer.routes == {"resident": 0, "streamed": 0, "remote": selections}
        assert layer.imbalance == max(layer.selections) * NUM_EXPERTS / selections
        assert layer.resident == []
    assert sample.routes == {"resident": 0, "streamed": 0, "remote": 1}
    assert (sample.running, sample.waiting, sample.degraded) == (0, 0, False)
    assert sample.time_to_first_token_seconds is not None
    assert sample.inter_token_seconds is not None
    assert sample.bandwidth.achieved_bytes_per_second is not None
    assert sample.bandwidth.measured_bytes_per_second is not None
    assert sample.bandwidth.busy is not None
    assert sample.bandwidth.busy > 0


def test_every_metric_that_is_read_is_exported(pair: Pair) -> None:
    exported = {name for endpoint in _endpoints(pair) for name in endpoint.scrape(30).series}
    histograms = {name.removesuffix("_count") for name in exported if name.endswith("_count")}
    read = {value for name, value in vars(names).items() if name.isupper()}
    assert len(read) > 15
    beyond_all_experts = {names.HOT_EXPERT_SHARE}  # in place of each expert's, where there are more than 20,000 pairs
    assert read - exported - histograms == beyond_all_experts


def test_the_command_line_finds_the_pair(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    ports = {"--gpu": pair.gpu_metrics_port, "--cpu": pair.cpu_metrics_port}
    options = [word for option, port in ports.items() for word in (option, f"127.0.0.1:{port}")]
    assert main([*options, "--once", "--json", "--interval", "0.2"]) == 0
    assert json.loads(capsys.readouterr().out)["degraded"] is False


def test_what_lies_on_the_device_is_seen_and_flags_may_be_off(tmp_path_factory: Any) -> None:
    model = write_tiny(tmp_path_factory.mktemp("top"))
    resident = "--gpu-expert-memory", "0.0006", "--placement", "layers", "--metrics-by-expert", "off"
    with start(model, *resident) as pair, _monitor(pair) as monitor:
        monitor.sample()
        _generate(pair)
        pair.stop("cpu_expert_service")
        sample = monitor.sample()
    first = sample.layers[0]
    assert (first.selections, first.resident, first.num_resident) == (None, None, NUM_EXPERTS)
    assert first.routes == {"resident": TOP_K * (len(PROMPT) + NUM_TOKENS - 1), "streamed": 0, "remote": 0}
    assert first.imbalance is not None
    assert sample.cpu_expert_service is not None
    assert "connection refused" in (sample.cpu_expert_service.error or "")
    assert sample.bandwidth.measured_bytes_per_second is None
