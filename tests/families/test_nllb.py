"""NLLB-MoE, an encoder and a decoder whose tokens have two experts each, through the two real services.

transformers 5 computes NLLB-MoE's experts wrongly (see gpu_service/models/nllb_moe.py). So the reference is its model
with a sum of the experts that is written here: of each token's two likeliest ones, times 1 - moe_token_dropout.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeExperts

from cpu_expert_service.kernel import PyTorchKernel
from fiddler.v1.generation_pb2 import BeamSearch, GetModelInfoRequest
from gpu_service.errors import ModelError
from gpu_service.models.families import VERIFIED
from tests.support import checkpoints, reference
from tests.support.calls import Stub, connect, generate, generate_one, refusal, request, sampling
from tests.support.families import tiny
from tests.support.families.engine import Engine, best_kernel
from tests.support.families.features import features_of
from tests.support.pairs import start
from tests.support.tampering import edit_config

NUM_TOKENS = 32
TOLERANCE = 5e-5
FAMILY = "nllb-moe"
REPEATED = [7] * 20 + [30, 31]
LANGUAGE = 77


def _sum_of_experts(
    experts: Any, hidden: torch.Tensor, first_choices: torch.Tensor, routing_weights: torch.Tensor
) -> torch.Tensor:
    output = torch.zeros_like(hidden)
    for number in range(experts.num_experts):
        outputs = experts[f"expert_{number}"](hidden) * (1 - experts.moe_token_dropout)
        output += outputs * routing_weights[:, number, None]
    return output


_OF_TRANSFORMERS = NllbMoeExperts.forward


@pytest.fixture(scope="module", autouse=True)
def _corrected() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NllbMoeExperts, "forward", _sum_of_experts)
        yield


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tiny.write(FAMILY, tmp_path_factory.mktemp("nllb"))
    checkpoints.write_tokenizer(directory)
    return directory


def _load(directory: Path) -> Any:
    return AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    return _load(directory)


@pytest.fixture(scope="module")
def stub(directory: Path) -> Iterator[Stub]:
    with start(directory) as pair, connect(pair.target) as stub:
        yield stub


def _tokens(stub: Stub, prompt: list[int], **more: Any) -> list[int]:
    return generate_one(stub, prompt, max_tokens=NUM_TOKENS, sampling=sampling(temperature=0), **more).token_ids


def _assert_equal(directory: Path, model: Any, prompt: list[int]) -> None:
    tokens, expected = reference.generate(model, prompt, NUM_TOKENS)
    ((ours, logits),) = Engine(directory, best_kernel()).generate([prompt], NUM_TOKENS)
    assert ours == tokens
    assert (logits - expected).abs().max() < TOLERANCE * expected.abs().max()


def test_transformers_itself_computes_two_experts_for_all(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, transformers has been corrected, and the family belongs in the sweep like any other."""
    monkeypatch.setattr(NllbMoeExperts, "forward", _OF_TRANSFORMERS)
    used = set[str]()
    for name, module in model.named_modules():
        if ".experts.expert_" in name and name.count(".") == 6:
            module.register_forward_hook(lambda *_, name=name: used.add(name.rpartition(".")[2]))
    reference.generate(model, REPEATED, 2)
    assert used == {"expert_0", "expert_1"}


def test_the_pair_gives_the_tokens_of_the_reference_alone_and_at_once(stub: Stub, model: Any) -> None:
    prompts = [*reference.PROMPTS, REPEATED]
    expected = [reference.generate(model, prompt, NUM_TOKENS)[0] for prompt in prompts]
    assert [_tokens(stub, prompt) for prompt in prompts] == expected
    with ThreadPoolExecutor(len(prompts)) as threads:
        assert list(threads.map(lambda prompt: _tokens(stub, prompt), prompts)) == expected


def test_the_service_says_what_it_is(stub: Stub) -> None:
    info = stub.GetModelInfo(GetModelInfoRequest())
    assert info.is_encoder_decoder
    assert (info.num_layers, info.num_moe_layers, info.num_experts, info.num_experts_per_token) == (6, 3, 8, 2)


def _expected(model: Any, **settings: Any) -> list[int]:
    output = model.generate(
        torch.tensor([REPEATED]), do_sample=False, max_new_tokens=NUM_TOKENS, forced_bos_token_id=LANGUAGE, **settings
    )
    tokens: list[int] = output[0, 1:].tolist()
    return tokens


def test_the_first_token_may_be_forced(stub: Stub, model: Any) -> None:
    tokens = _tokens(stub, REPEATED, forced_bos_token_id=LANGUAGE)
    assert tokens == _expected(model)
    assert tokens[0] == LANGUAGE
    assert tokens != _tokens(stub, REPEATED)


def test_beams_may_begin_with_a_forced_token(stub: Stub, model: Any) -> None:
    call = generate(
        stub, REPEATED, max_tokens=NUM_TOKENS, beam_search=BeamSearch(num_beams=4), forced_bos_token_id=LANGUAGE
    )
    assert list(call.answer(0).complete.token_ids) == _expected(model, num_beams=4)


def test_a_forced_token_must_be_of_the_vocabulary(stub: Stub) -> None:
    code, details = refusal(stub, request([3, 4], forced_bos_token_id=320))
    assert (code, details) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "forced_bos_token_id: must be 0 to 319, the vocabulary, got 320",
    )


def test_generation_config_may_force_the_first_token(directory: Path, tmp_path: Path) -> None:
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "generation_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"forced_bos_token_id": LANGUAGE}))
    assert Engine(tmp_path, PyTorchKernel(1)).model.forced_bos_token_id == LANGUAGE
    path.write_text(json.dumps(settings | {"forced_bos_token_id": 320}))
    with pytest.raises(ModelError, match="forced_bos_token_id: must be 0 to 319, the vocabulary, got 320"):
        Engine(tmp_path, PyTorchKernel(1))


def test_its_structure_is_what_the_table_says(directory: Path) -> None:
    engine = Engine(directory, PyTorchKernel(1))
    family = VERIFIED[FAMILY]
    assert (family.features, family.is_batched) == (features_of(engine.checkpoint, engine.model.config), False)


@pytest.mark.parametrize("layer", [0, -1], ids=["encoder", "decoder"])
def test_one_expert_scaled_by_a_hundredth_is_noticed(directory: Path, layer: int, tmp_path: Path) -> None:
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    engine = Engine(directory, PyTorchKernel(1))
    ((_, unscaled),) = engine.generate([REPEATED], 8)
    counts = engine.model.dispatcher.selections.read()[layer]
    number = engine.checkpoint.layers[layer].decoder_layer
    checkpoints.scale_expert(tmp_path, layer=number, expert=counts.index(max(counts)), factor=1.01)
    ((_, logits),) = Engine(tmp_path, PyTorchKernel(1)).generate([REPEATED], 8)
    assert (logits - unscaled).abs().max() > 2 * TOLERANCE * unscaled.abs().max()


@pytest.mark.parametrize(
    "settings",
    [
        {"moe_eval_capacity_token_fraction": 0.3},
        {"moe_eval_capacity_token_fraction": 0.3, "batch_prioritized_routing": True},
        {"moe_eval_capacity_token_fraction": -1.0, "expert_capacity": 4, "normalize_router_prob_before_dropping": True},
        {"router_bias": True, "moe_token_dropout": 0.0, "tie_word_embeddings": False},
    ],
    ids=str,
)
def test_other_settings_agree(settings: dict[str, Any], tmp_path: Path) -> None:
    model = tiny.build(FAMILY, config=settings)
    model.save_pretrained(tmp_path)
    _assert_equal(tmp_path, model, REPEATED)


def test_a_sharded_checkpoint_in_half_precision_agrees(tmp_path: Path) -> None:
    directory = tiny.write(FAMILY, tmp_path, dtype=torch.bfloat16)
    checkpoints.shard(directory, 3)
    _assert_equal(directory, _load(directory), REPEATED)


def test_experts_that_are_drawn_are_refused(directory: Path, tmp_path: Path) -> None:
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    edit_config(tmp_path, second_expert_policy="sampling")
    with pytest.raises(ModelError, match=r"config\.json: second_expert_policy: must be 'all', got 'sampling'"):
        Engine(tmp_path, PyTorchKernel(1))
