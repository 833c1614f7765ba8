"""The tokens of a file and of the environment, and what is refused."""

from pathlib import Path

import pytest
import structlog

from fiddler.access.tokens import Tokens
from fiddler.errors import UserError

VARIABLE = "FIDDLER_TOY_TOKENS"
GOOD, OTHER = "kmX8-first_token.7~=", "a-second-token"


def tokens_file(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_tokens_of_file_and_environment_are_taken_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "one, two,,")
    path = tokens_file(tmp_path / "tokens", "# for the gateway", GOOD, "", f"  {OTHER}  ")
    tokens = Tokens(path, VARIABLE)
    assert all(token in tokens for token in (GOOD, OTHER, "one", "two"))
    assert not any(token in tokens for token in ("", "#", "# for the gateway", GOOD[:-1], GOOD + "x", "three", "ö"))
    assert len(tokens) == 4


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot read {path}: No such file or directory"),
        (b"", "{path} holds no token"),
        (b"# nothing but this\n\n", "{path} holds no token"),
        (b"good\n# a comment\nnot good\n", "{path}: line 3 is no token"),
        ("schl\u00fcssel".encode(), "{path}: line 1 is no token"),
        (b"\xff\xfe", "{path} is not UTF-8 text"),
    ],
)
def test_a_wrong_file_is_refused_without_showing_it(content: bytes | None, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="--tokens-file: ") as raised:
        Tokens(path, VARIABLE)
    assert problem.format(path=path) in str(raised.value)
    assert "not good" not in str(raised.value)


@pytest.mark.parametrize("listed", ["", " , ", "fine, not fine"])
def test_an_environment_without_tokens_is_refused_and_does_not_open_the_service(
    listed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, listed)
    with pytest.raises(UserError, match=f"^{VARIABLE}") as raised:
        Tokens(None, VARIABLE)
    assert "not fine" not in str(raised.value)


def test_the_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "always")
    path = tokens_file(tmp_path / "tokens", GOOD)
    tokens = Tokens(path, VARIABLE)
    tokens_file(path, OTHER)
    assert GOOD in tokens
    tokens.reload()
    assert (GOOD in tokens, OTHER in tokens, "always" in tokens) == (False, True, True)


def test_a_file_that_has_become_wrong_changes_nothing(tmp_path: Path) -> None:
    path = tokens_file(tmp_path / "tokens", GOOD)
    tokens = Tokens(path, VARIABLE)
    path.write_text("")
    with structlog.testing.capture_logs() as logs:
        tokens.reload()
    assert GOOD in tokens
    assert [(log["log_level"], log["error"]) for log in logs] == [("error", f"--tokens-file: {path} holds no token")]
