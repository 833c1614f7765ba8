"""Measures the demo model in this script's folder and writes training.json, which README.md quotes.

It measures the held-out loss by topic, the share of each expert by topic and layer, and a few continuations, of the
exported model (bf16 weights, computed in fp32) and not of a checkpoint. It trains nothing.

    python models/demo/report.py --work /tmp/demo
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import corpus
import torch
import typer
from torch import Tensor
from torch.nn import functional
from train import CONTEXT, HERE, encode
from transformers import MixtralForCausalLM, PreTrainedTokenizerFast

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

PROMPTS = (
    "The captain of the ship was",
    "She was not at all pleased with",
    "And the LORD said unto Moses",
    "The database file is",
    "The light which passes through the prism",
    "hacker, n.",
)


@torch.no_grad()
def read(model: MixtralForCausalLM, passages: list[Tensor]) -> tuple[float, int, Tensor]:
    """Summed cross-entropy in nats, its number of tokens, and expert counts [layers, experts], a passage at a time."""
    config = model.config
    counts = torch.zeros(config.num_hidden_layers, config.num_local_experts)
    total, num_tokens = 0.0, 0
    for passage in passages:
        ids = passage[:CONTEXT].long()
        output = model(ids[None], use_cache=False, output_router_logits=True)
        total += functional.cross_entropy(output.logits[0, :-1], ids[1:], reduction="sum").item()
        num_tokens += len(ids) - 1
        for layer, logits in enumerate(output.router_logits):
            chosen = logits.topk(config.num_experts_per_tok, -1).indices.flatten()
            counts[layer] += torch.bincount(chosen, minlength=config.num_local_experts)
    return total, num_tokens, counts


@torch.no_grad()
def loss_by_position(model: MixtralForCausalLM, passages: list[Tensor]) -> dict[str, float]:
    """Mean loss in quarters of windows twice as long as the training context, over passages end to end."""
    windows = torch.cat(passages).long().unfold(0, 2 * CONTEXT + 1, 2 * CONTEXT)[:: max(1, len(passages) // 40)]
    losses = []
    for window in windows:
        logits = model(window[None, :-1], use_cache=False).logits[0]
        losses.append(functional.cross_entropy(logits, window[1:], reduction="none"))
    quarters = torch.stack(losses).mean(0).view(4, -1).mean(1).tolist()
    return {f"{i * CONTEXT // 2} to {(i + 1) * CONTEXT // 2 - 1}": round(loss, 3) for i, loss in enumerate(quarters)}


def continuations(model: Any, tokenizer: PreTrainedTokenizerFast) -> list[dict[str, str]]:
    """Sixty tokens after every prompt, greedy and at temperature 0.8 with seed 0."""
    found = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        texts = {"prompt": prompt}
        for name, options in (("greedy", {}), ("sampled", {"do_sample": True, "temperature": 0.8, "top_k": 0})):
            torch.manual_seed(0)
            output = model.generate(**inputs, max_new_tokens=60, **options)
            texts[name] = str(tokenizer.decode(output[0], skip_special_tokens=True))
        found.append(texts)
    return found


def measure(model: MixtralForCausalLM, tokenizer: PreTrainedTokenizerFast, topic: corpus.Topic) -> dict[str, Any]:
    """One topic's sizes, losses on held-out and on trained passages, and expert shares by layer."""
    trained_on = encode(tokenizer, topic.train)
    total, num_tokens, counts = read(model, encode(tokenizer, topic.held_out))
    seen_total, seen_tokens, _ = read(model, trained_on[:: max(1, len(trained_on) // 40)])
    return {
        "packages": topic.packages,
        "train_passages": len(topic.train),
        "train_chars": sum(map(len, topic.train)),
        "train_tokens": sum(map(len, trained_on)),
        "held_out_passages": len(topic.held_out),
        "held_out_tokens": num_tokens,
        "held_out_loss": round(total / num_tokens, 4),
        "held_out_perplexity": round(math.exp(total / num_tokens), 2),
        "trained_on_loss": round(seen_total / seen_tokens, 4),
        "expert_share_by_layer": [[round(x, 4) for x in row] for row in (counts / counts.sum(1, True)).tolist()],
    }


def shares_table(topics: dict[str, Any], layer: int) -> str:
    """A Markdown table of the share of a layer's expert calls that each expert takes, by topic, in percent."""
    num_experts = len(next(iter(topics.values()))["expert_share_by_layer"][layer])
    lines = [f"| layer {layer} | " + " | ".join(map(str, range(num_experts))) + " |", "|---|" + "---:|" * num_experts]
    for name, topic in topics.items():
        shares = topic["expert_share_by_layer"][layer]
        lines.append(f"| {name} | " + " | ".join(f"{100 * share:.0f}" for share in shares) + " |")
    return "\n".join(lines)


@app.command(help=__doc__)
def main(
    work: Annotated[Path, typer.Option(help="The folder that train.py worked in.")],
    directory: Annotated[Path, typer.Option("--model", help="The model to measure.", show_default="here")] = HERE,
) -> None:
    """Measures, writes training.json and prints the tables."""
    model = MixtralForCausalLM.from_pretrained(directory, dtype=torch.float32)  # Already in evaluation mode.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    texts = corpus.load(work)
    topics = {topic.name: measure(model, tokenizer, topic) for topic in texts}
    num_tokens = sum(topic["held_out_tokens"] for topic in topics.values())
    loss = sum(topic["held_out_loss"] * topic["held_out_tokens"] for topic in topics.values()) / num_tokens
    saved = torch.load(work / "checkpoint.pt", mmap=True)
    report = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": saved["step"],
        "tokens": saved["tokens"],
        "training_seconds": round(saved["seconds"]),
        "held_out_loss": round(loss, 4),
        "held_out_perplexity": round(math.exp(loss), 2),
        "held_out_loss_by_position": loss_by_position(
            model, encode(tokenizer, [passage for topic in texts for passage in topic.held_out])
        ),
        "topics": topics,
        "continuations": continuations(model, tokenizer),
    }
    (directory / "training.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    for layer in range(model.config.num_hidden_layers):
        print(shares_table(topics, layer), end="\n\n")


if __name__ == "__main__":
    app()
