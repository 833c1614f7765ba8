"""Models by name: found in the cache, or downloaded from a stand-in for the hub."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from fiddler.checkpoint import Checkpoint
from fiddler.errors import UserError
from fiddler.hub import download
from fiddler.hub.download import Estimate, look_without_weights, obtain
from tests.fiddler.hub.conftest import COMMIT, NOT_NEEDED, OTHER
from tests.support.hub import Hub
from tests.support.losses import wait_until
from tests.support.terminals import terminal

ROOT = Path(__file__).parents[3]
ESTIMATE = Estimate(
    memory_bytes=57 * 2**30, free_memory_bytes=64 * 2**30, device_bytes=3 * 2**30, tokens_per_second=14.2
)
SHARDS = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]


def _obtain(
    model: str, *, assume_yes: bool = True, estimate: Callable[[Path], Estimate] = lambda path: ESTIMATE
) -> Path:
    return obtain(model, estimate=estimate, assume_yes=assume_yes, say=lambda line: None)


def test_a_name_downloads_what_is_needed_and_nothing_else(hub: Hub, published: Path, tmp_path: Path) -> None:
    directory = _obtain("acme/tiny")
    assert directory == tmp_path / "hub" / "models--acme--tiny" / "snapshots" / COMMIT
    needed = {path.name for path in published.iterdir()} - {*NOT_NEEDED}
    assert {*SHARDS, "config.json", "tokenizer.json", "model.safetensors.index.json"} <= needed
    assert {path.name for path in directory.iterdir()} == needed
    assert all((directory / name).read_bytes() == (published / name).read_bytes() for name in needed)
    assert Checkpoint.open(directory).name == "acme/tiny"


def test_a_model_that_is_there_asks_the_hub_nothing(hub: Hub) -> None:
    directory = _obtain("acme/tiny")
    asked = len(hub.requests)

    def refuse(path: Path) -> Estimate:
        pytest.fail("a dry run")

    assert _obtain("acme/tiny", assume_yes=False, estimate=refuse) == directory
    assert len(hub.requests) == asked
    with look_without_weights("acme/tiny", say=lambda line: None) as whole:
        assert whole == directory
    assert len(hub.requests) == asked


def test_a_revision_is_a_tag_or_a_commit(hub: Hub, older: Path) -> None:
    by_tag = _obtain("acme/tiny@v1")
    assert (by_tag.name, (by_tag / "model.safetensors").is_file()) == (OTHER, True)
    assert _obtain(f"acme/tiny@{OTHER}") == by_tag
    assert _obtain("acme/tiny").name == COMMIT


def test_the_dry_run_sees_the_checkpoint_without_its_weights(hub: Hub, published: Path) -> None:
    seen: list[tuple[int, int, int, str, int]] = []

    def examine(directory: Path) -> Estimate:
        checkpoint = Checkpoint.open(directory)
        on_disk = sum(path.stat().st_blocks * 512 for path in checkpoint.files)
        seen.append((checkpoint.expert_bytes, checkpoint.dense_bytes, len(checkpoint.layers), checkpoint.name, on_disk))
        assert not any(hub.downloads(name) != ["bytes=0-100000"] for name in SHARDS), "only headers were read"
        return ESTIMATE

    _obtain("acme/tiny", estimate=examine)
    whole = Checkpoint.open(published)
    ((*sizes, name, on_disk),) = seen
    assert sizes == [whole.expert_bytes, whole.dense_bytes, len(whole.layers)]
    assert name == "acme/tiny"
    assert on_disk < whole.expert_bytes / 10


def test_a_model_that_cannot_be_served_is_not_downloaded(hub: Hub, tmp_path: Path) -> None:
    def refuse(directory: Path) -> Estimate:
        raise UserError(f"{directory}/config.json: model_type: odd is refused")

    with pytest.raises(UserError, match=r"^acme/tiny/config\.json: model_type: odd is refused$"):
        _obtain("acme/tiny", estimate=refuse)
    assert not list((tmp_path / "hub").rglob("*.safetensors"))


INTERRUPTED = """
from fiddler.hub.download import Estimate, obtain
estimate = Estimate(memory_bytes=1, free_memory_bytes=2, device_bytes=None, tokens_per_second=None)
obtain("acme/tiny", estimate=lambda path: estimate, assume_yes=True, say=lambda line: None)
"""


def test_after_ctrl_c_the_same_command_downloads_the_rest(hub: Hub, published: Path, tmp_path: Path) -> None:
    first, second, last = SHARDS
    hub.stalls[second] = 100_000
    command = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert hub.stalled.wait(60)
        wait_until(lambda: None in hub.downloads(last))  # the files are taken in their order
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted; the files of acme/tiny that are whole are kept, and the same command downloads the" in error
    assert "Traceback" not in error
    assert not list((tmp_path / "hub").rglob("*.incomplete"))
    hub.stalls.clear()
    hub.requests.clear()
    directory = _obtain("acme/tiny")
    assert None not in hub.downloads(first), "it was whole"
    assert None in hub.downloads(second)
    assert all((directory / name).read_bytes() == (published / name).read_bytes() for name in SHARDS)


def test_a_connection_that_breaks_is_resumed(hub: Hub, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 16384)  # it is larger than this model
    hub.breaks[SHARDS[1]] = 100_000
    directory = _obtain("acme/tiny")
    header, whole, rest = hub.downloads(SHARDS[1])
    assert (header, whole) == ("bytes=0-100000", None)
    assert rest is not None
    assert 16384 <= int(rest.removeprefix("bytes=").rstrip("-")) <= 100_000
    assert (directory / SHARDS[1]).read_bytes() == (published / SHARDS[1]).read_bytes()


def test_a_gated_model_wants_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^acme/gated is gated: accept its terms .* `hf auth login`, or set HF_TOKEN"):
        _obtain("acme/gated")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert _obtain("acme/gated").name == COMMIT


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("acme/none", r"has no model acme/none, or it is private: check the name"),
        ("acme/tiny@v9", r"^acme/tiny@v9: acme/tiny has no revision v9 on http://127"),
    ],
)
def test_what_is_missing_is_told(hub: Hub, model: str, error: str) -> None:
    with pytest.raises(UserError, match=error):
        _obtain(model)


def test_offline_only_the_cache_is_used(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = _obtain("acme/tiny")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.requests.clear()
    assert _obtain("acme/tiny") == directory
    with pytest.raises(UserError, match=r"^acme/tiny@v1 is not whole in .*, and HF_HUB_OFFLINE is set: unset it"):
        _obtain("acme/tiny@v1")
    (directory / SHARDS[0]).unlink()
    with pytest.raises(UserError, match=r"^acme/tiny is not whole in"):
        _obtain("acme/tiny")
    assert hub.requests == []


def test_a_hub_that_cannot_be_reached_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1 cannot be reached .* HTTPS_PROXY; .* downloads the rest$"):
        _obtain("acme/tiny")


def test_without_a_terminal_a_download_wants_yes(hub: Hub) -> None:
    expected = (
        r"^acme/tiny needs [\d.]+ MiB of disk, 57 GiB of memory and 3 GiB of the GPU's; at most about 14 tokens/s on "
        r"this machine\. There is no terminal to ask at: add --yes to download it$"
    )
    with pytest.raises(UserError, match=expected):
        _obtain("acme/tiny", assume_yes=False)
    assert not any(None in hub.downloads(name) for name in SHARDS)


@pytest.mark.parametrize("answer", ["y", "n", ""])
def test_at_a_terminal_the_user_is_asked(hub: Hub, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal() as screen:
        monkeypatch.setattr(sys, "stdin", os.fdopen(os.dup(screen.device), "r"))
        monkeypatch.setattr(sys, "stderr", os.fdopen(os.dup(screen.device), "w"))
        screen.type(f"{answer}\n")
        if answer == "y":
            assert download.is_whole(_obtain("acme/tiny", assume_yes=False))
        else:
            with pytest.raises(UserError, match="nothing was downloaded"):
                _obtain("acme/tiny", assume_yes=False)
        assert "tokens/s on this machine. Download it to " in screen.read_rest()


@pytest.mark.filterwarnings("ignore:Not enough free disk space")  # huggingface_hub's, of the small files
def test_a_full_disk_is_told_before_the_download(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1024))
    with pytest.raises(UserError, match=r"^acme/tiny needs [\d.]+ MiB more of the disk with .*, and 1 KiB are free"):
        _obtain("acme/tiny")


def test_memory_that_is_too_small_is_in_the_question() -> None:
    small = Estimate(memory_bytes=2**31, free_memory_bytes=2**30, device_bytes=None, tokens_per_second=None)
    assert str(small) == "2 GiB of memory, and less: only 1 GiB of memory are free"
