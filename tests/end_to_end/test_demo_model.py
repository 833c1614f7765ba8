"""models/demo through a real pair: token-exact in float32, and no less exact than transformers in bfloat16."""

import tempfile
from collections.abc import Iterator

import pytest
import torch

from client import ChatMessage, Client, InvalidRequestError
from fiddler.checkpoint import Checkpoint
from gpu_service.cpu_experts.client import ExpertClient
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.model import Model
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.text.tokenizer import Tokenizer
from pair import Pair
from tests.support import reference, routes
from tests.support.pairs import DEMO, WarmPair, start

NUM_TOKENS = 48
PROMPTS = (
    "It was a fine morning in the country, and",
    "She was not at all surprised to hear that",
    "And the LORD said unto Moses,",
    "In the beginning",
    "He had been a long time in the house when",
    "The king of the land gave his daughter",
    "A word that is used to",
    "My dear sister,",
    "They walked along the road until",
    "Nothing could be more certain than that the young man would, before the end of the week, come",
)
BF16_ERROR_RATIO = 1.25
"""How much larger our error against float32 may be than that of transformers in bfloat16."""


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with start(DEMO) as running:
        yield running


def test_ten_prompts_give_the_tokens_of_transformers_in_float32(pair: Pair) -> None:
    model, tokenizer = reference.load(DEMO), Tokenizer(DEMO)
    with Client(pair.target) as client:
        for prompt in PROMPTS:
            expected, _ = reference.generate(model, tokenizer.encode(prompt), NUM_TOKENS)
            generation = client.generate(prompt, max_tokens=NUM_TOKENS, temperature=0)
            assert [token for message in generation for token in getattr(message, "token_ids", ())] == expected, prompt


def test_a_conversation_is_a_dialogue_that_goes_on_as_in_transformers(pair: Pair) -> None:
    messages = [("system", "It was a fine morning."), ("user", "Who are you?"), ("assistant", "A ship."), ("user", "I")]
    tokenizer = Tokenizer(DEMO)
    text = tokenizer.render(messages)
    assert text == '<s>It was a fine morning.\n\n"Who are you?"\n\n"A ship."\n\n"I"\n\n"'
    expected, _ = reference.generate(reference.load(DEMO), tokenizer.encode(text, add_special_tokens=False), NUM_TOKENS)
    chat = [ChatMessage(role=role, content=content) for role, content in messages]
    with Client(pair.target) as client:
        generation = client.chat(chat, max_tokens=NUM_TOKENS, temperature=0)
        assert [token for message in generation for token in getattr(message, "token_ids", ())] == expected
        with pytest.raises(InvalidRequestError, match="a role must be system, user or assistant, not narrator"):
            client.chat([ChatMessage(role="narrator", content="I")]).text()


@pytest.mark.parametrize("num_resident", [0, 16])
def test_in_bfloat16_logits_err_no_more_than_those_of_transformers(num_resident: int) -> None:
    """Teacher-forced on the float32 model's own continuations, since bfloat16 generations drift apart by themselves."""
    exact, rounded, tokenizer = reference.load(DEMO), reference.load(DEMO, torch.bfloat16), Tokenizer(DEMO)
    texts = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        texts.append(ids + reference.generate(exact, ids, NUM_TOKENS)[0])
    texts.sort(key=len, reverse=True)
    with torch.inference_mode():
        truth = [exact(torch.tensor([ids])).logits[0] for ids in texts]
        theirs = [rounded(torch.tensor([ids])).logits[0].float() for ids in texts]
        ours = _teacher_forced(texts, num_resident)
    our_error, their_error = (
        torch.cat([(logits - true).flatten() for logits, true in zip(side, truth, strict=True)]).square().mean().sqrt()
        for side in (ours, theirs)
    )
    assert 0 < our_error <= BF16_ERROR_RATIO * their_error


def _teacher_forced(texts: list[list[int]], num_resident: int) -> list[torch.Tensor]:
    """Logits [tokens, vocab] of our bfloat16 pair at every position of texts that run as one ragged batch.

    With resident experts, some of the others are streamed, too.
    """
    with tempfile.TemporaryFile() as log:
        pair = WarmPair(DEMO, cpu_arguments=("--dtype", "bfloat16"), log=log)
        try:
            pair.start("cpu_expert_service")
            pair.wait_until_serving(pair.experts)
            client = ExpertClient(pair.experts, torch.bfloat16, timeout_seconds=60, max_message_bytes=2**26)
            checkpoint = Checkpoint.open(DEMO)
            client.connect(checkpoint.fingerprint)
            dispatcher = Dispatcher(checkpoint, torch.device("cpu"), client)
            model = Model(
                checkpoint,
                dispatcher,
                device=torch.device("cpu"),
                dtype=torch.bfloat16,
                num_rows=len(texts),
                max_context=512,
            )
            if num_resident:
                slots = ExpertSlots(checkpoint, torch.device("cpu"), num_resident)
                routes.use_route(dispatcher, checkpoint, slots, routes.MIXED)
            logits: list[list[torch.Tensor]] = [[] for _ in texts]
            for position in range(len(texts[0])):
                running = [ids for ids in texts if len(ids) > position]  # the longest first, so a run of rows
                token_ids = torch.tensor([[ids[position]] for ids in running])
                step = model.forward(token_ids, torch.full_like(token_ids, position), first_row=0, wants=Logits.LAST)
                for row, values in enumerate(step):
                    logits[row].append(values)
            client.close()
            taken = {name for layer in dispatcher.selections.read_routes() for name, total in layer.items() if total}
            assert taken == ({"resident", "streamed", "remote"} if num_resident else {"remote"})
            dispatcher.close()
        finally:
            pair.close()
    return [torch.stack(rows) for rows in logits]
