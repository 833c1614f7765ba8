"""Answers only to the names that the gateway is known by.

A page in a browser may come from a name that its owner makes stand for 127.0.0.1 after the page is loaded (DNS
rebinding). To the browser the gateway is then of the page's own origin, but the Host header still has that name.
"""

import ipaddress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from http_gateway.errors import ApiError

_LOCAL = "localhost"
_OPEN = ("/health", "/metrics")  # probes come by many names, and these tell nothing of a conversation


class KnownHosts:
    """Refuses requests whose Host is neither an address, nor of this machine, nor allowed."""

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        """Wraps an application.

        Args:
            app: The application.
            names: The host names that are allowed, in lower case.
        """
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application, or answers with the error."""
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            for host in Headers(scope=scope).getlist("host"):
                if not self._is_known(host):
                    error = ApiError(
                        403,
                        f"the gateway is not known by the host name {_name_of(host)[:255]!r}; "
                        "--allowed-hosts makes it known",
                        code="host_not_allowed",
                    )
                    await error.response()(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    def _is_known(self, host: str) -> bool:
        name = _name_of(host).lower().removesuffix(".")
        if name == _LOCAL or name.endswith(f".{_LOCAL}") or name in self._names:
            return True
        try:
            ipaddress.ip_address(name)  # a browser never resolves an address to another
        except ValueError:
            return False
        return True


def _name_of(host: str) -> str:
    """The Host header without the port, and without the brackets of an IPv6 address."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host
