"""What is wrong with a model that cannot be run."""


class ModelError(Exception):
    """The checkpoint cannot be run. The text says what is missing."""
