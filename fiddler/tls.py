"""PEM files of a TLS connection, for either end of it, checked: gRPC says nothing of a wrong one until a call fails."""

import ssl
from pathlib import Path

from fiddler.errors import UserError


class TlsFileError(UserError):
    """A file is missing or is not what it should be. The message names the option and the file."""


def read_authorities(option: str, path: Path) -> bytes:
    """The certificates of who may have signed the other end's.

    Args:
        option: Who names the file, for the error's message, e.g. "--tls-ca".
        path: The file.

    Raises:
        TlsFileError: It cannot be read, or holds no certificate.
    """
    content = _read(option, path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=content.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError, ValueError):
        raise TlsFileError(f"{option}: {path} holds no certificate in PEM form") from None
    return content


def read_identity(certificate: tuple[str, Path], key: tuple[str, Path]) -> tuple[bytes, bytes]:
    """A certificate chain, own certificate first, and its private key.

    Args:
        certificate: The option that names the chain's file, and the file.
        key: The same of the key, which has no passphrase.

    Returns:
        The contents: chain, then key.

    Raises:
        TlsFileError: One cannot be read or is no such file, or they do not belong together.
    """
    (certificate_option, certificate_path), (key_option, key_path) = certificate, key
    chain, secret = _read(certificate_option, certificate_path), _read(key_option, key_path)
    if b"-----BEGIN CERTIFICATE-----" not in chain:
        raise TlsFileError(f"{certificate_option}: {certificate_path} holds no certificate in PEM form")
    if b"PRIVATE KEY-----" not in secret:
        raise TlsFileError(f"{key_option}: {key_path} holds no private key in PEM form")
    if b"ENCRYPTED" in secret:
        raise TlsFileError(f"{key_option}: {key_path} has a passphrase; a service needs a key without one")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate_path, key_path, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            problem = f"{key_path} is not the key of the certificate in {certificate_path}"
        else:
            problem = f"{key_path} and {certificate_path} are no key and certificate that can be read"
        raise TlsFileError(f"{key_option}: {problem}") from None
    return chain, secret


def _read(option: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsFileError(f"{option}: cannot read {path}: {error.strerror}") from None
