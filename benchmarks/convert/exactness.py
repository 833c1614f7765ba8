"""`python -m benchmarks.convert.exactness`: a large checkpoint is converted, killed, continued, served, and compared.

A bf16 Mixtral of 1.5 GB is converted by processes that are killed at random moments. After each kill there must be no
result, or a whole one, which is then removed so that the next kill finds something to do. The last conversion is left
alone. Both services then serve the result in float32, and their greedy tokens must be those of transformers on the
float32 checkpoint that the result stands for, as the package compressed-tensors decodes it.

convert.exactness.kills             how often a conversion was killed, how often one continued, and how often one was
                                    through before
convert.exactness.FORMAT.tokens     tokens that were compared, and how many were another
"""

import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from benchmarks.harness.disk import check_room
from benchmarks.harness.results import Append, Out, Quick, Report, report
from fiddler import process
from tools.command_line import run

_PROMPTS: Final = ([5, 9, 11], [7] * 17 + [30, 31], list(range(40, 110)))
_NUM_TOKENS: Final = 24
_LARGEST: Final = 0.6
"""A bound on the bytes of a result over those of its source: 8 of 16 bits, scales, and what stays plain."""
_SHARD_BYTES: Final = 64 * 2**20


def main(
    out: Out = None,
    append: Append = False,
    quick: Quick = False,
    kills: Annotated[int, typer.Option(help="How often the conversion is killed.")] = 10,
    experts: Annotated[Literal["int8", "int4"], typer.Option(help="Format of the experts.")] = "int4",
    gigabytes: Annotated[float, typer.Option(help="Size of the source, in GB.")] = 1.5,
    directory: Annotated[Path | None, typer.Option(help="Where files are written; unset: the temporary one.")] = None,
) -> None:
    """Runs it. Exits with 1 if half a checkpoint was seen, or a token is another."""
    process.prepare()
    from tests.support import checkpoints
    from tests.support.converted import write_decoded
    from tests.support.large_checkpoint import large_bytes, write_large

    if quick:
        gigabytes, kills = 0.25, 2
    source_bytes = large_bytes(int(gigabytes * 10**9))
    sizes = {"source": source_bytes, "converted": int(_LARGEST * source_bytes), "plain": 2 * source_bytes}
    check_room(directory, sizes, remedy="name a directory on another disk with --directory")
    with report(out, append) as results, tempfile.TemporaryDirectory(prefix="fiddler-", dir=directory) as name:
        source, target, plain = (Path(name) / each for each in ("source", "converted", "plain"))
        write_large(source, int(gigabytes * 10**9))
        checkpoints.write_tokenizer(source)
        _convert_with_kills(results, [str(source), str(target), "--experts", experts], target, kills)
        write_decoded(target, source, plain)
        expected = _by_transformers(plain)
        found = _by_the_pair(target)
        others = sum(one != other for one, other in zip(found, expected, strict=True))
        results.record(f"convert.exactness.{experts}.tokens", compared=len(expected), others=others)
        if others:
            raise typer.Exit(1)


def _convert_with_kills(results: Report, arguments: list[str], target: Path, kills: int) -> None:
    """Converts, killed so often at moments of an uninterrupted conversion's duration; then without a kill."""
    command = [sys.executable, "-m", "fiddler.convert", *arguments, "--shard-bytes", str(_SHARD_BYTES)]
    began = time.monotonic()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    duration = time.monotonic() - began
    whole = _sizes(target)
    shutil.rmtree(target)
    moments = random.Random(1)
    partial = target.with_name(f".{target.name}.partial")
    killed = continued = through = 0
    for _ in range(kills):
        continued += any(partial.glob("*.safetensors"))
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as running:
            time.sleep(moments.uniform(0, duration))
            running.kill()
        killed += running.returncode < 0
        if target.exists():
            through += 1
            if _sizes(target) != whole:
                raise RuntimeError(f"{target} was not whole after a kill: {_sizes(target)}")
            shutil.rmtree(target)
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    if _sizes(target) != whole:
        raise RuntimeError(f"{target} differs from an uninterrupted conversion: {_sizes(target)}")
    results.record(
        "convert.exactness.kills", killed=killed, continued=continued, through=through, seconds_of_one=duration
    )


def _sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in directory.iterdir()}


def _by_transformers(directory: Path) -> list[int]:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.eval()
    tokens: list[int] = []
    with torch.inference_mode():
        for prompt in _PROMPTS:
            output = model.generate(
                torch.tensor([prompt]), max_new_tokens=_NUM_TOKENS, min_new_tokens=_NUM_TOKENS, do_sample=False
            )
            tokens += output[0, len(prompt) :].tolist()
    return tokens


def _by_the_pair(directory: Path) -> list[int]:
    from client import Client, GenerationChunk
    from pair import Pair

    float32 = ("--dtype", "float32")
    tokens: list[int] = []
    with (
        Pair(
            directory, gpu_arguments=("--device", "cpu", *float32), cpu_arguments=float32, log=subprocess.DEVNULL
        ) as pair,
        Client(pair.target) as client,
    ):
        for prompt in _PROMPTS:
            for message in client.generate(list(prompt), max_tokens=_NUM_TOKENS, min_tokens=_NUM_TOKENS, temperature=0):
                if isinstance(message, GenerationChunk):
                    tokens += message.token_ids
    return tokens


if __name__ == "__main__":
    run(main, __doc__)
