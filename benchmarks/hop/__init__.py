"""The hop between the services: one message to the CPU expert service and back, with nothing computed.

The real servicer, runner and client are compared with their lower bounds (a bare Unix socket, gRPC without our own
code) and with alternatives that were tried. Every variant has two processes of its own. Each round goes through all
variants, so that drift of the machine affects all of them.
"""
