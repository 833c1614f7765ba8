"""Tests of `pair`, which launches both services."""
