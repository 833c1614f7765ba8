"""Coded checkpoints through both services, in every layout, while the CPU expert service is lost."""

import signal
from pathlib import Path

import pytest

from client import Client, GenerationChunk
from tests.support import reference
from tests.support.checkpoints import write_tokenizer
from tests.support.coded_layouts import GPT_OSS, Layout, write
from tests.support.losses import EXPERTS, metric, tokens_of
from tests.support.pairs import start

NUM_TOKENS = 48
SLOTS = ("--gpu-expert-memory", "0.0002", "--placement", "layers", "--prefetch", "on")
"""Room for a few experts."""


@pytest.mark.parametrize(
    ("layout", "name", "arguments"),
    [
        ("separate", "gptq", SLOTS),
        ("fused", "fp8 block", ()),
        ("fused", "mxfp4", SLOTS),
        ("interleaved", GPT_OSS, ()),
    ],
)
def test_tokens_are_those_of_the_plain_form_when_the_experts_are_killed(
    layout: Layout, name: str, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    directory = write(layout, name, tmp_path)
    write_tokenizer(directory)
    model = reference.load(tmp_path / "plain")
    expected = [reference.generate(model, prompt, NUM_TOKENS)[0] for prompt in reference.PROMPTS]
    with start(directory, "--expert-timeout-seconds", "1", *arguments) as pair, Client(pair.target) as client:
        assert [tokens_of(client, prompt, NUM_TOKENS) for prompt in reference.PROMPTS] == expected

        def selections(route: str) -> float:
            return metric(pair, "fiddler_expert_selections_total", route=route)

        assert selections("resident" if arguments else "remote") > 0
        here = selections("streamed")
        tokens: list[int] = []
        for message in client.generate(reference.PROMPTS[1], max_tokens=NUM_TOKENS, temperature=0):
            if isinstance(message, GenerationChunk):
                if not tokens:
                    pair.stop(EXPERTS, signal.SIGKILL)
                tokens += message.token_ids
        assert tokens == expected[1]
        assert selections("streamed") > here
