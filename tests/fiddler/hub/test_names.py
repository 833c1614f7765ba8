"""What `--model` may be: a path, demo, or a model's name in the Hugging Face cache."""

from pathlib import Path

import pytest

from cpu_expert_service.settings import Settings as CpuSettings
from fiddler.checkpoint import Checkpoint, CheckpointError
from fiddler.hub.cache import cache_directory
from fiddler.hub.names import HubName, absence_of, cached, demo_directory, locate
from gpu_service.settings import Settings as GpuSettings
from tests.support.pairs import DEMO

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "89abcdef0123456789abcdef0123456789abcdef"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in the cache with two snapshots: main and v1."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    repository = tmp_path / "models--acme--tiny--moe"
    (repository / "refs" / "refs" / "pr").mkdir(parents=True)
    for revision, commit in (("main", COMMIT), ("v1", OTHER), ("refs/pr/1", OTHER)):
        (repository / "refs" / revision).write_text(commit)
        (repository / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
    return repository


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("acme/tiny-moe", HubName("acme/tiny-moe")),
        ("Qwen/Qwen3-30B-A3B@main", HubName("Qwen/Qwen3-30B-A3B", "main")),
        ("a/b@refs/pr/1", HubName("a/b", "refs/pr/1")),
        *((text, None) for text in ("demo", "/a/b", "./a/b", "../a", "a/b/c", "a b/c")),
        *((text, None) for text in ("a/b@", "a/b@../../c", "a/b@x/../y")),
    ],
)
def test_a_name_has_two_parts_and_maybe_a_revision(text: str, name: HubName | None) -> None:
    assert HubName.parse(text) == name
    assert name is None or str(name) == text


def test_a_name_is_found_in_the_cache_by_its_revision(repository: Path) -> None:
    for text, commit in (
        ("acme/tiny--moe", COMMIT),
        ("acme/tiny--moe@v1", OTHER),
        ("acme/tiny--moe@refs/pr/1", OTHER),
        (f"acme/tiny--moe@{OTHER}", OTHER),
    ):
        assert locate(Path(text)) == repository / "snapshots" / commit, text
    (repository / "refs" / "main").unlink()
    for text in ("acme/tiny--moe", "acme/tiny--moe@v2", "acme/other"):
        assert locate(Path(text)) == Path(text)
        assert cached(HubName(*text.split("@"))) is None


def test_a_path_that_exists_is_no_name(repository: Path) -> None:
    Path("acme/tiny--moe").mkdir(parents=True)
    Path("demo").mkdir()
    assert locate(Path("acme/tiny--moe")) == Path("acme/tiny--moe")
    assert locate(Path("demo")) == Path("demo")


def test_both_services_find_a_model_by_its_name(repository: Path) -> None:
    for kind in (CpuSettings, GpuSettings):
        assert kind.load(["--model", "acme/tiny--moe@v1"]).model == repository / "snapshots" / OTHER
        assert kind.load(["--model", "demo"]).model == demo_directory() == DEMO


def test_a_model_that_is_not_in_the_cache_is_told_with_what_downloads_it(repository: Path) -> None:
    with pytest.raises(CheckpointError, match=r"acme/large@v1") as caught:
        Checkpoint.open(Path("acme/large@v1"))
    assert str(repository.parent) in str(caught.value)
    assert "`fiddler serve acme/large@v1` downloads it" in str(caught.value)
    assert absence_of(Path("/no/where")) == "/no/where does not exist."


@pytest.mark.parametrize(
    ("variables", "directory"),
    [
        ({}, "/home/her/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/xdg", "HF_HOME": "~/hf"}, "/home/her/hf/hub"),
        ({"HF_HOME": "/hf", "HUGGINGFACE_HUB_CACHE": "/old"}, "/old"),
        ({"HF_HOME": "/hf", "HF_HUB_CACHE": "$HOME/hub", "HUGGINGFACE_HUB_CACHE": "/old"}, "/home/her/hub"),
    ],
)
def test_the_cache_is_where_huggingface_hub_has_it(
    variables: dict[str, str], directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/her")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_directory() == Path(directory)
