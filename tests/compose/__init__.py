"""`make compose-test`: the images and compose.yaml as users get them, on a Docker engine with Compose v2.

Not part of `make test`. Each phase is a function of its own file; __main__.py runs them in order on one stack.
"""
