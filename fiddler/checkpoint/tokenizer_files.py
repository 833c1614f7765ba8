"""Whether a checkpoint has any file of a tokenizer. Reading the tokenizer takes transformers; this takes no time."""

from pathlib import Path
from typing import Final

from fiddler.checkpoint.errors import DirectoryError
from fiddler.checkpoint.hub_cache import snapshot_of
from fiddler.hub.names import locate

FAST: Final = "tokenizer.json"
CONFIG: Final = "tokenizer_config.json"
VOCABULARIES: Final = ("vocab.json", "merges.txt", "vocab.txt", "tekken.json")
HELP: Final = f"add the {FAST} of the same vocabulary, from the model's repository or from one that converted it"
NONE: Final = f"it has none: no {FAST} and no tokenizer.model; {HELP}"
_PATTERNS: Final = ("*.model", "*.tiktoken")


def models_in(directory: Path) -> list[Path]:
    """The vocabularies of sentencepiece and tiktoken in a directory."""
    return sorted(path for pattern in _PATTERNS for path in directory.glob(pattern))


def check_tokenizer(model: Path) -> None:
    """Refuses a checkpoint that has no file of a tokenizer at all. Whether those that it has suffice is not checked.

    Args:
        model: A directory, or what `locate` finds one for.

    Raises:
        DirectoryError: It has none. The text says what helps.
    """
    directory = snapshot_of(locate(model))
    files = (FAST, CONFIG, *VOCABULARIES)
    if not any((directory / name).exists() for name in files) and not models_in(directory):
        raise DirectoryError(f"{model}: cannot read the tokenizer: {NONE}")
