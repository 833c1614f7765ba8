"""Tokenizers of Kimi, whose vocabulary is a file of tiktoken and whose rules are Python code, which is never run.

The file has the bytes and the rank of each token. Two things are missing in it. How texts are divided before tokens are
merged is an expression in the code: it is read there as a constant, without running anything, or is the known one if
the code is not there. The names of special tokens are in tokenizer_config.json; ids without a name are reserved.

Both together are a byte-level BPE of the tokenizers library. tiktoken merges the two adjacent tokens whose bytes
together have the lowest rank; so each way to divide a token into two others becomes a merge of that token's rank.
"""

import ast
import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, TokenizersBackend
from transformers.convert_slow_tokenizer import bytes_to_unicode

from fiddler.checkpoint.errors import ConfigError
from fiddler.checkpoint.json_file import read_json
from gpu_service.errors import ModelError

_CONFIG = "tokenizer_config.json"
_VOCABULARY = "tiktoken.model"
_CLASS = re.compile(r"(?:.*--)?(\w+)\.TikTokenTokenizer")
_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) (\d{1,9})")
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_BEFORE, _AFTER = r"[^\r\n\p{L}\p{N}]?", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        f"{_BEFORE}{_UPPER}*{_LOWER}+{_AFTER}",
        f"{_BEFORE}{_UPPER}+{_LOWER}*{_AFTER}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""How Kimi's code divides texts, for directories that lack the code."""
_NUM_SPECIAL = 258
"""Ids after those of the vocabulary that Kimi's code gives to special tokens."""
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
_BYTE_NAMES: dict[int, str] = bytes_to_unicode()  # type: ignore[no-untyped-call]


def is_kimi(directory: Path) -> bool:
    """Whether a checkpoint's tokenizer is Kimi's: its class by tokenizer_config.json, and the file of tiktoken.

    Raises:
        ConfigError: tokenizer_config.json cannot be read.
    """
    return (directory / _VOCABULARY).is_file() and _code_file(directory) is not None


def load(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint for which is_kimi holds. Special tokens in a text are those tokens.

    Raises:
        ModelError: A file is damaged. The text names the file and the line or field.
        ConfigError: tokenizer_config.json cannot be read.
    """
    config = read_json(directory / _CONFIG, ConfigError)
    ranks = _read_ranks(directory / _VOCABULARY)
    backend = Tokenizer(models.BPE(vocab=_named(ranks), merges=list(_merges(ranks)), ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_expression(directory), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(_special_tokens(config, len(ranks), directory))
    tokenizer: PreTrainedTokenizerBase = TokenizersBackend(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, **_names(config)
    )
    return tokenizer


def _expression(directory: Path) -> Regex:
    pattern = _pattern(directory)
    try:
        return Regex(pattern)
    except Exception as error:  # tokenizers raises no class of its own
        text = f"pat_str of the tokenizer's Python file, {pattern!r}, cannot be used: {error}"
        raise ModelError(f"{directory}: {text}") from None


def _code_file(directory: Path) -> str | None:
    """The name of the file that has Kimi's class, whether it is there or not; None if the class is another."""
    if not (directory / _CONFIG).is_file():
        return None
    auto_map = read_json(directory / _CONFIG, ConfigError).get("auto_map")
    classes = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map
    names = classes if isinstance(classes, list) else [classes]
    matches = (_CLASS.fullmatch(name) for name in names if isinstance(name, str))
    return next((f"{match[1]}.py" for match in matches if match), None)


def _read_ranks(path: Path) -> list[bytes]:
    """The tokens' bytes in the order of their ranks, which are their ids, too."""
    by_rank: dict[int, bytes] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        try:
            token = base64.b64decode(match[1], validate=True) if match else b""
        except binascii.Error:
            token = b""
        if match is None or not token:
            raise ModelError(f"{path}: line {number} must be a token in base64 and its rank: copy the file again")
        by_rank[int(match[2])] = token
    tokens = [by_rank[rank] for rank in sorted(by_rank)]
    if sorted(by_rank) != list(range(len(tokens))) or len(set(tokens)) != len(tokens):
        raise ModelError(f"{path}: tokens must be different, and ranks must count up from 0: copy the file again")
    if lacking := {bytes([byte]) for byte in range(256)} - set(tokens):
        raise ModelError(f"{path}: there is no token for the byte {min(lacking)!r}: copy the file again")
    return tokens


def _named(tokens: list[bytes]) -> dict[str, int]:
    """Ids by the names that a byte-level vocabulary gives to bytes."""
    return {_name(token): rank for rank, token in enumerate(tokens)}


def _name(token: bytes) -> str:
    return "".join(map(_BYTE_NAMES.__getitem__, token))


def _merges(tokens: list[bytes]) -> Iterator[tuple[str, str]]:
    """Every way to divide a token into two others, by the rank of the token."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    for token in tokens:
        halves = ((token[:place], token[place:]) for place in range(1, len(token)))
        known = [(left, right) for left, right in halves if left in ranks and right in ranks]
        for left, right in sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]])):
            yield _name(left), _name(right)


def _pattern(directory: Path) -> str:
    """The expression that divides texts, as a constant of the code; the known one if the code is not there."""
    path = directory / str(_code_file(directory))
    if not path.is_file():
        return _PATTERN
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise ModelError(f"{path}: is no Python file, of which pat_str would be read: {error}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "pat_str" for target in node.targets
        ):
            pattern = _constant(node.value)
            if pattern is None:
                break
            return pattern
    raise ModelError(f"{path}: has no pat_str that is a constant; remove the file if the tokenizer is Kimi-K2's")


def _constant(node: ast.expr) -> str | None:
    """The text that an expression of constants is: a text, or texts that are joined."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(joint)), attr="join"), args=[parts]):
            if isinstance(parts, ast.List | ast.Tuple):
                texts = [_constant(part) for part in parts.elts]
                known = [text for text in texts if text is not None]
                return joint.join(known) if len(known) == len(texts) else None
    return None


def _special_tokens(config: Mapping[str, Any], first: int, directory: Path) -> list[AddedToken]:
    """The special tokens in the order of their ids, which follow those of the vocabulary."""
    path = directory / _CONFIG
    added = config.get("added_tokens_decoder") or {}
    by_id: dict[int, Mapping[str, Any]] = {}
    for key, value in added.items() if isinstance(added, dict) else ():
        is_token = isinstance(value, dict) and isinstance(value.get("content"), str) and value["content"]
        if not key.isdecimal() or not is_token or not first <= int(key) < first + _NUM_SPECIAL:
            raise ModelError(
                f"{path}: added_tokens_decoder.{key} must be a token with content and with an id from {first} to "
                f"{first + _NUM_SPECIAL - 1}, which follow those of {_VOCABULARY}"
            )
        by_id[int(key)] = value
    tokens = []
    for token_id in range(first, first + _NUM_SPECIAL):
        value = by_id.get(token_id, {"content": f"<|reserved_token_{token_id}|>"})
        tokens.append(AddedToken(value["content"], special=bool(value.get("special", True)), normalized=False))
    if len({token.content for token in tokens}) != len(tokens):
        raise ModelError(f"{path}: added_tokens_decoder has two tokens of one name")
    size = _vocab_size(directory / "config.json")
    return tokens if size is None else tokens[: max(0, size - first)]


def _vocab_size(path: Path) -> int | None:
    """The model's number of tokens, which may be smaller than its tokenizer's: the last reserved ones are no tokens."""
    config = read_json(path, ConfigError) if path.is_file() else {}
    text = config.get("text_config")
    size = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    return size if type(size) is int else None


def _names(config: Mapping[str, Any]) -> dict[str, str]:
    """Which special token is the first of a text, the last, and so on."""
    names: dict[str, str] = {}
    for field in _NAMED:
        value = config.get(field)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            names[field] = content
    return names
