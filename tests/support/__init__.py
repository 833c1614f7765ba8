"""Helpers of the tests, one subject a file."""
