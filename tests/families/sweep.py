"""`make sweep`: every family through the two services as processes, over a real socket, compared with transformers.

tests/families/test_sweep.py compares every logit of every family in one process, in a tenth of the time. Here tokens
and their log probabilities are compared as the client gets them. While one family is tested, the next one's checkpoint
is written, transformers generates its tokens, and its pair starts.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from client import Client, GenerationChunk
from fiddler.checkpoint import Checkpoint
from gpu_service.models.families import SWEPT
from gpu_service.models.registry import architecture_of
from pair import Pair
from tests.support import checkpoints, reference
from tests.support.families import published
from tests.support.families.configs import VOCAB_SIZE
from tests.support.pairs import start

NUM_TOKENS = 32
TOLERANCE = 1e-4
"""Largest difference of a log probability, in units of the largest distance from that of a random token."""

Continuation = tuple[list[int], list[float]]
"""Tokens, and the log probability of each."""


@dataclass(frozen=True)
class Running:
    """A family's pair, and what transformers generates with its checkpoint."""

    directory: Path
    pair: Pair
    expected: list[Continuation]


class Ahead:
    """Prepares families in another thread, one ahead of the tests."""

    def __init__(self, families: Sequence[str], directory: Path) -> None:
        self._families = families
        self._directory = directory
        self._thread = ThreadPoolExecutor(1)
        self._resources = ExitStack()
        self._prepared: dict[str, Future[Running]] = {}

    def running(self, family: str) -> Running:
        """The family's pair; the next family is prepared meanwhile."""
        following = self._families[self._families.index(family) :][:2]
        for name in following:
            if name not in self._prepared:
                self._prepared[name] = self._thread.submit(self._prepare, name)
        return self._prepared[family].result()

    def _prepare(self, family: str) -> Running:
        directory, plain = published.write(family, self._directory / family)
        checkpoints.write_tokenizer(directory)
        pair = start(directory)
        self._resources.callback(pair.close)
        pair.start("cpu_expert_service")
        pair.start("gpu_service")
        model = architecture_of(family).auto_class.from_pretrained(plain, dtype=torch.float32).eval()
        with torch.inference_mode():
            expected = [_continuation(*reference.generate(model, each, NUM_TOKENS)) for each in reference.PROMPTS]
        pair.wait_until_serving()
        return Running(directory, pair, expected)

    def close(self) -> None:
        """Stops what still runs."""
        for future in self._prepared.values():
            future.cancel()
        self._thread.shutdown()
        self._resources.close()


@pytest.fixture(scope="module")
def ahead(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ahead]:
    selected = [
        str(item.callspec.params["family"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path
    ]
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are so small that threads only wait for each other
    ahead = Ahead(selected, tmp_path_factory.mktemp("sweep"))
    yield ahead
    ahead.close()
    torch.set_num_threads(num_threads)


def _continuation(tokens: list[int], logits: torch.Tensor) -> Continuation:
    log_probabilities = logits.log_softmax(-1)
    return tokens, [float(row[token]) for row, token in zip(log_probabilities, tokens, strict=True)]


def _generate(client: Client, prompt: Sequence[int], num_tokens: int = NUM_TOKENS) -> Continuation:
    chunks = [
        message
        for message in client.generate(list(prompt), max_tokens=num_tokens, temperature=0, logprobs=0)
        if isinstance(message, GenerationChunk)
    ]
    tokens = [token for chunk in chunks for token in chunk.token_ids]
    return tokens, [entry.logprob or 0.0 for chunk in chunks for entry in chunk.logprobs]


def _largest_difference(actual: Continuation, expected: Continuation) -> float:
    """Of log probabilities, in units of the largest distance from log(1 / vocabulary), since some logits are small."""
    scale = max(abs(due + math.log(VOCAB_SIZE)) for due in expected[1])
    return max(abs(one - other) for one, other in zip(actual[1], expected[1], strict=True)) / scale


@pytest.mark.parametrize("family", sorted(SWEPT))
def test_the_pair_gives_the_tokens_of_transformers(family: str, ahead: Ahead) -> None:
    running = ahead.running(family)
    with closing(running.pair) as pair, Client(pair.target) as client, ThreadPoolExecutor(3) as threads:
        alone = [_generate(client, prompt) for prompt in reference.PROMPTS]
        together = list(threads.map(lambda prompt: _generate(client, prompt), reference.PROMPTS))
        for continuations in (alone, together):
            assert [tokens for tokens, _ in continuations] == [tokens for tokens, _ in running.expected]
            for actual, expected in zip(continuations, running.expected, strict=True):
                assert _largest_difference(actual, expected) < TOLERANCE
        assert _notices_an_expert(client, running), "1 % more in an expert changes the output"


def _notices_an_expert(client: Client, running: Running) -> bool:
    """Whether 1 % more in some expert, in the file that the services have mapped, exceeds the tolerance."""
    checkpoint = Checkpoint.open(running.directory)
    experts = [
        (layer.decoder_layer, expert) for layer in checkpoint.layers[::-1] for expert in range(layer.num_experts)
    ]
    return any(_is_noticed(client, running, layer, expert) for layer, expert in experts)


def _is_noticed(client: Client, running: Running, layer: int, expert: int) -> bool:
    with checkpoints.scaled_expert(running.directory, layer=layer, expert=expert, factor=1.01):
        actual = _generate(client, reference.PROMPTS[2], NUM_TOKENS)
    return _largest_difference(actual, running.expected[2]) > TOLERANCE
