"""A model of Qwen3-30B-A3B's form, 48 layers of 128 experts with tiny matrices: every map is filled and readable."""

import io
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from rich.console import Console

from benchmarks.metrics.many_experts import write_qwen3_form
from client import Client
from client.metrics.monitor import Monitor
from client.metrics.scrape import Endpoint
from client.metrics.snapshot import Snapshot
from client.top.view import View
from pair import Pair
from tests.compose.dashboards import PanelQuery, panel_queries
from tests.support import checkpoints
from tests.support.pairs import WarmPair
from tests.support.ports import free_port
from tests.support.prometheus import PrometheusServer, is_available

NUM_LAYERS, NUM_EXPERTS, NUM_BANDS = 48, 128, 32
_FLOAT32 = ("--dtype", "float32")
_WINDOW_SECONDS = 12  # windows of rates, and what is recorded from them
_PATIENCE_SECONDS = 120.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    model = tmp_path_factory.mktemp("checkpoints") / "qwen3-form"
    write_qwen3_form(model)
    checkpoints.write_tokenizer(model)
    http = f"127.0.0.1:{free_port()}"
    with WarmPair(model, gpu_arguments=("--device", "cpu", *_FLOAT32), cpu_arguments=_FLOAT32, http=http) as running:
        yield running


def _generate(pair: Pair, num_tokens: int, seed: int = 0) -> None:
    with Client(pair.target) as client:
        client.generate([5, 6, 7], max_tokens=num_tokens, temperature=1.0, seed=seed).text()


@contextmanager
def _load(pair: Pair) -> Iterator[None]:
    """Somebody generates, over gRPC and over HTTP, one request after another."""
    stop = threading.Event()

    def call() -> None:
        seed = 0
        while not stop.is_set():
            seed += 1
            _generate(pair, 8, seed)
            _get(f"http://{pair.http}/v1/completions", {"prompt": "a", "max_tokens": 4, "stream": True})

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _get(url: str, body: object = None) -> bytes:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"content-type": "application/json"})
    with _OPENER.open(request, timeout=60) as answer:
        return bytes(answer.read())


@pytest.fixture(scope="module")
def snapshot(pair: Pair) -> Snapshot:
    """What client.top knows after a text."""
    endpoints = [
        Endpoint("--gpu", "gpu_service", f"127.0.0.1:{pair.gpu_metrics_port}"),
        Endpoint("--cpu", "cpu_expert_service", f"127.0.0.1:{pair.cpu_metrics_port}"),
    ]
    with Monitor(
        *endpoints, interval_seconds=1, window_seconds=60, half_life_seconds=60, timeout_seconds=20
    ) as monitor:
        monitor.sample()
        _generate(pair, 24)
        return monitor.sample()


def test_every_cell_of_tops_map_is_known_and_eighty_columns_show_it(snapshot: Snapshot) -> None:
    assert [len(layer.selections or ()) for layer in snapshot.layers] == [NUM_EXPERTS] * NUM_LAYERS
    assert all(sum(layer.selections or ()) == 8 * (3 + 24 - 1) for layer in snapshot.layers)
    file = io.StringIO()
    Console(file=file, width=80).print(View(snapshot))
    lines = file.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "not available" not in file.getvalue()
    rows = {line.split()[0]: line for line in lines if line.split()[-4:-2] == ["0", "100"]}
    assert set(rows) == {str(layer) for layer in range(NUM_LAYERS)}
    shades = set(" ".join(rows.values())) & set(".:-=+*#%@")
    assert len(shades) > 4, "the map has no relief"


def test_the_page_gets_every_layer(pair: Pair, snapshot: Snapshot) -> None:
    layers = json.loads(_get(f"http://{pair.http}/experts"))["layers"]
    assert len(layers) == NUM_LAYERS
    _generate(pair, 4)
    time.sleep(1)  # the gateway reads at most about once a second
    layers = json.loads(_get(f"http://{pair.http}/experts"))["layers"]
    assert [len(layer["selections"]) for layer in layers] == [NUM_EXPERTS] * NUM_LAYERS
    assert all(sum(layer["selections"]) > 0 for layer in layers)


def test_the_metrics_have_each_expert_and_bands_for_tables(pair: Pair, snapshot: Snapshot) -> None:
    text = _get(f"http://127.0.0.1:{pair.gpu_metrics_port}/metrics").decode()
    for name, number in (
        ("fiddler_expert_selections_by_expert_total{", NUM_LAYERS * NUM_EXPERTS),
        ("fiddler_expert_resident{", NUM_LAYERS * NUM_EXPERTS),
        ("fiddler_expert_selections_by_band_total{", NUM_LAYERS * NUM_BANDS),
        ("fiddler_expert_band_resident_ratio{", NUM_LAYERS * NUM_BANDS),
    ):
        assert text.count(f"\n{name}") == number
    assert 'model_name="qwen3-form"' in text


def _answers(prometheus: PrometheusServer) -> tuple[dict[PanelQuery, dict[str, float]], list[str]]:
    """The answers to all queries, and the queries without one, once there are windows of rates for all of them."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        time.sleep(_WINDOW_SECONDS)
        found = {query: prometheus.api.query(query.expression) for query in panel_queries("8s")}
        # costs are of a GPU, which this pair does not have
        empty = [
            str(query) for query, values in found.items() if not values and "fiddler_cost_seconds" not in str(query)
        ]
        if not empty or time.monotonic() > deadline:
            return found, empty


@pytest.mark.skipif(not is_available(), reason="Prometheus is not on PATH; make compose-test runs this test, too")
def test_dashboards_answer_every_query_under_a_job_of_any_name(pair: Pair, snapshot: Snapshot) -> None:
    """The maps with every layer, and with as many rows and columns as a screen shows."""
    targets = [f"127.0.0.1:{pair.gpu_metrics_port}", f"127.0.0.1:{pair.cpu_metrics_port}", str(pair.http)]
    with PrometheusServer({"inference": targets}) as prometheus, _load(pair):
        found, empty = _answers(prometheus)
        vllm = prometheus.api.query('{__name__=~"vllm:.*", model_name="qwen3-form"}')
    assert empty == []
    sizes = {query.panel: len(values) for query, values in found.items()}
    assert sizes["Selections by layer and expert"] == NUM_LAYERS * NUM_BANDS
    assert sizes["What is resident"] == NUM_LAYERS * NUM_BANDS
    assert sizes["Experts over time"] == 64
    assert sizes["Hottest experts"] == 10
    for panel in ("Imbalance", "Hits by layer", "Resident experts by layer", "Each layer"):
        assert sizes[panel] == NUM_LAYERS
    assert len(vllm) > 30
