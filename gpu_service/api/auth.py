"""Who may call the GPU service, and over what: TLS, mutual TLS and bearer tokens.

fiddler/access/tokens.py reads the tokens. settings.RequestLimits bounds what a request may ask for.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import structlog

from fiddler import rpc
from fiddler.access import tls
from fiddler.access.certificates import Certificates
from fiddler.access.tokens import Tokens
from gpu_service.errors import FlagError
from gpu_service.settings import Settings

TOKENS_VARIABLE = "FIDDLER_GPU_TOKENS"
_OPEN_METHODS = "/grpc.health.v1.Health/"  # probes have no token; reflection requires one
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Access:
    """What a caller needs.

    Attributes:
        tokens: One of these; none if empty.
        certificates: The server's side of TLS; None without TLS.
    """

    tokens: Tokens
    certificates: Certificates | None

    @classmethod
    def read(cls, settings: Settings) -> "Access":
        """Reads the files that the settings name.

        Raises:
            UserError: A file is missing or wrong, or the flags contradict each other.
        """
        return cls(Tokens(settings.tokens_file, TOKENS_VARIABLE), _certificates(settings))

    @property
    def is_mutual(self) -> bool:
        """Whether callers need a certificate."""
        return self.certificates is not None and self.certificates.authorities is not None

    @property
    def expiries(self) -> Mapping[str, float]:
        """When the certificates of each TLS option expire, in seconds since the epoch, by the option."""
        return {} if self.certificates is None else self.certificates.expiries

    def credentials(self) -> grpc.ServerCredentials | None:
        """TLS of one server, which follows the files; None without TLS."""
        return None if self.certificates is None else _credentials(self.certificates)

    @property
    def interceptors(self) -> Sequence[grpc.aio.ServerInterceptor]:
        """What the server runs before each call."""
        return [TokenInterceptor(self.tokens)] if self.tokens else []

    def warnings(self, address: str) -> list[str]:
        """Risks of serving at that address, a sentence each."""
        expired = (tls.expiry_warning(option, expires) for option, expires in self.expiries.items())
        warnings = [warning for warning in expired if warning]
        if rpc.is_local(address):
            return warnings
        if self.certificates is None:
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


def _certificates(settings: Settings) -> Certificates | None:
    certificate, key, authorities = settings.tls_cert, settings.tls_key, settings.tls_client_ca
    if certificate is None and key is None and authorities is None:
        return None
    if certificate is None:
        raise FlagError(f"--tls-cert: must be given with {'--tls-key' if key else '--tls-client-ca'}")
    if key is None:
        raise FlagError("--tls-key: must be given with --tls-cert")
    if settings.listen.startswith("unix:"):
        raise FlagError("--tls-cert: a Unix socket has no TLS; the permissions of its file decide who may connect")
    trusted = None if authorities is None else ("--tls-client-ca", authorities)
    return Certificates(("--tls-cert", certificate), ("--tls-key", key), trusted)


def _credentials(certificates: Certificates) -> grpc.ServerCredentials:
    served = certificates.version

    def configuration() -> grpc.ServerCertificateConfiguration:
        pairs = [(certificates.key, certificates.chain)]
        return grpc.ssl_server_certificate_configuration(pairs, certificates.authorities)

    def newer() -> grpc.ServerCertificateConfiguration | None:
        """GRPC asks before each handshake."""
        nonlocal served
        certificates.look()
        if served == certificates.version:
            return None
        served = certificates.version
        return configuration()

    return grpc.dynamic_ssl_server_credentials(
        configuration(),
        newer,  # type: ignore[arg-type] # None is for no change
        require_client_authentication=certificates.authorities is not None,
    )
