"""Turns calls into requests and events into messages. Only `service.py` knows gRPC."""
