"""--expert-format in the GPU service: what the dry run says of a conversion, and a signal while it runs."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fiddler.checkpoint import Checkpoint
from fiddler.convert import cache
from fiddler.convert import conversion as conversion_module
from fiddler.convert.errors import StoppedError
from fiddler.sizes import format_bytes
from gpu_service import __main__ as service
from gpu_service.settings import Settings
from gpu_service.startup import conversion, dry_run, read_bandwidth
from tests.support.pairs import DEMO


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(read_bandwidth, "host_bytes_per_second", lambda: 1e9)
    return tmp_path


def _settings(*arguments: str) -> Settings:
    return Settings.load(["--model", str(DEMO), "--device", "cpu", *arguments])


def _report(settings: Settings) -> dict[str, str]:
    return {name: text.strip() for name, _, text in (line.partition(":") for line in dry_run.report(settings))}


def test_a_dry_run_tells_what_a_conversion_takes_and_makes_nothing(
    cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "free_bytes", lambda directory: 2**20)
    settings = _settings("--expert-format", "int4")
    before, figures = _report(settings), dry_run.figures(settings)
    assert not list(cache_home.iterdir())
    served = conversion.converted(settings).model
    assert served.is_relative_to(cache_home)
    num_bytes = sum(path.stat().st_size for path in served.glob("*.safetensors"))
    assert before["converted"].startswith(
        f"the first start writes {format_bytes(num_bytes)} to {served}, where 1 MiB are free: too little; meanwhile"
    )
    assert figures["bytes_to_convert"] == num_bytes
    assert figures["model"] == "demo"
    after = _report(settings)
    assert after["converted"] == f"{served} is there"
    assert before["model"] == after["model"] == str(DEMO)
    assert "int4 group 32" in before["experts"]
    for told in ("family", "dense", "experts", "limits", "decode"):
        assert before[told] == after[told]


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(conversion_module, "free_bytes", lambda directory: 2**20)
    assert service.main(["--model", str(DEMO), "--device", "cpu", "--expert-format", "int8"]) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("gpu_service: ")]
    assert len(lines) == 1
    assert "1 MiB are free on its disk" in lines[0]


def test_a_signal_ends_a_conversion_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stopped(model: Path, expert_format: str, is_stopped: Callable[[], bool]) -> Path:
        assert not is_stopped()
        signal.raise_signal(signal.SIGTERM)
        assert is_stopped()
        raise StoppedError

    monkeypatch.setattr(cache, "served_model", stopped)
    assert service.main(["--model", str(DEMO), "--device", "cpu", "--expert-format", "int8"]) == 0
    assert "Traceback" not in capfd.readouterr().err


def test_a_model_with_no_more_bits_is_served_as_it_is(tmp_path: Path) -> None:
    served = conversion.converted(_settings("--expert-format", "int4")).model
    settings = Settings.load(["--model", str(served), "--device", "cpu", "--expert-format", "int8"])
    assert conversion.converted(settings).model == served
    assert _report(settings)["converted"] == "none: the experts have no more bits already (int4 group 32)"
    assert Checkpoint.open(served).weight_format == "int4 group 32"
