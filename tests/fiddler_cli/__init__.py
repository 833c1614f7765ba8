"""Tests of the command fiddler."""
