"""OpenMoE's tokenizer: umT5's vocabulary, and a padding token that begins every text, as it was trained.

The checkpoints contain a sentencepiece model, spiece.model, and code that puts the padding token first and no token
last, which transformers does not do. This module reads a tokenizer.json if there is one, such as umT5's own on the hub,
and otherwise spiece.model, without the sentencepiece library. The tokenizers library does the tokenizing.
"""

from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import import_protobuf

_PAD, _END = "<pad>", "</s>"
_UNIGRAM, _CONTROL, _USER_DEFINED = 1, 3, 4  # as sentencepiece_model.proto numbers them
_SPACE = "▁"


def load(directory: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a checkpoint.

    Raises:
        ValueError: There is none, or it is not OpenMoE's.
    """
    if (directory / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    elif (directory / "spiece.model").is_file():
        tokenizer = _from_sentencepiece(directory / "spiece.model")
    else:
        raise ValueError("it has neither tokenizer.json nor spiece.model; copy either from google/umt5-small")
    pad = tokenizer.token_to_id(_PAD)
    if pad is None or tokenizer.token_to_id(_END) is None:
        raise ValueError(f"it has no token {_PAD} or no token {_END}, which begin and end OpenMoE's texts")
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{_PAD} $A", special_tokens=[(_PAD, pad)])
    fast: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=_PAD,
        pad_token=_PAD,
        eos_token=_END,
        clean_up_tokenization_spaces=False,
    )
    assert isinstance(fast, PreTrainedTokenizerBase)
    return fast


def _from_sentencepiece(path: Path) -> Tokenizer:
    model = import_protobuf().ModelProto()  # type: ignore[no-untyped-call]
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        raise ValueError(f"{path.name} is not a sentencepiece model") from None
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    if trainer.model_type != _UNIGRAM or not model.pieces:
        raise ValueError(f"{path.name} is not a unigram model like umT5's")
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=trainer.unk_id, byte_fallback=trainer.byte_fallback))
    steps: list[Any] = []
    if normalizer.precompiled_charsmap:
        steps.append(normalizers.Precompiled(normalizer.precompiled_charsmap))
    if normalizer.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    scheme = "always" if normalizer.add_dummy_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme)
    metaspace = decoders.Metaspace(replacement=_SPACE, prepend_scheme=scheme)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), metaspace]) if trainer.byte_fallback else metaspace
    tokenizer.add_special_tokens([_added(piece) for piece in model.pieces if piece.type == _CONTROL])
    tokenizer.add_tokens([_added(piece) for piece in model.pieces if piece.type == _USER_DEFINED])
    return tokenizer


def _added(piece: Any) -> AddedToken:
    """A piece that is matched literally in a text."""
    return AddedToken(piece.piece, normalized=False, special=piece.type == _CONTROL)
