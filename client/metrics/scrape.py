"""Reads and parses one service's /metrics. rates.py compares two readings."""

from __future__ import annotations

import math
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from client._errors import ClientError, DeadlineError, InvalidRequestError, ServerError, UnavailableError
from client.metrics import names

Labels = tuple[tuple[str, str], ...]
"""The labels of a series and their values, sorted by label."""

# the lines of single experts, of which there may be 40,000: the library takes 25 us for each
_OF_AN_EXPERT = re.compile(r'^(fiddler_\w+)\{layer="(\d+)",expert="(\d+)"\} ([\d.e+]+)\n', re.MULTILINE)
_PATH = "/metrics"
_MOST_BYTES = 64 * 2**20
# Endpoints are in the local network. Ignore a proxy that the environment sets.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True)
class Series:
    """Values by sample name and labels.

    Attributes:
        series: The values, by sample name and then by labels.
    """

    series: Mapping[str, Mapping[Labels, float]]

    def value(self, name: str, **labels: str) -> float | None:
        """The sum of a metric's series that have these labels, whatever others they have; None if there are none."""
        wanted = labels.items()
        found = [value for key, value in self.series.get(name, {}).items() if wanted <= dict(key).items()]
        return sum(found) if found else None

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """A metric's values by the values of these labels, summed over all others; empty if it is not exported."""
        sums: dict[tuple[str, ...], float] = {}
        for key, value in self.series.get(name, {}).items():
            own = dict(key)
            group = tuple(own.get(label, "") for label in labels)
            sums[group] = sums.get(group, 0.0) + value
        return sums


@dataclass(frozen=True, slots=True)
class Exposition(Series):
    """One reading of what a service exports.

    Attributes:
        at_seconds: When it was read, on the monotonic clock.
    """

    at_seconds: float


class Endpoint:
    """Where a service exports its metrics."""

    def __init__(self, option: str, service: str, address: str) -> None:
        """Checks the address. Nothing is read yet.

        Args:
            option: The option that names it, for errors: "--gpu" or "--cpu".
            service: The service's name in fiddler_build_info.
            address: A URL, or HOST:PORT for http://HOST:PORT/metrics.

        Raises:
            InvalidRequestError: It is neither.
        """
        self._option = option
        self._service = service
        self.url = _url(option, address)

    def scrape(self, timeout_seconds: float) -> Exposition:
        """Reads what is exported now.

        Raises:
            UnavailableError: Nothing listens at the address.
            DeadlineError: The answer took too long.
            ServerError: The answer is not the service's /metrics.
        """
        try:
            with _OPENER.open(self.url, timeout=timeout_seconds) as response:
                body = response.read(_MOST_BYTES)
        except urllib.error.HTTPError as error:
            raise self._error(ServerError, f"answers HTTP {error.code} {error.reason}") from None
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, TimeoutError):
                raise self._error(DeadlineError, f"no answer within {timeout_seconds:g} s") from None
            if isinstance(reason, OSError):
                raise self._error(UnavailableError, _words(reason)) from None
            raise self._error(ServerError, f"no HTTP answer: {reason!r}") from None
        exposition = self._parse(body)
        self._check_service(exposition)
        return exposition

    def _parse(self, body: bytes) -> Exposition:
        at_seconds = time.monotonic()
        try:
            return parse(body.decode(), at_seconds)
        except ValueError:  # includes UnicodeDecodeError
            raise self._error(ServerError, "what answers there serves no Prometheus metrics") from None

    def _check_service(self, exposition: Exposition) -> None:
        services = [service for (service,) in exposition.by(names.BUILD, "service")]
        if services != [self._service]:
            whose = f"the metrics of {services[0]}" if services else "metrics, but none of fiddler's"
            raise self._error(ServerError, f"serves {whose}, not those of {self._service}")

    def _error(self, kind: type[ClientError], problem: str) -> ClientError:
        import grpc  # only for its status codes, so imported only when needed

        codes = {UnavailableError: grpc.StatusCode.UNAVAILABLE, DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED}
        return kind(f"{self._option} {self.url}: {problem}", codes.get(kind, grpc.StatusCode.UNKNOWN))


def parse(text: str, at_seconds: float) -> Exposition:
    """Parses an exposition in Prometheus' text format.

    Raises:
        ValueError: The text is not an exposition.
    """
    series: dict[str, dict[Labels, float]] = {}
    for name, layer, expert, value in _OF_AN_EXPERT.findall(text):
        series.setdefault(name, {})[("expert", expert), ("layer", layer)] = float(value)
    for family in text_string_to_metric_families(_OF_AN_EXPERT.sub("", text)):
        for sample in family.samples:
            if not math.isnan(sample.value):
                series.setdefault(sample.name, {})[_labels(sample.labels.items())] = sample.value
    return Exposition(series, at_seconds)


def _labels(items: Iterable[tuple[str, str]]) -> Labels:
    return tuple(sorted(items))


def _url(option: str, address: str) -> str:
    url = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or re.search(r"[\s\x00-\x1f]", url) or ("://" not in address and parts.port is None):
        import grpc

        problem = f"must be HOST:PORT or the URL of a service's /metrics, got {address!r}"
        raise InvalidRequestError(f"{option}: {problem}", grpc.StatusCode.INVALID_ARGUMENT, option)
    return url if parts.path not in ("", "/") else f"{parts.scheme}://{parts.netloc}{_PATH}"


def _words(error: OSError) -> str:
    return (error.strerror or str(error) or type(error).__name__).lower()
