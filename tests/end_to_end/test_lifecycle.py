"""Starting, losing and stopping the services of a pair."""

import json
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import grpc
import pytest

from client import Client, UnavailableError
from fiddler.checkpoint import Checkpoint
from pair import Pair
from tests.support import checkpoints
from tests.support.losses import in_use, metric, tokens_of
from tests.support.pairs import WarmPair, start
from tests.support.tampering import edit_config, edit_tensors


def _log(pair_log: Path) -> str:
    return pair_log.read_text()


def _gpu_service_alone(model: Path, experts: str, *arguments: str) -> tuple[int, str]:
    """Runs a GPU service until it ends by itself; returns its exit status and its log."""
    with tempfile.TemporaryFile() as log:
        pair = WarmPair(model, gpu_arguments=("--device", "cpu", "--experts", experts, *arguments), log=log)
        try:
            status = pair.start("gpu_service").wait(60)
        finally:
            pair.close()
        log.seek(0)
        return status, log.read().decode()


def test_the_gpu_service_waits_for_the_experts_and_says_so(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as log:
        pair = WarmPair(tiny, gpu_arguments=("--device", "cpu"), log=log)
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


def test_experts_of_another_checkpoint_never_answer(tiny: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny, tmp_path / "other"))
    checkpoints.scale_expert(other, layer=0, expert=0, factor=2.0)
    path = tmp_path / "log"
    with path.open("wb") as log:
        pair = start(tiny, log=log)
        impostor = WarmPair(
            other, cpu_arguments=("--listen", pair.experts, "--dtype", "float32"), log=subprocess.DEVNULL
        )
        try:
            with pair, Client(pair.target) as client:
                tokens = tokens_of(client, [3, 4], 60)
                pair.stop("cpu_expert_service", signal.SIGKILL)
                impostor.start("cpu_expert_service")
                impostor.wait_until_serving(pair.experts)
                _wait_for(lambda: "CPU expert service rejected" in _log(path))
                remotely = metric(pair, "fiddler_expert_selections_total", route="remote")
                assert tokens_of(client, [3, 4], 60) == tokens
                assert metric(pair, "fiddler_expert_selections_total", route="remote") == remotely
                assert not in_use(pair)
                assert pair.is_serving(pair.target)
        finally:
            impostor.close()
    (line,) = (line for line in _log(path).splitlines() if "CPU expert service rejected" in line)
    assert json.loads(line)["level"] == "error"
    fingerprints = [Checkpoint.open(model).fingerprint for model in (tiny, other)]
    assert (
        "checkpoint_fingerprint: the caller expects {}, and the CPU expert service has {}".format(*fingerprints) in line
    )


def test_neither_service_takes_a_directory_that_others_can_write(tiny: Path, tmp_path: Path) -> None:
    path, directory = tmp_path / "log", tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o777)
    address = f"unix:{directory}/experts.sock"
    with path.open("wb") as log:
        pair = WarmPair(
            tiny,
            gpu_arguments=("--device", "cpu", "--experts", address),
            cpu_arguments=("--listen", address),
            log=log,
        )
        try:
            for service in ("gpu_service", "cpu_expert_service"):
                assert pair.start(service).wait(60) == 1
        finally:
            pair.close()
    problem = f"the socket's directory {directory} has mode 0777, so that others could replace the socket"
    lines = [line for line in _log(path).splitlines() if problem in line and not line.startswith("{")]
    assert lines[0].startswith(f"gpu_service: {address}: ")
    assert lines[1].startswith("cpu_expert_service: --listen: ")
    assert not any(directory.iterdir())


def test_an_idle_gpu_service_notices_that_the_experts_are_gone_and_ends_cleanly_without_them(tiny: Path) -> None:
    with start(tiny, "--grace-seconds", "0.2") as pair, Client(pair.target) as client:
        pair.stop("cpu_expert_service", signal.SIGKILL)
        _wait_for(lambda: not in_use(pair), timeout_seconds=30)
        assert pair.is_serving(pair.target)
        generation = client.generate([3, 4], max_tokens=400, temperature=0)
        next(iter(generation))
        assert pair.stop("gpu_service") == 0


def test_experts_that_stand_still_do_not_keep_the_gpu_service_from_stopping(tiny: Path) -> None:
    with start(tiny, "--grace-seconds", "0.2") as pair, Client(pair.target) as client:
        generation = client.generate([3, 4], max_tokens=400, temperature=0)
        next(iter(generation))
        pair.processes["cpu_expert_service"].send_signal(signal.SIGSTOP)
        try:
            assert pair.stop("gpu_service", timeout_seconds=20) == 0
        finally:
            pair.processes["cpu_expert_service"].send_signal(signal.SIGCONT)


@pytest.mark.parametrize("service", ["gpu_service", "cpu_expert_service"])
@pytest.mark.parametrize("seconds", [0, 0.7, 1.7])  # after Python itself has started
def test_ctrl_c_while_starting_is_quiet(tiny: Path, tmp_path: Path, service: str, seconds: float) -> None:
    with (tmp_path / "log").open("wb") as log:
        pair = Pair(tiny, log=log)
        try:
            process = pair.start(service)
            _wait_for(lambda: _handles_sigterm(process.pid))
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            pair.close()
    assert "Traceback" not in _log(tmp_path / "log")


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


_WRONG_FILES = {
    "a field of a wrong type": ("config.json", {"num_attention_heads": "four"}, "num_attention_heads"),
    "an unknown activation": ("config.json", {"hidden_act": "nope"}, "nope"),
    "quantised": ("config.json", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    "more experts per token than there are": (
        "config.json",
        {"num_experts_per_tok": 99},
        "a token is routed to 99 experts",
    ),
    "generation_config that is a list": ("generation_config.json", [], "generation_config.json"),
    "generation_config that is no JSON": ("generation_config.json", "{", "generation_config.json"),
    "an end of sequence that is a text": (
        "generation_config.json",
        {"eos_token_id": "</s>"},
        "eos_token_id: must be a token id",
    ),
    "a default of a wrong type": ("generation_config.json", {"do_sample": True, "top_p": "hot"}, "top_p"),
    "tokenizer that is a list": ("tokenizer.json", [], "cannot read the tokenizer"),
}


@pytest.mark.parametrize("kind", _WRONG_FILES)
def test_a_file_that_is_wrong_is_named_in_a_line(tiny: Path, pair: Pair, tmp_path: Path, kind: str) -> None:
    name, content, text = _WRONG_FILES[kind]
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    path = model / name
    if isinstance(content, dict):
        content = json.loads(path.read_bytes()) | content
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    # the CPU expert service of the same directory, if it starts at all
    experts = WarmPair(model, gpu_arguments=("--device", "cpu"), log=subprocess.DEVNULL)
    try:
        experts.start("cpu_expert_service")
        status, log = _gpu_service_alone(model, experts.experts)
    finally:
        experts.close()
    assert status == 1
    assert text in log
    assert str(model) in log
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
        text = "cannot read the tokenizer"
    else:
        text, arguments = "--device: PyTorch finds no CUDA device", ("--device", "cuda")
    with (tmp_path / "log").open("wb") as log:
        pair = WarmPair(model, gpu_arguments=arguments, log=log)
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


def _handles_sigterm(pid: int) -> bool:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


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
