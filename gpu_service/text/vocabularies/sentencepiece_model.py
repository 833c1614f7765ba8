"""What transformers leaves out when it builds a tokenizer from a sentencepiece model alone.

For a family with a tokenizer class of its own, that class knows. For others transformers builds a general tokenizer,
which ignores the model's own normalizer: the space before a text, and whether spaces in excess are dropped. Without the
space a text's first word becomes other tokens than those that the model was trained on.
"""

from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tokenizers import Regex, decoders, normalizers
from transformers import PreTrainedTokenizerBase, TokenizersBackend
from transformers.convert_slow_tokenizer import import_protobuf

_SPACE = "▁"


def complete(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Gives a general tokenizer the normalizer of the sentencepiece model that it was built from.

    Args:
        tokenizer: Changed in place if it is of transformers' general class and has such a model.
        directory: Holds the model.
    """
    path = directory / str(getattr(tokenizer, "vocab_file", None) or "tokenizer.model")
    if type(tokenizer) is not TokenizersBackend or not path.is_file() or (model := _read(path)) is None:
        return
    spec, backend = model.normalizer_spec, tokenizer.backend_tokenizer
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
        backend.decoder = decoders.Sequence([backend.decoder, decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])


def _read(path: Path) -> Any:
    model = import_protobuf().ModelProto()  # type: ignore[no-untyped-call]
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        return None
    return model
