"""`python -m fiddler.convert MODEL OUT`: writes a checkpoint in 8 or 4 bits."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

from fiddler.running import interrupts

with interrupts.quiet():
    import typer
    from tqdm import tqdm
    from typing_extensions import override

    from fiddler.command_line import DONE, FAILED, INTERRUPTED, fail, run
    from fiddler.convert.recipe import GROUP_INPUTS, SHARD_BYTES, DenseFormat, ExpertFormat, Recipe
    from fiddler.hub.names import locate

_MODULE = "fiddler.convert"


def command(
    model: Annotated[
        Path,
        typer.Argument(
            help="Directory of a Hugging Face checkpoint; or ORG/NAME[@REVISION] of a model in its cache; or demo."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Directory to make.")],
    *,
    experts: Annotated[
        ExpertFormat,
        typer.Option(help="Format of the experts. int4 has a scale for 32 inputs, int8 one for an output."),
    ] = "int4",
    dense: Annotated[
        DenseFormat,
        typer.Option(
            help="Format of the other linear layers. auto: as they are stored, coded ones decoded. int8, int4: coded "
            "as experts are."
        ),
    ] = "auto",
    shard_bytes: Annotated[
        int,
        typer.Option(min=1, help="About the size of a file. An interruption costs the work on one file at most."),
    ] = SHARD_BYTES,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="Threads that compute. 0: one for each CPU.")] = 0,
) -> int:
    """Writes a checkpoint whose experts are in 8 or 4 bits, in the format of compressed-tensors.

    A conversion that is interrupted is continued by the same command. OUT appears when it is whole.
    """
    # imported here, so that --help and a wrong argument do not wait for torch
    from contextlib import closing

    from fiddler.checkpoint import Checkpoint
    from fiddler.convert.conversion import Conversion, Reporter
    from fiddler.convert.errors import StoppedError
    from fiddler.convert.plan import Plan
    from fiddler.errors import is_user_error
    from fiddler.sizes import format_bytes

    class OnTerminal(Reporter):
        """Shows a conversion on standard error, and ends it after a signal."""

        is_signalled = False
        bar: Any = None

        def handle_signal(self, number: int, frame: FrameType | None) -> None:
            self.is_signalled = True

        @override
        def waiting(self, target: Path) -> None:
            _say(f"another process converts to {target}; waiting for it")

        @override
        def started(self, source: Checkpoint, plan: Plan, kept_bytes: int) -> None:
            if source.is_coded:
                _say(
                    f"warning: {source.directory} is quantised already ({source.weight_format}); quantising it again "
                    "loses more than quantising the weights that it was made of"
                )
            if plan.ungrouped:
                first, *others = plan.ungrouped
                more = f" and {len(others)} more" if others else ""
                _say(f"written in int8, since groups of {GROUP_INPUTS} do not divide their inputs: {first}{more}")
            if kept_bytes:
                _say(f"continuing; {format_bytes(kept_bytes)} of {format_bytes(plan.source_bytes)} are converted")
            total = plan.source_bytes
            self.bar = tqdm(total=total, initial=kept_bytes, desc="converted", unit="B", unit_scale=True, disable=None)

        @override
        def progress(self, done_bytes: int, total_bytes: int) -> None:
            self.check_stop()
            if self.bar is not None:
                self.bar.update(done_bytes - self.bar.n)

        @override
        def check_stop(self) -> None:
            if self.is_signalled:
                raise StoppedError

    reporter = OnTerminal()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, reporter.handle_signal)
    try:
        with closing(Checkpoint.open(locate(model))) as source:
            conversion = Conversion(source, out, Recipe(experts, dense), shard_bytes, threads or None)
            made = conversion.run(reporter)
            before = source.expert_bytes + source.dense_bytes
    except StoppedError:
        return fail(_MODULE, "stopped; the same command continues", INTERRUPTED)
    except Exception as error:
        if not is_user_error(error):
            raise
        return fail(_MODULE, str(error), FAILED)
    finally:
        if reporter.bar is not None:
            reporter.bar.close()
    after = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    _say(f"{out} {'is written' if made else 'is there already'}: {format_bytes(before)} became {format_bytes(after)}")
    return DONE


def _say(text: str) -> None:
    print(f"{_MODULE}: {text}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    return run(command, arguments, module=_MODULE)


if __name__ == "__main__":
    sys.exit(main())
