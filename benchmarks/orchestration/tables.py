"""Tables in Markdown from benchmarks/results/orchestration.jsonl, which plot.py writes into docs/orchestration.md."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]
Cells = dict[tuple[str, str, str], dict[str, Result]]
"""By machine, model and workload: results by strategy."""

OURS = "ours"
RIVALS = {
    "fiddler": "Fiddler's algorithm",
    "llama_cpp": "llama.cpp",
    "mixtral_offloading": "mixtral-offloading",
    "deepspeed": "DeepSpeed",
}
MACHINES = {"quadro_rtx_6000": "Quadro RTX 6000", "l4": "L4", "rtx_4090": "RTX 4090", "h200": "H200, 24 GB of it"}
MODELS = {
    "mixtral_8x7b": "Mixtral-8x7B",
    "qwen3_30b_a3b": "Qwen3-30B-A3B",
    "deepseek_v2_lite": "DeepSeek-V2-Lite",
    "mixtral_4_layers": "recorded routing",
}
_POLICIES = {
    "ours": "adaptive",
    "ours_popularity": "popularity",
    "ours_lru": "lru",
    "ours_layers": "layers",
    "ours_none": "none",
}
_PREFIX = "orchestration."
_VALIDATION = "orchestration.validation."


def read(path: Path) -> tuple[Cells, dict[str, Result]]:
    """Reads the simulated cells, and all other results by name."""
    cells: Cells = defaultdict(dict)
    others = {}
    for line in path.read_text().splitlines():
        result = json.loads(line)
        name = result["name"]
        if name.startswith(_PREFIX) and not name.startswith(_VALIDATION):
            _, machine, model, workload, strategy = name.split(".")
            cells[machine, model, workload][strategy] = result
        else:
            others[name] = result
    return cells, others


def tables(cells: Cells, others: dict[str, Result]) -> dict[str, str]:
    """The tables by the names of the document's markers."""
    return {
        "plans": _plans(others),
        "rates": _by_workload(cells, lambda cell: _number(cell[OURS]["value"])),
        "ratios": _by_workload(cells, _ratio),
        "behind": _behind(cells),
        "policies": _policies(cells),
        "paper": _paper(others),
    }


def _plans(others: dict[str, Result]) -> str:
    rows = []
    for name in ("plan.optimality", "plan.microseconds.e128"):
        result = others[name]
        bound = f"at least {result['at_least']}" if "at_least" in result else f"at most {result['at_most']}"
        rows.append([f"`{name}`", f"{result['value']:.3g} ({result['p10']:.3g} to {result['p90']:.3g})", bound])
    return _table(["this run", "figure", "target"], rows)


def _by_workload(cells: Cells, show: Callable[[dict[str, Result]], str]) -> str:
    workloads = list(dict.fromkeys(workload for _, _, workload in cells))
    rows = []
    for model, model_title in MODELS.items():
        for machine, machine_title in MACHINES.items():
            found = [cells.get((machine, model, workload)) for workload in workloads]
            if any(found):
                rows.append([f"{model_title}, {machine_title}", *(show(cell) if cell else "" for cell in found)])
    return _table(["", *(workload.replace("_", " ") for workload in workloads)], rows)


def _ratio(cell: dict[str, Result]) -> str:
    best = max(RIVALS, key=lambda rival: cell[rival]["value"])
    ratio = cell[OURS]["value"] / cell[best]["value"]
    initial = {"fiddler": "F", "llama_cpp": "L", "mixtral_offloading": "M", "deepspeed": "D"}[best]
    return f"**{ratio:.2f}** {initial}" if ratio >= 1 else f"{ratio:.2f} {initial}"


def _behind(cells: Cells) -> str:
    rows = []
    for (machine, model, workload), cell in cells.items():
        if "behind" in cell[OURS]:
            where = f"{MODELS[model]}, {MACHINES[machine]}, {workload.replace('_', ' ')}"
            rows.append([where, cell[OURS]["behind"]])
    return _table(["cell", "ours is"], rows)


def _policies(cells: Cells) -> str:
    rows = []
    for (machine, model, workload), cell in cells.items():
        if workload in ("decode", "decode_shift"):
            rates = [cell[strategy]["value"] for strategy in _POLICIES]
            where = f"{MODELS[model]}, {MACHINES[machine]}, {workload.replace('_', ' ')}"
            rows.append([where, *(f"**{_number(rate)}**" if rate == max(rates) else _number(rate) for rate in rates)])
    return _table(["tokens/s", *_POLICIES.values()], rows)


def _paper(others: dict[str, Result]) -> str:
    rows = []
    for name, result in others.items():
        if name.startswith(_VALIDATION):
            machine, strategy = name.removeprefix(_VALIDATION).split(".")
            published = f"{result['published']:.3g}" if "published" in result else ""
            title = {"fiddler": "Fiddler's algorithm, our kernels", "fiddler_as_released": "Fiddler, as released"}
            rows.append(
                [
                    f"{MACHINES[machine]}: {title.get(strategy) or RIVALS[strategy]}",
                    f"{result['value']:.3g}",
                    f"{result['decode_only']:.3g}",
                    published,
                ]
            )
    return _table(["tokens/s", "simulated", "the same without prompts", "published"], rows)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
