"""Tests of fiddler_checkup.bench."""
