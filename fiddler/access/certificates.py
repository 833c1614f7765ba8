"""A server's certificate and key, read again when a file of theirs changes, as tools that renew certificates do it."""

import os
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from fiddler.access import tls
from fiddler.errors import UserError

Option = tuple[str, Path]
"""The option that names a file, for messages, and the file."""

_State = tuple[int, int, int] | None
_log = structlog.get_logger(__name__)


class Certificates:
    """What a server presents, and whose callers it trusts. Any thread may call it.

    Attributes:
        version: How often the files have been read.
        chain: The certificate and those up to its root, in PEM form.
        key: Its private key, in PEM form.
        authorities: Who signs callers' certificates, in PEM form; None if callers need none.
        expiries: When the certificates of each option expire, in seconds since the epoch.
    """

    def __init__(self, certificate: Option, key: Option, authorities: Option | None = None) -> None:
        """Reads the files.

        Raises:
            TlsFileError: One is missing or wrong.
        """
        self._certificate, self._key, self._authorities = certificate, key, authorities
        self._lock = threading.Lock()
        self._on_change: list[Callable[[], None]] = []
        self.version = 0
        self.chain: bytes
        self.key: bytes
        self.authorities: bytes | None
        self.expiries: dict[str, float]
        self._state = self._states()
        self._read()

    def on_change(self, act: Callable[[], None]) -> None:
        """Calls this after the files have been read again."""
        self._on_change.append(act)

    def look(self) -> None:
        """Reads the files if one has changed. If they are wrong, the present ones stay in use; the log says why."""
        with self._lock:
            state = self._states()
            if state == self._state:
                return
            self._state = state
            try:
                self._read()
                for act in self._on_change:
                    act()
            except (UserError, ssl.SSLError, OSError) as error:
                _log.error("reloading certificates failed; the present ones stay in use", error=str(error))
            else:
                _log.info("certificates reloaded", file=str(self._certificate[1]))

    def context(self) -> ssl.SSLContext:
        """A context for the standard library's servers, which follows the files."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

        def load() -> None:
            context.load_cert_chain(self._certificate[1], self._key[1])

        load()
        self.on_change(load)
        return context

    def _read(self) -> None:
        chain, key = tls.read_identity(self._certificate, self._key)
        authorities = tls.read_authorities(*self._authorities) if self._authorities else None
        options = [self._certificate, *([self._authorities] if self._authorities else [])]
        self.expiries = {option: tls.expires_at(option, path) for option, path in options}
        self.chain, self.key, self.authorities = chain, key, authorities
        self.version += 1

    def _states(self) -> list[_State]:
        files = [self._certificate, self._key, *([self._authorities] if self._authorities else [])]
        return [_state_of(path) for _, path in files]


def given(certificate: tuple[str, Path | None], key: tuple[str, Path | None]) -> Certificates | None:
    """The certificates of two options; None if neither is set.

    Raises:
        UserError: Only one of them is set.
        TlsFileError: A file is missing or wrong.
    """
    (certificate_option, certificate_path), (key_option, key_path) = certificate, key
    if certificate_path is None and key_path is None:
        return None
    if certificate_path is None:
        raise UserError(f"{certificate_option}: must be given with {key_option}")
    if key_path is None:
        raise UserError(f"{key_option}: must be given with {certificate_option}")
    return Certificates((certificate_option, certificate_path), (key_option, key_path))


def _state_of(path: Path) -> _State:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
