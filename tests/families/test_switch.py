"""Switch Transformers, an encoder and a decoder, through the two real services and in one process."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersTop1Router

from cpu_expert_service.kernel import Kernel, PyTorchKernel
from fiddler.v1.generation_pb2 import BeamSearch, GetModelInfoRequest
from gpu_service.text.tokenizer import Tokenizer
from tests.support import checkpoints, reference
from tests.support.calls import Stub, connect, generate, generate_one, refusal, request, sampling
from tests.support.families import t5_tokenizer, tiny
from tests.support.families.engine import Engine
from tests.support.pairs import start
from tests.support.tampering import SINGLE_FILE

NUM_TOKENS = 32
TOLERANCE = 5e-5
FAMILY = "switch_transformers"
CONTEXT = 128
REPEATED = [7] * 20 + [30, 31]
"""A text of one repeated word, more often than an expert has room for."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tiny.write(FAMILY, tmp_path_factory.mktemp("switch"))
    t5_tokenizer.write(directory)
    return directory


def _load(directory: Path) -> Any:
    return AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    return _load(directory)


@pytest.fixture(scope="module")
def stub(directory: Path) -> Iterator[Stub]:
    with start(directory, "--max-context", str(CONTEXT)) as pair, connect(pair.target) as stub:
        yield stub


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    return PyTorchKernel(1)


@pytest.fixture(scope="module")
def engine(directory: Path, kernel: Kernel) -> Engine:
    return Engine(directory, kernel)


def _tokens(stub: Stub, prompt: list[int]) -> list[int]:
    return generate_one(stub, prompt, max_tokens=NUM_TOKENS, sampling=sampling(temperature=0)).token_ids


def _assert_equal(engine: Engine, model: Any, prompt: list[int], num_tokens: int = NUM_TOKENS) -> torch.Tensor:
    """Tokens and logits [tokens, vocab]; returns the latter."""
    expected_tokens, expected = reference.generate(model, prompt, num_tokens)
    ((tokens, logits),) = engine.generate([prompt], num_tokens)
    assert tokens == expected_tokens
    assert (logits - expected).abs().max() < TOLERANCE * expected.abs().max()
    return logits


def test_the_pair_gives_the_tokens_of_transformers_alone_and_at_once(stub: Stub, model: Any) -> None:
    prompts = [*reference.PROMPTS, REPEATED]
    expected = [reference.generate(model, prompt, NUM_TOKENS)[0] for prompt in prompts]
    assert [_tokens(stub, prompt) for prompt in prompts] == expected
    with ThreadPoolExecutor(len(prompts)) as threads:
        assert list(threads.map(lambda prompt: _tokens(stub, prompt), prompts)) == expected


def test_the_service_says_that_it_is_an_encoder_and_a_decoder(stub: Stub) -> None:
    info = stub.GetModelInfo(GetModelInfoRequest())
    assert info.is_encoder_decoder
    assert (info.num_layers, info.num_moe_layers, info.num_experts, info.num_experts_per_token) == (7, 5, 8, 1)


@pytest.mark.parametrize(
    ("fields", "field", "text"),
    [
        ({"echo": True}, "echo", "must be unset with an encoder-decoder model"),
        ({"prompt_logprobs": 0}, "prompt_logprobs", "must be unset with an encoder-decoder model"),
        ({"max_tokens": CONTEXT - 2}, "max_tokens", f"the context of {CONTEXT} tokens leaves room for {CONTEXT - 3}"),
        ({"stop_token_ids": [320]}, "stop_token_ids[0]", "must be 0 to 319, the vocabulary, got 320"),
        ({"beam_search": BeamSearch(num_beams=17)}, "beam_search.num_beams", "17"),
    ],
)
def test_what_it_cannot_do_is_refused(stub: Stub, fields: dict[str, Any], field: str, text: str) -> None:
    code, details = refusal(stub, request([3, 4, 5], **fields))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith(f"{field}: ")
    assert text in details


def test_a_prompt_beyond_the_context_is_refused(stub: Stub) -> None:
    code, details = refusal(stub, request([3] * CONTEXT))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith(f"token_ids.ids: the maximum context length is {CONTEXT} tokens")


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 1.1, "repetition_penalty": 1.3, "top_p": 0.95},
        {"temperature": 0.0, "repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_a_seed_draws_the_tokens_of_transformers(stub: Stub, model: Any, settings: dict[str, Any]) -> None:
    drawn = settings["temperature"] > 0
    theirs = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | settings | ({} if drawn else {"temperature": 1.0})
    torch.manual_seed(5)
    output = model.generate(
        torch.tensor([REPEATED]),
        generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=drawn, max_new_tokens=NUM_TOKENS, decoder_start_token_id=0, pad_token_id=0, **theirs
        ),
    )
    parameters = sampling(**settings, **({"seed": 5} if drawn else {}))
    answer = generate_one(stub, REPEATED, max_tokens=NUM_TOKENS, sampling=parameters)
    assert answer.token_ids == output[0, 1:].tolist()


def test_generations_of_one_prompt_go_their_own_ways(stub: Stub) -> None:
    drawn = [sampling(temperature=1.0, seed=seed) for seed in (8, 9, 10)]
    alone = [generate_one(stub, REPEATED, max_tokens=NUM_TOKENS, sampling=each).token_ids for each in drawn]
    together = generate(stub, REPEATED, max_tokens=NUM_TOKENS, sampling=drawn[0], n=3)
    assert [together.answer(index).token_ids for index in range(3)] == alone


@pytest.mark.parametrize("num_beams", [1, 4])
def test_beams_are_those_of_transformers(stub: Stub, model: Any, num_beams: int) -> None:
    greedy = reference.generate(model, REPEATED, NUM_TOKENS)[0]
    output = model.generate(
        torch.tensor([REPEATED]),
        num_beams=num_beams,
        num_return_sequences=num_beams,
        do_sample=False,
        max_new_tokens=NUM_TOKENS,
        eos_token_id=greedy[5],
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    expected = []
    for ids in output.sequences[:, 1:].tolist():
        expected.append(ids[: ids.index(greedy[5]) + 1] if greedy[5] in ids else ids)
    search = BeamSearch(num_beams=num_beams, num_return_sequences=num_beams)
    call = generate(stub, REPEATED, max_tokens=NUM_TOKENS, beam_search=search, stop_token_ids=[greedy[5]])
    beams = [call.answer(index).complete for index in range(num_beams)]
    assert [list(beam.token_ids) for beam in beams] == expected
    if num_beams > 1:
        assert [beam.score for beam in beams] == pytest.approx(output.sequences_scores.tolist(), abs=1e-4)


def test_a_prompt_of_text_may_hold_sentinels(stub: Stub, model: Any, directory: Path) -> None:
    text = "the <extra_id_0> walks in <extra_id_1> park"
    prompt = AutoTokenizer.from_pretrained(directory)(text).input_ids
    assert prompt[-1] == 1
    answer = generate_one(stub, text, max_tokens=NUM_TOKENS, sampling=sampling(temperature=0))
    assert answer.token_ids == reference.generate(model, prompt, NUM_TOKENS)[0]
    assert answer.complete.usage.prompt_tokens == len(prompt)


def test_sentinels_are_part_of_the_text_that_comes_back(stub: Stub, directory: Path) -> None:
    tokenizer = Tokenizer(directory)
    (sentinel,) = tokenizer.encode("<extra_id_3>", add_special_tokens=False)
    wanted = sampling(temperature=0, logit_bias={sentinel: 100})
    answer = generate_one(stub, [3, 4], max_tokens=3, sampling=wanted)
    assert answer.token_ids == [sentinel] * 3
    assert answer.text == "<extra_id_3>" * 3
    ended = generate_one(stub, [3, 4], max_tokens=3, sampling=wanted, stop=["<extra_id_3><extra_id_3>"])
    assert (ended.text, len(ended.token_ids)) == ("", 2)


def test_tokens_that_are_no_text_are_left_out_of_it(directory: Path) -> None:
    tokenizer = Tokenizer(directory)
    ids = tokenizer.encode("the <extra_id_0> park")
    assert tokenizer.decode([0, *ids]) == "the<extra_id_0> park"
    assert tokenizer.decode([0, *ids], skip_special_tokens=False).endswith("</s>")


def _drops(model: Any, prompt: list[int]) -> list[int]:
    """How many rows of a prompt transformers' routers drop, by layer of the encoder and then of the decoder."""
    drops = []

    def count(router: torch.nn.Module, inputs: Any, output: Any) -> None:
        drops.append(int((output[0].sum(-1) == 0).sum()))

    routers = [each for each in model.modules() if isinstance(each, SwitchTransformersTop1Router)]
    hooks = [router.register_forward_hook(count) for router in routers]
    reference.generate(model, prompt, 2)
    for hook in hooks:
        hook.remove()
    return drops


def test_what_finds_no_room_is_dropped_in_the_encoder_and_nothing_in_the_decoder(
    directory: Path, model: Any, engine: Engine, kernel: Kernel, tmp_path: Path
) -> None:
    drops = _drops(model, REPEATED)
    assert min(drops[:2]) > 0
    assert set(drops[2:]) == {0}
    engine.model.dispatcher.selections.clear()
    dropping = _assert_equal(engine, model, REPEATED)
    routed = [sum(layer) for layer in engine.model.dispatcher.selections.read()]
    assert routed == [len(REPEATED) - dropped for dropped in drops[:2]] + [NUM_TOKENS] * 3
    roomy = _edited(directory, tmp_path / "roomy", expert_capacity=len(REPEATED))
    ((_, logits),) = Engine(roomy, kernel).generate([REPEATED], NUM_TOKENS)
    assert (logits[0] - dropping[0]).abs().max() > 0.01


def _edited(directory: Path, target: Path, **settings: Any) -> Path:
    """A copy with another config.json."""
    target.mkdir()
    for file in directory.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | settings))
    return target


def test_an_expert_of_the_decoder_scaled_by_a_hundredth_is_noticed(
    directory: Path, engine: Engine, kernel: Kernel, tmp_path: Path
) -> None:
    scaled, layer = _edited(directory, tmp_path / "scaled"), engine.checkpoint.layers[-1]
    assert layer.name == "decoder.block.2.layer.2.mlp.experts"
    engine.model.dispatcher.selections.clear()
    ((_, unscaled),) = engine.generate([REPEATED], 8)
    counts = engine.model.dispatcher.selections.read()[-1]
    checkpoints.scale_expert(scaled, layer=layer.decoder_layer, expert=counts.index(max(counts)), factor=1.01)
    ((_, logits),) = Engine(scaled, kernel).generate([REPEATED], 8)
    assert (logits - unscaled).abs().max() > 10 * TOLERANCE * unscaled.abs().max()


def test_the_hub_s_layout_gives_the_same(directory: Path, kernel: Kernel, model: Any, tmp_path: Path) -> None:
    """Tied embeddings stored four times, no generation_config.json, and settings that are no longer read."""
    published = _edited(
        directory,
        tmp_path / "published",
        feed_forward_proj="relu",
        is_gated_act=False,
        num_selected_experts=1,
        output_past=True,
        router_type="tokens_masked",
    )
    (published / "generation_config.json").unlink()
    tensors = load_file(published / SINGLE_FILE)
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors["shared.weight"].clone()
    save_file(tensors, published / SINGLE_FILE, {"format": "pt"})
    _assert_equal(Engine(published, kernel), model, REPEATED)


@pytest.mark.parametrize(
    "settings",
    [
        {"tie_word_embeddings": False},
        {"num_sparse_decoder_layers": 0, "num_decoder_layers": 2},
        {"router_bias": True, "dense_act_fn": "gelu"},
        {"num_experts": 2048, "d_ff": 8, "d_model": 32, "d_kv": 8},
    ],
    ids=str,
)
def test_other_settings_agree(settings: dict[str, Any], kernel: Kernel, tmp_path: Path) -> None:
    model = tiny.build(FAMILY, config=settings)
    model.save_pretrained(tmp_path)
    _assert_equal(Engine(tmp_path, kernel), model, REPEATED)


def test_a_sharded_checkpoint_in_half_precision_agrees(kernel: Kernel, tmp_path: Path) -> None:
    directory = tiny.write(FAMILY, tmp_path, dtype=torch.bfloat16)
    checkpoints.shard(directory, 3)
    _assert_equal(Engine(directory, kernel), _load(directory), REPEATED)
