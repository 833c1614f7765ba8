"""Who may call the GPU service, and over what: TLS, mutual TLS and bearer tokens.

A token is never logged, and only its digest is kept. settings.RequestLimits bounds what a request may ask for.
"""

import hashlib
import hmac
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog

from fiddler import rpc, tls
from gpu_service.errors import FlagError
from gpu_service.settings import Settings

TOKENS_VARIABLE = "FIDDLER_GPU_TOKENS"
_TOKEN = re.compile(r"[\x21-\x7e]+")  # fits into a metadata value, a line and a comma-separated list
_OPEN_METHODS = "/grpc.health.v1.Health/"  # probes have no token; reflection requires one
_log = structlog.get_logger(__name__)


class Tokens:
    """The tokens that are accepted: one per line of a file, and a comma-separated list in the environment."""

    def __init__(self, path: Path | None, listed: str | None) -> None:
        """Reads them.

        Args:
            path: The file. Blank lines and lines that begin with # are skipped.
            listed: Tokens, separated by commas.

        Raises:
            FlagError: The file or the list holds no token, holds something that is no token, or cannot be read.
        """
        self._path = path
        self._listed = [] if listed is None else _tokens_in_list(listed)
        self._digests = self._read()

    def __len__(self) -> int:
        return len(self._digests)

    def reload(self) -> None:
        """Reads the file again. If it is wrong, the present tokens stay valid, and the log says why."""
        try:
            self._digests = self._read()
        except FlagError as error:
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


@dataclass(frozen=True, slots=True)
class Access:
    """What a caller needs.

    Attributes:
        tokens: One of these; none if empty.
        credentials: The server's side of TLS; None without TLS.
        is_mutual: Whether callers need a certificate.
    """

    tokens: Tokens
    credentials: grpc.ServerCredentials | None
    is_mutual: bool

    @classmethod
    def read(cls, settings: Settings) -> "Access":
        """Reads the files that the settings name.

        Raises:
            FlagError, TlsFileError: A file is missing or wrong, or the flags contradict each other.
        """
        tokens = Tokens(settings.tokens_file, os.environ.get(TOKENS_VARIABLE))
        return cls(tokens, _credentials(settings), settings.tls_client_ca is not None)

    @property
    def interceptors(self) -> Sequence[grpc.aio.ServerInterceptor]:
        """What the server runs before each call."""
        return [TokenInterceptor(self.tokens)] if self.tokens else []

    def warnings(self, address: str) -> list[str]:
        """Risks of serving at that address, a sentence each."""
        if rpc.is_local(address):
            return []
        warnings = []
        if self.credentials is None:
            what = "prompts, answers and tokens" if self.tokens else "prompts and answers"
            warnings.append(f"{what} cross the network unencrypted; --tls-cert and --tls-key encrypt them")
        if not self.tokens and not self.is_mutual:
            warnings.append("anyone who reaches the address may call: --tokens-file or --tls-client-ca restricts it")
        return warnings


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Answers UNAUTHENTICATED to every call without a valid token, except for health checks."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Lets a call through, or replaces its handler with a refusal. A refused call's message is not parsed."""
        method = handler_call_details.method
        if method.startswith(_OPEN_METHODS):
            return await continuation(handler_call_details)
        presented = next(
            (value for key, value in handler_call_details.invocation_metadata if key == "authorization"), ""
        )
        scheme, _, token = str(presented).partition(" ")
        if scheme.lower() == "bearer" and token.strip() in self._tokens:
            return await continuation(handler_call_details)
        return _refusal(method, "its token is not valid" if presented else "it has no token")


def _refusal(method: str, problem: str) -> "grpc.RpcMethodHandler[Any, Any]":
    # RFC 6750: without a token there is no error to report
    challenge = 'Bearer error="invalid_token"' if "not valid" in problem else "Bearer"
    message = f"the call is refused: {problem}; send `authorization: Bearer TOKEN` in its metadata"

    async def refuse(requests: object, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        _log.info("call refused", method=method, peer=context.peer(), why=problem)
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, message, (("www-authenticate", challenge),))

    # this kind of handler reads no message, whatever kind the method is; only a status is sent
    return grpc.stream_stream_rpc_method_handler(refuse)


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    certificate, key, authorities = settings.tls_cert, settings.tls_key, settings.tls_client_ca
    if certificate is None and key is None and authorities is None:
        return None
    if certificate is None:
        raise FlagError(f"--tls-cert: must be given with {'--tls-key' if key else '--tls-client-ca'}")
    if key is None:
        raise FlagError("--tls-key: must be given with --tls-cert")
    if settings.listen.startswith("unix:"):
        raise FlagError("--tls-cert: a Unix socket has no TLS; the permissions of its file decide who may connect")
    chain, secret = tls.read_identity(("--tls-cert", certificate), ("--tls-key", key))
    trusted = None if authorities is None else tls.read_authorities("--tls-client-ca", authorities)
    return grpc.ssl_server_credentials([(secret, chain)], trusted, require_client_auth=trusted is not None)


def _tokens_in_file(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FlagError(f"--tokens-file: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FlagError(f"--tokens-file: {path} is not UTF-8 text") from None
    numbered = ((number, line.strip()) for number, line in enumerate(lines, 1))
    tokens = {f"line {number}": line for number, line in numbered if line and not line.startswith("#")}
    return _checked(f"--tokens-file: {path}", tokens)


def _tokens_in_list(listed: str) -> list[str]:
    numbered = enumerate((part.strip() for part in listed.split(",")), 1)
    return _checked(TOKENS_VARIABLE, {f"number {number}": part for number, part in numbered if part})


def _checked(source: str, tokens: dict[str, str]) -> list[str]:
    """The tokens of a source. An error never shows one."""
    if not tokens:  # an empty file was meant to restrict the service, and must not open it to everyone
        raise FlagError(f"{source} holds no token")
    for place, token in tokens.items():
        if not _TOKEN.fullmatch(token):
            raise FlagError(f"{source}: {place} is no token; a token is visible ASCII characters without spaces")
    return list(tokens.values())


def _digest(token: str) -> bytes:
    """Of one length, so that a comparison's time does not reveal a token's length."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()
