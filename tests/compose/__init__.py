"""`make compose-test`: tests the images and compose.yaml as users get them, on a Docker engine with Compose v2.

It is not part of `make test`. Each phase is a function; __main__.py runs them in order on one stack.
"""
