"""`--dry-run` reports what would be served, or in one line why the model cannot be."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fiddler import host_memory
from fiddler.checkpoint import Checkpoint
from fiddler.coding import dequantize_bytes
from fiddler.convert.recipe import CodedFormat
from fiddler.sizes import format_bytes
from gpu_service.calibration import costs_file
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.errors import CostsFileError, FlagError, ModelError
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.gpu_experts.memory_budget import RESERVE_BYTES, SlotNeeds
from gpu_service.model_runner.model import Model
from gpu_service.models.families import REFUSED
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.settings import Settings
from gpu_service.startup import dry_run, read_bandwidth
from gpu_service.startup.device_memory import experts_workspace_bytes, grouped_workspace_bytes
from tests.gpu_service.calibration.test_costs_file import MACHINE, MEASURED, MODEL
from tests.support import checkpoints, coded
from tests.support.pairs import DEMO, write_tiny
from tests.support.tampering import edit_config, edit_tensors
from tests.support.warm_processes import WarmProcess

GB_PER_SECOND = 1e9
"""The memory bandwidth in these tests."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def _memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_bandwidth, "host_bytes_per_second", lambda: GB_PER_SECOND)


def _report(directory: Path, *arguments: str) -> dict[str, str]:
    settings = Settings.load(["--model", str(directory), "--dry-run", *arguments])
    return {name: text.strip() for name, _, text in (line.partition(":") for line in dry_run.report(settings))}


def _rate(decode: str) -> float:
    match = re.match(r"at most ([\d.,]+) tokens/s", decode)
    assert match
    return float(match[1].replace(",", ""))


def test_what_is_told_of_a_model_on_the_cpu() -> None:
    checkpoint = Checkpoint.open(DEMO)
    told = _report(DEMO, "--device", "cpu")
    assert told["model"] == str(DEMO)
    assert told["family"] == "mixtral, verified against transformers"
    assert told["dense"] == f"{checkpoint.dense_bytes / 2**20:.4g} MiB of bfloat16"
    assert told["experts"] == "9 MiB in bfloat16: 4 layers x 8 of 288 KiB, 2 of them for each token"
    assert told["device"].startswith("the CPU")
    assert told["limits"] == "CPU_EXPERT_MEMORY=3g and GPU_SERVICE_MEMORY=5g are enough"
    assert told["kv cache"] == "32 MiB at most, 1 KiB for each token: 32,768 tokens, and up to 2,048 in one sequence"
    assert "resident" not in told
    assert "too little" not in told["memory"]
    read = 2 * 4 * 288 * 2**10 + checkpoint.dense_bytes
    assert _rate(told["decode"]) == pytest.approx(GB_PER_SECOND / read, rel=0.01)


def test_in_float32_the_dense_weights_are_twice_as_large() -> None:
    told = _report(DEMO, "--device", "cpu", "--dtype", "float32")
    read = 2 * 4 * 288 * 2**10 + 2 * Checkpoint.open(DEMO).dense_bytes
    assert _rate(told["decode"]) == pytest.approx(GB_PER_SECOND / read, rel=0.01)


def test_keys_and_values_that_memory_does_not_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "measure", lambda: host_memory.HostMemory(2**24, 2**24))
    with pytest.raises(FlagError, match="--kv-memory: keys and values need 32 MiB, and 16 MiB are free"):
        _report(DEMO, "--device", "cpu", "--kv-memory", "1")
    told = _report(DEMO, "--device", "cpu", "--max-context", "100", "--max-slots", "4")
    assert told["kv cache"] == "400 KiB at most, 1 KiB for each token: 400 tokens, and up to 100 in one sequence"


def test_a_costs_file_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    costs_file.save(path, model=MODEL, machine=MACHINE, measurements=MEASURED)
    arguments = ["--model", str(DEMO), "--device", "cpu", "--costs", str(path)]
    with pytest.raises(
        CostsFileError,
        match=r"--costs: .*costs\.json: model\..* is of another model: .*; name another file",
    ):
        dry_run.examine(Settings.load(arguments))
    dry_run.examine(Settings.load([*arguments, "--recalibrate"]))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_dense_weights_in_codes_are_told_as_they_will_be(kind: CodedFormat) -> None:
    told = _report(DEMO, "--device", "cpu", "--dense-format", kind)
    checkpoint = Checkpoint.open(DEMO)
    model = Model(
        checkpoint,
        Dispatcher(checkpoint, torch.device("cpu"), InProcessExperts(checkpoint)),
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
        num_rows=1,
        max_context=8,
        dense_format=kind,
    )
    due = f"{format_bytes(checkpoint.dense_bytes)}, kept as {format_bytes(model.dense.num_bytes)} of {kind}"
    assert told["dense"] == due
    read = 2 * 4 * 288 * 2**10 + model.dense.num_bytes
    assert _rate(told["decode"]) == pytest.approx(GB_PER_SECOND / read, rel=0.01)


def test_experts_that_memory_does_not_hold_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "measure", lambda: host_memory.HostMemory(2**23, 2**22))
    assert "9 MiB of experts, and 4 MiB are free: too little" in _report(DEMO, "--device", "cpu")["memory"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Callable[[int], None]:
    """Sets the free memory of a simulated GPU, which reads ten times as fast as the host."""

    def set_free(num_bytes: int) -> None:
        monkeypatch.setattr(dry_run, "device_of", lambda name: torch.device("cuda", 0))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (num_bytes, 2 * num_bytes))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
        monkeypatch.setattr(read_bandwidth, "device_bytes_per_second", lambda device: 10 * GB_PER_SECOND)

    return set_free


def test_on_a_gpu_experts_stay_coded_and_one_matrix_is_decoded_at_a_time(
    gpu: Callable[[int], None], tmp_path: Path
) -> None:
    plain = checkpoints.write("qwen3_moe", tmp_path / "plain", moe_intermediate_size=96)
    checkpoints.write_tokenizer(plain)
    directory = coded.rewrite(plain, tmp_path / "coded", "mxfp4", lambda tensor: "_proj." in tensor)
    checkpoint = Checkpoint.open(directory)
    assert checkpoint.dense_bytes < 4 * checkpoint.num_dense_weights, "coded, too"
    told = _report(directory, "--device", "cpu", "--dense-format", "bfloat16")
    assert re.fullmatch(r"[\d.]+ KiB, kept as [\d.]+ KiB of float32", told["dense"])
    assert " in fp4 group 32: " in told["experts"]
    needs = SlotNeeds(ExpertSlots.slot_bytes(checkpoint), 2)
    assert needs.slot_bytes < 2 * checkpoint.expert_bytes / 24, "packed"
    workspace = experts_workspace_bytes(checkpoint.layers, experts_per_token=3, num_tokens=1, dtype=torch.bfloat16)
    decoded = dequantize_bytes((96, 64), torch.bfloat16)
    assert workspace > decoded
    grouped = grouped_workspace_bytes(checkpoint.layers, experts_per_token=3, num_rows=1, dtype=torch.bfloat16)
    room = RESERVE_BYTES + max(workspace, grouped) + (2 + 6) * needs.allocated_bytes
    settings = ("--kv-memory", "0.25", "--prefill-chunk", "1", "--max-slots", "1", "--dtype", "bfloat16")
    for spare, resident in ((0, 6), (-1, 5)):
        gpu(2 * checkpoint.num_dense_weights + 2**28 + room + spare)
        told = _report(directory, *settings)
        assert told["resident"].startswith(f"at least {resident} of 24 experts, and ")
    assert " in fp4 group 32: 3 layers x 8 of " in told["experts"]


def test_what_would_lie_on_a_gpu(gpu: Callable[[int], None], tiny: Path) -> None:
    checkpoint = Checkpoint.open(tiny)
    needs = SlotNeeds(ExpertSlots.slot_bytes(checkpoint), 2)
    grouped = grouped_workspace_bytes(checkpoint.layers, experts_per_token=2, num_rows=1, dtype=torch.float32)
    room = RESERVE_BYTES + grouped + (2 + 6) * needs.allocated_bytes + needs.allocated_bytes // 2  # half of another
    settings = ("--kv-memory", "0.25", "--prefill-chunk", "1", "--max-slots", "1", "--dtype", "float32")
    gpu(checkpoint.dense_bytes + 2**28 + room)
    told = _report(tiny, *settings)
    assert told["resident"].startswith("at least 6 of 24 experts, and ")
    assert told["device"].startswith("cuda:0 (A GPU), ")
    expert = checkpoint.expert_bytes / 24
    remote = 2 * 3 * expert * 18 / 24
    seconds = checkpoint.dense_bytes / (10 * GB_PER_SECOND) + remote / GB_PER_SECOND
    assert _rate(told["decode"]) == pytest.approx(1 / seconds, rel=0.01)
    assert _report(tiny, *settings, "--placement", "none")["resident"].startswith("no expert")
    assert _report(tiny, *settings[2:])["resident"] != told["resident"], "keys and values take a quarter by default"


def test_dense_weights_that_do_not_fit_are_told(gpu: Callable[[int], None], tiny: Path) -> None:
    gpu(1000)
    told = r"^--device: the dense weights take [\d.]+ KiB, and 1000 bytes are free"
    with pytest.raises(FlagError, match=rf"{told}; --dense-format int4 makes them smaller$"):
        _report(tiny)


def mix_names(directory: Path) -> None:
    def renamed(name: str) -> str:
        for old, new in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
            name = name.replace(f"layers.1.block_sparse_moe.experts.0.{old}", f"layers.1.mlp.experts.0.{new}")
        return name

    edit_tensors(directory, lambda tensors: {renamed(name): tensor for name, tensor in tensors.items()})


def pack(directory: Path) -> None:
    edit_tensors(directory, lambda ts: {name.replace(".weight", ".weight_packed"): t for name, t in ts.items()})


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a family newer than transformers": (
        lambda directory: edit_config(directory, model_type="mixtral9"),
        r"config\.json: model_type: transformers \S+ has no family 'mixtral9'; a newer one may",
    ),
    "a family of the table": (
        lambda directory: edit_config(directory, model_type="step3p7"),
        rf"config\.json: model_type: step3p7 is refused: {REFUSED['step3p7']}",
    ),
    "a configuration of another size": (
        lambda directory: edit_config(directory, vocab_size=2**30),
        r"model: config\.json describes a mixtral of \d+ weights without its experts, far more than the \d+ bytes .*",
    ),
    "a count that disagrees": (
        lambda directory: edit_config(directory, num_local_experts=5),
        r"model\.safetensors holds the tensor '\S+', but \S+config\.json says there are 5 experts .*",
    ),
    "mixed names": (
        mix_names,
        r"model\.safetensors holds the tensor '\S+', but decoder layer 1 already has other experts, .*",
    ),
    "more experts per token than there are": (
        lambda directory: edit_config(directory, num_experts_per_tok=99),
        r"config\.json: a token is routed to 99 experts \(num_experts_per_tok\), and no layer has more than 8",
    ),
    "a norm that is missing": (
        lambda directory: edit_tensors(directory, lambda ts: {n: t for n, t in ts.items() if n != "model.norm.weight"}),
        r"model: the checkpoint lacks model\.norm\.weight",
    ),
    "a bias that is left over": (
        lambda directory: edit_tensors(
            directory, lambda ts: ts | {"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}
        ),
        r"model: the model has no place for model\.layers\.0\.self_attn\.q_proj\.bias",
    ),
    "an embedding of another shape": (
        lambda directory: edit_config(directory, vocab_size=318),
        r"model: wrong shape: lm_head\.weight is \[320, 64\], not \[318, 64\], .*\(config\.json: vocab_size is 318.*",
    ),
    "a number of heads that is not one": (
        lambda directory: edit_config(directory, num_key_value_heads=0),
        r"model: transformers cannot build .*: ZeroDivisionError: .* \(config\.json: num_key_value_heads is 0\)",
    ),
    "FP8": (
        lambda directory: edit_config(directory, quantization_config={"quant_method": "fp8"}),
        r"config\.json says in quantization_config that weights are in the format fp8, but no tensor is: .*",
    ),
    "packed INT4": (pack, r"model\.safetensors holds the tensor '\S+_packed', as packed INT4 weights do, .*"),
    "no tokenizer": (lambda directory: (directory / "tokenizer.json").unlink(), r".*tokenizer.*"),
}


@pytest.mark.parametrize("case", REFUSALS)
@pytest.mark.parametrize("flag", ["--dry-run", "--no-dry-run"])
def test_what_cannot_be_served_is_told_in_one_line(case: str, flag: str, tiny: Path, tmp_path: Path) -> None:
    damage, expected = REFUSALS[case]
    directory = Path(shutil.copytree(tiny, tmp_path / "model"))
    damage(directory)
    status, out, err = _run(tmp_path, directory, flag)
    lines = [line for line in err.splitlines() if not line.startswith("{")]
    assert status == 1
    assert out == ""
    assert len(lines) == 1
    assert re.fullmatch(rf"gpu_service: \S*{expected}", lines[0])


def test_the_process_prints_it(tmp_path: Path) -> None:
    status, out, err = _run(tmp_path, DEMO, "--dry-run")
    assert (status, err) == (0, "")
    assert [line.partition(":")[0] for line in out.splitlines()] == [
        *("model", "family", "dense", "experts", "device", "memory", "kv cache", "limits", "decode")
    ]


def _run(tmp_path: Path, directory: Path, flag: str) -> tuple[int, str, str]:
    out, err = tmp_path / "out", tmp_path / "err"
    arguments = ["gpu_service", "--model", str(directory), "--device", "cpu", "--metrics-port", "0", flag]
    arguments += ["--listen", f"unix:{tmp_path}/g.sock", "--experts", f"unix:{tmp_path}/e.sock"]
    with out.open("wb") as out_file, err.open("wb") as err_file:
        status = WarmProcess(arguments, stdout=out_file, stderr=err_file).wait(60)
    return status, out.read_text(), err.read_text()


@pytest.mark.parametrize(
    ("file", "settings", "problem"),
    [
        ("generation_config.json", {"eos_token_id": [2, None]}, "generation_config.json: eos_token_id: must be"),
        ("generation_config.json", {"do_sample": True, "top_p": "hot"}, "generation_config.json: top_p: must be"),
        ("config.json", {"pad_token_id": 10**6}, "pad_token_id: must be null or a token id of the vocabulary"),
        ("config.json", {"eos_token_id": "</s>"}, "'eos_token_id'"),
        ("config.json", {"num_experts_per_tok": 0}, "config.json: num_experts_per_tok: must be at least 1, got 0"),
    ],
)
def test_values_that_are_no_token_ids_or_numbers_are_refused_by_their_fields(
    tiny: Path, tmp_path: Path, file: str, settings: dict[str, object], problem: str
) -> None:
    directory = Path(shutil.copytree(tiny, tmp_path / "model"))
    path = directory / file
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(ModelError, match=re.escape(problem)):
        dry_run.examine(Settings.load(["--model", str(directory), "--device", "cpu"]))


@pytest.mark.parametrize(
    ("free", "text"),
    [
        (2**40, "; other things bound a model as small as this"),
        (2**10, "; experts that do not fit into memory are read"),
    ],
)
def test_what_the_bound_leaves_out_is_told(free: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = dry_run.examine(Settings(model=DEMO, device="cpu"))
    monkeypatch.setattr(host_memory, "measure", lambda: host_memory.HostMemory(2**41, free))
    assert text in dry_run._speed(candidate, 0)[1]
    shortage = "; --expert-format int8 or int4 serves a copy, converted once, of "
    assert (shortage in dict(dry_run._memory(candidate, 0))["memory"]) is (free < 2**20)
