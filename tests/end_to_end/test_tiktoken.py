"""A pair serves a checkpoint whose tokenizer is Kimi's: tokens and streamed text are tiktoken's."""

from pathlib import Path

from client import Client, GenerationChunk
from tests.support.families import tiny
from tests.support.pairs import start
from tests.support.tiktoken_files import encoding, train, write

PROMPT = "<|im_user|>你好 😀 the mill<|im_end|>"


def test_texts_are_those_of_tiktoken(tmp_path: Path) -> None:
    vocabulary = train()
    settings = {"vocab_size": len(vocabulary) + 256, "eos_token_id": None}
    write(tiny.write("deepseek_v3", tmp_path / "model", config=settings), vocabulary)
    theirs = encoding(vocabulary)
    with start(tmp_path / "model") as pair, Client(pair.target) as client:
        assert list(client.tokenize(PROMPT).token_ids) == theirs.encode(PROMPT, allowed_special="all")
        messages = list(client.generate(PROMPT, max_tokens=64, temperature=1, seed=1))
        chunks = [message for message in messages if isinstance(message, GenerationChunk)]
        ids = [token_id for chunk in chunks for token_id in chunk.token_ids]
        shown = [token_id for token_id in ids if token_id < len(vocabulary) or token_id == len(vocabulary) + 5]
        assert len(ids) == 64
        assert "".join(chunk.text for chunk in chunks) == theirs.decode(shown)
