"""The root of the errors that a user can put right, and how a program recognises one."""


class UserError(Exception):
    """A flag, a file or a model is wrong, and the user can put it right.

    A program prints the text in one line, without a traceback, and exits with status 1. The text therefore names the
    flag or the file, and is complete without the error's type. Any other exception is a fault of the program itself:
    it keeps its traceback.
    """


def is_user_error(error: Exception) -> bool:
    """Whether the user can put an error right: a UserError, or the system's refusal of a file that it names."""
    return isinstance(error, UserError) or (isinstance(error, OSError) and error.filename is not None)
