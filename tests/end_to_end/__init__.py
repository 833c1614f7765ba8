"""Tests through real processes and real sockets."""
