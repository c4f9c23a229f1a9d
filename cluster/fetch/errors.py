"""The error of a checkpoint that can't be fetched."""


class FetchError(RuntimeError):
    """Raised when a checkpoint can't be fetched; its message says in one line why, and what to do."""


def brief(error: BaseException) -> str:
    """The first line of a library's error, bounded in length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
