"""Sizes in bytes as people read them."""

_UNITS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def format_bytes(num_bytes: int) -> str:
    """Four digits in the largest unit that the size reaches, e.g. "1.5 GiB"."""
    for unit, name in _UNITS:
        if num_bytes >= unit:
            return f"{num_bytes / unit:.4g} {name}"
    return f"{num_bytes} bytes"
