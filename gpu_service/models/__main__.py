"""`python -m gpu_service.models`: prints which families of models are verified, and which are refused and why.

The tables are those of gpu_service/models/families.py. `make models` writes docs/models.md with --format markdown.
"""

import json
import sys
from enum import Enum
from typing import Annotated, Any, Final

from fiddler.running import interrupts

with interrupts.quiet():
    import typer

    from gpu_service.models.families import REFUSED, VERIFIED, ModelFamily
    from gpu_service.models.glossary import FEATURES, METHODS


class Form(Enum):
    """How the tables are printed."""

    TEXT = "text"
    MARKDOWN = "markdown"
    JSON = "json"


_HEAD: Final = """# Models

The names are transformers' `model_type`s, which are in a checkpoint's config.json. `make models` writes this page from
[gpu_service/models/families.py](../gpu_service/models/families.py); `python -m gpu_service.models` prints the same.

A family that is newer than this table, and so has no row, is served too if its experts have transformers' experts
interface and compute something that is supported here. `python -m gpu_service --model DIR --dry-run` checks whether a
checkpoint can be served, without serving it.
"""
_NOTES: Final = """
"Runs" is about the checkpoints that a family's authors publish. If those have weights in 8 or 4 bits, the format is
named, and the family is verified in it; checkpoints of any family in bfloat16, float16 or float32 run, too. Sequences
of most families are computed together. If layers keep states that only the model's own code knows, or a decoder attends
to the output of an encoder, sequences share each step but are computed one by one within it, and prompts are not
divided.

Layers that predict further tokens (`mtp` in a tensor's name, or a number past the last layer) are left out, as
transformers leaves them out. Nemotron-H runs with `moe_latent_size`, too
([verified](../tests/families/test_latent_experts.py)): its experts are given projected rows.

A tokenizer is read from tokenizer.json, or else from a sentencepiece model (tokenizer.model), vocab.json and
merges.txt, or tekken.json. Kimi's is read from tiktoken.model and tokenizer_config.json, and a
[test](../tests/gpu_service/text/vocabularies/test_tiktoken_model.py) holds it to tiktoken: the expression that divides
texts is read as a constant of its code, or is the known one if the code is not there. Any other tiktoken vocabulary
alone is refused: it does not say how texts are divided.

Code in a checkpoint is not run. If a tokenizer is code, and not Kimi's, the directory needs a tokenizer.json of the
same vocabulary, and a tokenizer_config.json without auto_map. Kimi's code also orders the keys of tools before they go
to the chat template, and in Kimi-K2.5 writes them as TypeScript; here the template gets them as the caller sent them.

How they are verified:
"""
_BATCHES: Final = {
    True: "together",
    False: "one by one",
}


def main(
    form: Annotated[Form, typer.Option("--format", help="How the tables are printed.")] = Form.TEXT,
) -> None:
    """Lists the families of models: how each was verified, whether it runs as published, which are refused and why."""
    write = {Form.TEXT: as_text, Form.MARKDOWN: as_markdown, Form.JSON: as_json}[form]
    sys.stdout.write(write())


def as_text() -> str:
    """The tables for a terminal."""
    families = _verified()
    width = max(map(len, [*VERIFIED, *REFUSED]))
    lines = [f"{len(families)} families are verified:", ""]
    for family in families:
        lines.append(f"  {family.model_type:{width}}  {_structure(family)}")
        lines.append(f"  {'':{width}}  {_published(family)}; sequences are computed {_BATCHES[family.is_batched]}")
        lines.append(f"  {'':{width}}  {METHODS[family.test].short}: {family.test}")
    lines += ["", f"{len(REFUSED)} families are refused:", ""]
    lines += [f"  {name:{width}}  {reason}" for name, reason in sorted(REFUSED.items())]
    return "\n".join(lines) + "\n"


def as_json() -> str:
    """A line with a JSON object for each family."""
    objects: list[dict[str, Any]] = [
        {
            "model_type": family.model_type,
            "verified": True,
            "structure": list(family.features),
            "computed": _BATCHES[family.is_batched],
            "published_as": family.published_as or None,
            "test": family.test,
            "how": METHODS[family.test].long,
        }
        for family in _verified()
    ]
    objects += [
        {"model_type": name, "verified": False, "refused_because": reason} for name, reason in sorted(REFUSED.items())
    ]
    return "".join(json.dumps(each) + "\n" for each in objects)


def as_markdown() -> str:
    """The page docs/models.md."""
    families = _verified()
    return "\n".join([_HEAD, *_verified_section(families), *_structure_section(families), *_refused_section()]) + "\n"


def _verified_section(families: list[ModelFamily]) -> list[str]:
    lines = [
        f"## Verified: {len(families)}",
        "",
        "| family | structure | as published | sequences | verified by |",
        "|---|---|---|---|---|",
    ]
    for family in families:
        method = METHODS[family.test]
        cells = (
            f"`{family.model_type}`",
            _structure(family),
            _published(family),
            _BATCHES[family.is_batched],
            f"[{method.short}](../{family.test})",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(_NOTES)
    lines += [f"* **{method.short}**: {method.long}." for method in METHODS.values()]
    return [*lines, ""]


def _structure_section(families: list[ModelFamily]) -> list[str]:
    lines = ["## What the words mean", "", "| structure | families | what it is |", "|---|---|---|"]
    for feature, meaning in sorted(FEATURES.items()):
        count = sum(feature in _words(family) for family in families)
        lines.append(f"| {feature} | {count} | {meaning} |")
    return [*lines, ""]


def _refused_section() -> list[str]:
    lines = [f"## Refused: {len(REFUSED)}", "", "| family | why |", "|---|---|"]
    return lines + [f"| `{name}` | {reason} |" for name, reason in sorted(REFUSED.items())]


def _verified() -> list[ModelFamily]:
    return sorted(VERIFIED.values(), key=lambda family: family.model_type)


def _words(family: ModelFamily) -> tuple[str, ...]:
    return family.features or ("plain",)


def _structure(family: ModelFamily) -> str:
    return ", ".join(_words(family))


def _published(family: ModelFamily) -> str:
    return f"runs in {family.published_as}" if family.published_as else "runs"


if __name__ == "__main__":
    typer.run(main)
