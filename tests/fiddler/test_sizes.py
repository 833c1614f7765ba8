import pytest

from fiddler.sizes import format_bytes


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (3 * 2**19, "1.5 MiB"),
        (2**40 - 1, "1024 GiB"),
        (2**50, "1024 TiB"),
    ],
)
def test_a_size_is_written_in_the_largest_unit_that_it_reaches(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text
