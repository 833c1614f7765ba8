"""What transformers raises and warns of while a model is read, built and loaded, reported as this service does."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers

from gpu_service.errors import ModelError
from gpu_service.model_runner.reading.config_reads import blame_failure, is_raised_by_model


@contextmanager
def reported_as(what: str, config: Any = None) -> Iterator[None]:
    """Turns any exception of transformers into a ModelError; it raises many types for files that are wrong."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())  # some texts have many lines
        if "padding_idx" in text.lower():
            raise ModelError(f"{what}: pad_token_id: must be null or a token id of the vocabulary") from error
        raise ModelError(f"{what}: {type(error).__name__}: {text}{blame_failure(error, config)}") from error


@contextmanager
def failures_of_models_reported(config: Any) -> Iterator[None]:
    """Turns what a model's own code raises while it computes a first token into a ModelError.

    Args:
        config: The model's configuration, which most likely has a wrong value.

    Raises:
        ModelError: The model's code raised something. Errors of this service's code stay as they are.
    """
    try:
        yield
    except Exception as error:
        if not is_raised_by_model(error):
            raise
        text = " ".join(str(error).split())
        raise ModelError(
            f"a token cannot be computed: {type(error).__name__}: {text}{blame_failure(error, config)}"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers, which reports the experts as unexpected; _check_report checks its report instead."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of tensors without elements
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
