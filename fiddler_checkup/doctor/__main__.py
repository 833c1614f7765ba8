"""`python -m fiddler_checkup.doctor`, which is `fiddler doctor`: looks at this machine and says what to do."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

from fiddler.running import interrupts

with interrupts.quiet():
    import typer

    from fiddler.command_line import DONE, FAILED, application, run
    from fiddler_checkup.doctor.finding import Finding, Level, problem

_MODULE = "fiddler_checkup.doctor"
_EPILOG = "Exit status: 0 if models can be served here, also slower than they could be; 1 if there is a problem."
_WIDTH = 11


def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure nothing: neither memory nor copies to a GPU.")
    ] = False,
) -> int:
    """Looks at this machine: CPU, memory, GPU, ports, Docker, versions. Each line is ok, or says what to do."""
    findings = []
    for finding in look(quick=quick):
        findings.append(finding)
        if not as_json:
            print(finding.line(_WIDTH), flush=True)
    counts = {level: sum(finding.level is level for finding in findings) for level in Level}
    if as_json:
        shown = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps({"findings": shown, "problems": counts[Level.PROBLEM], "warnings": counts[Level.WARNING]}))
    else:
        print(f"\n{_summary(counts[Level.PROBLEM], counts[Level.WARNING])}")
    return FAILED if counts[Level.PROBLEM] else DONE


def look(*, quick: bool) -> Iterator[Finding]:
    """All findings, as they are found."""
    from fiddler_checkup.doctor import cpu, memory, system

    steps: list[Callable[[], Sequence[Finding]]] = [
        system.versions,
        lambda: [system.own_packages()],
        cpu.look,
        lambda: memory.look(measures=not quick),
        lambda: [system.disk(), system.sockets()],
        system.ports,
        system.wsl,
    ]
    for step in steps:
        yield from step()
    gpu = list(_gpu(quick))
    yield from gpu
    yield from system.docker(has_gpu=any(finding.subject == "driver" for finding in gpu))


def _gpu(quick: bool) -> Sequence[Finding]:
    """Imports torch, which takes seconds, so this comes late."""
    from fiddler_checkup.doctor import gpu

    try:
        import torch
    except ImportError as error:  # a library that the build needs is missing, or the build is another platform's
        return [problem("GPU", f"PyTorch cannot be imported: {error}", "`pip install --force-reinstall torch`")]
    return gpu.look(torch, measures=not quick)


def _summary(problems: int, warnings: int) -> str:
    if problems:
        return f"{_count(problems, 'problem')}: models cannot be served here until that is mended."
    if warnings:
        return f"Models can be served here. {_count(warnings, 'warning')}: each says what helps."
    return "Models can be served here."


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    return run(doctor, arguments, module=_MODULE, epilog=_EPILOG)


app = application(doctor, epilog=_EPILOG)
"""`fiddler doctor`."""

if __name__ == "__main__":
    sys.exit(main())
