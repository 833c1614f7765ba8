"""A pair whose GPU service serves with TLS: it is known to be ready by the certificate that it presents."""

import json
import urllib.request
from pathlib import Path

import pytest

from client import Client
from pair import Pair, PairError
from pair._tls import TlsTarget
from tests.support.certificates import Authority
from tests.support.pairs import WarmPair
from tests.support.ports import free_port


def test_a_pair_with_tls_is_ready_when_its_certificate_answers(tiny: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    identity = authority.identity("inference.example")  # not the address that the pair is reached at
    chain = tmp_path / "chain.pem"
    chain.write_bytes(identity.certificate.read_bytes() + authority.certificate.read_bytes())
    flags = ("--device", "cpu", "--tls-cert", str(chain), "--tls-key", str(identity.key))
    address = f"127.0.0.1:{free_port()}"
    with WarmPair(tiny, gpu_arguments=flags, certificate=chain, http=address) as pair:
        assert not pair.is_serving(pair.target), "without TLS nothing answers"
        name = "inference.example"
        with Client(pair.target, tls_ca=authority.certificate, tls_server_name=name) as client:
            assert client.model_info().name == tiny.name
        with urllib.request.urlopen(f"http://{address}/v1/models", timeout=20) as answer:
            assert json.load(answer)["data"][0]["id"] == tiny.name


def test_the_name_is_the_certificates_own(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    assert TlsTarget.read(authority.identity("a", "gpu.example", "10.0.0.1").certificate).name == "gpu.example"
    assert TlsTarget.read(authority.identity("b", "10.0.0.1").certificate).name == "10.0.0.1"


@pytest.mark.parametrize(
    ("content", "error"),
    [(None, r"^--gpu-tls-cert: cannot read .*: No such file"), (b"text", r"^--gpu-tls-cert: .* holds no certificate")],
)
def test_what_is_no_certificate_is_told(content: bytes | None, error: str, tmp_path: Path) -> None:
    path = tmp_path / "server.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PairError, match=error):
        Pair(tmp_path, certificate=path)
