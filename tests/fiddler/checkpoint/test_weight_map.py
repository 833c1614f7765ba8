"""A checkpoint of several files: the index decides which file a tensor is read from, and which must be there."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fiddler.checkpoint import Checkpoint, errors
from gpu_service.model_runner.loading import load, read_config
from tests.support import checkpoints, coded
from tests.support.tampering import INDEX_FILE, SINGLE_FILE, Tensors, write_index

BASE, OVERLAY = "model-00001-of-00001.safetensors", "model-overlay.safetensors"


def overlay(directory: Path, edit: Callable[[str, torch.Tensor], torch.Tensor], *, base: str, over: str) -> Path:
    """Keeps all tensors in one file, stale, and writes those that `edit` changes to another that supersedes them."""
    tensors = {name: tensor.clone() for name, tensor in load_file(directory / SINGLE_FILE).items()}
    (directory / SINGLE_FILE).unlink()
    edited = {name: edit(name, tensor) for name, tensor in tensors.items()}
    edited = {name: tensor for name, tensor in edited.items() if not torch.equal(tensor.float(), tensors[name].float())}
    assert edited
    save_file(tensors, directory / base, {"format": "pt"})
    save_file(edited, directory / over, {"format": "pt"})
    write_index(directory, dict.fromkeys(tensors, base) | dict.fromkeys(edited, over))
    return directory


def merged(directory: Path, edit: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    """The same edit in place."""
    tensors = load_file(directory / SINGLE_FILE)
    save_file({name: edit(name, tensor.clone()) for name, tensor in tensors.items()}, directory / SINGLE_FILE)
    return directory


def contents(directory: Path) -> dict[str, torch.Tensor]:
    """Every view of every expert, decoded, and the dense part as it is loaded."""
    checkpoint = Checkpoint.open(directory)
    found: Tensors = {}
    for layer in checkpoint.layers:
        for number, expert in enumerate(layer.experts):
            for role, view in expert.views.items():
                matrix = checkpoint.matrix(view)
                planes = [matrix] if isinstance(matrix, torch.Tensor) else [matrix.codes, matrix.scales]
                found |= {f"{layer.name}.{number}.{role}.{i}": plane.clone() for i, plane in enumerate(planes)}
    return found | dict(load(checkpoint, read_config(directory), torch.float32).state_dict())


def halved(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Changes an expert of a layer, and the head."""
    is_edited = "layers.1." in name and (".experts.3." in name or name.endswith(("gate_up_proj", "down_proj")))
    if (is_edited or name == "lm_head.weight") and tensor.is_floating_point() and tensor.dtype.itemsize > 1:
        return tensor / 2
    return tensor


def plain(directory: Path) -> Path:
    return checkpoints.write("qwen3_moe", directory)


def fused(directory: Path) -> Path:
    return checkpoints.fuse(checkpoints.write("qwen3_moe", directory))


def scaled(directory: Path) -> Path:
    """In FP8, whose scales alone are edited."""
    source = checkpoints.write("qwen3_moe", directory.with_name(f"plain-{directory.name}"))
    return coded.rewrite(source, directory, "fp8 block", lambda tensor: "experts" in tensor)


@pytest.mark.parametrize("names", [(BASE, OVERLAY), ("model-b.safetensors", "model-a.safetensors")])
@pytest.mark.parametrize("write", [plain, fused, scaled])
def test_the_index_decides_between_copies(
    write: Callable[[Path], Path], names: tuple[str, str], tmp_path: Path
) -> None:
    one, other = write(tmp_path / "one"), write(tmp_path / "other")
    expected = contents(merged(other, halved))
    found = contents(overlay(one, halved, base=names[0], over=names[1]))
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_what_the_index_does_not_list_is_not_the_checkpoints(tmp_path: Path) -> None:
    expected = contents(plain(tmp_path / "other"))
    directory = plain(tmp_path / "one")
    tensors = load_file(directory / SINGLE_FILE)
    (directory / SINGLE_FILE).unlink()
    stale = {name.replace("experts.3", "experts.9"): torch.zeros(1) for name in tensors if "experts.3" in name}
    save_file({**tensors, **stale, "model.layers.0.old.bias": torch.zeros(3)}, directory / BASE)
    write_index(directory, dict.fromkeys(tensors, BASE))
    found = contents(directory)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_the_fingerprint_depends_on_the_index(tmp_path: Path) -> None:
    directory = overlay(plain(tmp_path), halved, base=BASE, over=OVERLAY)
    before = Checkpoint.open(directory).fingerprint
    index = json.loads((directory / INDEX_FILE).read_text())
    index["weight_map"] = {
        name: BASE if name == "lm_head.weight" else file for name, file in index["weight_map"].items()
    }
    (directory / INDEX_FILE).write_text(json.dumps(index))
    assert Checkpoint.open(directory).fingerprint != before


PREDICTION = ("mtp.fc.weight", "model.mtp.layers.0.mlp.experts.0.up_proj.weight", "model.mtp_layers.0.norm.weight",
              "model.layers.3.eh_proj.weight", "model.layers.7.mlp.experts.3.down_proj.weight")  # fmt: skip


@pytest.mark.parametrize("name", PREDICTION)
@pytest.mark.parametrize("file", ["model-00002-of-00002.safetensors", "model-mtp.safetensors"])
def test_the_index_may_list_tensors_for_prediction_that_are_not_there(name: str, file: str, tmp_path: Path) -> None:
    directory = checkpoints.write("qwen3_moe", tmp_path, shards=2)
    index = json.loads((directory / INDEX_FILE).read_text())
    index["weight_map"][name] = file
    (directory / INDEX_FILE).write_text(json.dumps(index))
    assert len(Checkpoint.open(directory).layers) == 3


@pytest.mark.parametrize("name", ["model.layers.2.extra.weight", "model.mtpx.weight", "model.norm.bias"])
def test_it_may_not_list_others(name: str, tmp_path: Path) -> None:
    directory = checkpoints.write("qwen3_moe", tmp_path, shards=2)
    index = json.loads((directory / INDEX_FILE).read_text())
    index["weight_map"][name] = "model-00002-of-00002.safetensors"
    (directory / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(errors.MissingTensorError, match=rf"00002\.safetensors lacks the tensor '{name}'"):
        Checkpoint.open(directory)


def with_prediction_layer(tensors: Tensors) -> Tensors:
    copies = {name.replace(".2.", ".3.", 1): tensor for name, tensor in tensors.items() if "layers.2." in name}
    own = {"model.layers.3.eh_proj.weight": torch.zeros(64, 128), "model.layers.3.enorm.weight": torch.ones(64)}
    return tensors | copies | own


def with_named_ones(tensors: Tensors) -> Tensors:
    copies = {
        name.replace("model.layers.2.", prefix): tensor
        for name, tensor in tensors.items()
        for prefix in ("mtp.layers.0.", "model.mtp.layers.0.", "model.mtp_layers.0.", "model.mtp_block.0.")
        if "layers.2." in name
    }
    return tensors | copies | {"mtp.fc.weight": torch.zeros(64, 128)}


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("mixtral", with_prediction_layer),
        ("deepseek_v2", with_prediction_layer),
        ("qwen3_moe", with_named_ones),
        ("granitemoe", with_named_ones),
    ],
)
def test_layers_that_predict_further_tokens_are_left_out(
    family: str, change: Callable[[Tensors], Tensors], tmp_path: Path
) -> None:
    directory = checkpoints.write(family, tmp_path)
    expected, before = contents(directory), Checkpoint.open(directory)
    tensors = {name: tensor.clone() for name, tensor in load_file(directory / SINGLE_FILE).items()}
    save_file({name: t.clone() for name, t in change(tensors).items()}, directory / SINGLE_FILE, {"format": "pt"})
    found, after = contents(directory), Checkpoint.open(directory)
    assert (after.dense_bytes, after.expert_bytes) == (before.dense_bytes, before.expert_bytes)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
