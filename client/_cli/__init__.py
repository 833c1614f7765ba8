"""The command line of `python -m client`; the library does not import it."""
