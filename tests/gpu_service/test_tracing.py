"""Tracing without a collector, and without OpenTelemetry."""

import sys
from pathlib import Path

import pytest

from gpu_service import tracing
from gpu_service.errors import FlagError
from gpu_service.settings import Settings


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(
        FlagError, match=r"^--traces-endpoint: OpenTelemetry is not installed .*'fiddler-moe\[tracing\]'$"
    ):
        tracing.provider_for("http://127.0.0.1:4318/v1/traces")


@pytest.mark.parametrize("value", ["127.0.0.1:4318", "grpc://a:4317", "http://", "http://a b/"])
def test_what_is_no_url_is_named(value: str) -> None:
    with pytest.raises(ValueError, match="must be the URL of an OTLP endpoint"):
        Settings(model=Path("m"), traces_endpoint=value)
