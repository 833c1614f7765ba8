"""PEM files, right and wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fiddler.access import tls
from tests.support.certificates import Authority, Identity


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def identity(authority: Authority) -> Identity:
    return authority.identity("server", "localhost")


def read(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    return tls.read_identity(("--cert", certificate), ("--key", key))


def test_what_is_right_is_read_as_it_is(authority: Authority, identity: Identity) -> None:
    assert tls.read_authorities("--ca", authority.certificate) == authority.certificate.read_bytes()
    assert read(identity.certificate, identity.key) == (identity.certificate.read_bytes(), identity.key.read_bytes())


def _missing(path: Path) -> None:
    path.unlink()


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _rubbish(path: Path) -> None:
    path.write_bytes(b"\x00\xff no PEM at all")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _damaged(path: Path) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "AAAA", *lines[2:]]))


WRONG = [
    (_missing, "cannot read {path}: No such file or directory"),
    (_directory, "cannot read {path}: Is a directory"),
    (_rubbish, "{path} has no "),
    (_empty, "{path} has no "),
    (_damaged, "{path}"),
]


@pytest.mark.parametrize(("damage", "problem"), WRONG)
@pytest.mark.parametrize("which", ["--ca", "--cert", "--key"])
def test_a_file_that_is_wrong_is_named_with_its_option(
    which: str, damage: Callable[[Path], None], problem: str, authority: Authority, identity: Identity, tmp_path: Path
) -> None:
    originals = {"--ca": authority.certificate, "--cert": identity.certificate, "--key": identity.key}
    files = {option: tmp_path / f"{option}.pem" for option in originals}
    for option, path in files.items():
        path.write_bytes(originals[option].read_bytes())
    damage(files[which])
    with pytest.raises(tls.TlsFileError) as raised:
        _ = read(files["--cert"], files["--key"]), tls.read_authorities("--ca", files["--ca"])
    assert "\n" not in str(raised.value)
    assert problem.format(path=files[which]) in str(raised.value)
    assert str(raised.value).startswith("--key: " if damage is _damaged and which == "--cert" else f"{which}: ")


def test_a_key_of_another_certificate_is_told_so(authority: Authority, identity: Identity) -> None:
    other = authority.identity("other")
    with pytest.raises(tls.TlsFileError, match=f"{other.key} is not the key of the certificate in"):
        read(identity.certificate, other.key)


def test_a_key_with_a_passphrase_is_refused_without_asking_for_it(authority: Authority) -> None:
    locked = authority.identity("locked", passphrase=b"secret")
    with pytest.raises(tls.TlsFileError, match="has a passphrase"):
        read(locked.certificate, locked.key)


def test_key_and_certificate_may_share_a_file(identity: Identity, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(identity.key.read_bytes() + identity.certificate.read_bytes())
    assert read(both, both) == (both.read_bytes(), both.read_bytes())
