"""Starting, losing and stopping the services of a pair."""

import shutil
import signal
import tempfile
import time
from pathlib import Path

import grpc
import pytest

from client import Client, UnavailableError
from pair import Pair, free_port
from tests import checkpoints
from tests.pairs import start
from tests.tampering import edit_config, edit_tensors


def _log(pair_log: Path) -> str:
    return pair_log.read_text()


def _gpu_service_alone(model: Path, experts: str, *arguments: str) -> tuple[int, str]:
    """Runs a GPU service until it ends by itself; returns its exit status and what it said."""
    with tempfile.TemporaryFile() as log:
        pair = Pair(model, gpu_arguments=("--device", "cpu", "--experts", experts, *arguments), log=log)
        try:
            status = pair.start("gpu_service").wait(60)
        finally:
            pair.close()
        log.seek(0)
        return status, log.read().decode()


def test_the_gpu_service_waits_for_the_experts_and_says_so(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as log:
        pair = Pair(tiny, gpu_arguments=("--device", "cpu"), log=log)
        try:
            pair.start("gpu_service")
            _wait_for(lambda: "waiting for the CPU expert service" in _log(path) and _answers(pair))
            assert not pair.is_serving(pair.target)
            with Client(pair.target) as client, pytest.raises(UnavailableError, match="waiting for the CPU expert"):
                client.generate([1]).text()
            pair.start("cpu_expert_service")
            pair.wait_until_serving()
            with Client(pair.target) as client:
                client.generate([1], max_tokens=2).text()
        finally:
            pair.close()


def test_losing_the_experts_fails_a_request_and_their_return_heals(tiny: Path) -> None:
    with start(tiny) as pair, Client(pair.target) as client:
        expected = client.generate([3, 4], max_tokens=5, temperature=0).text()
        pair.stop("cpu_expert_service", signal.SIGKILL)
        with pytest.raises(UnavailableError, match="CPU expert service"):
            client.generate([3, 4], max_tokens=5, temperature=0).text()
        del pair.processes["cpu_expert_service"]
        pair.wait_until_serving(serving=False, timeout_seconds=10)
        pair.start("cpu_expert_service")
        pair.wait_until_serving()
        assert client.generate([3, 4], max_tokens=5, temperature=0).text() == expected


def test_an_expert_service_that_restarts_between_requests_is_not_noticed(tiny: Path) -> None:
    with start(tiny) as pair, Client(pair.target) as client:
        expected = client.generate([3, 4], max_tokens=5, temperature=0).text()
        pair.stop("cpu_expert_service")
        pair.start("cpu_expert_service")
        pair.wait_until_serving(pair.experts)
        assert client.generate([3, 4], max_tokens=5, temperature=0).text() == expected


def test_sigterm_stops_both_cleanly_even_with_a_request_under_way(tiny: Path) -> None:
    with start(tiny, "--grace-seconds", "1") as pair, Client(pair.target) as client:
        generation = client.generate([3, 4], max_tokens=400, temperature=0)
        next(iter(generation))
        assert pair.stop("gpu_service") == 0
        assert pair.stop("cpu_expert_service") == 0
        assert not Path(pair.experts.removeprefix("unix:")).exists()


def test_services_on_different_checkpoints_do_not_start(tiny: Path, pair: Pair, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny, tmp_path / "other"))
    checkpoints.scale_expert(other, layer=0, expert=0, factor=2.0)
    status, log = _gpu_service_alone(other, pair.experts, "--dtype", "float32")
    assert status == 1
    assert "FAILED_PRECONDITION" in log
    assert "checkpoint_fingerprint: the caller expects" in log
    assert "Traceback" not in log


def test_services_in_different_dtypes_do_not_start(tiny: Path, pair: Pair) -> None:
    status, log = _gpu_service_alone(tiny, pair.experts, "--dtype", "bfloat16")
    assert status == 1
    assert "dtype: the caller expects DTYPE_BFLOAT16, and the CPU expert service has DTYPE_FLOAT32" in log


def test_a_dense_tensor_that_is_missing_or_left_over_or_wrong_is_named(tiny: Path, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    edits = {
        "lacks": lambda tensors: {key: value for key, value in tensors.items() if key != name},
        "no place for": lambda tensors: tensors | {"model.layers.1.self_attn.q_proj.unheard_of": tensors[name].clone()},
        f"{name} is [63, 64], not [64, 64]": lambda tensors: tensors | {name: tensors[name][:-1].clone()},
    }
    for text, edit in edits.items():
        model = Path(shutil.copytree(tiny, tmp_path / str(len(text))))
        edit_tensors(model, edit)
        status, log = _gpu_service_alone(model, f"unix:{tmp_path}/nobody.sock")
        assert status == 1
        assert text in log
        assert "model.layers.1.self_attn.q_proj" in log
        assert "Traceback" not in log


@pytest.mark.parametrize("kind", ["missing", "dense", "unknown family", "no tokenizer", "no device"])
def test_a_model_that_cannot_run_is_refused_in_a_line(tiny: Path, tmp_path: Path, kind: str) -> None:
    model, text, arguments = tmp_path / "model", "", ("--device", "cpu")
    if kind != "missing":
        shutil.copytree(tiny, model)
    if kind == "missing":
        text = f"{model} does not exist"
    elif kind == "dense":
        edit_config(model, num_local_experts=None)
        edit_tensors(model, lambda tensors: {k: v for k, v in tensors.items() if "experts" not in k})
        text = "describes no experts"
    elif kind == "unknown family":
        edit_config(model, model_type="never_heard_of")
        text = "never_heard_of"
    elif kind == "no tokenizer":
        for file in model.glob("tokenizer*"):
            file.unlink()
        text = "no tokenizer"
    else:
        text, arguments = "--device: cuda was asked for", ("--device", "cuda")
    with (tmp_path / "log").open("wb") as log:
        pair = Pair(model, gpu_arguments=arguments, log=log)
        try:
            assert pair.start("gpu_service").wait(60) == 1
        finally:
            pair.close()
    lines = _log(tmp_path / "log")
    assert text in lines
    assert "Traceback" not in lines


def test_a_port_that_is_taken_is_refused(tiny: Path, pair: Pair) -> None:
    status, log = _gpu_service_alone(tiny, pair.experts, "--listen", pair.target, "--dtype", "float32")
    assert status == 1
    assert f"--listen: cannot serve on {pair.target}" in log
    port = str(pair.gpu_metrics_port)
    status, log = _gpu_service_alone(tiny, pair.experts, "--metrics-port", port, "--dtype", "float32")
    assert status == 1
    assert f"--metrics-port: cannot serve on 127.0.0.1:{port}" in log


def test_a_free_port_is_free() -> None:
    with grpc.insecure_channel(f"127.0.0.1:{free_port()}") as channel, pytest.raises(grpc.FutureTimeoutError):
        grpc.channel_ready_future(channel).result(timeout=0.3)


def _answers(pair: Pair) -> bool:
    with grpc.insecure_channel(pair.target) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=0.5)
        except grpc.FutureTimeoutError:
            return False
        return True


def _wait_for(condition: object, timeout_seconds: float = 60) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)
