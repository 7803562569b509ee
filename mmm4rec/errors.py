"""The one exception a user may cause."""


class UserError(ValueError):
    """A mistake in the user's input: the message names the file, the row or key, and the way out.

    The command line prints the message alone, without a traceback. Programmers' mistakes are asserts.
    """
