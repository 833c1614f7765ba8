"""The length of the context that --max-context auto gives."""

from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from gpu_service.model_runner.context import ContextLimit
from gpu_service.settings import Settings
from gpu_service.startup import model as module
from tests.support.model_of_cache import budget_of
from tests.support.pairs import DEMO


@pytest.mark.parametrize(("num_tokens", "tokens", "by"), [(4000, 1000, "what says so"), (600, 600, "--kv-memory")])
def test_the_context_is_the_models_as_far_as_one_sequence_has_memory(num_tokens: int, tokens: int, by: str) -> None:
    model: Any = SimpleNamespace(max_context=1000, context_limit=ContextLimit(1000, "what says so"))
    with capture_logs() as logs:
        module._fit_context(model, budget_of(4, tokens, num_tokens))
    assert model.max_context == tokens
    assert [(entry["event"], entry["tokens"], entry["limited_by"]) for entry in logs] == [
        ("context chosen", tokens, by)
    ]


def test_auto_or_a_number_of_tokens() -> None:
    assert Settings(model=DEMO).max_context == "auto"
    assert Settings(model=DEMO, max_context="512").max_context == 512
    for wrong in ("much", 1):
        with pytest.raises(ValueError, match='must be "auto" or at least 2'):
            Settings(model=DEMO, max_context=wrong)
