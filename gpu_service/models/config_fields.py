"""Checks the fields of a config.json for the model code in this package; transformers checks its own."""

from collections.abc import Iterable, Mapping
from typing import Any

Settings = Mapping[str, Any]


class FieldError(ValueError):
    """A field is missing or wrong. The text begins with the field's name."""


def require_counts(settings: Settings, names: Iterable[str]) -> None:
    """Requires each field to be a whole number of at least 1.

    Raises:
        FieldError: One is missing or wrong.
    """
    for name in names:
        require_present(settings, (name,))
        _check_whole_number(settings, name, 1)


def require_present(settings: Settings, names: Iterable[str]) -> None:
    """Requires each field to be there.

    Raises:
        FieldError: One is missing.
    """
    for name in names:
        if name not in settings:
            raise FieldError(f"{name}: is missing")


def allow_counts(settings: Settings, names: Iterable[str], least: int = 1) -> None:
    """Requires each field to be missing, null, or a whole number of at least `least`.

    Raises:
        FieldError: One is something else.
    """
    for name in names:
        if settings.get(name) is not None:
            _check_whole_number(settings, name, least)


def require_one_of(settings: Settings, name: str, values: Iterable[Any], *, default: Any) -> None:
    """Requires a field to have one of these values; `default` is its value if it is missing.

    Raises:
        FieldError: It has another value.
    """
    allowed = list(values)
    value = settings.get(name, default)
    if not any(type(value) is type(other) and value == other for other in allowed):
        raise FieldError(f"{name}: must be {' or '.join(map(repr, allowed))}, got {value!r}")


def require_number(settings: Settings, name: str, *, least: float, default: float) -> None:
    """Requires a field to be a number of at least `least`; `default` is its value if it is missing.

    Raises:
        FieldError: It is something else.
    """
    value = settings.get(name, default)
    if type(value) not in (int, float) or not value >= least:
        raise FieldError(f"{name}: must be a number of at least {least:g}, got {value!r}")


def require_at_most(settings: Settings, name: str, other: str) -> None:
    """Requires one whole number not to exceed another.

    Raises:
        FieldError: It does.
    """
    if settings[name] > settings[other]:
        raise FieldError(f"{name}: must be at most {other}, which is {settings[other]}, got {settings[name]}")


def require_divisor(settings: Settings, name: str, other: str) -> None:
    """Requires one whole number, if it is there and not null, to divide another.

    Raises:
        FieldError: It does not.
    """
    value = settings.get(name)
    if value is not None and settings[other] % value:
        raise FieldError(f"{name}: must divide {other}, which is {settings[other]}, got {value}")


def _check_whole_number(settings: Settings, name: str, least: int) -> None:
    value = settings[name]
    if type(value) is not int or value < least:
        raise FieldError(f"{name}: must be a whole number of at least {least}, got {value!r}")
