"""Who may call the GPU service, and over what: TLS, mutual TLS and bearer tokens.

A token is never logged, and only its digest is kept. What a caller's request may ask for is in limits.py.
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
_TOKEN = re.compile(r"[\x21-\x7e]+")  # what a metadata value holds and a line or a list cannot break
_OPEN_METHODS = "/grpc.health.v1.Health/"  # probes have no secrets; reflection describes the service and is covered
_log = structlog.get_logger(__name__)


class Tokens:
    """The tokens that callers may present: of a file, one in each line, and of the environment, between commas."""

    def __init__(self, path: Path | None, listed: str | None) -> None:
        """Reads them.

        Args:
            path: The file. Blank lines and lines that begin with # say nothing.
            listed: Tokens, separated by commas.

        Raises:
            FlagError: One of the two is there and holds none, or cannot be read, or something in it is no token.
        """
        self._path = path
        self._listed = [] if listed is None else _tokens_in_list(listed)
        self._digests = self._read()

    def __len__(self) -> int:
        return len(self._digests)

    def reload(self) -> None:
        """Reads the file anew; where it is wrong, the tokens stay as they were and the log says why."""
        try:
            self._digests = self._read()
        except FlagError as error:
            _log.error("the tokens stay as they were", error=str(error))
        else:
            _log.info("tokens read", count=len(self._digests))

    def __contains__(self, token: str) -> bool:
        """Whether a caller's token is one of them. It takes as long whichever it is, and whatever it is like."""
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
    """How the service is guarded.

    Attributes:
        tokens: What callers must present; empty where nothing is asked of them.
        credentials: The server's side of TLS; None where there is none.
        is_mutual: Whether callers must have a certificate.
    """

    tokens: Tokens
    credentials: grpc.ServerCredentials | None
    is_mutual: bool

    @classmethod
    def read(cls, settings: Settings) -> "Access":
        """Reads the files that the settings name.

        Raises:
            FlagError, TlsFileError: One is missing or wrong, or they do not make sense together.
        """
        tokens = Tokens(settings.tokens_file, os.environ.get(TOKENS_VARIABLE))
        return cls(tokens, _credentials(settings), settings.tls_client_ca is not None)

    @property
    def interceptors(self) -> Sequence[grpc.aio.ServerInterceptor]:
        """What the server runs before any call."""
        return [TokenInterceptor(self.tokens)] if self.tokens else []

    def warnings(self, address: str) -> list[str]:
        """What whoever runs the service at that address should know, a sentence each."""
        if rpc.is_local(address):
            return []
        warnings = []
        if self.credentials is None:
            what = "prompts, answers and tokens" if self.tokens else "prompts and answers"
            warnings.append(f"{what} cross the network unencrypted: --tls-cert and --tls-key encrypt them")
        if not self.tokens and not self.is_mutual:
            warnings.append("whoever reaches the address may use it: --tokens-file or --tls-client-ca asks who calls")
        return warnings


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Answers UNAUTHENTICATED to every call without a valid token, health checks excepted."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Lets a call through, or puts a refusal in its handler's place. The call's message is not even parsed."""
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
    # RFC 6750: only a token that was there can be invalid
    challenge = 'Bearer error="invalid_token"' if "not valid" in problem else "Bearer"
    message = f"the call is refused: {problem}; send `authorization: Bearer TOKEN` in its metadata"

    async def refuse(requests: object, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        _log.info("call refused", method=method, peer=context.peer(), why=problem)
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, message, (("www-authenticate", challenge),))

    # of a kind that reads no message, whatever the method's own is: only a status is sent
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
        raise FlagError("--tls-cert: a Unix socket has no TLS; its file's permissions say who may connect")
    chain, secret = tls.read_identity(("--tls-cert", certificate), ("--tls-key", key))
    trusted = None if authorities is None else tls.read_authorities("--tls-client-ca", authorities)
    return grpc.ssl_server_credentials([(secret, chain)], trusted, require_client_auth=trusted is not None)


def _tokens_in_file(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FlagError(f"--tokens-file: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FlagError(f"--tokens-file: {path} is no text") from None
    numbered = ((number, line.strip()) for number, line in enumerate(lines, 1))
    said = {f"line {number}": line for number, line in numbered if line and not line.startswith("#")}
    return _checked(f"--tokens-file: {path}", said)


def _tokens_in_list(listed: str) -> list[str]:
    numbered = enumerate((part.strip() for part in listed.split(",")), 1)
    return _checked(TOKENS_VARIABLE, {f"number {number}": part for number, part in numbered if part})


def _checked(source: str, tokens: dict[str, str]) -> list[str]:
    """The tokens, by their place in the source. An error shows none of them."""
    if not tokens:  # what was meant to hold some must not, when it is empty, open the service to everybody
        raise FlagError(f"{source} holds no token")
    for place, token in tokens.items():
        if not _TOKEN.fullmatch(token):
            raise FlagError(f"{source}: {place} is no token: visible ASCII characters without spaces")
    return list(tokens.values())


def _digest(token: str) -> bytes:
    """All of one length, so that comparing them tells nothing of a token's own."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()
