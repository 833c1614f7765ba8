"""Tests of fiddler/hub."""
