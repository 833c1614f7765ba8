"""Addresses: HOST:PORT or unix:PATH, how gRPC has to be given them, and whether they are this host's own."""

import contextlib
import ipaddress
import os
import re
import socket
import threading

_MAX_SOCKET_PATH_BYTES = 96  # sockaddr_un holds 108 with the terminating zero, and listen.py appends a process id
# gRPC parses addresses as URIs, and takes these for the end of the path, for a list, or for encoded characters
_URI_CHARACTERS = "#?,%"
_HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})")
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")
_RESOLVE_SECONDS = 1.0
_ANY_PORT = 9  # nothing is sent to it

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def check_address(address: str) -> str:
    """Returns the address.

    Raises:
        ValueError: It is neither HOST:PORT nor unix:PATH, or gRPC would take the path for another one.
    """
    if address.startswith("unix:"):
        _check_path(address, address.removeprefix("unix:"))
        return address
    match = _HOST_AND_PORT.fullmatch(address)
    if not match or not 1 <= int(match[2]) <= 65535 or (match[1].startswith("[") and _ip_of(address) is None):
        raise ValueError(f"{address!r} is not an address; expected HOST:PORT or unix:PATH")
    return address


def target(address: str) -> str:
    """A checked address as gRPC can resolve it.

    gRPC's resolver knows no abbreviations such as 0 or 127.1, and looks up no name with a final dot in /etc/hosts.
    """
    if address.startswith(("unix:", "[")):
        return address
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        return f"{socket.inet_ntoa(socket.inet_aton(host))}:{port}"
    name = host.removesuffix(".")
    return f"{name}:{port}" if _is_own_name(name) else address


def is_local(address: str) -> bool:
    """Whether only this host can reach an address: a Unix socket, or the loopback interface."""
    if address.startswith("unix:"):
        return True
    ip = _ip_of(address)
    if ip is None:
        return target(address).lower().rpartition(":")[0] == "localhost"
    return ip.is_loopback


def is_this_host(address: str) -> bool:
    """Whether an address is this host's own, so that no proxy can be of use: it would look for it on its own host.

    Names that are neither localhost nor this host's are resolved, for a second at most, if the environment sets a
    proxy.
    """
    if address.startswith("unix:"):
        return True
    ip = _ip_of(address)
    if ip is not None:
        return _is_own(ip)
    name = address.rpartition(":")[0].removesuffix(".")
    if _is_own_name(name):
        return True
    if not any(os.environ.get(variable) or os.environ.get(variable.upper()) for variable in _PROXY_VARIABLES):
        return False
    found = _resolve(name)
    return bool(found) and all(_is_own(ip) for ip in found)


def _check_path(address: str, path: str) -> None:
    if not path or path.endswith("/") or "\0" in path:
        raise ValueError(f"{address!r} does not name a socket; expected unix:PATH")
    if path.startswith("//") and not path.startswith("///"):
        raise ValueError(f"{address!r} names a host, which a socket has not; expected unix:PATH or unix:///PATH")
    if wrong := [character for character in path if character in _URI_CHARACTERS or not character.isprintable()]:
        raise ValueError(f"socket path {path!r} has a {wrong[0]!r}, which gRPC cannot connect to; choose another path")
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES:
        raise ValueError(f"socket path {path} is longer than {_MAX_SOCKET_PATH_BYTES} bytes")


def _ip_of(address: str) -> IpAddress | None:
    """The IP address in HOST:PORT; None if the host is a name, or no address. ::ffff:127.0.0.1 is 127.0.0.1."""
    host = target(address).rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip


def _is_own_name(name: str) -> bool:
    name, own = name.lower(), socket.gethostname().lower()
    return name in ("localhost", own, own.partition(".")[0]) or name.endswith(".localhost")


def _is_own(ip: IpAddress) -> bool:
    if ip.is_loopback or ip.is_unspecified:
        return True
    # the kernel sends from the address itself exactly if it is one of this host's; UDP sends nothing to connect
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(ip), _ANY_PORT))
            return ipaddress.ip_address(probe.getsockname()[0].partition("%")[0]) == ip
    except OSError:  # no route
        return False


def _resolve(name: str) -> list[IpAddress]:
    """The addresses of a name; empty if it has none, or the resolver takes too long."""
    found: list[IpAddress] = []

    def resolve() -> None:
        with contextlib.suppress(OSError, ValueError):
            infos = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            found.extend(ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in infos)

    thread = threading.Thread(target=resolve, name="resolve", daemon=True)
    thread.start()
    thread.join(_RESOLVE_SECONDS)
    return list(found)
