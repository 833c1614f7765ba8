"""Stubs generated from protos/fiddler/v1 by `make protos`."""
