"""Token ids in configurations: those that a model may generate, and what is no id."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fiddler.checkpoint.errors import CheckpointError
from gpu_service.errors import ModelError
from gpu_service.models.generation_config import read_generation_config, start_token_of
from tests.support.families.configs import config_of

VOCAB = 320


def _read(directory: Path, settings: dict[str, Any] | None, family: str = "mixtral", **config: Any) -> Any:
    if settings is not None:
        (directory / "generation_config.json").write_text(json.dumps(settings))
    return read_generation_config(directory, config_of(family, **config))


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        (2, [2]),
        ([2, 7], [2, 7]),
        ([2, -1], [2]),
        (-1, []),
        ([VOCAB - 1, VOCAB], [VOCAB - 1]),
        (10**12, []),
        ([], []),
    ],
)
def test_ids_that_the_model_cannot_generate_are_left_out(tmp_path: Path, value: Any, ids: list[int]) -> None:
    assert _read(tmp_path, {"eos_token_id": value}, eos_token_id=5).eos_token_id == ids
    (tmp_path / "generation_config.json").unlink()
    assert _read(tmp_path, None, eos_token_id=value).eos_token_id == ids


@pytest.mark.parametrize("settings", [{}, {"eos_token_id": None}])
def test_config_json_names_the_end_if_the_other_file_does_not(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert _read(tmp_path, settings, eos_token_id=[5, -1]).eos_token_id == [5]
    assert _read(tmp_path, settings, eos_token_id=None).eos_token_id == []


@pytest.mark.parametrize("value", ["</s>", [2, None], [[2]], 2.0, True, [2, False], {"id": 2}])
def test_what_is_no_id_is_refused_by_its_field(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ModelError, match=r"generation_config\.json: eos_token_id: must be a token id or a list"):
        _read(tmp_path, {"eos_token_id": value})


@pytest.mark.parametrize(
    "settings",
    [
        {"pad_token_id": "<pad>"},
        {"bos_token_id": "<s>"},
        {"decoder_start_token_id": -1},
        {"forced_bos_token_id": 10**6},
        {"max_new_tokens": -3},
        {"early_stopping": 5},
        {"suppress_tokens": "x", "begin_suppress_tokens": [None], "bad_words_ids": 3, "forced_eos_token_id": True},
    ],
)
def test_what_a_decoder_alone_does_not_use_may_be_anything(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert _read(tmp_path, settings | {"top_k": 7}, eos_token_id=2).top_k == 7


@pytest.mark.parametrize("value", [-1, VOCAB, "</s>", True, 0.0, [0]])
@pytest.mark.parametrize("name", ["decoder_start_token_id", "forced_bos_token_id"])
def test_what_begins_a_decoders_output_must_be_in_the_vocabulary(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(ModelError, match=rf"generation_config\.json: {name}: must be 0 to 319, the vocabulary"):
        _read(tmp_path, {"decoder_start_token_id": 0} | {name: value}, "switch_transformers")


def test_a_start_token_of_config_json_is_named_by_its_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: decoder_start_token_id: must be 0 to 319"):
        _read(tmp_path, {}, "switch_transformers", decoder_start_token_id=-1)


@pytest.mark.parametrize(
    ("generation_config", "config", "token_id"),
    [
        ({"decoder_start_token_id": 3}, {"decoder_start_token_id": 4}, 3),
        ({}, {"decoder_start_token_id": 4}, 4),
        ({"decoder_start_token_id": None, "bos_token_id": 5}, {}, 5),
    ],
)
def test_the_start_token_is_found(generation_config: dict[str, Any], config: dict[str, Any], token_id: int) -> None:
    config = {"is_encoder_decoder": True, "vocab_size": VOCAB} | config
    assert start_token_of(SimpleNamespace(**generation_config), SimpleNamespace(**config)) == token_id


def test_a_model_without_an_encoder_has_none() -> None:
    assert start_token_of(SimpleNamespace(bos_token_id=1), SimpleNamespace(is_encoder_decoder=False)) is None


def test_a_file_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"generation_config\.json is not a JSON object"):
        read_generation_config(tmp_path, config_of("mixtral"))
