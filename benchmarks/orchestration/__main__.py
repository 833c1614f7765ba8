"""`python -m benchmarks.orchestration`: the planner, the placement policies and other servers in virtual time.

plan.optimality            seconds of the best of all plans over those of the planner's, by the cost model: the worst of
                           many random layers
plan.microseconds.e128     microseconds of planning 128 active experts, in real time
orchestration.MACHINE.MODEL.WORKLOAD.STRATEGY     tokens per second, simulated
orchestration.validation.MACHINE.STRATEGY         the same for the lengths of Fiddler's paper, with its figure

docs/orchestration.md describes what is simulated and what is not. Only the microseconds differ from run to run.
"""

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from benchmarks.harness.results import Append, Out, Quick
from benchmarks.harness.results import report as open_report
from benchmarks.harness.targets import Judge, Target
from benchmarks.orchestration import bound, machines, models, plans, report, validation
from benchmarks.orchestration.costs import System
from benchmarks.orchestration.simulate import run
from benchmarks.orchestration.strategies import deepspeed, fiddler, llama_cpp, mixtral_offloading, ours
from benchmarks.orchestration.strategies.server import Server
from benchmarks.orchestration.workloads import Request, Workload, popularity, trace_of, workloads
from gpu_service.placement.popularity import Popularity
from tools.command_line import run as run_command

TARGETS = {"plan.optimality": Target(0.98), "plan.microseconds.e128": Target(50, at_least=False)}
_CASES, _QUICK_CASES = 3000, 500
_TIMED_LAYERS = 200
_RIVALS: tuple[type[Server], ...] = (
    fiddler.Fiddler,
    mixtral_offloading.MixtralOffloading,
    deepspeed.DeepSpeed,
    llama_cpp.LlamaCpp,
)
_POLICIES: tuple[type[Server], ...] = (ours.OursPopularity, ours.OursLru, ours.OursLayers, ours.OursNone)


def main(
    out: Out = None,
    append: Append = False,
    quick: Quick = False,
    seed: Annotated[int, typer.Option(help="Of the traces and of the random layers.")] = 0,
) -> None:
    """Runs the simulator."""
    with open_report(out, append) as results:
        judge = Judge(results, TARGETS)
        cases = _QUICK_CASES if quick else _CASES
        judge.samples("plan.optimality", [plans.worst_ratio(cases, seed)], "ratio", cases=cases)
        judge.samples("plan.microseconds.e128", plans.microseconds(_TIMED_LAYERS, seed), "us")
        for machine in validation.MACHINES:
            _validate(judge, System(machines.load(machine), models.load(validation.MODEL)), seed)
        cells = []
        for cell in _cells(quick, seed):
            report.write(judge, cell)
            cells.append(cell)
        report.show(cells)
        judge.summarise()


def _cells(quick: bool, seed: int) -> Iterator[report.Cell]:
    systems = {name: machines.load(name) for name in machines.names()}
    for model in map(models.load, models.names()):
        trace = trace_of(model, seed)
        for workload in workloads(quick):
            print(f"orchestration: {model.name}, {workload.name}", file=sys.stderr, flush=True)
            requests = workload.requests(trace)
            if len(requests) < 2:
                continue  # the recorded trace is too short for this workload
            for machine in systems.values():
                yield _cell(System(machine, model), workload, requests, popularity(trace))


def _cell(system: System, workload: Workload, requests: list[Request], counted: Popularity) -> report.Cell:
    kinds: list[type[Server]] = [ours.Ours, *([ours.OursBesideOthers] if workload.is_prompt else []), *_RIVALS]
    if workload.with_policies:
        kinds += _POLICIES
    results = [run(kind, system, counted, workload=workload, requests=requests) for kind in kinds]
    return report.Cell(system, workload, bound.seconds(system, requests[1:], workload.is_prompt), results)


def _validate(out: Judge, system: System, seed: int) -> None:
    for comparison in validation.compare(system, trace_of(system.model, seed)):
        more = {"decode_only": float(f"{comparison.decode_only:.4g}")}
        if comparison.published is not None:
            more["published"] = round(comparison.published, 3)
        name = f"orchestration.validation.{system.machine.name}.{comparison.strategy}"
        out.samples(name, [comparison.simulated], "tokens/s", **more)


if __name__ == "__main__":
    run_command(main, __doc__)
