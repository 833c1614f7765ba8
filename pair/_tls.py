"""Asks a GPU service that serves with TLS for its health, by the certificate that it presents."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
from cryptography import x509

from fiddler import rpc
from pair._errors import PairError


@dataclass(frozen=True, slots=True)
class TlsTarget:
    """A server whose certificate is at hand, so that nothing else needs to vouch for it."""

    chain: bytes
    """PEM: the certificate and those that signed it."""
    name: str
    """A name in the certificate, whatever address the server is reached at."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads the certificate's file.

        Raises:
            PairError: It is none, or it names no host.
        """
        try:
            chain = path.read_bytes()
            leaf = x509.load_pem_x509_certificates(chain)[0]
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except OSError as error:
            raise PairError(f"--gpu-tls-cert: cannot read {path}: {error.strerror}") from None
        except (ValueError, x509.ExtensionNotFound) as error:
            raise PairError(f"--gpu-tls-cert: {path} holds no certificate with a subjectAltName: {error}") from None
        hosts = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
        if not hosts:
            raise PairError(f"--gpu-tls-cert: the certificate in {path} names no host")
        return cls(chain, hosts[0])

    def channel(self, address: str, options: Sequence[tuple[str, Any]]) -> grpc.Channel:
        """A channel to an address."""
        credentials = grpc.ssl_channel_credentials(root_certificates=self.chain)
        return grpc.secure_channel(
            rpc.target(address), credentials, [*options, ("grpc.ssl_target_name_override", self.name)]
        )
