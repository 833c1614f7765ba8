"""The bearer tokens that a program accepts. A token is never logged, and only its digest is kept."""

import hashlib
import hmac
import os
import re
from pathlib import Path

import structlog

from fiddler.errors import UserError

_TOKEN = re.compile(r"[\x21-\x7e]+")  # fits into a metadata value, a line and a comma-separated list
_log = structlog.get_logger(__name__)


class Tokens:
    """The tokens that are accepted: one per line of a file, and a comma-separated list in the environment."""

    def __init__(self, path: Path | None, variable: str) -> None:
        """Reads them.

        Args:
            path: The file of --tokens-file. Blank lines and lines that begin with # are skipped.
            variable: The environment variable that holds further tokens, separated by commas, if it is set.

        Raises:
            UserError: The file or the list holds no token, holds something that is no token, or cannot be read.
        """
        self._path = path
        listed = os.environ.get(variable)
        self._listed = [] if listed is None else _tokens_in_list(variable, listed)
        self._digests = self._read()

    def __len__(self) -> int:
        return len(self._digests)

    def reload(self) -> None:
        """Reads the file again. If it is wrong, the present tokens stay valid, and the log says why."""
        try:
            self._digests = self._read()
        except UserError as error:
            _log.error("reloading tokens failed; the present ones stay valid", error=str(error))
        else:
            _log.info("tokens reloaded", count=len(self._digests))

    def __contains__(self, token: str) -> bool:
        """Whether a caller's token is accepted. The time that this takes does not depend on the token."""
        presented = _digest(token)
        found = False
        for digest in self._digests:
            found |= hmac.compare_digest(digest, presented)
        return found

    def _read(self) -> tuple[bytes, ...]:
        in_file = [] if self._path is None else _tokens_in_file(self._path)
        return tuple(_digest(token) for token in [*self._listed, *in_file])


def _tokens_in_file(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"--tokens-file: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"--tokens-file: {path} is not UTF-8 text") from None
    numbered = ((number, line.strip()) for number, line in enumerate(lines, 1))
    tokens = {f"line {number}": line for number, line in numbered if line and not line.startswith("#")}
    return _checked(f"--tokens-file: {path}", tokens)


def _tokens_in_list(variable: str, listed: str) -> list[str]:
    numbered = enumerate((part.strip() for part in listed.split(",")), 1)
    return _checked(variable, {f"number {number}": part for number, part in numbered if part})


def _checked(source: str, tokens: dict[str, str]) -> list[str]:
    """The tokens of a source. An error never shows one."""
    if not tokens:  # an empty file was meant to restrict the service, and must not open it to everyone
        raise UserError(f"{source} holds no token")
    for place, token in tokens.items():
        if not _TOKEN.fullmatch(token):
            raise UserError(f"{source}: {place} is no token; a token is visible ASCII characters without spaces")
    return list(tokens.values())


def _digest(token: str) -> bytes:
    """Of one length, so that a comparison's time does not reveal a token's length."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()
