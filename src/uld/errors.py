"""The one base class of every error that a user can cause.

The command line prints such an error as a single sentence and ends with exit code 2; a traceback is for bugs only.
"""


class ULDError(Exception):
    """Bad input: says what was wrong, where (file, line, flag), and how to mend it."""


class DataError(ULDError):
    """A file or a line of it cannot be used."""
