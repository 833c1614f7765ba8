"""Builds protobuf requests from plain arguments. A value that does not fit its field is refused by name."""
