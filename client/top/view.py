"""Draws a snapshot: figures above, maps below, fitted to the screen."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from client.metrics.snapshot import ROUTES, Quantiles, Service, Snapshot
from client.top import heat, maps

_ROUTE_STYLES = {"resident": "green", "streamed": "yellow", "remote": "cyan"}
_BAR_COLUMNS = range(6, 25)  # narrow terminals have short bars, so that what stands after them is seen
_LABEL_COLUMNS = 11
_ROWS_FOR_WORDS = 30  # of a screen: a lower one has more of the map instead of what its headings mean
_GAP = "   "
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
        columns = options.max_width
        head = [*self._services(columns), *self._figures(ink, columns), Text()]
        is_low = self.live and options.size.height < _ROWS_FOR_WORDS
        foot = self._legend(ink, columns, with_words=not is_low)
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

    def _services(self, columns: int) -> Iterator[Text]:
        parts = []
        problems = []
        services = (
            ("GPU service", self.snapshot.gpu_service),
            ("CPU expert service", self.snapshot.cpu_expert_service),
        )
        for name, service in services:
            parts.append(Text.assemble((f"{name} ", "bold"), _state(service)))
            if service and service.error:
                problems.append(Text(f"{name}: {service.error}", "red", no_wrap=True, overflow="ellipsis"))
        yield from _lines([*parts, Text(self._window(), "dim")], columns)
        yield from problems
        if self.snapshot.degraded:
            message = "DEGRADED: the CPU expert service is lost; its experts are computed by the GPU service"
            yield Text(message, "bold white on red", no_wrap=True, overflow="ellipsis")

    def _figures(self, ink: maps.Ink, columns: int) -> Iterator[Text]:
        snapshot = self.snapshot
        tokens = f"{_number(snapshot.tokens_per_second)} generated, {_number(snapshot.prompt_tokens_per_second)} prompt"
        requests = f"{_count(snapshot.running)} running, {_count(snapshot.waiting)} waiting"
        yield _line("tokens/s", Text(f"{tokens}{_GAP}{requests}"))
        first, next_ones = snapshot.time_to_first_token_seconds, snapshot.inter_token_seconds
        latencies = f"first token {_quantiles(first)}, next ones {_quantiles(next_ones)} (p50/p90/p99)"
        yield _line("latency", Text(latencies))
        yield _line("routes", self._routes(ink, columns))
        yield _line("bandwidth", self._bandwidth(ink, columns))
        yield _line("hottest", self._hottest(ink, columns - _LABEL_COLUMNS))

    def _routes(self, ink: maps.Ink, columns: int) -> Text:
        shares = self.snapshot.routes
        if shares is None:
            return Text("no tokens" if any(layer.routes for layer in self.snapshot.layers) else _NOT_AVAILABLE, "dim")
        parts = [(shares.get(route, 0.0), _ROUTE_STYLES[route]) for route in ROUTES]
        words = "  ".join(f"{route} {100 * shares.get(route, 0.0):.0f} %" for route in ROUTES)
        swaps = "" if self.snapshot.swaps is None else f"  {self.snapshot.swaps:.0f} swapped in"
        return _bar_before(f"{words}{swaps}", parts, ink, columns)

    def _bandwidth(self, ink: maps.Ink, columns: int) -> Text:
        bandwidth = self.snapshot.bandwidth
        achieved, limit, busy = (
            bandwidth.achieved_bytes_per_second,
            bandwidth.measured_bytes_per_second,
            bandwidth.busy,
        )
        # a service whose experts PyTorch computes has measured nothing
        measured = "" if not limit else f"{_gigabytes(limit)} GB/s measured"
        computing = "" if busy is None else f"  computing {100 * busy:.0f} %"
        if achieved is None:
            state = "idle" if busy == 0 else f"achieved {_NOT_AVAILABLE}"
            return Text(f"{state}, {measured}{computing}" if measured else state, "dim")
        if not limit:
            return Text(f"{_gigabytes(achieved)} GB/s, limit {_NOT_AVAILABLE}{computing}")
        share = f"{_gigabytes(achieved)} of {measured} ({100 * achieved / limit:.0f} %)"
        return _bar_before(f"{share}{computing}", [(achieved / limit, "magenta")], ink, columns)

    def _hottest(self, ink: maps.Ink, columns: int) -> Text:
        if not self.snapshot.hottest:
            exported = maps.num_experts(self.snapshot.layers)
            return Text("no tokens" if exported else _NOT_AVAILABLE, "dim")
        found = []
        for hot in self.snapshot.hottest:
            mark = ink.all_resident if hot.resident else ""
            found.append(Text(f"L{hot.layer}/E{hot.expert} {100 * hot.share:.0f} %{mark}"))
        return _lines(found, columns)[0]

    def _legend(self, ink: maps.Ink, columns: int, *, with_words: bool) -> list[Text]:
        layers = self.snapshot.layers
        keys = [Text("q quit, m maps", "dim")] if self.live else []
        if not layers or not maps.num_experts(layers):
            reason = "the GPU service exports no selections by expert (--metrics-by-expert off)"
            if not layers:
                reason = "no layers are known"
            elif self.snapshot.window_seconds is None:
                reason = "no reading to compare with yet"
            return _lines([Text(f"map {_NOT_AVAILABLE}: {reason}", "dim"), *keys], columns)
        colours = Text(style="dim")
        if ink.colours:
            for step in range(8):
                red, green, blue = heat.colour(step, 7)
                colours.append(" ", f"on rgb({red},{green},{blue})")
        else:
            colours.append(f"[{maps.SHADES}]")
        colours.append(f" 0 to {maps.scale(layers):.1f} times the even share")
        flags = any(layer.resident is not None for layer in layers)
        words = [
            f"{ink.all_resident} on the device" if flags else "resident experts not exported",
            f"decayed: half-life {self.half_life_seconds:g} s",
            "% of selections by route: resident, streamed, remote (by the CPU expert service)",
            "imbal: the busiest expert over the mean",
        ]
        return _lines([colours, *keys, *(Text(each, "dim") for each in words[: None if with_words else 2])], columns)


def _lines(parts: Sequence[Text], columns: int) -> list[Text]:
    """Puts texts side by side, in as few lines as have room for them."""
    lines = [Text(no_wrap=True, overflow="ellipsis")]
    for part in parts:
        if lines[-1] and len(lines[-1]) + len(_GAP) + len(part) > columns:
            lines.append(Text(no_wrap=True, overflow="ellipsis"))
        lines[-1].append(_GAP if lines[-1] else "").append_text(part)
    return lines


def _bar_before(words: str, parts: list[tuple[float, str]], ink: maps.Ink, columns: int) -> Text:
    """A bar as long as the room before the words."""
    room = columns - _LABEL_COLUMNS - 1 - len(words)
    return _bar(parts, ink, max(_BAR_COLUMNS[0], min(room, _BAR_COLUMNS[-1]))).append(f" {words}")


def _line(label: str, content: Text) -> Text:
    return Text.assemble((f"{label:<{_LABEL_COLUMNS}}", "bold"), content, no_wrap=True, overflow="ellipsis")


def _state(service: Service | None) -> Text:
    if service is None:
        return Text("not asked", "dim")
    if service.error:
        return Text("does not answer", "red")
    return Text(urlsplit(service.url).netloc, "green")


def _bar(parts: list[tuple[float, str]], ink: maps.Ink, columns: int) -> Text:
    """A bar of shares, each with its style; the rest is dotted."""
    glyphs = "#=-" if ink.ascii_only else "█▓▒"
    bar = Text()
    end = 0.0
    for (share, style), glyph in zip(parts, glyphs, strict=False):
        end = min(1.0, end + share)
        bar.append(glyph * (round(end * columns) - len(bar)), style)
    return bar.append("." * (columns - len(bar)), "dim")


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
