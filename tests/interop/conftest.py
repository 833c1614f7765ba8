import pytest

from pair import Pair


@pytest.fixture
def served(pair: Pair) -> Pair:
    """A server of generations, with health and reflection."""
    return pair
