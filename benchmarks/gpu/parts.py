"""What is asked before the large model: the environment, copies, the tests that use a GPU, exactness."""

import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import torch

from benchmarks.gpu.results import Results
from benchmarks.gpu.setting import Setting
from fiddler.checkpoint import Checkpoint
from gpu_service.models.registry import architecture_of
from tests.support import reference
from tests.support.families import tiny
from tests.support.routes import MIXED, Way, greedy, model_of, slots_of

FAMILIES: Final = (
    "mixtral",
    "qwen3_moe",
    "deepseek_v3",
    "gpt_oss",
    "qwen2_moe",
    "glm4_moe",
    "olmoe",
    "granitemoe",
    "llama4_text",
    "lfm2_moe",
)
"""Of different structure: plain, many small experts, latent attention, biases and eager attention, shared experts
before and after the routed ones, scaled inputs, convolutions."""
_PROMPT = [7] * 17 + [30, 31]
_TOLERANCE = 1e-3
_MIB = 2**20
_REPEATS = 5
_TESTS = tuple(f"tests/gpu_service/gpu_experts/test_{name}.py" for name in ("expert_slots", "grouped"))
_TESTS_SECONDS = 120.0
"""More than the tests take; a device that hangs ends the part then."""


def environment(setting: Setting, results: Results) -> None:
    """Writes what the figures depend on."""
    content: dict[str, object] = {
        "card": setting.card,
        "device": str(setting.device),
        "torch": torch.__version__,
        "real": setting.is_real,
    }
    if setting.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(setting.device)
        content |= {
            "capability": list(torch.cuda.get_device_capability(setting.device)),
            "cuda": torch.version.cuda,
            "total_bytes": total,
            "free_bytes": free,
        }
        if setting.is_real:
            content |= {"cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
    results.record("environment", **content)


def copies(setting: Setting, results: Results) -> None:
    """Measures the link, from pinned memory and with nothing else on it."""
    if setting.device.type != "cuda":
        return
    for mib in (1, 8, 256) if setting.is_real else (1,):
        host = torch.empty(mib * _MIB, dtype=torch.uint8, pin_memory=True)
        target = torch.empty(mib * _MIB, dtype=torch.uint8, device=setting.device)
        speeds = []
        for repeat in range(_REPEATS + 1):
            setting.synchronize()
            began = time.perf_counter()
            target.copy_(host, non_blocking=True)
            setting.synchronize()
            if repeat:
                speeds.append(host.nbytes / (time.perf_counter() - began) / 1e9)
        results.samples(f"copy.{mib}_mib", speeds, "GB/s")


def tests(setting: Setting, results: Results) -> None:
    """Runs the tests that use a GPU if there is one."""
    if not setting.is_real:
        return
    command = [sys.executable, "-m", "pytest", "-q", "-x", *_TESTS]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=_TESTS_SECONDS
    )
    results.record("tests", status=done.returncode, summary=done.stdout.strip().splitlines()[-1:])
    if done.returncode:
        raise RuntimeError("the tests fail on this device")


def exactness(setting: Setting, results: Results, family: str) -> None:
    """Compares a tiny model on the device with transformers on the CPU: mixed routes, experts on both sides.

    Raises:
        RuntimeError: Tokens or logits differ.
    """
    with tempfile.TemporaryDirectory() as parent:
        difference, uses_graphs = _difference(setting, tiny.write(family, Path(parent)), family)
    results.record(f"graphs.{family}", used=uses_graphs)
    if not math.isfinite(difference):
        raise RuntimeError(f"{family} gives other tokens than transformers, or numbers that are not finite")
    results.samples(f"exactness.{family}", [difference], "ratio")
    if difference > _TOLERANCE:
        raise RuntimeError(f"{family} differs from transformers by {difference:.3g} of the largest logit")


def _difference(setting: Setting, directory: Path, family: str) -> tuple[float, bool]:
    """The largest difference of a logit, over the largest logit; infinite if a token differs.

    And whether decode was captured as CUDA graphs.
    """
    num_tokens = 16 if setting.is_real else 3
    model = architecture_of(family).auto_class.from_pretrained(directory, dtype=torch.float32).eval()
    tokens, logits = reference.generate(model, _PROMPT, num_tokens)
    checkpoint = Checkpoint.open(directory)
    with setting.experts(checkpoint, torch.float32) as remote:
        ours = model_of(directory, device=setting.device, remote=remote, uses_graphs=True)
        with slots_of(ours, directory, Way(MIXED, 9, frozenset())):
            actual, actual_logits = greedy(ours, _PROMPT, num_tokens)
    difference = float((actual_logits - logits).abs().max() / logits.abs().max())
    return difference if actual == tokens else float("inf"), ours.uses_graphs
