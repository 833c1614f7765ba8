"""Tests of the client with a server that answers by a script."""
