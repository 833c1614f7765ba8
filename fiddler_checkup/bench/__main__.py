"""`python -m fiddler_checkup.bench MODEL`, which is `fiddler bench`: how fast a model is here, and what bounds it."""

import contextlib
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Annotated

from fiddler.running import interrupts

with interrupts.quiet():
    import typer

    from fiddler.command_line import DONE, FAILED, USAGE, UsageError, application, fail, run

_MODULE = "fiddler_checkup.bench"
_EPILOG = (
    "Figures of two runs compare only on a machine that does nothing else. Exit status: 0 done; 1 the services cannot "
    "be started, or a request failed; 2 wrong usage."
)
_STREAMS = "1,2,4,8,16"
_SEED = 1


def _counts(text: str) -> str:
    _parsed(text)
    return text


def _parsed(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and 1 <= int(part) <= 1024 for part in parts):
        raise typer.BadParameter(f"must be numbers from 1 to 1024 with commas between, got {text!r}")
    return [int(part) for part in parts]


def bench(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="The model to start: a directory, or its name; or --target."),
    ] = None,
    *,
    target: Annotated[
        str | None, typer.Option(help="Measure the server that listens here instead: HOST:PORT. It should be idle.")
    ] = None,
    gpu_metrics: Annotated[str, typer.Option(help="With --target: its /metrics.")] = "127.0.0.1:9100",
    cpu_metrics: Annotated[
        str, typer.Option(help="With --target: its CPU expert service's /metrics.")
    ] = "127.0.0.1:9101",
    device: Annotated[str, typer.Option(help="Of the model that is started: auto, cpu or cuda.")] = "auto",
    prompt: Annotated[int, typer.Option(min=1, max=2**20, help="Tokens of the prompt whose speed is measured.")] = 512,
    generated: Annotated[int, typer.Option(min=2, max=2**16, help="Tokens that are generated.")] = 128,
    streams: Annotated[str, typer.Option(callback=_counts, help="Requests at one time, one after another.")] = _STREAMS,
    beams: Annotated[int, typer.Option(min=0, max=16, help="Beams of a beam search; 0 measures none.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Rounds of each test, of which the median counts.")] = 3,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Download the model without a question.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object instead of the table.")] = False,
) -> int:
    """Measures prefill, decoding, beams and several streams; says what memory allows, and where the time goes."""
    if (model is None) is (target is None):
        raise UsageError("give MODEL, or --target of a server that runs, and not both")
    # gRPC and the metrics' parser take longer to import than --help may take
    from client import ClientError
    from fiddler.errors import is_user_error
    from pair import PairError

    try:
        with contextlib.ExitStack() as stack:
            where = (target, gpu_metrics, cpu_metrics) if target else stack.enter_context(_started(model, device, yes))
            options = {"prompt": prompt, "generated": generated, "beams": beams}
            return _measure(where, _parsed(streams), options, rounds=rounds, as_json=as_json)
    except ClientError as error:
        return fail(_MODULE, error.message, USAGE if error.code.name == "INVALID_ARGUMENT" else FAILED)
    except Exception as error:
        if not (is_user_error(error) or isinstance(error, PairError | OSError)):
            raise
        return fail(_MODULE, str(error), FAILED)


@contextlib.contextmanager
def _started(model: str | None, device: str, assume_yes: bool) -> Iterator[tuple[str, str, str]]:
    """A pair on free ports; its addresses.

    Raises:
        UserError, PairError: It cannot start.
    """
    from pair import Pair, PairError, obtain_model

    assert model is not None
    directory = obtain_model(model, module=_MODULE, assume_yes=assume_yes, gpu_arguments=("--device", device))
    with tempfile.TemporaryFile() as log:
        pair = Pair(directory, gpu_arguments=("--device", device), log=log)
        _say(f"starting both services on {model} ...")
        try:
            with pair:
                yield pair.target, f"127.0.0.1:{pair.gpu_metrics_port}", f"127.0.0.1:{pair.cpu_metrics_port}"
        except PairError as error:
            raise PairError(_reason(log) or str(error)) from None
        finally:
            pair.close()


def _reason(log: IO[bytes]) -> str | None:
    """The line with which a service refused to start, after its log's lines of JSON."""
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line and not line.startswith("{")]
    return lines[-1].partition("_service: ")[2] or lines[-1] if lines else None


def _measure(
    where: tuple[str, str, str], streams: Sequence[int], options: dict[str, int], *, rounds: int, as_json: bool
) -> int:
    from client import Client
    from fiddler_checkup.bench import cases
    from fiddler_checkup.bench.counters import Readings
    from fiddler_checkup.bench.report import Report

    target, gpu_metrics, cpu_metrics = where
    generator, readings = random.Random(_SEED), Readings(gpu_metrics, cpu_metrics)
    with Client(target) as client:
        model, server = client.model_info(), client.server_info()
        fitting = [count for count in streams if count <= server.max_slots]
        for count in sorted(set(streams) - set(fitting)):
            _say(f"{count} streams are left out: the server computes at most {server.max_slots} (--max-slots)")
        listed = cases.standard_cases(
            model,
            prompt=options["prompt"],
            generated=options["generated"],
            streams=fitting,
            beams=min(options["beams"], server.max_slots, server.limits.max_beams),
        )
        measurements = []
        for case in listed:
            _say(f"measuring {case.name} ...")
            measurements.append(cases.measure(client, readings, case, model=model, rounds=rounds, generator=generator))
    report = Report(model=model, server=server, measurements=measurements)
    if as_json:
        print(json.dumps(report.as_json()))
    else:
        print("\n".join([report.title(), "", *report.table(), "", *report.words()]))
    return DONE


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    return run(bench, arguments, module=_MODULE, epilog=_EPILOG)


app = application(bench, epilog=_EPILOG)
"""`fiddler bench`."""

if __name__ == "__main__":
    sys.exit(main())
