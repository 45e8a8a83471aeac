"""Parts of user-facing messages."""


def first_line(error: object) -> str:
    """First line of an error's text, at most 200 characters of it; the error's type where it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
