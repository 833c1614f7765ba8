"""Draws a snapshot: figures above, maps below, fitted to the screen."""

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from client.metrics.snapshot import ROUTES, Quantiles, Service, Snapshot
from client.top import heat, maps

_ROUTE_STYLES = {"resident": "green", "streamed": "yellow", "remote": "cyan"}
_BAR_COLUMNS = 24
_NOT_AVAILABLE = "not available"


@dataclass(frozen=True, slots=True)
class View:
    """A snapshot that rich can print.

    Attributes:
        snapshot: What to show.
        choice: Which maps to show.
        half_life_seconds: The half-life of the decayed map.
        live: Whether the view fills the screen and names the keys; otherwise it is as long as needed.
    """

    snapshot: Snapshot
    choice: maps.Choice = "auto"
    half_life_seconds: float = 60.0
    live: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draws the view in the size of the screen."""
        ink = maps.Ink(console.color_system is not None and not console.no_color, options.ascii_only)
        head = [*self._services(), *self._figures(ink), Text()]
        foot = self._legend(ink)
        yield from head
        if self.snapshot.layers:
            # options.size and not options.height, which rich does not pass on through a Screen
            rows = options.size.height - len(head) - len(foot) if self.live else None
            yield maps.table(
                self.snapshot.layers,
                choice=self.choice,
                window=self._window(),
                ink=ink,
                columns=options.max_width,
                rows=rows,
            )
        yield from foot

    def _window(self) -> str:
        seconds = self.snapshot.window_seconds
        return "no reading to compare with yet" if seconds is None else f"last {seconds:.3g} s"

    def _services(self) -> Iterator[Text]:
        line = Text(no_wrap=True, overflow="ellipsis")
        problems = []
        services = (
            ("GPU service", self.snapshot.gpu_service),
            ("CPU expert service", self.snapshot.cpu_expert_service),
        )
        for name, service in services:
            line.append(f"{name} ", "bold").append_text(_state(service)).append("   ")
            if service and service.error:
                problems.append(Text(f"{name}: {service.error}", "red", no_wrap=True, overflow="ellipsis"))
        yield line.append(self._window(), "dim")
        yield from problems
        if self.snapshot.degraded:
            message = "DEGRADED: the CPU expert service is lost; its experts are computed by the GPU service"
            yield Text(message, "bold white on red", no_wrap=True, overflow="ellipsis")

    def _figures(self, ink: maps.Ink) -> Iterator[Text]:
        snapshot = self.snapshot
        tokens = f"{_number(snapshot.tokens_per_second)} generated, {_number(snapshot.prompt_tokens_per_second)} prompt"
        requests = f"{_count(snapshot.running)} running, {_count(snapshot.waiting)} waiting"
        yield _line("tokens/s", Text(f"{tokens}   {requests}"))
        first, next_ones = snapshot.time_to_first_token_seconds, snapshot.inter_token_seconds
        latencies = f"first token {_quantiles(first)}   next ones {_quantiles(next_ones)}   (p50/p90/p99)"
        yield _line("latency", Text(latencies))
        yield _line("routes", self._routes(ink))
        yield _line("bandwidth", self._bandwidth(ink))
        yield _line("hottest", self._hottest(ink))

    def _routes(self, ink: maps.Ink) -> Text:
        shares = self.snapshot.routes
        if shares is None:
            return Text("no tokens" if any(layer.routes for layer in self.snapshot.layers) else _NOT_AVAILABLE, "dim")
        parts = [(shares.get(route, 0.0), _ROUTE_STYLES[route]) for route in ROUTES]
        words = "   ".join(f"{route} {100 * shares.get(route, 0.0):.0f} %" for route in ROUTES)
        swaps = "" if self.snapshot.swaps is None else f"   {self.snapshot.swaps:.0f} swapped in"
        return _bar(parts, ink).append(f" {words}{swaps}")

    def _bandwidth(self, ink: maps.Ink) -> Text:
        bandwidth = self.snapshot.bandwidth
        achieved, limit, busy = (
            bandwidth.achieved_bytes_per_second,
            bandwidth.measured_bytes_per_second,
            bandwidth.busy,
        )
        measured = "" if limit is None else f"{_gigabytes(limit)} GB/s measured"
        computing = "" if busy is None else f"   computing {100 * busy:.0f} %"
        if achieved is None:
            state = "idle" if busy == 0 else f"achieved {_NOT_AVAILABLE}"
            return Text(f"{state}, {measured}{computing}" if measured else state, "dim")
        if not limit:
            return Text(f"{_gigabytes(achieved)} GB/s, limit {_NOT_AVAILABLE}{computing}")
        share = f" {_gigabytes(achieved)} of {measured} ({100 * achieved / limit:.0f} %)"
        return _bar([(achieved / limit, "magenta")], ink).append(f"{share}{computing}")

    def _hottest(self, ink: maps.Ink) -> Text:
        if not self.snapshot.hottest:
            exported = maps.num_experts(self.snapshot.layers)
            return Text("no tokens" if exported else _NOT_AVAILABLE, "dim")
        line = Text()
        for hot in self.snapshot.hottest:
            mark = ink.all_resident if hot.resident else ""
            line.append(f"L{hot.layer}/E{hot.expert} {100 * hot.share:.0f} %{mark}   ")
        return line

    def _legend(self, ink: maps.Ink) -> list[Text]:
        layers = self.snapshot.layers
        keys = "   q quit, m maps" if self.live else ""
        if not layers or not maps.num_experts(layers):
            reason = "the GPU service exports no selections by expert (--metrics-by-expert)"
            if not layers:
                reason = "no layers are known"
            elif self.snapshot.window_seconds is None:
                reason = "no reading to compare with yet"
            return [Text(f"map {_NOT_AVAILABLE}: {reason}{keys}", "dim", no_wrap=True, overflow="ellipsis")]
        line = Text(style="dim", no_wrap=True, overflow="ellipsis")
        if ink.colours:
            for step in range(8):
                red, green, blue = heat.colour(step, 7)
                line.append(" ", f"on rgb({red},{green},{blue})")
        else:
            line.append(f"[{maps.SHADES}]")
        line.append(f" 0 to {maps.scale(layers):.1f} times the even share")
        flags = any(layer.resident is not None for layer in layers)
        line.append(f"   {ink.all_resident} on the device" if flags else "   resident experts not exported")
        return [line.append(f"{keys}   decayed: half-life {self.half_life_seconds:g} s")]


def _line(label: str, content: Text) -> Text:
    return Text.assemble((f"{label:<10} ", "bold"), content, no_wrap=True, overflow="ellipsis")


def _state(service: Service | None) -> Text:
    if service is None:
        return Text("not asked", "dim")
    if service.error:
        return Text("does not answer", "red")
    return Text(urlsplit(service.url).netloc, "green")


def _bar(parts: list[tuple[float, str]], ink: maps.Ink) -> Text:
    """A bar of shares, each with its style; the rest is dotted."""
    glyphs = "#=-" if ink.ascii_only else "█▓▒"
    bar = Text()
    end = 0.0
    for (share, style), glyph in zip(parts, glyphs, strict=False):
        end = min(1.0, end + share)
        bar.append(glyph * (round(end * _BAR_COLUMNS) - len(bar)), style)
    return bar.append("." * (_BAR_COLUMNS - len(bar)), "dim")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _quantiles(quantiles: Quantiles | None) -> str:
    if quantiles is None:
        return "-"
    factor, unit = (1, "s") if quantiles.p90 >= 1 else (1000, "ms")
    return "/".join(f"{factor * q:.3g}" for q in (quantiles.p50, quantiles.p90, quantiles.p99)) + f" {unit}"


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3g}"
