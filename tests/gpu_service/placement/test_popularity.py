import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from fiddler.checkpoint import Checkpoint
from gpu_service.errors import PopularityError
from gpu_service.placement.popularity import Popularity


@dataclass(frozen=True)
class _Layer:
    decoder_layer: int
    num_experts: int


@dataclass(frozen=True)
class _Checkpoint:
    model_type: str = "mixtral"
    fingerprint: str = "ab12"
    layers: tuple[_Layer, ...] = (_Layer(1, 3), _Layer(2, 2))


CHECKPOINT = cast("Checkpoint", _Checkpoint())
"""The properties of a checkpoint that are read."""
POPULARITY = Popularity(tokens=7, counts=((4, 0, 3), (6, 1)))
CONTENT: dict[str, Any] = {
    "format": 1,
    "model_type": "mixtral",
    "checkpoint_fingerprint": "ab12",
    "tokens": 7,
    "layers": [{"decoder_layer": 1, "counts": [4, 0, 3]}, {"decoder_layer": 2, "counts": [6, 1]}],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "popularity.json"


def test_the_format(path: Path) -> None:
    POPULARITY.save(path, CHECKPOINT)
    assert json.loads(path.read_text()) == CONTENT


def test_what_is_saved_is_loaded(path: Path) -> None:
    POPULARITY.save(path, CHECKPOINT)
    assert Popularity.load(path, CHECKPOINT) == POPULARITY


def test_saving_replaces_the_file_and_leaves_no_other(path: Path) -> None:
    path.write_text("old")
    with path.open() as read_meanwhile:
        POPULARITY.save(path, CHECKPOINT)
        assert read_meanwhile.read() == "old"
    assert Popularity.load(path, CHECKPOINT) == POPULARITY
    assert list(path.parent.iterdir()) == [path]


def test_a_save_that_fails_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    POPULARITY.save(path, CHECKPOINT)

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        Popularity(tokens=1, counts=((1, 1, 1), (1, 1))).save(path, CHECKPOINT)
    assert Popularity.load(path, CHECKPOINT) == POPULARITY
    assert list(path.parent.iterdir()) == [path]


def test_a_number_that_is_none_is_never_written(path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Popularity(tokens=1, counts=((float("nan"), 1, 1), (1, 1))).save(path, CHECKPOINT)
    assert not path.exists()


Change = Callable[[dict[str, Any]], Any]


def _layer(content: dict[str, Any], **changes: Any) -> None:
    content["layers"][1].update(changes)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda content: content.pop("format"), "format: is missing"),
        (lambda content: content.update(format=2), "format: must be 1, got 2"),
        (lambda content: content.update(format=True), "format: must be a valid integer, got True"),
        (lambda content: content.update(note="mine"), "note: is not a field of this file"),
        (lambda content: _layer(content, shares=[1, 2]), "layers[1].shares: is not a field of this file"),
        (lambda content: content.pop("model_type"), "model_type: is missing"),
        (
            lambda content: content.update(model_type="olmoe"),
            "model_type: is 'olmoe', and the checkpoint's is 'mixtral'",
        ),
        (lambda content: content.pop("checkpoint_fingerprint"), "checkpoint_fingerprint: is missing"),
        (
            lambda content: content.update(checkpoint_fingerprint="cd34"),
            "checkpoint_fingerprint: is another checkpoint's",
        ),
        (lambda content: content.pop("tokens"), "tokens: is missing"),
        (lambda content: content.update(tokens=0), "tokens: must be greater than or equal to 1, got 0"),
        (lambda content: content.update(tokens=True), "tokens: must be a valid integer, got True"),
        (lambda content: content.update(tokens="7"), "tokens: must be a valid integer, got '7'"),
        (lambda content: content.pop("layers"), "layers: is missing"),
        (lambda content: content["layers"].pop(), "layers: must be 2 as in the checkpoint, got 1"),
        (lambda content: content.update(layers={}), "layers: must be a valid array, got {}"),
        (lambda content: content.update(layers=[1, 2]), "layers[0]: must be an object, got 1"),
        (lambda content: _layer(content, decoder_layer=5), "layers[1].decoder_layer: must be 2, got 5"),
        (lambda content: content["layers"][1].pop("counts"), "layers[1].counts: is missing"),
        (lambda content: _layer(content, counts=[1, 2, 3]), "layers[1].counts: must be of 2 experts, got 3"),
        (lambda content: _layer(content, counts="ab"), "layers[1].counts: must be a valid array, got 'ab'"),
        (
            lambda content: _layer(content, counts=[1, -2]),
            "layers[1].counts[1]: must be greater than or equal to 0, got -2",
        ),
        (
            lambda content: _layer(content, counts=[10**400, 2]),
            "layers[1].counts[0]: must be a finite number, got 10",
        ),
        (lambda content: _layer(content, counts=[None, 2]), "layers[1].counts[0]: must be a valid number, got None"),
        (lambda content: _layer(content, counts=[1, True]), "layers[1].counts[1]: must be a valid number, got True"),
        (
            lambda content: _layer(content, counts=[float("nan"), 2]),
            "layers[1].counts[0]: must be a finite number, got nan",
        ),
        (
            lambda content: _layer(content, counts=[float("inf"), 2]),
            "layers[1].counts[0]: must be a finite number, got inf",
        ),
    ],
)
def test_what_is_wrong_is_named(change: Change, problem: str, path: Path) -> None:
    content = json.loads(json.dumps(CONTENT))
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(PopularityError) as caught:
        Popularity.load(path, CHECKPOINT)
    assert str(caught.value).startswith(f"--popularity: {path}: {problem}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "\x00", "[1", '{"format": 1}}', "[" * 100_000])
def test_what_is_not_json_is_refused(text: str, path: Path) -> None:
    path.write_text(text)
    with pytest.raises(PopularityError, match=rf"^--popularity: {path} is not JSON: "):
        Popularity.load(path, CHECKPOINT)


def test_what_is_not_text_is_refused(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(PopularityError, match=rf"^--popularity: {path} is not JSON: "):
        Popularity.load(path, CHECKPOINT)


@pytest.mark.parametrize(("text", "value"), [("[]", "[]"), ("7", "7"), ("null", "None")])
def test_json_that_is_no_object_is_refused(text: str, value: str, path: Path) -> None:
    path.write_text(text)
    with pytest.raises(PopularityError) as caught:
        Popularity.load(path, CHECKPOINT)
    assert str(caught.value) == f"--popularity: {path}: must be an object, got {value}"


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(PopularityError, match=rf"^--popularity: {path} cannot be read: No such file or directory$"):
        Popularity.load(path, CHECKPOINT)
