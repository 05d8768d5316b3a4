"""The two kinds of error that a user can cause (a script turns each into one line and an exit code), and a helper."""




class KesiError(Exception):
    """Something outside the program is wrong: a file, the data, the network, the disk. Exit code 1."""


class UsageError(KesiError):
    """An argument is wrong: an unknown name, a value out of range, settings that do not fit. Exit code 2."""


def first_line(error: BaseException) -> str:
    """What another library's error says, in at most 160 characters of one line; its type where it says nothing."""
    text = str(error).strip().splitlines()
    return (text[0][:160] if text else type(error).__name__).rstrip(".")
