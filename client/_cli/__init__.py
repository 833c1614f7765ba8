"""The command line of `python -m client`. The library does not import it; pyproject.toml has the contract."""
