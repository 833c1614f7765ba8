"""`make demo`: both services on the small model in models/demo, one streamed continuation, and what the experts did."""

import argparse
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from client import Chunk, Client, Complete
from pair import Pair, PairError

MODEL = Path(__file__).parents[1] / "models" / "demo"
PROMPT = "It was a fine morning in the country, and"
BUSIEST = 3


def main() -> int:
    """Runs the demonstration; returns its exit status."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--prompt", default=PROMPT, help="what to continue")
    parser.add_argument("--max-tokens", type=int, default=100, help="the most tokens to generate")
    parser.add_argument("--temperature", type=float, default=0.5, help="0 always takes the likeliest token")
    parser.add_argument("--seed", type=int, default=7, help="the seed of the random numbers")
    arguments = parser.parse_args()
    with tempfile.NamedTemporaryFile(prefix="fiddler-demo-", suffix=".log", delete=False) as log:
        print(f"Starting both services on {MODEL.name}; their logs are in {log.name}", flush=True)
        started = time.monotonic()
        try:
            with Pair(MODEL, gpu_arguments=("--device", "cpu"), log=log.file) as pair:
                print(f"Ready after {time.monotonic() - started:.1f} s.\n", flush=True)
                _stream(pair, arguments)
                _print_busiest_experts(pair)
        except PairError as error:
            print(f"demo: {error}; see {log.name}", file=sys.stderr)
            return 1
        Path(log.name).unlink()
    return 0


def _stream(pair: Pair, arguments: argparse.Namespace) -> None:
    """Prints a continuation as it comes, then what it took."""
    print(arguments.prompt, end="", flush=True)
    sent = time.monotonic()
    first: float | None = None
    with Client(pair.target) as client:
        generation = client.generate(
            arguments.prompt,
            max_tokens=arguments.max_tokens,
            temperature=arguments.temperature,
            seed=arguments.seed,
        )
        for message in generation:
            if isinstance(message, Complete):
                _print_summary(message, (first or time.monotonic()) - sent)
            elif isinstance(message, Chunk):
                first = first or time.monotonic()
                print(message.text, end="", flush=True)


def _print_summary(complete: Complete, first_token_seconds: float) -> None:
    print("\n")
    print(f"  tokens                {complete.completion_tokens} (prompt {complete.prompt_tokens})")
    print(f"  finish reason         {complete.finish_reason.name.lower()}")
    print(f"  time to first token   {first_token_seconds * 1000:.0f} ms")
    if complete.decode_seconds > 0:
        print(f"  tokens per second     {(complete.completion_tokens - 1) / complete.decode_seconds:.1f}")


def _print_busiest_experts(pair: Pair) -> None:
    """Reads how often each expert was chosen from the GPU service's metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{pair.gpu_metrics_port}/metrics") as response:
        text = response.read().decode()
    by_layer: dict[int, dict[int, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "fiddler_expert_selections_by_expert_total":
                by_layer[int(sample.labels["layer"])][int(sample.labels["expert"])] = sample.value
    print("\n  busiest experts, and their share of the layer's work (all on the CPU expert service)")
    for layer, counts in sorted(by_layer.items()):
        total = sum(counts.values()) or 1
        busiest = sorted(counts, key=lambda expert: -counts[expert])[:BUSIEST]
        shares = "   ".join(f"expert {expert}: {counts[expert] / total:4.0%}" for expert in busiest)
        print(f"    layer {layer}   {shares}")


if __name__ == "__main__":
    sys.exit(main())
