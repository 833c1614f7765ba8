"""`make demo`: runs both services on models/demo, streams one continuation, and prints which experts were busiest."""

import os
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Annotated

from fiddler.running import interrupts

with interrupts.quiet():
    import typer
    from prometheus_client.parser import text_string_to_metric_families

    from client import Client, Complete, GenerateOptions, GenerationChunk
    from fiddler.command_line import DONE, FAILED, fail, run, shown_command
    from pair import Pair, PairError

_MODULE = "examples.demo"
_MODEL = Path(__file__).parents[1] / "models" / "demo"
_NUM_BUSIEST = 3


def demonstrate(
    *,
    prompt: Annotated[str, typer.Option(help="The text to continue.")] = "It was a fine morning in the country, and",
    max_tokens: Annotated[int, typer.Option(help="The most tokens to generate.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token; above 0 draws one.")] = 0.5,
    seed: Annotated[int, typer.Option(help="The seed of the random numbers.")] = 7,
) -> int:
    """Runs both services on models/demo, streams one continuation, and prints which experts were busiest."""
    is_kept = False
    with tempfile.NamedTemporaryFile(prefix="fiddler-demo-", suffix=".log", delete=False) as log:
        try:
            return _demonstrate(log.file, prompt, {"max_tokens": max_tokens, "temperature": temperature, "seed": seed})
        except PairError as error:
            is_kept = True
            return fail(_MODULE, f"{error}; the services' logs are in {log.name}", FAILED)
        finally:
            if not is_kept:
                Path(log.name).unlink()


def _demonstrate(log: IO[bytes], prompt: str, options: GenerateOptions) -> int:
    pair = Pair(_MODEL, gpu_arguments=("--device", "cpu"), log=log)
    try:
        print(f"Starting both services on {_MODEL.name}, which takes 5 to 20 seconds ...", flush=True)
        started = time.monotonic()
        with pair, Client(pair.target) as client:
            print(f"Ready after {time.monotonic() - started:.1f} s.\n", flush=True)
            print(prompt, end="", flush=True)
            _stream(client, prompt, options)
            _print_busiest_experts(pair)
            print("\nStopping both services ...", flush=True)
    finally:
        pair.close()  # also if Ctrl-C comes before the block
    print(f"Next: {shown_command('pair')} --model {os.path.relpath(_MODEL)}")
    print(f'and, in another terminal: {shown_command("client")} "{prompt}"')
    return DONE


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    return run(demonstrate, arguments, module=_MODULE)


def _stream(client: Client, prompt: str, options: GenerateOptions) -> None:
    """Prints a continuation as it arrives, then its figures."""
    sent = time.monotonic()
    first_token: float | None = None
    for event in client.generate(prompt, **options):
        if isinstance(event, Complete):
            _print_summary(event, (first_token or time.monotonic()) - sent)
        elif isinstance(event, GenerationChunk):
            first_token = first_token or time.monotonic()
            print(event.text, end="", flush=True)


def _print_summary(complete: Complete, first_token_seconds: float) -> None:
    print("\n")
    print(f"  tokens                {complete.completion_tokens} (prompt {complete.prompt_tokens})")
    print(f"  finish reason         {complete.finish_reason.name.lower()}")
    print(f"  time to first token   {first_token_seconds * 1000:.0f} ms")
    if complete.decode_seconds > 0:
        print(f"  tokens per second     {(complete.completion_tokens - 1) / complete.decode_seconds:.1f}")


def _print_busiest_experts(pair: Pair) -> None:
    """Reads from the GPU service's metrics how often each expert was chosen."""
    # not through a proxy that the environment sets, which would look on its own host
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{pair.gpu_metrics_port}/metrics") as response:
        text = response.read().decode()
    selections: dict[int, dict[int, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "fiddler_expert_selections_by_expert_total":
                selections[int(sample.labels["layer"])][int(sample.labels["expert"])] = sample.value
    print("\n  busiest experts and their share of the layer's work (all on the CPU expert service)")
    for layer, counts in sorted(selections.items()):
        total = sum(counts.values()) or 1
        busiest = sorted(counts, key=lambda expert: -counts[expert])[:_NUM_BUSIEST]
        shares = "   ".join(f"expert {expert}: {counts[expert] / total:4.0%}" for expert in busiest)
        print(f"    layer {layer}   {shares}")


if __name__ == "__main__":
    sys.exit(main())
