"""Models whose linear layers are in codes: tokens and logits are transformers' on what the codes stand for."""

from pathlib import Path
from typing import Any, TypeGuard

import pytest
import torch
from structlog.testing import capture_logs
from torch import nn

from fiddler.checkpoint import Checkpoint
from fiddler.convert.conversion import convert
from fiddler.convert.recipe import CodedFormat, DenseFormat, Recipe
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.errors import ModelError
from gpu_service.model_runner.dense import loading
from gpu_service.model_runner.dense.coded import CodedEmbedding, CodedLinear
from gpu_service.model_runner.dense.formats import DensePlan
from gpu_service.model_runner.loading import load, read_config
from gpu_service.model_runner.model import Model
from gpu_service.model_runner.trial import try_model
from gpu_service.moe.dispatcher import Dispatcher
from tests.support import coded, reference
from tests.support.checkpoints import write as write_usual
from tests.support.families import tiny
from tests.support.families.engine import Engine, best_kernel
from tests.support.reference import PROMPTS
from tests.support.rounded_dense import ROUNDED, ROUTERS, round_linear_layers
from tests.support.tampering import edit_tensors

CPU = torch.device("cpu")
NUM_TOKENS = 8
INT8 = DensePlan(keeps=True, codes_in="int8")
KEEPS = DensePlan(keeps=True, codes_in=None)
FAMILIES = ("mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "qwen2_moe", "jetmoe")
"""With tied and untied heads, biases, latent attention, shared experts, and routers that are linear layers."""
FAMILIES_IN_4_BITS = ("deepseek_v3", "gpt_oss")


def _model(directory: Path, dense_format: DenseFormat, dtype: torch.dtype = torch.float32) -> Model:
    checkpoint = Checkpoint.open(directory)
    dispatcher = Dispatcher(checkpoint, CPU, InProcessExperts(checkpoint))
    return Model(checkpoint, dispatcher, device=CPU, dtype=dtype, num_rows=1, max_context=64, dense_format=dense_format)


@pytest.mark.parametrize(
    ("family", "kind"),
    [*((family, "int8") for family in FAMILIES), *((family, "int4") for family in FAMILIES_IN_4_BITS)],
)
def test_codes_generate_what_transformers_does_on_the_rounded_weights(
    family: str, kind: CodedFormat, tmp_path: Path
) -> None:
    directory = tiny.write(family, tmp_path)
    model = reference.load(directory)
    round_linear_layers(model, kind)
    engine = Engine(directory, best_kernel(), dense_format=kind)
    for prompt, (tokens, logits) in zip(PROMPTS, engine.generate(PROMPTS, NUM_TOKENS), strict=True):
        due_tokens, due_logits = reference.generate(model, prompt, NUM_TOKENS)
        assert tokens == due_tokens
        torch.testing.assert_close(logits, due_logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "asked"),
    [*((name, "int8") for name in ("fp8 block", "int4 group 32", "int8", "mxfp4")), ("int4 group 32", "int4")],
)
def test_published_codes_are_kept_and_stand_for_the_same_weights(name: str, asked: CodedFormat, tmp_path: Path) -> None:
    plain = write_usual("qwen3_moe", tmp_path / "plain", moe_intermediate_size=96)
    directory = coded.rewrite(plain, tmp_path / "coded", name, lambda tensor: "_proj." in tensor)
    engine = Engine(directory, best_kernel(), dense_format=asked)
    kinds = {child.kind for child in engine.model._module.modules() if isinstance(child, CodedLinear)}
    assert kinds == {_kind(directory), asked}
    assert set(engine.model.dense.format.split(", ")) == kinds
    model = reference.load(plain)
    model.lm_head.weight.data.copy_(ROUNDED[asked](model.lm_head.weight.data))  # which the checkpoint has as it is
    for prompt, (tokens, logits) in zip(PROMPTS, engine.generate(PROMPTS, NUM_TOKENS), strict=True):
        due_tokens, due_logits = reference.generate(model, prompt, NUM_TOKENS)
        assert tokens == due_tokens
        torch.testing.assert_close(logits, due_logits, rtol=1e-4, atol=1e-4)


def test_published_codes_of_more_bits_than_asked_for_are_coded_again(tmp_path: Path) -> None:
    plain = write_usual("qwen3_moe", tmp_path / "plain", moe_intermediate_size=96)
    directory = coded.rewrite(plain, tmp_path / "coded", "fp8 block", lambda tensor: "_proj." in tensor)
    with capture_logs() as lines:
        engine = Engine(directory, best_kernel(), dense_format="int4")
    assert engine.model.dense.format == "int4"
    (told,) = [line for line in lines if "quantised again" in line["event"]]
    assert (told["layers"], told["asked"]) == (12, "int4")
    model = reference.load(plain)
    round_linear_layers(model, "int4")
    ((tokens, logits),) = engine.generate(PROMPTS[:1], NUM_TOKENS)
    due_tokens, due_logits = reference.generate(model, PROMPTS[0], NUM_TOKENS)
    assert tokens == due_tokens
    torch.testing.assert_close(logits, due_logits, rtol=1e-4, atol=1e-4)


def test_layers_whose_inputs_groups_do_not_divide_are_int8_and_told_in_one_line(tmp_path: Path) -> None:
    directory = write_usual("deepseek_v2", tmp_path, kv_lora_rank=32)
    with capture_logs() as lines:
        model = _model(directory, "int4")
    kinds = {name.rpartition(".")[2]: child.kind for name, child in model._module.named_modules() if _is_coded(child)}
    assert {name for name, kind in kinds.items() if kind == "int8"} == {"q_b_proj"}
    assert kinds["kv_b_proj"] == kinds["lm_head"] == "int4"
    assert model.dense.format == "int4, int8"
    (told,) = [line for line in lines if "int8" in line["event"]]
    assert (told["layers"], told["first"]) == (3, "model.layers.0.self_attn.q_b_proj.weight")
    assert "groups of 32 do not divide their inputs" in told["reason"]
    with capture_logs() as lines:
        _model(directory, "int8")
    assert not lines


def test_a_converted_dense_part_stays_as_it_was_written(tmp_path: Path) -> None:
    """Whatever is asked for: 4 bits are no more than 8, and what is int8 beside int4 has no groups."""
    plain = write_usual("deepseek_v2", tmp_path / "plain", kv_lora_rank=32)
    convert(plain, tmp_path / "coded", Recipe("int4", "int4"))
    models = {asked: _model(tmp_path / "coded", asked) for asked in ("int4", "int8")}
    with capture_logs() as lines:
        models["auto"] = _model(tmp_path / "coded", "auto")
    assert {model.dense.format for model in models.values()} == {"int4, int8"}
    assert len({model.dense.num_bytes for model in models.values()}) == 1
    assert not lines
    assert _model(tmp_path / "coded", "bfloat16").dense.format == "float32"


def _is_coded(child: nn.Module) -> TypeGuard[CodedLinear]:
    return isinstance(child, CodedLinear)


def _kind(directory: Path) -> str:
    """What the checkpoint's own codes are."""
    return Checkpoint.open(directory).weight_format.split()[0]


def _named(module: nn.Module, kind: type[nn.Module]) -> set[str]:
    return {name for name, child in module.named_modules() if isinstance(child, kind)}


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "jetmoe"])
def test_routers_and_gates_stay_as_they_are(family: str, tmp_path: Path) -> None:
    directory = tiny.write(family, tmp_path)
    module: Any = load(Checkpoint.open(directory), read_config(directory), torch.float32, INT8)
    assert _named(module, CodedLinear)
    assert not any(name.endswith(ROUTERS) for name in _named(module, CodedLinear))
    plain = reference.load(directory).state_dict()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, plain[name]), name


@pytest.mark.parametrize(
    ("name", "asked"),
    [(None, "int8"), (None, "int4"), ("fp8 block", "bfloat16"), ("fp8 block", "int4"), ("int4 group 32", "int8")],
)
def test_sizes_are_known_before_a_weight_is_read(name: str | None, asked: DenseFormat, tmp_path: Path) -> None:
    directory = write_usual("qwen3_moe", tmp_path / "plain", moe_intermediate_size=96)
    if name:
        directory = coded.rewrite(directory, tmp_path / "coded", name, lambda tensor: "_proj." in tensor)
    checkpoint, plan = Checkpoint.open(directory), DensePlan.resolve(asked, CPU)
    model = _model(directory, asked)
    sizes = try_model(checkpoint, read_config(directory), torch.float32).dense
    # what a head takes is estimated by the average layer if other layers are in codes already
    assert sizes.kept_bytes(plan, torch.float32) == pytest.approx(model.dense.num_bytes, rel=0.01 if name else 0)
    assert set(plan.format_of(checkpoint, torch.float32).split(", ")) == set(model.dense.format.split(", "))


def test_memory_holds_codes_and_no_plain_copy(tmp_path: Path) -> None:
    directory = write_usual("mixtral", tmp_path)
    plain, int8 = _model(directory, "bfloat16"), _model(directory, "int8")
    linears = [child for child in plain._module.modules() if type(child) is nn.Linear]
    coded_weights = sum(linear.weight.numel() for linear in linears)
    scales = sum(linear.out_features * 2 for linear in linears)
    held = sum(tensor.nbytes for tensor in int8._module.parameters())
    assert held == sum(tensor.nbytes for tensor in plain._module.parameters()) - 4 * coded_weights
    assert sum(buffer.nbytes for name, buffer in int8._module.named_buffers() if "weight_" in name) == (
        coded_weights + scales
    )
    assert int8.dense.num_bytes == held + coded_weights + scales
    assert plain.dense.num_bytes == sum(tensor.nbytes for tensor in plain._module.parameters())
    assert (plain.dense.format, int8.dense.format) == ("float32", "int8")


def test_a_tied_head_and_its_embeddings_share_their_codes(tmp_path: Path) -> None:
    directory = write_usual("mixtral", tmp_path, tie_word_embeddings=True)
    module: Any = load(Checkpoint.open(directory), read_config(directory), torch.float32, INT8)
    head, embeddings = module.lm_head, module.model.embed_tokens
    assert isinstance(head, CodedLinear)
    assert isinstance(embeddings, CodedEmbedding)
    assert head.coded.codes.data_ptr() == embeddings.coded.codes.data_ptr()


def test_embeddings_of_their_own_stay_plain(tmp_path: Path) -> None:
    directory = write_usual("mixtral", tmp_path)
    module: Any = load(Checkpoint.open(directory), read_config(directory), torch.float32, INT8)
    assert type(module.model.embed_tokens) is nn.Embedding
    assert isinstance(module.lm_head, CodedLinear)


@pytest.mark.parametrize(("plan", "kinds"), [(KEEPS, {"fp8"}), (INT8, {"fp8", "int8"})])
def test_what_a_plan_keeps_and_codes(plan: DensePlan, kinds: set[str], tmp_path: Path) -> None:
    plain = write_usual("qwen3_moe", tmp_path / "plain", moe_intermediate_size=96)
    directory = coded.rewrite(plain, tmp_path / "coded", "fp8 block", lambda tensor: "self_attn." in tensor)
    checkpoint = Checkpoint.open(directory)
    module: Any = load(checkpoint, read_config(directory), torch.float32, plan)
    assert {child.kind for child in module.modules() if isinstance(child, CodedLinear)} == kinds
    assert set(plan.format_of(checkpoint, torch.float32).split(", ")) == kinds


def test_matrices_that_transformers_makes_others_of_are_loaded_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in that is lost on the way is asked for its values the next time."""
    directory = write_usual("qwen3_moe", tmp_path)
    due = load(Checkpoint.open(directory), read_config(directory), torch.float32).state_dict()
    read = loading.StandIn.__getitem__

    def copied(stand_in: loading.StandIn, index: Any) -> torch.Tensor:
        taken = read(stand_in, index)
        return taken.clone() if "q_proj" in stand_in.matrix.name else taken  # as a part of a larger matrix would be

    monkeypatch.setattr(loading.StandIn, "__getitem__", copied)
    module: Any = load(Checkpoint.open(directory), read_config(directory), torch.float32, INT8)
    attention = module.model.layers[0].self_attn
    assert type(attention.q_proj) is nn.Linear
    assert torch.equal(attention.q_proj.weight, due["model.layers.0.self_attn.q_proj.weight"])
    assert isinstance(attention.k_proj, CodedLinear)


def test_a_weight_that_is_no_number_is_refused_by_its_name(tmp_path: Path) -> None:
    directory = write_usual("mixtral", tmp_path)

    def broken(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["model.layers.1.self_attn.q_proj.weight"][3, 4] = torch.inf
        return tensors

    edit_tensors(directory, broken)
    told = (
        r"--dense-format int8: .*model.safetensors holds the tensor 'model.layers.1.self_attn.q_proj.weight', of which "
        "a weight is infinite or not a number; set --dense-format bfloat16"
    )
    with pytest.raises(ModelError, match=told):
        _model(directory, "int8")


def test_auto_keeps_the_numbers_of_a_plain_checkpoint(tiny: Path) -> None:
    model = _model(tiny, "auto")
    assert model.dense.format == "float32"
    assert not _named(model._module, CodedLinear)


def test_bfloat16_decodes_what_the_checkpoint_has_in_codes(tmp_path: Path) -> None:
    plain = write_usual("qwen3_moe", tmp_path / "plain", moe_intermediate_size=96)
    directory = coded.rewrite(plain, tmp_path / "coded", "fp8 block", lambda tensor: "_proj." in tensor)
    model = _model(directory, "bfloat16", torch.bfloat16)
    assert model.dense.format == "bfloat16"
    assert not _named(model._module, CodedLinear)
