"""What a conversion writes, read back by the loader and by the package compressed-tensors."""

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.reading import read_coded, read_tensor
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.coding import CodedTensor, dequantize
from fiddler.convert.conversion import Conversion, convert
from fiddler.convert.errors import ConversionError
from fiddler.convert.recipe import DenseFormat, ExpertFormat, Recipe
from fiddler.expert_math import Matrix, layer_weights
from tests.support import checkpoints, coded_layouts, converted, published
from tests.support.families import tiny
from tests.support.tampering import edit_tensors

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "moe_intermediate_size": 96,
    "intermediate_size": 96,
    "q_lora_rank": 24,  # inputs that groups of 32 do not divide
    "kv_lora_rank": 32,  # one group: as 8 bits, its packed codes would have a scale for each output
}
RECIPES: tuple[tuple[ExpertFormat, DenseFormat], ...] = (
    ("int8", "auto"),
    ("int8", "int8"),
    ("int4", "auto"),
    ("int4", "int8"),
    ("int4", "bfloat16"),
    ("int4", "int4"),
    ("int8", "int4"),
)
MOST_ERROR = {"int8": 0.01, "int4": 0.1}
"""Relative, of weights that are normally distributed."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a shared expert, a router and a head, beside which all kinds of files are."""
    directory = checkpoints.write("deepseek_v2", tmp_path_factory.mktemp("model") / "source", **SIZES)
    checkpoints.write_tokenizer(directory)
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (directory / "pytorch_model.bin").write_bytes(b"other weights")
    (directory / ".cache").mkdir()
    return directory


def _plain(matrix: Matrix) -> torch.Tensor:
    return dequantize(matrix) if isinstance(matrix, CodedTensor) else matrix.float()


def _assert_experts_are_close(source: Path, result: Path, kind: ExpertFormat) -> None:
    with closing(Checkpoint.open(source)) as before, closing(Checkpoint.open(result)) as after:
        assert after.weight_format.startswith(kind)
        for ours, theirs in zip(after.layers, before.layers, strict=True):
            pairs = zip(layer_weights(after, ours).experts, layer_weights(before, theirs).experts, strict=True)
            for number, (found, due) in enumerate(pairs):
                for role, view in ours.experts[number].views.items():
                    if role.endswith("_bias"):
                        assert torch.equal(getattr(found, role), getattr(due, role)), view.name
                        continue
                    weights, expected = _plain(getattr(found, role)), _plain(getattr(due, role))
                    assert isinstance(getattr(found, role), CodedTensor)
                    assert float((weights - expected).norm() / expected.norm()) < MOST_ERROR[kind], view.name


@pytest.mark.parametrize(("experts", "dense"), RECIPES, ids=["-".join(each) for each in RECIPES])
def test_the_loader_and_the_package_read_the_same_numbers(
    source: Path, experts: ExpertFormat, dense: DenseFormat, tmp_path: Path
) -> None:
    result = tmp_path / "result"
    convert(source, result, Recipe(experts, dense))
    _assert_experts_are_close(source, result, experts)
    theirs = converted.decoded(result)
    with closing(Checkpoint.open(result)) as checkpoint, closing(Checkpoint.open(source)) as before:
        for layer in checkpoint.layers:
            for weights, expert in zip(layer_weights(checkpoint, layer).experts, layer.experts, strict=True):
                for role, view in expert.views.items():
                    assert torch.equal(_plain(getattr(weights, role)), theirs[view.name]), view.name
        kinds: dict[str, str] = {}
        stored = {tensor.name: tensor for tensor in before.dense_tensors}
        for tensor in checkpoint.dense_tensors:
            due = read_tensor(stored.pop(tensor.name)).float()  # type: ignore[arg-type]
            if isinstance(tensor, StoredTensor):
                found = read_tensor(tensor)
                kinds[tensor.name] = tensor.dtype
                assert torch.equal(found, due.to(found.dtype)), tensor.name
            else:
                found = dequantize(read_coded(tensor))
                kinds[tensor.name] = kind = tensor.coding.kind
                assert float((found - due).norm() / due.norm()) < MOST_ERROR[kind], tensor.name
            assert torch.equal(found.float(), theirs[tensor.name].float()), tensor.name
        assert not stored
    due_kinds = {"auto": {"F32"}, "int8": {"F32", "int8"}, "bfloat16": {"F32", "BF16"}, "int4": {"F32", "int8", "int4"}}
    assert set(kinds.values()) == due_kinds[dense]
    if dense == "int4":
        odd = {name.split(".")[-2] for name, kind in kinds.items() if kind == "int8"}
        assert odd == {"q_b_proj"}, "groups do not divide its inputs"


@pytest.mark.parametrize("dense", ["auto", "int8", "int4"])
def test_what_is_not_coded_is_ignored_by_name(source: Path, dense: DenseFormat, tmp_path: Path) -> None:
    convert(source, tmp_path / "result", Recipe("int4", dense))
    ignored = set(converted.settings_of(tmp_path / "result").ignore)
    names = {"model.embed_tokens", "model.layers.1.mlp.gate"}
    linear = {"lm_head", "model.layers.0.mlp.up_proj", "model.layers.1.self_attn.kv_a_proj_with_mqa"}
    assert ignored >= names
    assert ignored & linear == (linear if dense == "auto" else set())


def test_files_beside_the_weights_are_copied(source: Path, tmp_path: Path) -> None:
    result = tmp_path / "result"
    convert(source, result, Recipe("int4"))
    names = {str(path.relative_to(result)) for path in result.rglob("*") if path.is_file()}
    copied = {
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
        "tokenizer.json",
        "generation_config.json",
    }
    assert names >= copied | {"config.json", "model.safetensors", "fiddler_conversion.json"}
    assert names.isdisjoint({"pytorch_model.bin", ".lock"})
    assert all((result / name).read_bytes() == (source / name).read_bytes() for name in copied)
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_several_files_have_an_index_and_hold_the_same(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "one", Recipe("int4"))
    with closing(Checkpoint.open(source)) as checkpoint:
        assert Conversion(checkpoint, tmp_path / "many", Recipe("int4"), shard_bytes=30_000).run()
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = {path.name for path in (tmp_path / "many").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files
    assert len(files) > 5
    one, many = converted.tensors_of(tmp_path / "one"), converted.tensors_of(tmp_path / "many")
    assert one.keys() == many.keys() == index["weight_map"].keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in many.values())


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("family", ["mixtral", "granitemoe", "gpt_oss", "dbrx", "nllb-moe", "gemma4_text"])
def test_experts_of_every_layout_are_converted(family: str, kind: ExpertFormat, tmp_path: Path) -> None:
    configs: dict[str, dict[str, Any]] = {
        "dbrx": {"ffn_config": {"hidden_size": 64, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2}},
        "nllb-moe": {"encoder_ffn_dim": 96, "decoder_ffn_dim": 96},
        "gemma4_text": {"moe_intermediate_size": 96},
    }
    source = tiny.write(family, tmp_path / "source", config=configs.get(family, {}))
    convert(source, tmp_path / "result", Recipe(kind))
    _assert_experts_are_close(source, tmp_path / "result", kind)


def test_a_quantised_source_is_decoded(tmp_path: Path) -> None:
    source = coded_layouts.write("interleaved", "mxfp4 of gpt-oss", tmp_path / "model")
    convert(source, tmp_path / "result", Recipe("int8", "int8"))
    _assert_experts_are_close(source, tmp_path / "result", "int8")
    dense = coded_layouts.write("separate", "fp8 block", tmp_path / "other")
    convert(dense, tmp_path / "second", Recipe("int4"))
    _assert_experts_are_close(dense, tmp_path / "second", "int4")
    with closing(Checkpoint.open(tmp_path / "second")) as checkpoint:
        assert not checkpoint.has_coded_dense


def test_experts_that_have_no_form_with_separate_matrices_are_refused_by_tensor(tmp_path: Path) -> None:
    source = published.write("openmoe", tmp_path / "model", dtype=torch.bfloat16)
    with pytest.raises(ConversionError, match=r"holds the tensor '.*\.wi_gate': experts of this family are not"):
        convert(source, tmp_path / "result", Recipe("int8"))


def test_groups_that_do_not_divide_the_inputs_are_refused_by_tensor(tmp_path: Path) -> None:
    source = checkpoints.write("granitemoe", tmp_path / "source", intermediate_size=48)
    with pytest.raises(
        ConversionError, match=r"model\.safetensors holds the tensor '.*output_linear.*' with 48 inputs.*int8"
    ):
        convert(source, tmp_path / "result", Recipe("int4"))
    convert(source, tmp_path / "result", Recipe("int8"))


def test_a_weight_that_is_not_a_number_is_refused_by_tensor(source: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    directory = tmp_path / "source"
    shutil.copytree(source, directory)

    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[name][5, 7] = torch.nan
        return tensors

    edit_tensors(directory, spoil)
    with pytest.raises(
        ConversionError, match=rf"model\.safetensors holds the tensor '{name}': a weight is infinite or"
    ):
        convert(directory, tmp_path / "result", Recipe("int4"))
    assert not (tmp_path / "result").exists()


def test_a_directory_with_something_else_is_left_alone(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine").touch()
    with pytest.raises(ConversionError, match="is not empty, and not the result of this conversion"):
        convert(source, other, Recipe("int8"))
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConversionError, match="is not a directory"):
        convert(source, file, Recipe("int8"))
    empty = tmp_path / "empty"
    empty.mkdir()
    convert(source, empty, Recipe("int8"))
    assert (empty / "config.json").is_file()
