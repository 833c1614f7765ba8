"""The hop between the services: one message to the CPU expert service and back, with nothing computed.

The real servicer, runner and client, and beside them what bounds them (a bare Unix socket, gRPC without our own code)
and what was tried. Every variant has two processes of its own; rounds go through all of them, so that drift hits all.
"""
