"""Reads and checks the PEM files of either end of a TLS connection; gRPC reports a wrong one only when a call fails."""

import datetime
import ssl
import time
from pathlib import Path

from fiddler.errors import UserError


class TlsFileError(UserError):
    """A certificate or key file is missing or wrong. The message names the option and the file."""


def read_authorities(option: str, path: Path) -> bytes:
    """The certificates of the authorities that may have signed the other end's certificate.

    Args:
        option: The option that names the file, for the error's message, e.g. "--tls-ca".
        path: The file.

    Raises:
        TlsFileError: It cannot be read, or has no certificate.
    """
    content = _read(option, path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=content.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError, ValueError):
        raise TlsFileError(f"{option}: {path} has no certificate in PEM form") from None
    return content


def read_identity(certificate: tuple[str, Path], key: tuple[str, Path]) -> tuple[bytes, bytes]:
    """A certificate chain, own certificate first, and its private key.

    Args:
        certificate: The option that names the chain's file, and the file.
        key: The option that names the key's file, and the file. The key must not have a passphrase.

    Returns:
        The contents: chain, then key.

    Raises:
        TlsFileError: A file cannot be read or is of another kind, or the key is not the certificate's.
    """
    (certificate_option, certificate_path), (key_option, key_path) = certificate, key
    chain, secret = _read(certificate_option, certificate_path), _read(key_option, key_path)
    if b"-----BEGIN CERTIFICATE-----" not in chain:
        raise TlsFileError(f"{certificate_option}: {certificate_path} has no certificate in PEM form")
    if b"PRIVATE KEY-----" not in secret:
        raise TlsFileError(f"{key_option}: {key_path} has no private key in PEM form")
    if b"ENCRYPTED" in secret:
        raise TlsFileError(f"{key_option}: {key_path} has a passphrase; a service needs a key without one")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate_path, key_path, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            problem = f"{key_path} is not the key of the certificate in {certificate_path}"
        else:
            problem = f"{key_path} and {certificate_path} cannot be read as a key and a certificate"
        raise TlsFileError(f"{key_option}: {problem}") from None
    return chain, secret


def expires_at(option: str, path: Path) -> float:
    """When the first of a file's certificates expires, in seconds since the epoch.

    gRPC serves an expired one without a word, and every client then refuses to connect.

    Raises:
        TlsFileError: It cannot be read, or has no certificate.
    """
    from cryptography import x509  # imported here, because only a service with TLS needs it

    try:
        certificates = x509.load_pem_x509_certificates(_read(option, path))
    except ValueError:
        raise TlsFileError(f"{option}: {path} has no certificate in PEM form") from None
    return min(certificate.not_valid_after_utc.timestamp() for certificate in certificates)


def expiry_warning(option: str, expires: float) -> str:
    """A sentence for the log if the certificates of an option have expired; empty if they have not.

    Args:
        option: The option that names their file.
        expires: What `expires_at` returned.
    """
    if expires > time.time():
        return ""
    date = datetime.datetime.fromtimestamp(expires, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"a certificate in {option} has expired on {date}; callers refuse to connect"


def _read(option: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsFileError(f"{option}: cannot read {path}: {error.strerror}") from None
