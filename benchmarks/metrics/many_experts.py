"""What each expert's own series cost, for models with many: the GPU service's time and memory, and Prometheus'."""

import gzip
import shutil
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, Popen
from types import SimpleNamespace
from typing import Any
from wsgiref.types import WSGIApplication

import numpy as np
import psutil
import yaml
from prometheus_client import CollectorRegistry

from benchmarks.harness.targets import Judge, Target
from fiddler import exposition
from fiddler.transport.http import Server
from fiddler.transport.ports import reserve
from gpu_service.expert_collector import RoutingCollector
from gpu_service.moe.counters import SelectionCounts
from tests.support import checkpoints

FORMS = {"qwen3_30b_a3b": (48, 128), "deepseek_v3": (58, 256)}
"""Layers and experts of each."""
TARGETS = {f"metrics.{form}.format": Target(0.05, at_least=False) for form in FORMS}
_SCRAPES = 60
_RESIDENT_EVERY = 8  # one expert in so many is on the device


def write_qwen3_form(directory: Path) -> None:
    """A checkpoint with Qwen3-30B-A3B's layers and experts, 8 of them for each token, and tiny matrices."""
    num_layers, num_experts = FORMS["qwen3_30b_a3b"]
    checkpoints.write(
        "qwen3_moe",
        directory,
        eos_token_id=None,
        num_hidden_layers=num_layers,
        num_experts=num_experts,
        num_experts_per_tok=8,
        hidden_size=32,
        intermediate_size=16,
        moe_intermediate_size=8,
    )


def measure(judge: Judge, rounds: int) -> None:
    """Measures every form; Prometheus only if it is on PATH."""
    for form, (num_layers, num_experts) in FORMS.items():
        registry, counts = _service(num_layers, num_experts)
        seconds = []
        for _ in range(rounds):
            _choose(counts, num_layers, num_experts)
            began = time.thread_time()
            text = exposition.text_of(registry)
            seconds.append(time.thread_time() - began)
        judge.samples(f"metrics.{form}.format", seconds, "s")
        judge.samples(f"metrics.{form}.series", [sum(line[:1] != b"#" for line in text.splitlines())], "series")
        judge.samples(f"metrics.{form}.scrape_compressed", [len(gzip.compress(text, 1))], "bytes")
        judge.samples(f"metrics.{form}.prepared_lines", [_prepared_bytes(num_layers, num_experts)], "bytes")
        if program := shutil.which("prometheus"):
            memory, cpu = _prometheus(program, registry, partial(_choose, counts, num_layers, num_experts))
            judge.samples(f"metrics.{form}.prometheus_memory", [memory], "bytes")
            judge.samples(f"metrics.{form}.prometheus_cpu_per_scrape", [cpu], "s")


def _service(num_layers: int, num_experts: int) -> tuple[CollectorRegistry, SelectionCounts]:
    layers = [SimpleNamespace(num_experts=num_experts, decoder_layer=layer) for layer in range(num_layers)]
    counts = SelectionCounts([num_experts] * num_layers)
    resident = set(range(0, num_experts, _RESIDENT_EVERY))
    orchestration = SimpleNamespace(resident=lambda layer: resident, num_slots=num_layers * len(resident))
    dispatcher: Any = SimpleNamespace(selections=counts, orchestration=orchestration)
    checkpoint: Any = SimpleNamespace(layers=layers)
    registry = CollectorRegistry()
    registry.register(RoutingCollector(dispatcher, checkpoint, "auto"))
    return registry, counts


def _choose(counts: SelectionCounts, num_layers: int, num_experts: int) -> None:
    """A second of decoding: every expert's count grows."""
    for layer in range(num_layers):
        chosen = 1 + np.arange(num_experts) % 7
        counts.add(layer, chosen, int(chosen.sum()))


def _prepared_bytes(num_layers: int, num_experts: int) -> int:
    """What the collector keeps between scrapes."""
    tracemalloc.start()
    kept = _service(num_layers, num_experts)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return size


def _prometheus(program: str, registry: CollectorRegistry, choose: Callable[[], None]) -> tuple[int, float]:
    """Resident bytes of a Prometheus that has scraped a minute long each second, and its CPU seconds for a scrape."""
    scraped = threading.Semaphore(0)
    answer = exposition.application(registry)

    def counted(environ: Any, start_response: Any) -> Any:
        choose()
        scraped.release()
        return answer(environ, start_response)

    application: WSGIApplication = counted
    server = Server("127.0.0.1", 0, application)
    server.start()
    with tempfile.TemporaryDirectory(prefix="fiddler-") as folder, reserve() as held:
        config = Path(folder) / "prometheus.yml"
        jobs = [{"job_name": "a", "static_configs": [{"targets": [f"127.0.0.1:{server.server_port}"]}]}]
        config.write_text(yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}))
        command = [program, f"--config.file={config}", f"--storage.tsdb.path={folder}/data"]
        command += [f"--web.listen-address=127.0.0.1:{held.getsockname()[1]}"]
        with Popen(command, stderr=DEVNULL) as process:
            scraped.acquire()  # the first one creates all series
            used = psutil.Process(process.pid)
            before = sum(used.cpu_times()[:2])
            for _ in range(_SCRAPES):
                scraped.acquire()
            cpu = (sum(used.cpu_times()[:2]) - before) / _SCRAPES
            memory = int(used.memory_info().rss)
            process.terminate()
    server.shutdown()
    server.server_close()
    return memory, cpu
