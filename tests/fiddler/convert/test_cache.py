"""What --expert-format serves, and when it converts again."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from fiddler.checkpoint import Checkpoint
from fiddler.convert import cache
from fiddler.convert import conversion as conversion_module
from fiddler.convert.conversion import Conversion
from fiddler.convert.errors import ConversionError, SpaceError, StoppedError, UnwritableError
from fiddler.convert.recipe import ExpertFormat, Recipe
from tests.support import checkpoints, coded_layouts

Logs = list[Any]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = checkpoints.write("mixtral", tmp_path_factory.mktemp("model") / "tiny", num_hidden_layers=2)
    checkpoints.write_tokenizer(directory)
    return directory


@pytest.fixture
def model(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(original, tmp_path / "tiny"))


@pytest.fixture
def logs() -> Iterator[Logs]:
    logging.disable(logging.NOTSET)
    with capture_logs() as captured:
        yield captured


def serve(model: Path, kind: ExpertFormat = "int4") -> Path:
    return cache.served_model(model, kind, lambda: False)


def events(logs: Logs) -> list[str]:
    found = [str(entry["event"]) for entry in logs]
    logs.clear()
    return found


def test_auto_serves_the_model_itself(model: Path, tmp_path: Path) -> None:
    assert cache.served_model(model, "auto", lambda: False) == model
    assert not (tmp_path / "cache").exists()


def test_it_is_converted_once_and_found_again(model: Path, tmp_path: Path, logs: Logs) -> None:
    served = serve(model)
    (made,) = [entry for entry in logs if entry["event"] == "experts converted"]
    assert made["directory"] == str(served)
    assert made["num_bytes"] == sum(path.stat().st_size for path in served.iterdir())
    assert events(logs) == ["converting experts", "experts converted"]
    assert served.is_relative_to(tmp_path / "cache" / "fiddler" / "converted")
    with closing(Checkpoint.open(served)) as checkpoint:
        assert checkpoint.weight_format == "int4 group 32"
        assert checkpoint.name == "tiny"
    before = {path: path.stat().st_mtime_ns for path in served.iterdir()}
    assert serve(model) == served
    assert events(logs) == ["converted experts found"]
    assert {path: path.stat().st_mtime_ns for path in served.iterdir()} == before


def test_each_format_has_its_own(model: Path) -> None:
    served = {kind: serve(model, kind) for kind in ("int8", "int4")}
    assert len(set(served.values())) == 2
    for kind, directory in served.items():
        with closing(Checkpoint.open(directory)) as checkpoint:
            assert checkpoint.weight_format.startswith(kind)


def test_a_source_that_was_changed_is_converted_again_and_the_old_result_is_named(model: Path, logs: Logs) -> None:
    old = serve(model)
    os.utime(model / "model.safetensors", (1, 1))
    logs.clear()
    new = serve(model)
    assert new != old
    remaining = [entry["directories"] for entry in logs if "remain" in entry["event"]]
    assert remaining == [[str(old)]]
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rope_theta": 1.0}))
    assert serve(model) not in (old, new)


def test_a_snapshot_is_known_by_its_revision(model: Path, tmp_path: Path) -> None:
    served = []
    for revision in ("aaaa", "bbbb"):
        snapshot = tmp_path / "models--org--tiny" / "snapshots" / revision
        shutil.copytree(model, snapshot)
        served.append(serve(snapshot))
        os.utime(snapshot / "model.safetensors", (1, 1))  # downloaded again
        assert serve(snapshot) == served[-1]
    assert served[0] != served[1]
    with closing(Checkpoint.open(served[0])) as checkpoint:
        assert checkpoint.name == "org/tiny"


def test_the_tokenizer_and_templates_are_those_of_the_source(model: Path) -> None:
    served = serve(model)
    (model / "chat_template.jinja").write_text("{{ messages }}")
    (model / "tokenizer_config.json").write_text("{}")
    assert serve(model) == served
    assert (served / "chat_template.jinja").read_text() == "{{ messages }}"
    assert (served / "tokenizer_config.json").read_text() == "{}"


@pytest.mark.parametrize("content", ["", "{}", '{"identity": {"experts": "int8"}}'])
def test_a_directory_that_is_not_this_conversion_is_refused(content: str, model: Path) -> None:
    served = serve(model)
    (served / "fiddler_conversion.json").write_text(content)
    with pytest.raises(ConversionError, match=r"tiny is not empty, and not the result of this conversion"):
        serve(model)


def test_a_quantised_source_is_warned_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: Logs) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = coded_layouts.write("separate", "int8", tmp_path / "model")
    assert serve(source, "int8") == source
    assert events(logs) == ["the experts have no more bits already, so they are served as they are stored"]
    assert serve(source, "int4") != source
    (warning,) = [entry for entry in logs if "quantised already" in entry["event"]]
    assert warning["log_level"] == "warning"
    assert warning["stored"].startswith("int8")


def test_a_stopped_conversion_goes_on_at_the_next_start(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SHARD_BYTES", 20_000)
    answers = iter([False] * 12)
    with pytest.raises(StoppedError):
        cache.served_model(model, "int4", lambda: next(answers, True))
    with closing(Checkpoint.open(model)) as source:
        conversion = cache.conversion_of(source, "int4")
        assert conversion is not None
        assert not conversion.target.exists()
        assert list(conversion.target.parent.rglob("*.safetensors"))
    assert serve(model).is_dir()


def test_a_full_disk_and_a_read_only_cache_say_what_to_do(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(conversion_module, "free_bytes", lambda directory: 2**20)
        with pytest.raises(SpaceError, match=r"1 MiB are free.*XDG_CACHE_HOME.*python -m fiddler\.convert"):
            serve(model)

    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", refuse)
        with pytest.raises(UnwritableError, match=r"Read-only file system.*XDG_CACHE_HOME"):
            serve(model)
    served = serve(model)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert serve(model) == served


def test_a_preview_has_the_sizes_of_the_result(model: Path, tmp_path: Path) -> None:
    with closing(Checkpoint.open(model)) as source:
        conversion = cache.conversion_of(source, "int4")
        assert conversion is not None
        with cache.preview(conversion) as folder, closing(Checkpoint.open(folder)) as preview:
            assert not conversion.target.exists()
            conversion.run()
            with closing(Checkpoint.open(conversion.target)) as result:
                for name in ("name", "weight_format", "expert_bytes", "dense_bytes", "expert_dtype"):
                    assert getattr(preview, name) == getattr(result, name)
            sizes = {path.name: path.stat().st_size for path in conversion.target.iterdir()}
            sizes.pop("fiddler_conversion.json")
            assert {path.name: path.stat().st_size for path in folder.iterdir()} == sizes
        assert not folder.exists()


def test_the_cli_and_the_cache_make_the_same(model: Path, tmp_path: Path) -> None:
    with closing(Checkpoint.open(model)) as source:
        assert Conversion(source, tmp_path / "result", Recipe("int4")).run()
    served = serve(model)
    for path in (tmp_path / "result").iterdir():
        assert path.read_bytes() == (served / path.name).read_bytes()
