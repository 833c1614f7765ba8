"""`python -m benchmarks.quality`: what experts and dense layers in 8 and 4 bits do to a model's predictions.

quality.MODEL.FORMAT.kl_divergence      mean KL(bf16 || FORMAT) of the next token's distribution, in nats
quality.MODEL.FORMAT.perplexity_ratio   perplexity of the text, over that of bf16
quality.MODEL.FORMAT.same_top_token     share of positions with the same most probable token as bf16
quality.MODEL.FORMAT.added_by_dense     what the coded dense part adds to the divergence of coded experts

FORMAT is one of `python -m fiddler.convert`, which writes the checkpoint that is measured: int8, int4, and both with
dense layers in int8 and in int4 as well. MODEL is demo, or the name of the directory in --model. The text is that of
--text, in windows of --window tokens; without one it is what the model itself writes, drawn with a fixed seed. All
models compute in float32 with PyTorch, so that weights are all that differs; load on the machine changes nothing.
"""

import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Final

import torch
import typer

from benchmarks.harness.results import Append, Out, Quick, report
from benchmarks.harness.targets import Judge, Target
from benchmarks.quality.divergence import Divergence
from benchmarks.quality.models import opened
from fiddler.checkpoint import Checkpoint
from fiddler.convert.conversion import Conversion, Reporter
from fiddler.convert.errors import SpaceError
from fiddler.convert.recipe import Recipe
from gpu_service.text.tokenizer import Tokenizer
from tests.support.pairs import DEMO
from tools.command_line import run

_RECIPES: Final = (
    Recipe("int8"),
    Recipe("int4"),
    Recipe("int8", "int8"),
    Recipe("int4", "int8"),
    Recipe("int8", "int4"),
    Recipe("int4", "int4"),
)
_SEED: Final = 0
_MAX_ADDED: Final = 0.0005
_BOUNDS: Final = {"int8": 0.0005, "int4": 0.012}
TARGETS = {f"quality.demo.{name}.kl_divergence": Target(bound, at_least=False) for name, bound in _BOUNDS.items()} | {
    f"quality.demo.{name}_dense_int8.added_by_dense": Target(_MAX_ADDED, at_least=False) for name in _BOUNDS
}
Dtype = Annotated[str, typer.Option(help="What is computed in; bfloat16 takes half the memory and adds its rounding.")]


def main(
    out: Out = None,
    append: Append = False,
    model: Annotated[Path, typer.Option(help="A checkpoint in bf16.")] = DEMO,
    text: Annotated[Path | None, typer.Option(help="A UTF-8 text, at least one window long.")] = None,
    windows: Annotated[int, typer.Option(min=1, help="Windows to measure at most.")] = 32,
    window: Annotated[int, typer.Option(min=2, help="Tokens of a window.")] = 256,
    dtype: Dtype = "float32",
    quick: Quick = False,
) -> None:
    """Runs the benchmark."""
    if quick:
        windows, window = 2, 32
    precision: torch.dtype = getattr(torch, dtype)
    with report(out, append) as results, tempfile.TemporaryDirectory(prefix="fiddler-") as temporary:
        judge = Judge(results, TARGETS)
        name = Checkpoint.open(model).name.replace(".", "_")
        with opened(model, dtype=precision, num_rows=windows, max_context=window) as reference:
            tokenizer = Tokenizer(model)
            if text is None:
                sequences = reference.write(windows, window, first=_first_token(tokenizer), seed=_SEED)
            else:
                sequences = _windows(tokenizer.encode(text.read_text()), window)[:windows]
            expected = [reference.log_probabilities(sequence) for sequence in sequences]
        divergences: dict[str, float] = {}
        for recipe in _RECIPES:
            directory = Path(temporary) / recipe.description
            with closing(Checkpoint.open(model)) as source:
                try:
                    Conversion(source, directory, recipe).run(Reporter())
                except SpaceError as error:
                    raise typer.BadParameter(f"{error} TMPDIR names it.") from error
            measured = _measure(directory, sequences, expected, dtype=precision)
            label = recipe.description.replace("-", "_")
            divergences[label] = measured.kl_divergence
            prefix, tokens = f"quality.{name}.{label}", measured.num_tokens
            judge.samples(f"{prefix}.kl_divergence", [measured.kl_divergence], "nats", tokens=tokens)
            judge.samples(f"{prefix}.perplexity_ratio", [measured.perplexity_ratio], "ratio", tokens=tokens)
            judge.samples(f"{prefix}.same_top_token", [measured.same_top_token], "ratio", tokens=tokens)
            if recipe.dense != "auto":
                added = measured.kl_divergence - divergences[recipe.experts]
                judge.samples(f"{prefix}.added_by_dense", [added], "nats", tokens=tokens)
        judge.summarise()


def _measure(
    directory: Path, sequences: Sequence[Sequence[int]], expected: Sequence[torch.Tensor], *, dtype: torch.dtype
) -> Divergence:
    divergence = Divergence()
    with opened(directory, dtype=dtype, num_rows=1, max_context=max(map(len, sequences))) as other:
        for sequence, reference in zip(sequences, expected, strict=True):
            divergence.add(torch.tensor(sequence), reference, other.log_probabilities(sequence))
    return divergence


def _windows(token_ids: list[int], length: int) -> list[list[int]]:
    """The sequence cut into pieces of one length; what is left at the end is not measured.

    Raises:
        BadParameter: It is shorter than one piece.
    """
    if len(token_ids) < length:
        raise typer.BadParameter(f"the text has {len(token_ids)} tokens, and a window {length}", param_hint="--text")
    return [token_ids[begin : begin + length] for begin in range(0, len(token_ids) - length + 1, length)]


def _first_token(tokenizer: Tokenizer) -> int:
    """What a text begins with: the tokenizer's own beginning, or a space."""
    return (tokenizer.encode("") or tokenizer.encode(" "))[0]


if __name__ == "__main__":
    run(main, __doc__)
