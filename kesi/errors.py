"""The two kinds of error that a user can cause; a script turns each into one line and an exit code."""


class KesiError(Exception):
    """Something outside the program is wrong: a file, the data, the network, the disk. Exit code 1."""


class UsageError(KesiError):
    """An argument is wrong: an unknown name, a value out of range, settings that do not fit. Exit code 2."""
