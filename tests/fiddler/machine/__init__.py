"""Tests of fiddler.machine."""
