"""The gateway's own settings. tests/fiddler/test_settings.py tests where settings come from."""

import re
from pathlib import Path

import pytest

from http_gateway.settings import Settings


def test_flags_go_before_the_environment_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings.toml").write_text('max_prompts = 1\nlisten = "127.0.0.1:1"\ncors_origins = "a, b,"')
    monkeypatch.setenv("FIDDLER_HTTP_MAX_PROMPTS", "2")
    monkeypatch.setenv("FIDDLER_HTTP_LISTEN", "127.0.0.1:2")
    settings = Settings.load(["--config", str(tmp_path / "settings.toml"), "--max-prompts", "3"])
    assert (settings.max_prompts, settings.listen, settings.origins) == (3, "127.0.0.1:2", ["a", "b"])


def test_help_describes_every_setting_and_asks_for_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        Settings.load(["--help"])
    assert caught.value.code == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for name, field in Settings.model_fields.items():
        assert f" --{name.replace('_', '-')}" in text
        assert (field.description or name) in text
    assert "model" not in Settings.model_fields


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--max-request-bytes", "5"),
        ("--max-prompts", "0"),
        ("--grace-seconds", "-1"),
        ("--request-timeout-seconds", "nan"),
    ],
)
def test_a_bad_value_is_refused(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        Settings.load([f"{flag}={value}"])
    assert capsys.readouterr().err.startswith(f"http_gateway: {flag}: ")


def test_allowed_hosts_are_a_list_and_the_host_to_listen_on() -> None:
    assert Settings(allowed_hosts="A.example, b ,", listen="[::1]:1").hosts == frozenset(["a.example", "b", "[::1]"])
    assert Settings(allowed_hosts="a,*").hosts is None
