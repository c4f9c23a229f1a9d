"""Reads the header by which a client sets a deadline for the first token."""

from starlette.types import Scope

from router.errors import ApiError

HEADER = "x-first-token-deadline-ms"
_MOST_MS = 3_600_000


def deadline_of(scope: Scope) -> float | None:
    """The deadline in seconds from the request's arrival; None without one. 400 if it is no number of milliseconds."""
    given = [value for name, value in scope["headers"] if name == HEADER.encode()]
    if not given:
        return None
    text = given[0].decode("latin-1").strip()
    if len(given) > 1 or not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= _MOST_MS and len(text) < 9):
        raise ApiError(
            400,
            f"{HEADER} must be one whole number of milliseconds from 1 to {_MOST_MS}",
            param=HEADER,
            code="invalid_deadline",
        )
    return int(text) / 1000
