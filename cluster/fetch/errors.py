"""What keeps a checkpoint from being fetched."""


class FetchError(RuntimeError):
    """The checkpoint can't be had; one line says why, and what to do."""


def brief(error: BaseException) -> str:
    """A library's error as the first line of what it says, bounded in length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
