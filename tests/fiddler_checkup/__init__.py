"""Tests of fiddler_checkup."""
