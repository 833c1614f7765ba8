"""`python -m tools.will_it_run`: computes which published models run in how much memory, and how fast at most.

It writes docs/will_it_run.md, and the table of README.md between its two marks. The sizes are those of
tools/published_models.py; memory and speed are what `--dry-run` computes (gpu_service/startup/estimate.py).
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gpu_service.engine.kv_budget import GIB
from gpu_service.gpu_experts.memory_budget import Budget, DeviceMemory, SlotNeeds
from gpu_service.startup import estimate
from gpu_service.startup.estimate import Sizes, Speeds
from tools.command_line import run
from tools.published_models import BYTES_PER_WEIGHT, MODELS, PublishedModel

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "will_it_run.md"
README: Final = ROOT / "README.md"
MEMORIES: Final = (16, 32, 64, 128, 256)
"""GiB of host memory."""
GPU_GIB: Final = 24
_HOST: Final = 60e9
"""Bytes per second: two channels of DDR5-5600, of whose 90 GB/s such a processor's cores read about two thirds."""
_DEVICE: Final = 900e9
"""Bytes per second: nine tenths of the peak of a card with 24 GB of GDDR6X."""
_WORKSPACE: Final = 1 * GIB
"""Of the GPU's memory: a step's workspace and the CUDA context."""
_NUM_STREAMING: Final = 2
_DENSE_BYTES: Final = 2
_SHORT: Final = {"bfloat16": "bf16"}
_NO: Final = "-"
_MARKS: Final = ("<!-- begin of python -m tools.will_it_run -->\n", "<!-- end of python -m tools.will_it_run -->\n")

_PAGE: Final = """# Will it run my model?

Computed by `python -m tools.will_it_run`, with the formulas of `--dry-run`, from the sizes in the models' published
configurations. **None of these models was run for this page.** A cell is the format of the experts that fits, and the
most tokens per second that reading the weights allows for one sequence, at {host:.0f} GB/s from memory and
{device:.0f} GB/s from the GPU's. Above some hundred tokens per second other things than reading are the limit. Other
programs need memory too, so a model that just fits a size wants the next one. `fiddler doctor` measures this machine's
bandwidth, with which the bound grows; `fiddler inspect MODEL` computes the same for one model on this machine.

* *bf16*, *FP8*, *MXFP4*: as published. *int8*, *int4*: `--expert-format int4`, which converts the model once and
  rounds its experts.
* {no}: the experts do not fit into this memory in 4 bits either, and would be read from the disk again and again; or
  the dense weights do not fit on the GPU.
* Memory is what both services need: the experts, {services} GiB, and without a GPU the dense weights in bf16, of which
  `--dense-format int4` leaves a little more than a quarter.

## With a GPU of {gpu} GB

The GPU holds the dense weights, keys and values, and as many experts as then fit.

{with_gpu}

## Without a GPU

{without_gpu}

## Sizes

{sizes}
"""


@dataclass(frozen=True, slots=True)
class Fit:
    """How a model runs.

    Attributes:
        stored_as: The format of its experts.
        tokens_per_second: The bound for one sequence.
    """

    stored_as: str
    tokens_per_second: float

    @property
    def cell(self) -> str:
        """For a table: "int4: 14"."""
        digits = 0 if self.tokens_per_second >= 10 else 1
        return f"{_SHORT.get(self.stored_as, self.stored_as)}: {self.tokens_per_second:.{digits}f}"


def formats_of(model: PublishedModel) -> dict[str, float]:
    """Bytes per weight of an expert by format: as published, then those that are smaller, largest first."""
    published = BYTES_PER_WEIGHT[model.stored_as]
    smaller = {name: each for name, each in estimate.BYTES_PER_WEIGHT.items() if each < 0.9 * published}
    return {model.stored_as: published, **smaller}


def fit(model: PublishedModel, memory_gib: int, *, has_gpu: bool) -> Fit | None:
    """The first format of a model that fits; None if none does."""
    for stored_as, each in formats_of(model).items():
        sizes = sizes_of(model, each)
        resident = _resident(model, sizes, each) if has_gpu else 0
        if resident is None or sum(estimate.limits_gib(sizes, on_cpu=not has_gpu)) > memory_gib:
            continue
        speeds = Speeds(_HOST, _DEVICE if has_gpu else None)
        return Fit(stored_as, 1 / estimate.seconds_per_token(sizes, speeds, resident))
    return None


def sizes_of(model: PublishedModel, bytes_per_weight: float) -> Sizes:
    """The sizes of a model whose experts are stored in so many bytes per weight."""
    return Sizes(
        dense_bytes=_DENSE_BYTES * model.dense_weights,
        expert_bytes=int(model.expert_weights * bytes_per_weight),
        bytes_per_token=int(model.layers * model.chosen * model.weights_of_an_expert * bytes_per_weight),
        num_experts=model.layers * model.experts,
    )


def _resident(model: PublishedModel, sizes: Sizes, bytes_per_weight: float) -> int | None:
    """How many experts are resident on the GPU; None if the dense weights leave no room for a step."""
    free = estimate.free_after_cache(GPU_GIB * GIB, sizes.dense_bytes, "auto")
    if free < 2 * _WORKSPACE:
        return None
    memory = DeviceMemory(GPU_GIB * GIB, free, _WORKSPACE)
    needs = SlotNeeds(int(model.weights_of_an_expert * bytes_per_weight), _NUM_STREAMING)
    return estimate.num_resident(sizes, memory, needs, Budget())


def table(*, has_gpu: bool) -> str:
    """A row for each model, a column for each memory."""
    rows = [["model", *(f"{memory} GB" for memory in MEMORIES)]]
    for model in MODELS:
        fits = [fit(model, memory, has_gpu=has_gpu) for memory in MEMORIES]
        rows.append([model.name, *(each.cell if each else _NO for each in fits)])
    return _markdown(rows)


def _sizes() -> str:
    rows = [["model", "published in", "experts, GB", "in int8", "in int4", "dense in bf16, GB", "read for a token, GB"]]
    for model in MODELS:
        published = sizes_of(model, BYTES_PER_WEIGHT[model.stored_as])
        smaller = formats_of(model)
        others = [
            f"{model.expert_weights * smaller[name] / 1e9:.4g}" if name in smaller and name != model.stored_as else ""
            for name in estimate.BYTES_PER_WEIGHT
        ]
        rows.append(
            [
                model.name,
                _SHORT.get(model.stored_as, model.stored_as),
                f"{published.expert_bytes / 1e9:.4g}",
                *others,
                f"{published.dense_bytes / 1e9:.3g}",
                f"{(published.bytes_per_token + published.dense_bytes) / 1e9:.3g}",
            ]
        )
    return _markdown(rows)


def _markdown(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, f"|{'---|' * len(rows[0])}")
    return "\n".join(lines)


def page() -> str:
    """docs/will_it_run.md."""
    return _PAGE.format(
        host=_HOST / 1e9,
        device=_DEVICE / 1e9,
        gpu=GPU_GIB,
        no=_NO,
        services=estimate.EXPERT_SERVICE_GIB + estimate.GPU_SERVICE_GIB,
        with_gpu=table(has_gpu=True),
        without_gpu=table(has_gpu=False),
        sizes=_sizes(),
    )


def readme(text: str) -> str:
    """README.md with the table between its marks.

    Raises:
        ValueError: A mark is missing.
    """
    begin, end = _MARKS
    replaced, count = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}",
        lambda _: f"{begin}{table(has_gpu=True)}\n{end}",
        text,
        flags=re.DOTALL,
    )
    if count != 1:
        raise ValueError(f"README.md needs one {begin.strip()} and one {end.strip()}")
    return replaced


def main() -> None:
    """Writes the page and the table."""
    PAGE.write_text(page())
    README.write_text(readme(README.read_text()))


if __name__ == "__main__":
    run(main, __doc__)
