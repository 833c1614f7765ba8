"""What random logits write under random schemas always validates. No model is needed: only masks and forced tokens."""

import json
import random
from typing import Any

import jsonschema
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fiddler.v1.generation_pb2 import GenerateRequest
from gpu_service.api.requests.constraints import constraint_of
from gpu_service.sampling.constraint import Constraint
from gpu_service.sampling.outputs import Ending
from gpu_service.settings import RequestLimits
from tests.support.constrained import EOS, TOKENIZER, VOCAB, RandomModel

MOST_TOKENS = 3000
_NAMES = st.text('ab_é "\\</', min_size=1, max_size=4)
_STRINGS = st.one_of(
    st.builds(
        lambda least, more: {"type": "string", "minLength": least, "maxLength": least + more},
        st.integers(0, 3),
        st.integers(0, 6),
    ),
    st.sampled_from([{"type": "string", "pattern": "^[a-c]{1,5}$"}, {"type": "string", "format": "date"}]),
)
_NUMBERS = st.one_of(
    st.builds(
        lambda kind, least, more: {"type": kind, "minimum": least, "maximum": least + more},
        st.sampled_from(["integer", "number"]),
        st.integers(-1000, 1000),
        st.integers(0, 500),
    ),
    st.just({"type": "integer"}),
)
_SCALARS = st.one_of(st.text('ab</s>"é', max_size=5), st.integers(-99, 99), st.booleans(), st.none())
_LEAVES = st.one_of(
    _STRINGS,
    _NUMBERS,
    st.sampled_from([{"type": "boolean"}, {"type": "null"}]),
    st.builds(lambda values: {"enum": values}, st.lists(_SCALARS, min_size=1, max_size=4)),
    st.builds(lambda value: {"const": value}, _SCALARS),
)


def _object(properties: dict[str, Any], optional: frozenset[int]) -> dict[str, Any]:
    required = [name for number, name in enumerate(properties) if number not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _larger(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.builds(_object, st.dictionaries(_NAMES, inner, max_size=4), st.frozensets(st.integers(0, 3))),
        st.builds(
            lambda items, least, more: {"type": "array", "items": items, "minItems": least, "maxItems": least + more},
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
    )


SCHEMAS = st.recursive(_LEAVES, _larger, max_leaves=6)


@settings(max_examples=500, suppress_health_check=list(HealthCheck), derandomize=True)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_what_is_written_validates(schema: dict[str, Any], seed: int) -> None:
    model: Any = RandomModel()
    grammar = constraint_of(GenerateRequest(json_schema=json.dumps(schema)), model, TOKENIZER, RequestLimits())
    assert grammar is not None
    ending = Ending(MOST_TOKENS, eos_ids=frozenset({EOS}))
    constraint = Constraint(grammar, ending=ending, eos_ids=frozenset({EOS}), vocab_size=VOCAB)
    jsonschema.validate(json.loads(_text(constraint, random.Random(seed))), schema)


def _text(constraint: Constraint, generator: random.Random) -> str:
    """What is drawn from the tokens that are allowed, the end included, as likely as each other."""
    tokens: list[int] = []
    while not constraint.is_complete:
        assert len(tokens) < MOST_TOKENS
        token = constraint.forced
        if token is None:
            allowed = np.flatnonzero(constraint.allowed()[0].numpy())
            token = EOS if EOS in allowed and generator.random() < 0.5 else int(generator.choice(allowed))
        if token == EOS:
            break
        tokens.append(token)
        constraint.add(token)
    return TOKENIZER.decode(tokens, skip_special_tokens=False)
