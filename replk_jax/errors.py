"""The text of errors."""


def error_text(error: BaseException) -> str:
    """What an error says, without Python's notation; never empty.

    An OSError becomes "FILE: reason", or the reason alone; an error without a message, the name of
    its type.
    """
    if isinstance(error, OSError) and error.strerror:
        file = error.filename2 or error.filename
        return error.strerror if file is None else f"{file}: {error.strerror}"
    if isinstance(error, KeyError) and len(error.args) == 1:
        return str(error.args[0]) or "KeyError"  # str(error) would put the message in quotes
    text = str(error)
    return text if text.strip() else type(error).__name__
