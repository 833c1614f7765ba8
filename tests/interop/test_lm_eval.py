"""lm-eval with a local task: greedy continuations, and log likelihoods that equal transformers'."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.support.interop_python import needs_environment, run
from tests.support.pairs import DEMO
from tests.support.reference import generate, load

pytestmark = needs_environment
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def samples(url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The samples that lm-eval logged, by task."""
    out = tmp_path_factory.mktemp("lm_eval")
    arguments = (
        f"model=demo,base_url={url}/v1/completions,tokenizer={DEMO},num_concurrent=1,max_retries=1,add_bos_token=True"
    )
    command = ["-m", "lm_eval", "run", "--model", "local-completions", "--model_args", arguments, "--tasks"]
    run(*command, "demo_choice,demo_write", "--include_path", "tasks", "--log_samples", "--output_path", str(out))
    found: dict[str, list[Any]] = {}
    for path in Path(out).rglob("samples_*.jsonl"):
        task = "demo_choice" if "demo_choice" in path.name else "demo_write"
        found[task] = [json.loads(line) for line in path.read_text().splitlines()]
    assert found.keys() == {"demo_choice", "demo_write"}
    return found


def test_log_likelihoods_are_those_of_transformers(samples: dict[str, list[Any]]) -> None:
    model: Any = load(DEMO)
    tokenizer: Any = AutoTokenizer.from_pretrained(DEMO)
    compared = 0
    for sample in samples["demo_choice"]:
        for choice, ((found, is_greedy),) in zip(sample["doc"]["choices"], sample["resps"], strict=True):
            text = sample["doc"]["text"]
            whole = tokenizer(text + choice)["input_ids"]
            start = len(tokenizer(text)["input_ids"])
            with torch.inference_mode():
                logits = model(torch.tensor([whole])).logits[0, :-1].float()
            logprobs = torch.log_softmax(logits, -1)[start - 1 :]
            targets = torch.tensor(whole[start:])
            expected = logprobs.gather(1, targets[:, None]).sum().item()
            assert float(found) == pytest.approx(expected, abs=TOLERANCE)
            assert (str(is_greedy) == "True") is bool((logprobs.argmax(-1) == targets).all())
            compared += 1
    assert compared == 6


def test_continuations_are_those_of_transformers(samples: dict[str, list[Any]]) -> None:
    model: Any = load(DEMO)
    tokenizer: Any = AutoTokenizer.from_pretrained(DEMO)
    for sample in samples["demo_write"]:
        prompt = tokenizer(sample["doc"]["text"])["input_ids"]
        tokens, _ = generate(model, prompt, 12)
        text = tokenizer.decode([*prompt, *tokens], skip_special_tokens=True)
        expected = text.removeprefix(tokenizer.decode(prompt, skip_special_tokens=True)).partition(".")[0]
        ((found,),) = sample["resps"]
        assert found == expected
