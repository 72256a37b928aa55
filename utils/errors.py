"""The one exception that a user is meant to see."""


class InputError(Exception):
    """Something that the user gave cannot be used.

    The scripts print it as one line, without a traceback.
    """
