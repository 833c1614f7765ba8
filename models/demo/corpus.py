"""The texts of the demo model: fetched from Debian packages by name, cleaned, cut into passages by topic.

Every text is in the public domain; README.md names each work, its package and its licence. This module knows how
each package stores its text and nothing about tokens or training. It needs `apt-get` and `dpkg-deb`, but not root.
"""

from __future__ import annotations

import gzip
import html
import re
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PASSAGE_CHARS = 1800  # A passage ends at the first paragraph that takes it past this: about one training context.
HELD_OUT_EVERY = 25  # One passage in 25 of every topic is never trained on.
PLAIN = str.maketrans(  # Curly quotes, dashes and such become what a keyboard has.
    {0x201C: '"', 0x201D: '"', 0x2018: "'", 0x2019: "'", 0x2014: "--", 0x2013: "-", 0x2026: "...", 0xA0: " "}
)


@dataclass(frozen=True)
class Source:
    """One Debian package and how its text becomes documents, each a list of paragraphs."""

    topic: str
    package: str
    read: Callable[[Path], Iterator[list[str]]]


@dataclass(frozen=True)
class Topic:
    """The passages of one topic, those trained on and those held out, and the packages they came from."""

    name: str
    train: list[str]
    held_out: list[str]
    packages: list[str]


def fetch(package: str, work: Path) -> tuple[Path, str]:
    """Downloads and unpacks a Debian package under `work`; returns its root and its name with version."""
    folder = work / "debian" / package
    root = folder / "root"
    if not root.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=True)
        archive = next(folder.glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive, root], check=True)
    name, version, _ = next(folder.glob("*.deb")).name.split("_")
    return root, f"{name} {version.replace('%3a', ':')}"


def one_line(text: str) -> str:
    """Joins hard-wrapped lines; drops underscores, which mark italics in the sources, and curly quotes."""
    return " ".join(text.translate(PLAIN).replace("_", "").split())


def paragraphs(text: str) -> list[str]:
    """Unwraps blank-line separated paragraphs, without headings and transcribers' marks."""
    blocks = (one_line(block) for block in re.split(r"\n\s*\n", text.replace("\r", "")))
    heading = re.compile(r"(?i)(chapter|volume|vol\.|book|part|finis|the end)\b.{0,60}$|\[|[^a-z]*$")
    return [block for block in blocks if not heading.match(block)]


def r_strings(path: Path) -> Iterator[str]:
    """The character vectors of an R lazy-load database: zlib members of XDR records, each string after its length."""
    data = path.read_bytes()
    while data:
        inflate = zlib.decompressobj()
        member = inflate.decompress(data[4:])  # Four bytes of length come first.
        data = inflate.unused_data
        position = 23  # Past the format header, which ends with the name of the native encoding.
        kind, count = struct.unpack_from(">II", member, position)
        position += 8
        if kind & 0x200:  # The vector carries attributes, which follow it.
            kind ^= 0x200
        assert kind == 16, f"{path}: not a character vector"
        lines = []
        for _ in range(count):
            (length,) = struct.unpack_from(">I", member, position + 4)
            lines.append(member[position + 8 : position + 8 + length].decode())
            position += 8 + length
        yield "\n".join(lines)


def novels(root: Path) -> Iterator[list[str]]:
    """Jane Austen's six novels, one R vector of lines each."""
    for novel in r_strings(root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"):
        start = re.search(r"(?im)^chapter (i|1)\b", novel)
        yield paragraphs(novel[start.end() if start else 0 :])


def whaling(root: Path) -> Iterator[list[str]]:
    """Moby Dick, without what Project Gutenberg put around it."""
    for book in r_strings(root / "usr/lib/R/site-library/tokenizers/data/Rdata.rdb"):
        yield paragraphs(book[book.index("Call me Ishmael") : book.index("End of Project Gutenberg")])


def scripture(root: Path) -> Iterator[list[str]]:
    """The King James Bible, a chapter each, out of OSIS markup in zlib blocks."""
    for blocks in sorted(root.glob("usr/share/sword/modules/texts/ztext/*/*.bzz"), reverse=True):
        data = blocks.read_bytes()
        index = struct.iter_unpack("<III", blocks.with_suffix(".bzs").read_bytes())
        text = "".join(zlib.decompress(data[at : at + size]).decode() for at, size, _ in index)
        text = re.sub(r"(?s)<(note|title)\b[^>]*?>.*?</\1>", "", text)
        for chapter in re.split(r"<chapter [^>]*sID[^>]*>", text)[1:]:
            parts = re.split(r'<div [^>]*type="x-p"/>|¶', chapter)
            yield [one_line(html.unescape(re.sub(r"<[^>]+>", "", part))) for part in parts]


def database_manual(root: Path) -> Iterator[list[str]]:
    """The running text of SQLite's documentation: no menus, listings, tables or diagrams, nothing twice."""
    seen: set[str] = set()
    for page in sorted(root.glob("usr/share/doc/sqlite3/**/*.html")):
        if re.search(r"crossref|requirements|keyword_index|syntaxdiagrams|sitemap|releaselog|fileformat2", str(page)):
            continue
        text = re.sub(r"(?s)<(svg|pre|script|style|table)\b.*?</\1>", "<p>", page.read_text(errors="replace"))
        text = re.sub(r"</?(?:a|b|i|em|tt|code|u|strong|span|sup|font)\b[^>]*>", "", text)
        kept = []
        for block in re.split(r"<[^>]+>", text):
            block = one_line(html.unescape(block).replace("_", "\0")).replace("\0", "_")
            if len(block) > 60 and block.endswith((".", ":")) and block not in seen:
                kept.append(block)
                seen.add(block)
        yield kept


def jargon(root: Path) -> Iterator[list[str]]:
    """The Jargon File, an entry each: "word, n. Definition", without pronunciations and link braces."""
    text = gzip.decompress((root / "usr/share/dictd/jargon.dict.dz").read_bytes()).decode(errors="replace")
    for entry in re.split(r"\n\n(?=\S)", text)[4:]:
        head, *body = re.split(r"\n\s*\n", entry)
        word, _, grammar = head.partition("\n")
        grammar = one_line(re.sub(r"/.*/,?", "", grammar))
        blocks = [one_line(re.sub(r"[{}]", "", block)) for block in body]
        if blocks and word.isprintable():
            yield [" ".join(filter(None, [f"{word}, {grammar}" if grammar else f"{word}:", blocks[0]])), *blocks[1:]]


def devils_dictionary(root: Path) -> Iterator[list[str]]:
    """Bierce's Devil's Dictionary, an entry each; verse keeps its lines."""
    text = gzip.decompress((root / "usr/share/dictd/devil.dict.dz").read_bytes()).decode(errors="replace")
    text = text[: text.rindex("\n\n")]  # A list of the letters that the file uses comes last.
    for entry in re.split(r"\n\n(?=[A-Z][A-Z' -]+, )", text)[1:]:
        blocks = [block for block in re.split(r"\n\s*\n", entry) if block.strip()]
        yield ["\n".join(map(one_line, block.splitlines())) if block.startswith("    ") else one_line(block)
               for block in blocks]  # fmt: skip


def optics(root: Path) -> Iterator[list[str]]:
    """Newton's Opticks, from its first advertisement on."""
    text = next(root.glob("usr/share/go-*/src/testdata/Isaac.Newton-Opticks.txt")).read_text(errors="replace")
    end = text.find("*** END OF")
    yield paragraphs(text[text.index("Advertisement I") : end if end > 0 else None])


SOURCES = (
    Source("novels", "r-cran-janeaustenr", novels),
    Source("whaling", "r-cran-tokenizers", whaling),
    Source("scripture", "sword-text-kjv", scripture),
    Source("database", "sqlite3-doc", database_manual),
    Source("lexicon", "dict-jargon", jargon),
    Source("lexicon", "dict-devil", devils_dictionary),
    Source("optics", "golang-1.19-src", optics),
)


def passages(documents: Iterable[list[str]]) -> Iterator[str]:
    """Cuts documents at paragraph ends into passages of about PASSAGE_CHARS."""
    for document in documents:
        kept: list[str] = []
        for paragraph in (text for text in document if len(text) > 2):
            kept.append(paragraph)
            if sum(map(len, kept)) >= PASSAGE_CHARS:
                yield "\n\n".join(kept)
                kept = []
        if kept and sum(map(len, kept)) > 80:
            yield "\n\n".join(kept)


def load(work: Path) -> list[Topic]:
    """Fetches every source into `work` (once) and returns its topics."""
    topics: dict[str, Topic] = {}
    for source in SOURCES:
        root, package = fetch(source.package, work)
        topic = topics.setdefault(source.topic, Topic(source.topic, [], [], []))
        topic.packages.append(package)
        for number, passage in enumerate(passages(source.read(root))):
            (topic.held_out if number % HELD_OUT_EVERY == 7 else topic.train).append(passage)
    return list(topics.values())
