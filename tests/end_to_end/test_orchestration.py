"""Real pairs whose costs send experts by other routes than the socket, and the mistakes that users may make there."""

import json
import signal
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from client import Client
from pair import Pair
from tests.end_to_end.test_lifecycle import _gpu_service_alone
from tests.support import reference
from tests.support.pairs import start, write_tiny

NUM_TOKENS = 24
PROMPT = [7] * 17 + [30, 31]
FAST, SLOW = 1e-6, 1.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("qwen3_moe"), "qwen3_moe")


@pytest.fixture(scope="module")
def expected(model: Path) -> list[int]:
    return reference.generate(reference.load(model), PROMPT, NUM_TOKENS)[0]


@pytest.fixture(scope="module")
def measured(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The costs that a pair measures and keeps."""
    file = tmp_path_factory.mktemp("costs") / "costs.json"
    with start(model, "--costs", str(file), "--gpu-expert-memory", "0.001"):
        pass
    return file


def _costs(measured: Path, path: Path, cpu_seconds: float, transfer_seconds: float) -> Path:
    """A costs file that makes the planner choose another route; of another machine, which the log reports."""
    content = json.loads(measured.read_text())
    content["machine"]["cpu"] = "another"
    content["measurements"] |= {
        "cpu": [[1, cpu_seconds]],
        "hop": [[1, 1e-9]],
        "gpu": [[1, 1e-9]],
        "transfer": [transfer_seconds],
    }
    path.write_text(json.dumps(content))
    return path


def _routes(pair: Pair) -> dict[str, float]:
    """Selections by route, of all layers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{pair.gpu_metrics_port}/metrics") as response:
        families = text_string_to_metric_families(response.read().decode())
    totals: dict[str, float] = {}
    for family in families:
        if family.name == "fiddler_expert_selections":
            for sample in family.samples:
                totals[sample.labels["route"]] = totals.get(sample.labels["route"], 0) + sample.value
    return totals


@pytest.mark.parametrize(
    ("cpu_seconds", "transfer_seconds", "arguments", "taken"),
    [
        (SLOW, FAST, ("--placement", "none"), {"streamed"}),
        (SLOW, FAST, ("--placement", "layers"), {"resident", "streamed"}),
        (SLOW, FAST, ("--placement", "lru", "--prefetch", "on"), {"resident", "streamed"}),
        (FAST, SLOW, ("--placement", "adaptive"), {"resident", "remote"}),
    ],
)
def test_tokens_are_the_same_whichever_way_experts_take(
    model: Path,
    expected: list[int],
    measured: Path,
    tmp_path: Path,
    cpu_seconds: float,
    transfer_seconds: float,
    arguments: tuple[str, ...],
    taken: set[str],
) -> None:
    costs = _costs(measured, tmp_path / "costs.json", cpu_seconds, transfer_seconds)
    arguments = ("--costs", str(costs), "--gpu-expert-memory", "0.0002", *arguments)
    with start(model, *arguments) as pair, Client(pair.target) as client:
        tokens = [
            token
            for chunk in client.generate(PROMPT, max_tokens=NUM_TOKENS, temperature=0)
            for token in getattr(chunk, "token_ids", ())
        ]
        assert tokens == expected
        assert {route for route, total in _routes(pair).items() if total} == taken


def test_costs_are_measured_once(model: Path, measured: Path) -> None:
    before = measured.read_bytes()
    with start(model, "--costs", str(measured), "--gpu-expert-memory", "0.001"):
        pass
    assert measured.read_bytes() == before
    with start(model, "--costs", str(measured), "--gpu-expert-memory", "0.001", "--recalibrate"):
        pass
    assert measured.read_bytes() != before


def test_the_services_own_counts_become_a_popularity_file(model: Path, expected: list[int], tmp_path: Path) -> None:
    file = tmp_path / "popularity.json"
    with start(model, "--save-popularity", str(file)) as pair:
        with Client(pair.target) as client:
            client.generate(PROMPT, max_tokens=5, temperature=0).text()
        assert pair.stop("gpu_service", signal.SIGTERM) == 0
    content = json.loads(file.read_text())
    assert content["tokens"] == len(PROMPT) + 4
    assert sum(content["layers"][0]["counts"]) == 3 * content["tokens"]
    arguments = ("--popularity", str(file), "--placement", "popularity", "--gpu-expert-memory", "0.0002")
    with start(model, *arguments) as pair, Client(pair.target) as client:
        client.generate(PROMPT, max_tokens=5, temperature=0).text()
        assert _routes(pair)["resident"] > 0


_MISTAKES = {
    "an unknown policy": (("--placement", "best"), "--placement: Input should be 'adaptive', 'popularity', 'lru'", 2),
    "a budget that is none": (("--gpu-expert-memory", "much"), "'much' is neither auto", 2),
    "more memory than there is": (("--gpu-expert-memory", "90000"), "--gpu-expert-memory 90000: the device has", 1),
    "less memory than an expert": (
        ("--gpu-expert-memory", "0.000001"),
        "--gpu-expert-memory 1e-06: one expert takes",
        1,
    ),
    "a policy without its file": (("--placement", "popularity", "--gpu-expert-memory", "0.001"), "--popularity", 1),
    "a popularity file that is none": (("--popularity", "{file}"), "--popularity: {file} is not JSON: ", 1),
    "a costs file that is none": (("--costs", "{file}"), "--costs: {file} is not JSON: ", 1),
    "a popularity file of another model": (("--popularity", "{other}"), "--popularity: {other}: model_type: is", 1),
    "a popularity file that is missing": (("--popularity", "{file}.not"), "--popularity: {file}.not cannot be read", 1),
}


@pytest.mark.parametrize("mistake", _MISTAKES)
def test_a_mistake_is_told_in_a_line(tiny: Path, pair: Pair, tmp_path: Path, mistake: str) -> None:
    arguments, text, expected_status = _MISTAKES[mistake]
    names = {"file": str(tmp_path / "file"), "other": str(tmp_path / "other")}
    Path(names["file"]).write_text("popular?")
    other = {"format": 1, "model_type": "dots1", "checkpoint_fingerprint": "ab12", "tokens": 1, "layers": []}
    Path(names["other"]).write_text(json.dumps(other))
    arguments = tuple(argument.format(**names) for argument in arguments)
    status, log = _gpu_service_alone(tiny, pair.experts, "--dtype", "float32", *arguments)
    assert status == expected_status
    assert text.format(**names) in log
    assert "Traceback" not in log
