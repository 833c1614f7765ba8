"""Trains the demo model: a small Mixtral with its own tokenizer, on public-domain books, on a CPU, in about an hour.

It exists so that the whole server can be shown and tested offline with text that reads like text and a router that
has learned to prefer some experts for some topics. It is not a language model to use, and not a training framework.

    python models/demo/train.py --work /tmp/demo
    python models/demo/report.py --work /tmp/demo

With a checkpoint in the work folder it resumes where it stopped. It needs transformers, torch and typer, and Debian's
apt-get.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import corpus
import torch
import typer
from muon import Muon
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
CONTEXT = 512
PAD, BOS, EOS = 0, 1, 2

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Settings:
    """The settings of a run. `steps` may change when it resumes, since the rate falls only in the last half."""

    work: Path
    output: Path
    steps: int
    rows: int
    learning_rate: float
    weight_decay: float
    balance: float
    save_every: int
    threads: int


def build_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE: any UTF-8 text survives encoding and decoding unchanged. Digits stand alone."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def build_model(vocab_size: int) -> MixtralForCausalLM:
    """The untrained model in fp32: 5.7 million parameters, 2.2 million of them used by any one token."""
    config = MixtralConfig(
        vocab_size=vocab_size,
        hidden_size=192,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model: MixtralForCausalLM = MixtralForCausalLM._from_config(  # type: ignore[no-untyped-call]
        config, dtype=torch.float32, experts_implementation="grouped_mm"
    )
    return model


def encode(tokenizer: PreTrainedTokenizerFast, passages: list[str]) -> list[Tensor]:
    """Every passage as token ids between <s> and </s>."""
    return [torch.tensor([*ids, EOS], dtype=torch.int32) for ids in tokenizer(passages, verbose=False)["input_ids"]]


def batches(passages: list[Tensor], rows: int, start: int) -> Iterator[Tensor]:
    """Endless batches [rows, CONTEXT + 1] from shuffled passages end to end; the same from any `start`."""
    order = list(range(len(passages)))
    size = sum(map(len, passages)) // (CONTEXT * rows)  # Batches in one pass over the text.
    for epoch in range(start // size, 10**9):
        random.Random(epoch).shuffle(order := sorted(order))
        stream = torch.cat([passages[i] for i in order])
        for index in range(start % size if epoch == start // size else 0, size):
            at = index * rows * CONTEXT
            window = stream[at : at + rows * CONTEXT + 1]
            yield window.unfold(0, CONTEXT + 1, CONTEXT).long()


def balance_loss(router_logits: tuple[Tensor, ...], top_k: int) -> Tensor:
    """Switch Transformer's load-balancing loss, 1 when even. Layer by layer: transformers' own averages over layers."""
    losses = []
    for logits in router_logits:  # [tokens, experts]
        probabilities = logits.softmax(-1)
        chosen = probabilities.topk(top_k, -1).indices.flatten()
        share = torch.bincount(chosen, minlength=logits.shape[-1]) / chosen.numel()
        losses.append(logits.shape[-1] * (share * probabilities.mean(0)).sum())
    return torch.stack(losses).mean()


def loss_of(model: MixtralForCausalLM, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and balance loss of a batch [rows, CONTEXT + 1]."""
    output = model(batch[:, :-1], use_cache=False, output_router_logits=True)
    cross_entropy = functional.cross_entropy(output.logits.flatten(0, 1), batch[:, 1:].flatten())
    return cross_entropy, balance_loss(output.router_logits, model.config.num_experts_per_tok)


class Trainer:
    """A model and its optimisers. `step` is data-parallel over threads of one core each.

    Threads inside one operator would wait for each other dozens of times in a step, which is slow on a busy machine.
    """

    def __init__(self, model: MixtralForCausalLM, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.parameters = list(model.parameters())
        hidden = [p for name, p in model.named_parameters() if p.dim() > 1 and not name.endswith(_ADAM)]
        rest = [p for name, p in model.named_parameters() if p.dim() < 2 or name.endswith(_ADAM)]
        self.optimisers: list[torch.optim.Optimizer] = [
            Muon(hidden, settings.learning_rate, settings.weight_decay),
            torch.optim.AdamW(rest, settings.learning_rate, (0.9, 0.95), weight_decay=0.0, foreach=True),
        ]
        self.pool = ThreadPoolExecutor(settings.threads, initializer=torch.set_num_threads, initargs=(1,))

    def gradients(self, batch: Tensor) -> tuple[float, float, tuple[Tensor, ...]]:
        """Both losses of a part of the batch, and the gradient of their weighted sum."""
        cross_entropy, balance = loss_of(self.model, batch)
        total = cross_entropy + self.settings.balance * balance
        return cross_entropy.item(), balance.item(), torch.autograd.grad(total, self.parameters)

    def step(self, batch: Tensor, rate: float) -> tuple[float, float]:
        """One update at learning rate `rate`; returns both losses."""
        parts = list(self.pool.map(self.gradients, batch.chunk(self.settings.threads)))
        for parameter, *gradients in zip(self.parameters, *(part[2] for part in parts), strict=True):
            parameter.grad = torch.stack(gradients).mean(0)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
        return sum(part[0] for part in parts) / len(parts), sum(part[1] for part in parts) / len(parts)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, except for its step."""
        return {"model": self.model.state_dict(), "optimisers": [o.state_dict() for o in self.optimisers]}

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)


_ADAM = ("embed_tokens.weight", "lm_head.weight", "gate.weight")  # Matrices whose rows are looked up or are classes.


def learning_rate(step: int, settings: Settings) -> float:
    """Warms up over 50 steps, stays, and falls linearly to nothing over the last half."""
    return settings.learning_rate * min(1.0, (step + 1) / 50, 2 * (1 - step / settings.steps))


def export(model: MixtralForCausalLM, tokenizer: PreTrainedTokenizerFast, staging: Path, output: Path) -> None:
    """Writes bf16 weights under the names that published Mixtrals have, the configuration and the tokenizer.

    Each file replaces its predecessor whole, since a service may have the old weights mapped.
    """
    copy: Any = MixtralForCausalLM._from_config(model.config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    copy.load_state_dict(model.state_dict())
    defaults = {"do_sample": False, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    copy.generation_config = GenerationConfig.from_dict(defaults)
    copy.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    described = {  # Without the fields that say how it was loaded here, and with a class that older readers know.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
    }
    (staging / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n")
    for file in staging.iterdir():
        part = output / f"{file.name}.part"
        shutil.copyfile(file, part)
        part.replace(output / file.name)


def train(settings: Settings) -> None:
    """Trains from the last checkpoint, or from nothing, to `settings.steps`, and exports."""
    texts = [passage for topic in corpus.load(settings.work) for passage in topic.train]
    if not (settings.work / "tokenizer").exists():
        build_tokenizer(texts, 3072).save_pretrained(settings.work / "tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(settings.work / "tokenizer")
    passages = encode(tokenizer, texts)
    print(f"{sum(map(len, texts))} characters, {sum(map(len, passages))} tokens, {len(passages)} passages", flush=True)
    torch.manual_seed(0)
    trainer = Trainer(build_model(len(tokenizer)), settings)
    checkpoint, first, busy_seconds = settings.work / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        trainer.restore(saved)
        first, busy_seconds = saved["step"], saved["seconds"]
    data = batches(passages, settings.rows, first)
    for step in range(first, settings.steps):
        started = time.monotonic()
        cross_entropy, balance = trainer.step(next(data), learning_rate(step, settings))
        busy_seconds += time.monotonic() - started
        tokens = (step + 1) * settings.rows * CONTEXT
        if step % 10 == 0:
            print(f"{step=} {tokens=} {cross_entropy=:.4f} {balance=:.4f} {busy_seconds=:.0f}", flush=True)
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            state = {**trainer.state(), "step": step + 1, "tokens": tokens, "seconds": busy_seconds}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
            export(trainer.model, tokenizer, settings.work / "export", settings.output)


@app.command(help=__doc__)
def main(
    work: Annotated[Path, typer.Option(help="Folder for packages, checkpoint and tokenizer.")],
    output: Annotated[Path, typer.Option(help="Where the model is written.", show_default="here")] = HERE,
    steps: Annotated[int, typer.Option(help="Optimiser steps in all, those of earlier runs included.")] = 1800,
    rows: Annotated[int, typer.Option(help=f"Sequences of {CONTEXT} tokens in a step.")] = 16,
    learning_rate: float = 4e-3,
    weight_decay: float = 0.1,
    balance: Annotated[float, typer.Option(help="Weight of the load-balancing loss.")] = 0.01,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints. Each is also exported.")] = 100,
    threads: Annotated[int, typer.Option(help="Parts of a batch that are computed at the same time.")] = 2,
) -> None:
    """Trains."""
    train(Settings(work, output, steps, rows, learning_rate, weight_decay, balance, save_every, threads))


if __name__ == "__main__":
    app()
