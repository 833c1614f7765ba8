"""`python -m benchmarks.gpu.counts`: what a decoded token costs the host of a GPU, counted on an imitated one.

gpu.counts.FAMILY.ROUTE     kernels, graphs, copies each way and waits of the host, of one token

FAMILY is a tiny model of four layers in the form of Mixtral's, Qwen3-MoE's or DeepSeek-V3's, whose first layer has no
experts. Where the published model's experts are too large to be copied next to each other, these are not copied either;
it takes Triton, which computes such experts in one launch.
ROUTE is remote (the CPU computes all experts), resident (all are on the GPU) or mixed (some are resident, and
of the others some are streamed and some remote). No time is measured.
"""

import tempfile
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import torch
import typer

from benchmarks.harness.results import Append, Out, Report, report
from gpu_service.gpu_experts import grouped
from gpu_service.model_runner.forward_input import Logits
from tests.support.families import tiny
from tests.support.imitated_cuda import DEVICE, Machine, imitated_cuda
from tests.support.imitated_routes import MIX
from tests.support.routes import WAYS, Way, greedy, model_of, slots_of
from tools.command_line import run

_FAMILIES = {"mixtral": 3 * 4096 * 14336 * 2, "qwen3_moe": 3 * 2048 * 768 * 2, "deepseek_v3": 3 * 7168 * 2048}
"""With the bytes of an expert as it is published: in bfloat16, DeepSeek-V3's in 8 bits."""
_ROUTES = {"remote": WAYS["all remote"], "resident": WAYS["all resident"], "mixed": MIX}
_PROMPT = [5, 9, 11, 30]
_POSITION = 9


def main(
    out: Out = None,
    append: Append = False,
    code: Annotated[str, typer.Option(help="What the lines say of the code that was counted.")] = "this",
) -> None:
    """Counts."""
    with report(out, append) as results, imitated_cuda("eager") as machine:
        for family, expert_bytes in _FAMILIES.items():
            limit = grouped.MAX_EXPERT_BYTES if expert_bytes <= grouped.MAX_EXPERT_BYTES else 0
            with tempfile.TemporaryDirectory() as parent, patch.object(grouped, "MAX_EXPERT_BYTES", limit):
                directory = tiny.write(family, Path(parent))
                for name, way in _ROUTES.items():
                    _count(results, machine, directory, way, name=f"gpu.counts.{family}.{name}", code=code)


def _count(results: Report, machine: Machine, directory: Path, way: Way, *, name: str, code: str) -> None:
    model = model_of(directory, device=DEVICE, uses_graphs=True)
    with slots_of(model, directory, way), torch.inference_mode():
        greedy(model, _PROMPT, 4)
        machine.counts.clear()
        model.forward(torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[_POSITION]]), first_row=0, wants=Logits.LAST)
        counts = machine.counts
        results.record(
            name,
            code=code,
            layers=model.num_layers,
            expert_layers=len(model.dispatcher.selections.read()),
            kernels=counts.num_kernels,
            copies_to_device=counts.copies["to the device"],
            copies_to_host=counts.copies["to the host"],
            waits=counts.num_waits,
            graphs=counts.graphs,
        )


if __name__ == "__main__":
    run(main, __doc__)
