"""Tests of what both processes share."""
