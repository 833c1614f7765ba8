"""Tests of fiddler_checkup.doctor."""
